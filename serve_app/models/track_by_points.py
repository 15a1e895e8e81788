"""Points and boxes to masks over time: SAM 2's video model. Knows no job, no store, no Ray.

Every thing is followed in a session of its own, because things may be pointed at in different frames; the picture's
features, the costly part, are worked out once per frame for all of them. A thing is followed forwards from the first
frame in which it was pointed at, and backwards from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from configs.model_card import ModelCard
from serve_app.models.tap import Watch
from serve_app.models.tracking import (
    BoolArray,
    FrameClock,
    FramesOnDemand,
    Gathered,
    forget,
    full_size,
    mask_input,
    pieces_of,
    reach_of,
    require_fit,
)
from workflows.edit_doors import find_problems
from workflows.edit_ports import Box, Find, Point, ProgressCallback, Tracked
from workflows.errors import Problem, RenderRefused
from workflows.media.frames import UInt8Array

OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
"""Labels of points in SAM 2; a box is two points."""
OBJECT = 1
"""The one object of each session."""


@dataclass(slots=True, eq=False)
class Thing:
    """One thing to follow, and how it was pointed at."""

    points: dict[int, list[tuple[float, float, int]]] = field(default_factory=lambda: defaultdict(list))
    """Frame -> x, y in the frame's pixels, and label; a box's corners first."""
    mask_HW: BoolArray | None = None
    """Where it was in frame 0."""

    @property
    def first(self) -> int:
        """The frame from which it is followed."""
        return 0 if self.mask_HW is not None else min(self.points)


class PointTracker:
    """Implements `workflows.edit_ports.Tracker`. One call at a time, always on the same thread."""

    def __init__(self, card: ModelCard, model: Any, device: str, normalisation: tuple[Iterable[float], Iterable[float]],
                 ) -> None:
        """`normalisation`: `tracking.normalisation_of` the checkpoint."""
        self._card = card
        self._model = model
        self._device = device
        self._mean, self._std = normalisation
        self._side_px = int(model.image_size)

    def problems(self, find: Find) -> tuple[Problem, ...]:
        """See `Tracker`."""
        return find_problems(self._card, find)

    def track(self, frames_THWC: UInt8Array, find: Find, *, carried: UInt8Array | None = None,
              progress_callback: ProgressCallback | None = None, watch: Watch) -> Tracked:
        """See `Tracker`. Points and boxes beyond the frames are somebody else's; without any, `carried` is followed.

        Raises RenderRefused when there is neither.
        """
        require_fit(frames_THWC, carried, watch)
        if problems := self.problems(find):
            raise RenderRefused(node_id=watch.label, reason="; ".join(problem.render() for problem in problems))
        frames, height_px, width_px = frames_THWC.shape[:3]
        things = [*(Thing(mask_HW=piece) for piece in pieces_of(carried, find.instances)), *pointed_at(find, frames)]
        if not things and carried is None:
            raise RenderRefused(node_id=watch.label, reason=f"no point and no box lies in these {frames} frames, and "
                                                            "no mask is carried over from before them")
        gathered = Gathered(frames, height_px, width_px)
        best = self._follow(frames_THWC, things, gathered, progress_callback, watch)
        return gathered.tracked(find.instances, best_score=best, carried=carried)

    @torch.inference_mode()
    def _follow(self, frames_THWC: UInt8Array, things: list[Thing], gathered: Gathered,
                heard: ProgressCallback | None, watch: Watch) -> float:
        """Look at every frame, forwards and then backwards; the best score of anything."""
        frames = len(frames_THWC)
        sessions = self._sessions(frames_THWC, things)
        forwards = range(min((thing.first for thing in things), default=frames), frames)
        backwards = range(max((thing.first for thing in things), default=0) - 1, -1, -1)
        clock, best = FrameClock(len(forwards) + len(backwards), heard, watch), 0.0
        for frame in (*forwards, *backwards):
            is_back = clock.done >= len(forwards)
            for number, (thing, session) in enumerate(zip(things, sessions, strict=True)):
                if (frame < thing.first) is not is_back:
                    continue
                mask_HW, score = self._look(session, thing, frame, frames_THWC.shape[1:3], reverse=is_back)
                gathered.add(number, frame, mask_HW, score)
                best = max(best, score)
            clock.looked()
        return best

    def _look(self, session: Any, thing: Thing, frame: int, size: tuple[int, int], *, reverse: bool,
              ) -> tuple[BoolArray, float]:
        if frame in thing.points or (frame == 0 and thing.mask_HW is not None):
            session.obj_with_new_inputs = [OBJECT]
        output = self._model(inference_session=session, frame_idx=frame, reverse=reverse)
        forget(session, frame, reach=reach_of(self._model.config))
        score = float(output.object_score_logits.float().sigmoid().max())
        return full_size(output.pred_masks[0, 0], *size), score

    def _sessions(self, frames_THWC: UInt8Array, things: list[Thing]) -> list[Any]:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        height_px, width_px = frames_THWC.shape[1:3]
        dtype = self._model.dtype
        pixels = FramesOnDemand(frames_THWC, side_px=self._side_px, mean=self._mean, std=self._std, device=self._device,
                                dtype=dtype)
        sessions: list[Any] = []
        for thing in things:
            session = Sam2VideoInferenceSession(
                video_height=height_px, video_width=width_px, inference_device=self._device,
                inference_state_device=self._device, video_storage_device=self._device, dtype=dtype)
            session.processed_frames = pixels
            if sessions:
                session.cache = sessions[0].cache  # features of the frame that all of them look at
            index = session.obj_id_to_idx(OBJECT)
            for frame, points in thing.points.items():
                session.add_point_inputs(index, frame, self._point_inputs(points, height_px, width_px))
            if thing.mask_HW is not None:
                session.add_mask_inputs(index, 0, mask_input(thing.mask_HW, self._side_px, self._device))
                session.remove_point_inputs(index, 0)
            sessions.append(session)
        return sessions

    def _point_inputs(self, points: list[tuple[float, float, int]], height_px: int, width_px: int,
                      ) -> dict[str, torch.Tensor]:
        scale_x, scale_y = self._side_px / width_px, self._side_px / height_px
        coordinates = [[x * scale_x, y * scale_y] for x, y, _ in points]
        labels = [label for *_, label in points]
        return {"point_coords": torch.tensor([[coordinates]], dtype=self._model.dtype),
                "point_labels": torch.tensor([[labels]], dtype=torch.int32)}


def pointed_at(find: Find, frames: int) -> list[Thing]:
    """Things that points and boxes mean: one per box, with the points in it; all other points are one more.

    A point beside the thing counts for every thing that is pointed at in its frame.
    """
    things: list[Thing] = []
    boxed: list[tuple[Box, Thing]] = []
    for box in find.boxes:
        if 0 <= box.frame < frames:
            thing = Thing()
            thing.points[box.frame] += [(box.left, box.top, TOP_LEFT), (box.right, box.bottom, BOTTOM_RIGHT)]
            boxed.append((box, thing))
            things.append(thing)
    loose = Thing()
    for point in find.points:
        if point.inside and 0 <= point.frame < frames:
            around = next((thing for box, thing in boxed if _holds(box, point)), loose)
            around.points[point.frame].append((point.x, point.y, INSIDE))
    things += [loose] if loose.points else []
    for point in find.points:
        if not point.inside:
            for thing in things:
                if point.frame in thing.points:
                    thing.points[point.frame].append((point.x, point.y, OUTSIDE))
    return things


def _holds(box: Box, point: Point) -> bool:
    return box.frame == point.frame and box.left <= point.x < box.right and box.top <= point.y < box.bottom
