"""What an edit came to, measured on frames evenly spread over it, and drawn. Knows the files, no model.

Outside the mask it looks at the frame before encoding (no pixel may have changed) and at the finished file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workflows.edit_plan import REPORT, SAVE, SMOOTH
from workflows.media.flicker import Kept, Sample, WarpError, plot, psnr_outside, report, samples_of
from workflows.media.frames import OnProgress, UInt8Array
from workflows.media.lossless import read_lossless
from workflows.media.paste import paste
from workflows.media.source import describe, thread
from workflows.media.window import window
from workflows.stages.edit_bench import Bench, edits_of
from workflows.stages.render import integer
from workflows.types import MediaType, NodeResult


def measure(bench: Bench, on_progress: OnProgress) -> NodeResult:
    """Measure pairs of neighbouring frames; commits the numbers as JSON."""
    payload = bench.call.payload
    reel = bench.reel()
    track, masks = bench.track()
    source, feather_px = bench.payload_file("source"), integer(payload["feather_px"])
    result = bench.input(SAVE)
    shown = thread(result, first=0, frames=reel.frames, fps=describe(result).fps)
    warp = WarpError(track.size_px)
    samples: list[Sample] = []
    kept: list[Kept] = []
    places = _places(reel.frames, integer(payload["samples"]))
    for done, frame in enumerate(places, start=1):
        first = max(0, frame - 1)
        two = frame - first + 1
        frames = list(window(source, reel, first=first, frames=two))
        inside = list(masks.read(first=first, frames=two))
        smooth = list(read_lossless(bench.input(SMOOTH), first=first, frames=two))
        finished = list(window(result, shown, first=frame, frames=1))
        pasted = paste(frames[-1], smooth[-1], inside[-1], feather_px, (track, frame))
        kept.append(Kept(frame=frame, changed=_changed(pasted, frames[-1], inside[-1]),
                         psnr_db=psnr_outside(finished[0], frames[-1], inside[-1])))
        if two == 2 and not {first, frame} & track.empty:
            crops = [track.crop(one, first + place) for place, one in enumerate(frames)]
            cut = [track.crop_mask(one, first + place) for place, one in enumerate(inside)]
            edited = list(_edited(bench, first))
            errors = warp.between((crops[0], crops[1]), (cut[0], cut[1]),
                                  [(crops[0], crops[1]), (edited[0], edited[1]), (smooth[0], smooth[1])])
            if errors is not None:
                samples.append(Sample(frame=frame, source=errors[0], before=errors[1], after=errors[2]))
        on_progress(done, len(places))
    return bench.keep_json(report(samples, kept))


def draw(bench: Bench, on_progress: OnProgress) -> NodeResult:
    """Draw the report as a PNG."""
    with bench.scratch("plot.png") as path:
        plot(samples_of(bench.json(REPORT)), path)
        on_progress(1, 1)
        return bench.keep(path, MediaType.PNG)


def _places(frames: int, most: int) -> list[int]:
    if frames <= most:
        return list(range(frames))
    return sorted({round(place) for place in np.linspace(0, frames - 1, most)})


def _changed(one_HWC: UInt8Array, other_HWC: UInt8Array, mask_HW: UInt8Array) -> int:
    return int(np.count_nonzero((one_HWC != other_HWC).any(axis=2) & (mask_HW == 0)))


def _edited(bench: Bench, first: int) -> Iterator[UInt8Array]:
    """Frame `first` and the next as they were edited, both by one chunk."""
    chunk = next(chunk for chunk in reversed(edits_of(bench.call.payload)) if chunk.first <= first)
    return read_lossless(bench.input(chunk.node), first=first - chunk.first, frames=2)
