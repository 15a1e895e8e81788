"""Everything one card can do, loaded and warm: a painter per task, sharing weights. Knows no job, no store, no Ray."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from configs.model_card import ModelCard, Task
from configs.references import NativeReferences
from serve_app.models import options
from serve_app.models.image_to_video import ImageToVideo
from serve_app.models.ladder import Ladder
from serve_app.models.lifecycle import free_memory, is_out_of_memory
from serve_app.models.pipelines import LoadPipeline
from serve_app.models.placeholder import Placeholder
from serve_app.models.reference_input import GREY_HWC
from serve_app.models.remote import RemotePainter
from serve_app.models.repo import refused
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch, unheard
from serve_app.models.text_to_image import TextToImage
from serve_app.models.text_to_video import TextToVideo
from workflows.errors import Problem
from workflows.media.frames import UInt8Array
from workflows.types import Json

LONGER = "warm-up with a longer text, so that a compiled model has seen two lengths of it before anybody waits for it"

log = logging.getLogger(__name__)


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


def warm_up(studio: Mapping[Task, Painter], card: ModelCard, ladder: Ladder) -> None:
    """One step of every task at the default size and the shortest length, and two with a draft's cache where there is
    one; what it raises must keep the replica down.

    The default size, because kernels are chosen and memory is reserved by shape; the largest batch too. Nothing of a
    remote model: every call of it may cost money.
    """
    if card.loader == "remote":
        return
    for task, painter in studio.items():
        take = warm_up_take(card, task)
        plain = replace(take, references_HWC=())
        needs_pictures = isinstance(card.references, NativeReferences) and card.references.required
        for each in (take, *((plain,) if take.references_HWC and not needs_pictures else ())):
            for attempt in ladder.attempts(task, each.shape):
                with attempt:
                    painter.generate(each, progress_callback=unheard)
                    if card.options.compile != "none":
                        painter.generate(replace(each, prompt=LONGER), progress_callback=unheard)
        if card.draft and card.draft.cache:
            for attempt in ladder.attempts(task, take.shape):
                with attempt:
                    _try_cache(painter, take, card)
        if card.batch > 1 and isinstance(painter, TextToImage) and ladder.stand(task, plain.shape):
            _warm_up_batch(painter, plain, card)


def _warm_up_batch(painter: TextToImage, take: Take, card: ModelCard) -> None:
    """The largest batch once; one that does not fit is no reason to stay down, since smaller ones may."""
    try:
        painter.generate_many([take] * card.batch, progress_callback=unheard)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("%s: %d pictures at once do not fit the GPU; a smaller `batch` in the card saves the attempts",
                    card.name, card.batch)
    else:
        return
    free_memory()  # out here no traceback holds its tensors


def _try_cache(painter: Painter, take: Take, card: ModelCard) -> None:
    """Some denoisers have a cache and break in it; better now than in the first draft.

    The second of two steps is always guessed here.
    """
    try:
        painter.generate(replace(take, steps=2, cache_threshold=1.0), progress_callback=unheard)
    except (IndexError, TypeError, ValueError, AttributeError) as error:
        raise refused(card, "draft.cache", f"the model breaks in it: {type(error).__name__}: {error}",
                      "leave it out") from error


def warm_up_take(card: ModelCard, task: Task) -> Take:
    """The smallest call that is worth anything; of a compiled model one of the default length, since code is compiled
    for a shape.
    """
    width_px, height_px = card.defaults.width_px, card.defaults.height_px
    least = card.frames.min_frames if card.options.compile == "none" else card.defaults.frames
    frames = 1 if task is Task.TEXT_TO_IMAGE else card.frames.nearest(least)[0]
    grey = np.full((height_px, width_px, 3), 128, np.uint8) if task is Task.IMAGE_TO_VIDEO else None
    return Take(prompt="warm-up", width_px=width_px, height_px=height_px, frames=frames, fps=card.defaults.fps, steps=1,
                guidance=card.defaults.guidance, seed=0, picture_HWC=grey,
                references_HWC=(GREY_HWC,) if card.references is not None and task is Task.TEXT_TO_IMAGE else ())
