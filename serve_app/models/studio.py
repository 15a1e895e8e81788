"""Everything one card can do, loaded and warm: a painter per task, sharing weights. Knows no job, no store, no Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from configs.model_card import ModelCard, Task
from serve_app.models import options
from serve_app.models.image_to_video import ImageToVideo
from serve_app.models.pipelines import LoadPipeline
from serve_app.models.placeholder import Placeholder
from serve_app.models.remote import RemotePainter
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from serve_app.models.text_to_image import TextToImage
from serve_app.models.text_to_video import TextToVideo
from workflows.errors import Problem
from workflows.media.frames import UInt8Array
from workflows.types import Json

LONGER = "warm-up with a longer text, so that a compiled model has seen two lengths of it before anybody waits for it"


class Painter(Protocol):
    """One task of one loaded model. One call at a time, always on the same thread."""

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Why the take would be refused; empty when it would not."""

    def warnings(self, take: Take) -> tuple[str, ...]:
        """What of the take will not be seen in the result."""

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """frame_HWC for a picture, frames_THWC for a clip."""


class Studio(dict[Task, Painter]):
    """Task -> its painter."""

    used: dict[str, Json]
    """What is seen of the card's options in the loaded pipelines, for manifests."""


def open_studio(card: ModelCard, device: str, load: LoadPipeline) -> Studio:
    """Load every task of the card, weights that they have in common once. Raises InvalidDocument."""
    studio = Studio()
    studio.used = {}
    if card.loader == "placeholder":
        studio.update({task: Placeholder(card, task) for task in card.tasks})
        return studio
    if card.remote is not None:
        studio.update({task: RemotePainter(card, card.remote, task) for task in card.tasks})
        return studio
    components = None
    for task in card.tasks:
        pipe = load(card, task, device, components)
        components = {**(components or {}), **pipe.components}
        studio.used |= options.used(pipe, card)
        match task:
            case Task.TEXT_TO_IMAGE:
                studio[task] = TextToImage(pipe, card)
            case Task.TEXT_TO_VIDEO:
                studio[task] = TextToVideo(pipe, card)
            case Task.IMAGE_TO_VIDEO:
                studio[task] = ImageToVideo(pipe, card)
    return studio


def warm_up(studio: Mapping[Task, Painter], card: ModelCard) -> None:
    """One step of every task at the default size and the shortest length; what it raises must keep the replica down.

    The default size, because kernels are chosen and memory is reserved by shape. Nothing of a remote model: every call
    of it may cost money.
    """
    if card.loader == "remote":
        return
    for task, painter in studio.items():
        painter.generate(warm_up_take(card, task), progress_callback=_nobody)
        if card.options.compile != "none":
            painter.generate(replace(warm_up_take(card, task), prompt=LONGER), progress_callback=_nobody)


def warm_up_take(card: ModelCard, task: Task) -> Take:
    """The smallest call that is worth anything; of a compiled model one of the default length, since code is compiled
    for a shape.
    """
    width_px, height_px = card.defaults.width_px, card.defaults.height_px
    least = card.frames.min_frames if card.options.compile == "none" else card.defaults.frames
    frames = 1 if task is Task.TEXT_TO_IMAGE else card.frames.nearest(least)[0]
    grey = np.full((height_px, width_px, 3), 128, np.uint8) if task is Task.IMAGE_TO_VIDEO else None
    return Take(prompt="warm-up", width_px=width_px, height_px=height_px, frames=frames, fps=card.defaults.fps, steps=1,
                guidance=card.defaults.guidance, seed=0, picture_HWC=grey)


def _nobody(step: int, total_steps_count: int, current_timestep: float) -> None:
    """Keeps the pipeline's own bar away."""
