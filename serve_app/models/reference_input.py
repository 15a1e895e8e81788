"""Reference pictures in a pipeline's own words: an argument of its call, or an adapter's pictures and their weight.

Arrays: H height, W width, C = 3 colours; uint8, RGB, 0-255.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from configs.references import IpAdapter, NativeReferences, References, size_problem
from workflows.errors import Problem
from workflows.media.frames import UInt8Array

GREY_HWC: UInt8Array = np.full((224, 224, 3), 128, np.uint8)
"""What is looked at where there is no picture: an adapter wants one even when it is switched off."""


class ReferenceInput:
    """How one pipeline wants its reference pictures."""

    def __init__(self, pipe: DiffusionPipeline, part: References | None) -> None:
        """`part`: the card's `references`; None where the task takes none."""
        self._part = part
        self._pipeline = type(pipe).__name__
        # The encoder sees a square and cuts off what is outside; scaled to it, all of a picture is seen, as the
        # adapter's authors advise (https://github.com/tencent-ailab/IP-Adapter, best practice).
        self._side_px = pipe.image_encoder.config.image_size if isinstance(part, IpAdapter) else 0

    def card_problems(self, names: frozenset[str]) -> Iterator[Problem]:
        """Whether the pipeline's call has the argument that the card means."""
        argument = "ip_adapter_image" if isinstance(self._part, IpAdapter) else "image"
        if self._part is not None and argument not in names:
            yield Problem(field="references.kind", problem=f"{self._pipeline} has no argument `{argument}` to take "
                                                           f"pictures of kind {self._part.kind}")

    def problems(self, pictures: Sequence[UInt8Array]) -> Iterator[Problem]:
        """Why a call with these pictures would be refused."""
        most = 0 if self._part is None else self._part.max_pictures
        if len(pictures) > most:
            yield Problem(field="references", nearest=str(most),
                          problem=f"{len(pictures)} reference pictures, and this model takes {most}")
        for number, picture_HWC in enumerate(pictures, 1):
            problem, nearest = size_problem(picture_HWC.shape[1], picture_HWC.shape[0])
            if problem:
                yield Problem(field="references", problem=f"number {number} is {problem}", nearest=nearest)
        if not pictures and isinstance(self._part, NativeReferences) and self._part.required:
            yield Problem(field="references", problem="this model draws nothing without a reference picture",
                          nearest="1")

    def image(self, pictures: Sequence[UInt8Array]) -> Image.Image | list[Image.Image] | None:
        """The call's `image`."""
        if not isinstance(self._part, NativeReferences) or not pictures:
            return None
        drawn = [Image.fromarray(picture_HWC) for picture_HWC in pictures]
        return drawn[0] if self._part.max_pictures == 1 else drawn

    def ip_adapter_image(self, pictures: Sequence[UInt8Array]) -> list[list[Image.Image]] | None:
        """The call's `ip_adapter_image`: all pictures for the one adapter."""
        if not isinstance(self._part, IpAdapter):
            return None
        square = (self._side_px, self._side_px)
        return [[Image.fromarray(picture_HWC).resize(square, Image.Resampling.LANCZOS)
                 for picture_HWC in pictures or (GREY_HWC,)]]

    def weigh(self, pipe: DiffusionPipeline, pictures: int) -> None:
        """Before a call: the adapter's weight, which is 0 without a picture; then its layers are skipped."""
        if isinstance(self._part, IpAdapter):
            pipe.set_ip_adapter_scale(self._part.scale if pictures else 0.0)
