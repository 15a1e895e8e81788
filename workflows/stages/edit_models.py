"""The two stages of an edit that a model does, each in three parts: read what is needed, ask the model, keep it.

Only the middle one needs the model's thread; a replica may read and write beside it. Knows the ports, no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from workflows.edit_plan import EXTRACT
from workflows.edit_ports import (
    Box,
    EditTake,
    Find,
    FrameEditor,
    Point,
    ProgressCallback,
    Tracked,
    Tracker,
    WatchT,
)
from workflows.errors import MediaError, ModelFailed, RenderRefused
from workflows.media.frames import UInt8Array
from workflows.media.lossless import read_lossless, write_lossless
from workflows.media.masks import INSIDE, light, write_masks
from workflows.media.source import describe, thread
from workflows.media.window import read_window, window
from workflows.stages.edit_bench import Bench
from workflows.stages.render import integer, number
from workflows.types import Json, MediaType, NodeCall, NodeResult

DIGITS = 4
"""Of a score; beyond them libraries and processors differ."""


# -- finding ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One chunk as a tracker gets it; in a backward chunk time runs backward."""

    frames_THWC: UInt8Array
    find: Find
    carried: UInt8Array | None
    backward: bool


def is_given(call: NodeCall) -> bool:
    """Whether the masks of this chunk are given by a video: no model is needed."""
    return "mask_video" in call.payload


def read_search(bench: Bench) -> Search:
    """Read what a mask node looks at."""
    payload = bench.call.payload
    first, frames = integer(payload["first"]), integer(payload["frames"])
    backward = payload.get("backward") is True
    frames_THWC = read_window(bench.payload_file("source"), bench.reel(), first=first, frames=frames)
    carried = None
    if "carried" in payload:
        (node,) = [node for node in bench.call.inputs if node != EXTRACT]
        (carried,) = read_lossless(bench.input(node), first=integer(payload["carried"]), frames=1)
    find = find_of(payload)
    if backward:
        frames_THWC, find = np.ascontiguousarray(frames_THWC[::-1]), _reversed(find, frames)
    return Search(frames_THWC=frames_THWC, find=find, carried=carried, backward=backward)


def search(what: Search, tracker: Tracker[WatchT], *, progress_callback: ProgressCallback | None,
           watch: WatchT) -> Tracked:
    """Ask the tracker; its answer in the order of the video. Raises ModelFailed, and what the tracker raises."""
    tracked = tracker.track(what.frames_THWC, what.find, carried=what.carried, progress_callback=progress_callback,
                            watch=watch)
    if tracked.masks_THW.shape != what.frames_THWC.shape[:3] or tracked.masks_THW.dtype != np.uint8:
        raise ModelFailed(node_id="mask", reason=f"the tracker returned masks of {tracked.masks_THW.dtype} "
                                                 f"{tracked.masks_THW.shape} for frames of {what.frames_THWC.shape}")
    return replace(tracked, masks_THW=tracked.masks_THW[::-1]) if what.backward else tracked


def keep_masks(bench: Bench, tracked: Tracked) -> NodeResult:
    """Commit a chunk's masks; the artifact's score is the best that was seen."""
    with bench.scratch("masks.mkv") as path:
        write_masks(np.where(tracked.masks_THW > 0, np.uint8(INSIDE), np.uint8(0)), path)
        return bench.keep(path, MediaType.MKV, score=round(float(tracked.score), DIGITS),
                          report={"instances": tracked.instances, "score": round(float(tracked.score), DIGITS)})


def take_masks(bench: Bench) -> NodeResult:
    """Commit a chunk of the masks that the user gave."""
    payload = bench.call.payload
    video, reel = bench.payload_file("mask_video"), bench.reel()
    first, frames = integer(payload["first"]) + integer(payload["offset"]), integer(payload["frames"])
    told = describe(video)
    given = thread(video, first=0, frames=first + frames, fps=told.fps)
    if (given.width_px, given.height_px) != (reel.width_px, reel.height_px):
        raise MediaError(path=str(video), problem=f"masks of {given.width_px}x{given.height_px} px for a video of "
                                                  f"{reel.width_px}x{reel.height_px}")
    with bench.scratch("masks.mkv") as path:
        with write_lossless(path) as writer:
            for frame_HWC in window(video, given, first=first, frames=frames):
                writer.write(light(frame_HWC))
        return bench.keep(path, MediaType.MKV, score=1.0)


def find_of(payload: Mapping[str, Json]) -> Find:
    """What a mask node looks for."""
    points, boxes = payload["points"], payload["boxes"]
    if not isinstance(points, list) or not isinstance(boxes, list):
        raise ValueError("mask payload holds no lists of points and boxes")
    instances: Literal["all", "best"] = "best" if payload["instances"] == "best" else "all"
    return Find(
        prompt=str(payload["prompt"]), instances=instances,
        points=tuple(Point(frame=integer(row["frame"]), x=number(row["x"]), y=number(row["y"]),
                           inside=row["inside"] is True) for row in points if isinstance(row, dict)),
        boxes=tuple(Box(frame=integer(row["frame"]), left=number(row["left"]), top=number(row["top"]),
                        right=number(row["right"]), bottom=number(row["bottom"]))
                    for row in boxes if isinstance(row, dict)))


def _reversed(find: Find, frames: int) -> Find:
    last = frames - 1
    return replace(find, points=tuple(replace(point, frame=last - point.frame) for point in find.points),
                   boxes=tuple(replace(box, frame=last - box.frame) for box in find.boxes))


# -- editing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One chunk as an editor gets it: the crops in which there is something to edit."""

    take: EditTake
    crops_THWC: UInt8Array
    """All of the chunk."""
    wanted: tuple[int, ...]
    """Which of them are in the take."""


def read_sheet(bench: Bench) -> Sheet:
    """Read and cut what an edit node works on."""
    payload = bench.call.payload
    first, frames = integer(payload["first"]), integer(payload["frames"])
    reel = bench.reel()
    track, masks = bench.track()
    crops_THWC = np.empty((frames, track.size_px, track.size_px, 3), np.uint8)
    masks_THW = np.empty(crops_THWC.shape[:3], np.uint8)
    seen = zip(window(bench.payload_file("source"), reel, first=first, frames=frames),
               masks.read(first=first, frames=frames), strict=True)
    for place, (frame_HWC, mask_HW) in enumerate(seen):
        crops_THWC[place] = track.crop(frame_HWC, first + place)
        masks_THW[place] = track.crop_mask(mask_HW, first + place)
    wanted = tuple(place for place in range(frames) if first + place not in track.empty)
    take = EditTake(
        prompt=str(payload["prompt"]), negative_prompt=str(payload["negative_prompt"]),
        steps=integer(payload["steps"]), guidance=number(payload["guidance"]),
        image_guidance=number(payload["image_guidance"]), seed=integer(payload["seed"]) + bench.call.generation,
        frames_THWC=crops_THWC[list(wanted)], masks_THW=masks_THW[list(wanted)], fps=float(reel.fps))
    return Sheet(take=take, crops_THWC=crops_THWC, wanted=wanted)


def edit(sheet: Sheet, editor: FrameEditor[WatchT], *, progress_callback: ProgressCallback | None,
         watch: WatchT) -> UInt8Array:
    """Ask the editor; all crops of the chunk, those without anything to edit as they were.

    An editor is not asked about a chunk in which there is nothing. Raises RenderRefused, and what the editor raises.
    """
    if not sheet.wanted:
        return sheet.crops_THWC
    problems = editor.problems(sheet.take)
    if problems:
        raise RenderRefused(node_id="edit", reason="; ".join(problem.render() for problem in problems))
    edited_THWC = editor.edit(sheet.take, progress_callback=progress_callback, watch=watch)
    if edited_THWC.shape != sheet.take.frames_THWC.shape or edited_THWC.dtype != np.uint8:
        raise ModelFailed(node_id="edit", reason=f"the editor returned {edited_THWC.dtype} {edited_THWC.shape} for "
                                                 f"crops of {sheet.take.frames_THWC.shape}")
    whole = sheet.crops_THWC.copy()
    whole[list(sheet.wanted)] = edited_THWC
    return whole


def keep_edit(bench: Bench, edited_THWC: UInt8Array) -> NodeResult:
    """Commit a chunk's edited crops."""
    with bench.scratch("edit.mkv") as path:
        with write_lossless(path) as writer:
            for crop_HWC in edited_THWC:
                writer.write(crop_HWC)
        return bench.keep(path, MediaType.MKV)
