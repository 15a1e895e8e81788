"""From a model card to a diffusers pipeline: the only `from_pretrained` in reelray. Knows no job and no Ray.

Weights are read from safetensors files only, and no code that comes with a checkpoint is ever run.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from serve_app.models.repo import import_home, refused, resolve_repo

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class LoadPipeline(Protocol):
    """How a replica gets its pipelines; `load` below, or a test's own."""

    def __call__(self, card: ModelCard, task: Task, device: str,
                 components: Mapping[str, Any] | None = None) -> DiffusionPipeline:
        """See `load`."""


def load(card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None) -> DiffusionPipeline:
    """The card's pipeline for a task, on `device`, in the card's dtype.

    `components` are those of a pipeline already loaded for another task of the same card: what both classes have in
    common is shared, not read again. Raises InvalidDocument when the card names no pipeline class for the task or a
    wrong one, or when its weights are missing, incomplete or cannot be downloaded.
    """
    pipeline_class = find_class(card, task)
    where = resolve_repo(card)
    import_home(card)
    wanted = inspect.signature(pipeline_class.__init__).parameters
    shared = {name: part for name, part in (components or {}).items() if name in wanted and part is not None}
    # A replica's log is no terminal; its own line says how long loading took.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        pipe = pipeline_class.from_pretrained(
            str(where), revision=card.revision or None, dtype=DTYPES[card.dtype], use_safetensors=True,
            trust_remote_code=False, **shared)
    except (OSError, ValueError) as error:
        # OSError is also what the hub's own errors (offline, not found, gated) and a file with a wrong content raise.
        raise refused(card, "repo", _why_not_loaded(card, where, error)) from error
    return pipe.to(device)


def find_class(card: ModelCard, task: Task) -> type[DiffusionPipeline]:
    """The diffusers class that the card names for the task. Raises InvalidDocument with the nearest name."""
    field = f"pipelines.{task.value}"
    if task not in card.pipelines:
        raise refused(card, field, f"the card has no pipeline for {task.value}; it has {', '.join(card.tasks)}")
    name = card.pipelines[task]
    # A library's class by a name from a file: the one place where an attribute is looked up by text.
    found = getattr(diffusers, name, None) if name in dir(diffusers) else None
    if not (inspect.isclass(found) and issubclass(found, DiffusionPipeline)):
        known = [other for other in dir(diffusers) if other.endswith("Pipeline")]
        nearest = difflib.get_close_matches(name, known, n=1)
        raise refused(card, field, f"diffusers {diffusers.__version__} has no pipeline {name!r}",
                       nearest[0] if nearest else "")
    return found


def _why_not_loaded(card: ModelCard, where: Path | str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(where, Path):
        return f"{where} cannot be loaded: {reason}"
    revision = f" --revision {card.revision}" if card.revision else ""
    return (f"{where} is neither in the local cache nor can it be downloaded: {reason}. By hand: on a machine with "
            f"network run `hf download {where}{revision} --local-dir DIR`, bring DIR here and set `repo: DIR` "
            f"in a card of your own")
