"""Cards, clips and takes for tests of trackers and editors."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs.edit_rules import EditRules
from configs.model_card import CallDefaults, FrameRule, ModelCard, SizeRule, Task
from tests import tiny
from workflows.edit_ports import EditTake
from workflows.media.frames import UInt8Array

FRAMES = 8
SIDE_PX = 64
STEPS = 3


def moving_square(frames: int = FRAMES) -> UInt8Array:
    """A red square of 24 pixels on grey, moving right."""
    clip_THWC = np.full((frames, 72, 128, 3), 40, np.uint8)
    for frame in range(frames):
        clip_THWC[frame, 20:44, 10 + 5 * frame:34 + 5 * frame] = (220, 40, 40)
    return clip_THWC


def held_bytes() -> int:
    """What all tensors of this process take."""
    gc.collect()
    return sum(part.nbytes for part in gc.get_objects() if type(part) is torch.Tensor)


def tracker_card(repo: Path, pipeline: str = "Sam2VideoModel") -> ModelCard:
    """A card for a tiny tracker."""
    return ModelCard(name="tiny", title="tiny", loader="tracker", repo=str(repo), pipelines={Task.TRACK: pipeline},
                     defaults=CallDefaults(width_px=128, height_px=128))


def editor_card(family: str, directory: Path, pipeline: str, **edit: float) -> ModelCard:
    """A card for a tiny editor."""
    task = Task.EDIT_VIDEO if pipeline == "WanVACEPipeline" else Task.EDIT_FRAMES
    return ModelCard(
        name="tiny", title="tiny", repo=str(tiny.build(family, directory)), pipelines={task: pipeline},
        edit=EditRules.model_validate(edit), size=SizeRule(multiple_px=16, min_px=16, max_px=128),
        defaults=CallDefaults(width_px=SIDE_PX, height_px=SIDE_PX, steps=STEPS, guidance=3.0),
        frames=FrameRule(step=4, offset=1, max_frames=9))


def edit_take(frames: int = 4, **changes: object) -> EditTake:
    """Noise with a masked square in every frame but the last."""
    frames_THWC = np.random.default_rng(0).integers(0, 256, (frames, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    masks_THW = np.zeros((frames, SIDE_PX, SIDE_PX), np.uint8)
    masks_THW[:frames - 1, 16:40, 16:40] = 255
    take = EditTake(prompt="make it red", negative_prompt="", steps=STEPS, guidance=4.0, image_guidance=1.5, seed=3,
                    frames_THWC=frames_THWC, masks_THW=masks_THW, fps=8.0)
    return replace(take, **changes)
