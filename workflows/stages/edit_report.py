"""What an edit came to, measured on frames evenly spread over it, and drawn. Knows the files, no model.

Outside the mask it looks at the frame before encoding (no pixel may have changed) and at the finished file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from workflows.edit_plan import REPORT, SAVE, SMOOTH
from workflows.media.crop_track import CropTrack
from workflows.media.flicker import Kept, Sample, WarpError, plot, psnr_outside, report, samples_of
from workflows.media.frames import OnProgress, UInt8Array
from workflows.media.lossless import read_lossless
from workflows.media.paste import paste
from workflows.media.reel import Reel
from workflows.media.source import describe, thread
from workflows.media.window import window
from workflows.stages.edit_bench import Bench, edits_of
from workflows.stages.render import integer
from workflows.types import MediaType, NodeResult

RUNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One frame, as everybody had it."""

    frame: int
    source_HWC: UInt8Array
    mask_HW: UInt8Array
    edited_HWC: UInt8Array
    """The crop as the editor left it."""
    smooth_HWC: UInt8Array
    """The crop after smoothing."""
    result_HWC: UInt8Array


def measure(bench: Bench, on_progress: OnProgress) -> NodeResult:
    """Measure each frame of some runs and the pairs of neighbours in them; commits the numbers as JSON."""
    reel = bench.reel()
    track, _ = bench.track()
    feather_px = integer(bench.call.payload["feather_px"])
    warp = WarpError(track.size_px)
    samples: list[Sample] = []
    kept: list[Kept] = []
    runs = _runs(reel.frames, integer(bench.call.payload["samples"]))
    total = sum(frames for _, frames in runs)
    for first, frames in runs:
        before: _Row | None = None
        for row in _rows(bench, reel, first, frames):
            pasted = paste(row.source_HWC, row.smooth_HWC, row.mask_HW, feather_px, (track, row.frame))
            kept.append(Kept(frame=row.frame, changed=_changed(pasted, row.source_HWC, row.mask_HW),
                             psnr_db=psnr_outside(row.result_HWC, row.source_HWC, row.mask_HW)))
            if before is not None and (sample := _compared(warp, track, before, row)) is not None:
                samples.append(sample)
            before = row
            on_progress(len(kept), total)
    return bench.keep_json(report(samples, kept))


def draw(bench: Bench, on_progress: OnProgress) -> NodeResult:
    """Draw the report as a PNG."""
    with bench.scratch("plot.png") as path:
        plot(samples_of(bench.json(REPORT)), path)
        on_progress(1, 1)
        return bench.keep(path, MediaType.PNG)


def _runs(frames: int, most: int) -> list[tuple[int, int]]:
    """First frame and length of runs of neighbouring frames, evenly spread: few places to go to in a long video."""
    if frames <= most:
        return [(0, frames)]
    length = max(2, most // RUNS)
    return [(round(place), length) for place in np.linspace(0, frames - length, RUNS)]


def _rows(bench: Bench, reel: Reel, first: int, frames: int) -> Iterator[_Row]:
    _, masks = bench.track()
    result = bench.input(SAVE)
    shown = thread(result, first=0, frames=reel.frames, fps=describe(result).fps)
    together = zip(window(bench.payload_file("source"), reel, first=first, frames=frames),
                   masks.read(first=first, frames=frames), _edited(bench, first, frames),
                   read_lossless(bench.input(SMOOTH), first=first, frames=frames),
                   window(result, shown, first=first, frames=frames), strict=True)
    for place, (source, mask, edited, smooth, finished) in enumerate(together):
        yield _Row(frame=first + place, source_HWC=source, mask_HW=mask, edited_HWC=edited, smooth_HWC=smooth,
                   result_HWC=finished)


def _compared(warp: WarpError, track: CropTrack, before: _Row, after: _Row) -> Sample | None:
    if {before.frame, after.frame} & track.empty:
        return None
    crops = track.crop(before.source_HWC, before.frame), track.crop(after.source_HWC, after.frame)
    masks = track.crop_mask(before.mask_HW, before.frame), track.crop_mask(after.mask_HW, after.frame)
    errors = warp.between(crops, masks, [crops, (before.edited_HWC, after.edited_HWC),
                                         (before.smooth_HWC, after.smooth_HWC)])
    return None if errors is None else Sample(frame=after.frame, source=errors[0], before=errors[1], after=errors[2])


def _changed(one_HWC: UInt8Array, other_HWC: UInt8Array, mask_HW: UInt8Array) -> int:
    return int(np.count_nonzero((one_HWC != other_HWC).any(axis=2) & (mask_HW == 0)))


def _edited(bench: Bench, first: int, frames: int) -> Iterator[UInt8Array]:
    """The crops of these frames as they were edited; where two chunks overlap, the later one's."""
    edits = edits_of(bench.call.payload)
    for place, chunk in enumerate(edits):
        end = edits[place + 1].first if place + 1 < len(edits) else chunk.end
        begin, end = max(chunk.first, first), min(end, first + frames)
        if begin < end:
            yield from read_lossless(bench.input(chunk.node), first=begin - chunk.first, frames=end - begin)
