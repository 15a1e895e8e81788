"""Pictures as vectors, by a picture model of transformers on the CPU. Loaded when it is asked for the first time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.model_card import ModelCard
from workflows.media.frames import UInt8Array

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Pictures in one call of the model."""


class CardEmbedder:
    """Implements `workflows.stages.score.Embedder` for a card with `loader: embedding`; callable from any thread."""

    def __init__(self, card: ModelCard, *, fetch: bool = False) -> None:
        """Loads nothing yet: torch costs a process seconds and memory, and most films have no reference pictures.

        `fetch`: files that are not here are brought here first.
        """
        self._card = card
        self._fetch = fetch
        self._lock = threading.Lock()
        self._parts: tuple[Any, Any] | None = None

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest of the card."""
        return self._card.name, self._card.digest()

    def vectors(self, pictures: Sequence[UInt8Array]) -> list[list[float]]:
        """One vector of length 1 per picture, which is scaled to the model's square: all of it is seen.

        Raises InvalidDocument when the model is not here or cannot be loaded.
        """
        import torch
        from PIL import Image

        with self._lock, torch.inference_mode():  # one at a time: the model uses all cores
            model, processor = self._loaded()
            side_px = self._card.defaults.width_px
            found: list[list[float]] = []
            for start in range(0, len(pictures), AT_ONCE):
                images = [Image.fromarray(picture_HWC).resize((side_px, side_px), Image.Resampling.LANCZOS)
                          for picture_HWC in pictures[start:start + AT_ONCE]]
                pixels_BCHW = processor(images=images, do_resize=False, do_center_crop=False,
                                        return_tensors="pt").pixel_values
                features_NC = torch.nn.functional.normalize(_features(model(pixels_BCHW)).float(), dim=-1)
                found += features_NC.tolist()
        return found

    def _loaded(self) -> tuple[Any, Any]:
        if self._parts is None:
            from serve_app.models import adapters
            from serve_app.models.pipelines import load_embedding

            if self._fetch:
                adapters.ensure(self._card, say=log.info)
            self._parts = load_embedding(self._card)
        return self._parts


def _features(output: Any) -> torch.Tensor:
    """A projection where the model has one (CLIP), else the pooled or the class token (DINOv2)."""
    projected = output.get("image_embeds")
    features: torch.Tensor = output.pooler_output if projected is None else projected
    return features
