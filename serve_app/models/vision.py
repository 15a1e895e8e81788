"""torchvision, which some models of transformers need and most machines do not: there, or a refusal that says why."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from configs.chat_card import AnyCard
from serve_app.models.repo import refused


def require_torchvision(card: AnyCard, field: str) -> None:
    """Raise InvalidDocument naming `field` when torchvision is missing, or is one for another torch.

    It is no dependency of reelray: its builds belong to exact builds of torch, and the wrong one breaks the import of
    every model of transformers that looks at pictures.
    """
    wanted = f"the one made for torch {torch.__version__}"
    if importlib.util.find_spec("torchvision") is None:
        raise refused(card, field, "this model needs the package torchvision, which is not installed; install "
                                   f"{wanted}: pip install torchvision, from the index that torch came from")
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refused(card, field, f"this model needs the package torchvision, and the one that is installed does not "
                                   f"go with torch {torch.__version__} ({first}); install {wanted}, from the index "
                                   "that torch came from") from error
