"""What surrounds a pipeline's call: the tap before it, its tensor as uint8 frames after it. Knows no card, no job.

Arrays: B or T frames, H height, W width, C = 3 colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import DiffusionPipeline

from serve_app.models.lifecycle import seeded
from serve_app.models.step_cache import step_cache
from serve_app.models.takes import Take
from serve_app.models.tap import ProgressCallback, SchedulerTap, Watch
from workflows.errors import ModelFailed
from workflows.media.frames import UInt8Array


@contextmanager
def tapped(pipe: DiffusionPipeline, *, seed: int, progress_callback: ProgressCallback | None, watch: Watch,
           cache_threshold: float | None = None) -> Iterator[torch.Generator]:
    """Around one call of the pipeline, made with the generator that this yields and with `output_type="pt"`.

    Without a callback the pipeline shows its own tqdm bar. The call raises RenderCancelled and DeadlineExceeded from
    the tap.
    """
    generator = seeded(seed)
    # Without settings the pipeline decides itself, and in a process group only rank 0 shows a bar.
    bar = {} if progress_callback is None else {"disable": True}
    pipe.set_progress_bar_config(**bar)
    with step_cache(pipe, cache_threshold), SchedulerTap(
            pipe, callback=progress_callback, watch=watch, generator=generator):
        yield generator


@contextmanager
def tapped_many(pipe: DiffusionPipeline, *, seeds: Sequence[int], progress_callback: ProgressCallback | None,
                watch: Watch) -> Iterator[list[torch.Generator]]:
    """`tapped` for one call that makes several pictures: a generator for each, so that its noise is its own seed's."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with tapped(pipe, seed=seeds[0], progress_callback=progress_callback, watch=watch):
        yield generators


class Unison:
    """Generators that always draw the same, as one: for the tap, which keeps and restores the state of a call's own."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = tuple(generators)

    def get_state(self) -> torch.Tensor:
        """Of each of them."""
        return self._generators[0].get_state()

    def set_state(self, state: torch.Tensor) -> None:
        """To each of them."""
        for generator in self._generators:
            generator.set_state(state)


@contextmanager
def tapped_alike(pipe: DiffusionPipeline, *, seed: int, count: int, progress_callback: ProgressCallback | None,
                 watch: Watch) -> Iterator[list[torch.Generator]]:
    """`tapped` for one call on `count` pictures that all get the same noise, as each would alone."""
    generators = [seeded(seed) for _ in range(count)]
    pipe.set_progress_bar_config(**({} if progress_callback is None else {"disable": True}))
    with SchedulerTap(pipe, callback=progress_callback, watch=watch, generator=Unison(generators)):
        yield generators


def to_frames(pictures_BCHW: torch.Tensor, take: Take, *, label: str) -> UInt8Array:
    """Float pictures 0..1 as frames_THWC, rounded on the device so that a quarter of the bytes come over.

    Raises ModelFailed for numbers that are not finite, and for another shape than the take asked for.
    """
    return to_pixels(pictures_BCHW, (take.frames, take.height_px, take.width_px), label=label)


def to_pixels(pictures_BCHW: torch.Tensor, shape_THW: tuple[int, int, int], *, label: str) -> UInt8Array:
    """As `to_frames`, for so many frames, rows and columns."""
    found = tuple(pictures_BCHW.shape)
    asked = (shape_THW[0], 3, *shape_THW[1:])
    if found != asked:
        raise ModelFailed(node_id=label, reason=f"the model returned pictures of shape {found}, "
                                                f"asked for were {asked} (frames, 3, height, width)")
    if not bool(torch.isfinite(pictures_BCHW).all()):
        raise ModelFailed(node_id=label, reason="the model returned NaN or infinite pixels; with dtype float16 try "
                                                "bfloat16 or float32 in its card")
    frames_THWC = pictures_BCHW.float().mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    frames: UInt8Array = frames_THWC.contiguous().cpu().numpy()
    return frames
