"""A model without weights: the prompt's text on a colour, for layouts and for shots that have no picture yet."""

from __future__ import annotations

from configs.model_card import ModelCard, Task
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, SafeCallback, Watch
from workflows.errors import Problem
from workflows.media.frames import UInt8Array
from workflows.media.stills import slate, slate_clip


class Placeholder:
    """Answers like any model, in one step."""

    def __init__(self, card: ModelCard, task: Task) -> None:
        self._card = card
        self._task = task

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Where the take breaks the card's size and length rules."""
        return take.problems(self._card)

    def warnings(self, take: Take) -> tuple[str, ...]:
        """None: who asks for a placeholder gets one."""
        return ()

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """Draw frame_HWC for a picture, frames_THWC for a clip; `progress_callback(0, 1, 0.0)` once."""
        watch.check()
        text = take.prompt.strip() or "no prompt"
        if self._task is Task.TEXT_TO_IMAGE:
            pixels = slate(text, width_px=take.width_px, height_px=take.height_px)
        else:
            pixels = slate_clip(text, width_px=take.width_px, height_px=take.height_px, frames=take.frames,
                                detail=f"{take.frames} frames at {take.fps:g} fps")
        watch.beat()
        SafeCallback(progress_callback, label=watch.label)(0, 1, 0.0)
        watch.check()
        return pixels
