"""One pipeline call under the tap, and its tensor as uint8 frames. Shared by the task classes; knows no card, no job.

Arrays: B or T frames, H height, W width, C = 3 colours.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline

from serve_app.models.lifecycle import seeded
from serve_app.models.takes import PipelineCall, Take
from serve_app.models.tap import ProgressCallback, SchedulerTap, Watch
from workflows.errors import ModelFailed
from workflows.media.frames import UInt8Array


def run(pipe: DiffusionPipeline, call: PipelineCall, *, seed: int, progress_callback: ProgressCallback | None,
        watch: Watch) -> Any:
    """Call the pipeline and return its output object, pictures as tensors 0..1.

    Without a callback the pipeline shows its own tqdm bar. Raises RenderCancelled and DeadlineExceeded from the tap,
    and whatever the pipeline raises.
    """
    generator = seeded(seed)
    pipe.set_progress_bar_config(disable=progress_callback is not None)
    with SchedulerTap(pipe, callback=progress_callback, watch=watch, generator=generator):
        return pipe(**call.kwargs(), generator=generator, output_type="pt")


def to_frames(pictures_BCHW: torch.Tensor, take: Take, *, label: str) -> UInt8Array:
    """Float pictures 0..1 as frames_THWC, rounded on the device so that a quarter of the bytes come over.

    Raises ModelFailed for numbers that are not finite, and for another shape than the take asked for.
    """
    found = tuple(pictures_BCHW.shape)
    asked = (take.frames, 3, take.height_px, take.width_px)
    if found != asked:
        raise ModelFailed(node_id=label, reason=f"the model returned pictures of shape {found}, "
                                                f"asked for were {asked} (frames, 3, height, width)")
    if not bool(torch.isfinite(pictures_BCHW).all()):
        raise ModelFailed(node_id=label, reason="the model returned NaN or infinite pixels; with dtype float16 try "
                                                "bfloat16 or float32 in its card")
    frames_THWC = pictures_BCHW.float().mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    frames: UInt8Array = frames_THWC.contiguous().cpu().numpy()
    return frames
