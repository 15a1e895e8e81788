"""Text to one picture. Knows no job, no store, no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from serve_app.models.render import tapped, tapped_many, to_frames
from serve_app.models.takes import Dialect, Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from workflows.errors import Problem
from workflows.media.frames import UInt8Array


class TextToImage:
    """A loaded text-to-image pipeline, or a video pipeline asked for one frame. One call at a time."""

    def __init__(self, pipe: DiffusionPipeline, card: ModelCard) -> None:
        """Raises InvalidDocument when card and pipeline do not fit."""
        self._pipe = pipe
        self._dialect = Dialect(pipe, card, Task.TEXT_TO_IMAGE)

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Why the take would be refused; empty when it would not."""
        found = self._dialect.problems(take)
        return found if take.frames == 1 else (*found, Problem(field="frames", problem="a picture is 1 frame",
                                                               nearest="1"))

    def warnings(self, take: Take) -> tuple[str, ...]:
        """What of the take will not be seen in the picture."""
        return ()

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """Render frame_HWC (uint8 RGB).

        `progress_callback(step, total_steps_count, current_timestep)` is called after each denoising step, with step
        from 0; without it the pipeline shows a tqdm bar. An exception in it is logged once and changes nothing.
        """
        # 1. say it in the pipeline's words   2. run it under the tap   3. make pixels
        self._dialect.guide(self._pipe, take)
        call = self._dialect.call(take)
        with tapped(self._pipe, seed=take.seed, progress_callback=progress_callback, watch=watch,
                    cache_threshold=take.cache_threshold) as generator:
            output = self._pipe(**call.kwargs(), generator=generator, output_type="pt")
        pictures_BCHW = output.frames[0] if "frames" in output else output.images
        frame_HWC: UInt8Array = to_frames(pictures_BCHW, take, label=watch.label)[0]
        return frame_HWC

    def generate_many(self, takes: Sequence[Take], *, progress_callback: ProgressCallback | None = None,
                      watch: Watch = UNWATCHED) -> list[UInt8Array]:
        """Render one frame_HWC per take in one call of the pipeline; each as `generate` would, but for rounding.

        The takes differ in prompt, negative prompt and seed only, and all or none have a negative prompt.
        """
        self._dialect.guide(self._pipe, takes[0])
        call = self._dialect.call_many(takes)
        with tapped_many(self._pipe, seeds=[take.seed for take in takes], progress_callback=progress_callback,
                         watch=watch) as generators:
            output = self._pipe(**call.kwargs(), generator=generators, output_type="pt")
        pictures_BCHW = output.frames[:, 0] if "frames" in output else output.images
        return [to_frames(pictures_BCHW[index:index + 1], take, label=watch.label)[0]
                for index, take in enumerate(takes)]
