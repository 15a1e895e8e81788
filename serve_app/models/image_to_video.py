"""A first frame, and a prompt where the model reads one, to a clip. Knows no job, no store, no Ray."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from serve_app.models.render import tapped, to_frames
from serve_app.models.takes import Dialect, Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from workflows.errors import Problem
from workflows.media.frames import UInt8Array


class ImageToVideo:
    """A loaded image-to-video pipeline. One call at a time."""

    def __init__(self, pipe: DiffusionPipeline, card: ModelCard) -> None:
        """Raises InvalidDocument when card and pipeline do not fit."""
        self._pipe = pipe
        self._dialect = Dialect(pipe, card, Task.IMAGE_TO_VIDEO)

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Why the take would be refused; empty when it would not."""
        found = self._dialect.problems(take)
        size = None if take.picture_HWC is None else take.picture_HWC.shape[:2]
        if size == (take.height_px, take.width_px):
            return found
        given = "none" if size is None else f"{size[1]}x{size[0]}"
        return (*found, Problem(field="first_frame", problem=f"needs a picture of the clip's own size, got {given}",
                                nearest=f"{take.width_px}x{take.height_px}"))

    def warnings(self, take: Take) -> tuple[str, ...]:
        """What of the take will not be seen in the clip."""
        if take.prompt and not self._dialect.takes_prompt:
            return ("this model reads no prompt: the motion follows the first frame alone",)
        return ()

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """Render frames_THWC (uint8 RGB) that start from the take's picture.

        `progress_callback(step, total_steps_count, current_timestep)` is called after each denoising step, with step
        from 0; without it the pipeline shows a tqdm bar. An exception in it is logged once and changes nothing.
        """
        # 1. say it in the pipeline's words   2. run it under the tap   3. make pixels
        self._dialect.guide(self._pipe, take)
        call = self._dialect.call(take)
        with tapped(self._pipe, seed=take.seed, progress_callback=progress_callback, watch=watch,
                    cache_threshold=take.cache_threshold) as generator:
            output = self._pipe(**call.kwargs(), generator=generator, output_type="pt")
        return to_frames(output.frames[0], take, label=watch.label)
