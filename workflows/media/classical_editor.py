"""`classical`: recolours what the mask holds, without weights. It paints nothing new: shapes, light and texture stay.

The same crops and prompt give the same result. Colours are changed in CIE L*a*b*, where lightness and hue are apart
as the eye has them: the hue becomes the one asked for, lightness goes half of the way, and what differs from pixel to
pixel stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.edit_ports import EditTake, ProgressCallback, Watching
from workflows.errors import Problem, RenderRefused
from workflows.media.colour_names import COLOURS, colour_word, words_of
from workflows.media.frames import UInt8Array

VERBS = frozenset({"make", "turn", "paint", "colour", "color", "recolour", "recolor", "dye", "change"})
SHADES = {"brighter": 18.0, "lighter": 18.0, "darker": -18.0}
"""Words for another lightness, in steps of L*."""
PLAIN = frozenset({"monochrome", "colourless", "colorless"})
TOWARDS = 0.5
"""Share of the way to the new colour's lightness."""
TEXTURE = 0.35
"""Share of the colour's differences from pixel to pixel that stays."""
WHITEST = 100.0

CAN = f"`make it red` with one of {', '.join(COLOURS)}; or `make it brighter`, `darker` or `monochrome`"


@dataclass(frozen=True, slots=True)
class _Paint:
    """What a prompt asks for."""

    rgb: tuple[int, int, int] | None = None
    lightness: float = 0.0
    plain: bool = False


class ClassicalEditor:
    """The editor that needs no model."""

    def problems(self, take: EditTake) -> tuple[Problem, ...]:
        """What it cannot do."""
        return self.prompt_problems(take.prompt, take.negative_prompt)

    def prompt_problems(self, prompt: str, negative_prompt: str) -> tuple[Problem, ...]:
        """What it cannot do of these texts, and what it can."""
        problems = []
        if _paint_of(prompt) is None:
            problems.append(Problem(field="edit_prompt", problem=(
                f"{prompt[:60]!r}: the classical editor recolours and does nothing else"), nearest=CAN))
        if negative_prompt.strip():
            problems.append(Problem(field="negative_prompt", problem="the classical editor takes none", nearest="none"))
        return tuple(problems)

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None, watch: Watching) -> UInt8Array:
        """The crops with what is inside the masks recoloured; what is outside comes back as it was.

        Raises RenderRefused for what `problems` names.
        """
        paint, refused = _paint_of(take.prompt), self.problems(take)
        if paint is None or refused:
            raise RenderRefused(node_id="classical", reason="; ".join(one.render() for one in refused))
        mean = _mean_lab(take)
        edited_THWC = take.frames_THWC.copy()
        for number, frame_HWC in enumerate(edited_THWC):
            watch.check()
            lab = _painted(_lab(frame_HWC), paint, mean)
            rgb = np.rint(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255).clip(0, 255).astype(np.uint8)
            np.copyto(frame_HWC, rgb, where=take.masks_THW[number][..., None] > 0)
            if progress_callback is not None:
                progress_callback(number + 1, len(edited_THWC), 0.0)
        return edited_THWC


def _paint_of(prompt: str) -> _Paint | None:
    """What a prompt asks for; None: something else than a recolouring."""
    words = words_of(prompt)
    if not words or (len(words) > 1 and words[0] not in VERBS):
        return None
    last = words[-1]
    if last in SHADES:
        return _Paint(lightness=SHADES[last])
    if last in PLAIN or words[-3:] == ["black", "and", "white"]:
        return _Paint(plain=True)
    name = colour_word(last)
    return None if name is None else _Paint(rgb=COLOURS[name].rgb)


def _lab(frame_HWC: UInt8Array) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(frame_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def _mean_lab(take: EditTake) -> NDArray[np.float32]:
    """The mean colour of all that is inside the masks: one for all frames, or the result would flicker."""
    total, count = np.zeros(3), 0
    for frame_HWC, mask_HW in zip(take.frames_THWC, take.masks_THW, strict=True):
        inside = frame_HWC[mask_HW > 0]
        total += inside.sum(axis=0, dtype=np.float64)
        count += len(inside)
    mean = np.rint(total / max(count, 1)).astype(np.uint8).reshape(1, 1, 3)
    return np.asarray(_lab(mean)[0, 0], np.float32)


def _painted(lab: NDArray[np.float32], paint: _Paint, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    if paint.rgb is not None:
        aim = _lab(np.array([[paint.rgb]], np.uint8))[0, 0]
        lab[..., 0] += TOWARDS * (aim[0] - mean[0])
        lab[..., 1:] = aim[1:] + TEXTURE * (lab[..., 1:] - mean[1:])
    elif paint.plain:
        lab[..., 1:] = 0
    lab[..., 0] = np.clip(lab[..., 0] + paint.lightness, 0, WHITEST)
    return lab
