"""What a card does in the editing of videos, loaded and warm: a tracker or an editor. Knows no job, no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from configs.model_card import ModelCard, Task
from serve_app.models import options, pipelines, weights
from serve_app.models.editors import LoadedEditor, editor_class
from serve_app.models.pipelines import LoadPipeline
from serve_app.models.tap import Watch, unheard
from serve_app.models.track_by_points import PointTracker
from serve_app.models.track_by_text import TextTracker
from serve_app.models.tracking import LoadedTracker, LoadTracker, normalisation_of
from workflows.edit_ports import Box, EditTake, Find
from workflows.types import Json


@dataclass(slots=True, eq=False)
class Workbench:
    """What one replica can do."""

    tracker: LoadedTracker | None = None
    editor: LoadedEditor | None = None
    used: dict[str, Json] = field(default_factory=dict)
    """What is seen of the card's options in the loaded pipeline, for manifests."""

    def the_tracker(self) -> LoadedTracker:
        """For who knows that the card tracks."""
        assert self.tracker is not None
        return self.tracker

    def the_editor(self) -> LoadedEditor:
        """For who knows that the card edits."""
        assert self.editor is not None
        return self.editor


def open_workbench(card: ModelCard, device: str, load: LoadPipeline = pipelines.load,
                   load_tracker: LoadTracker = pipelines.load_tracker) -> Workbench:
    """Load what the card does. Raises InvalidDocument."""
    (task,) = card.tasks
    if task is Task.TRACK:
        return Workbench(tracker=open_tracker(card, device, load_tracker))
    kind = editor_class(card, task)
    pipe = load(card, task, device)
    return Workbench(editor=kind(pipe, card), used=options.used(pipe, card))


def open_tracker(card: ModelCard, device: str, load: LoadTracker = pipelines.load_tracker) -> LoadedTracker:
    """The card's tracker. Raises InvalidDocument."""
    model, processor = load(card, device)
    if card.finds_by == "text":
        return TextTracker(card, model, processor, device)
    return PointTracker(card, model, device, normalisation_of(weights.require(card)))


def warm_up(bench: Workbench, card: ModelCard, watch: Watch) -> None:
    """One small call; what it raises must keep the replica down.

    An editor at the default size and with as many frames as go into one call, because kernels are chosen and memory is
    reserved by shape.
    """
    side_px = card.defaults.width_px
    if bench.tracker is not None:
        whole = Box(frame=0, left=side_px / 4, top=side_px / 4, right=side_px * 3 / 4, bottom=side_px * 3 / 4)
        find = Find(prompt="warm-up") if card.finds_by == "text" else Find(boxes=(whole,))
        bench.tracker.track(np.full((2, side_px, side_px, 3), 128, np.uint8), find, carried=None,
                            progress_callback=unheard, watch=watch)
    if bench.editor is not None:
        at_once = card.edit.frames_at_once if card.edit is not None else 1
        frames = at_once if card.tasks == (Task.EDIT_FRAMES,) else card.frames.nearest(card.frames.min_frames)[0]
        take = EditTake(
            prompt="warm-up", negative_prompt="", steps=1, guidance=card.defaults.guidance, seed=0, fps=16.0,
            image_guidance=(card.edit.image_guidance if card.edit is not None else None) or 1.0,
            frames_THWC=np.full((frames, side_px, side_px, 3), 128, np.uint8),
            masks_THW=np.full((frames, side_px, side_px), 255, np.uint8))
        bench.editor.edit(take, progress_callback=unheard, watch=watch)
