"""How much an edit flickers, and whether it kept to its mask: measured on samples, told as numbers and drawn as a plot.

Warp error: the mean difference of grey values between a crop and the one before it, moved as the source moved, where
the motion is sure and the mask is (W.-S. Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018, section
4.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from workflows.media.decode import write_png
from workflows.media.frames import UInt8Array
from workflows.media.steady import FlowReader, moved
from workflows.types import Json

SURE = 128
"""Confidence from which on a pixel's motion is trusted."""
PEAK = 255
BEST_DB = 100.0
"""Said for pictures without any difference, whose ratio is infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was measured between a frame of the edit and the one before."""

    frame: int
    source: float
    """Warp error of the source itself: what no smoothing should go below."""
    before: float
    """Of the edit as the model made it."""
    after: float
    """Of the edit after smoothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What happened outside the mask in one frame."""

    frame: int
    changed: int
    """Pixels that are not what they were, before encoding."""
    psnr_db: float
    """Of the encoded result against the source."""


class WarpError:
    """Measures crops of one size; keeps OpenCV's buffers."""

    def __init__(self, side_px: int) -> None:
        self._reader = FlowReader(side_px)

    def between(self, source: tuple[UInt8Array, UInt8Array], masks: tuple[UInt8Array, UInt8Array],
                rows: Sequence[tuple[UInt8Array, UInt8Array]]) -> tuple[float, ...] | None:
        """The warp error of each row, earlier crop and later, in grey values; None: nothing can be compared.

        `source` and `masks`: the same two crops of the source and of the mask.
        """
        motion = self._reader.between(*source)
        there = cv2.bitwise_and(moved(masks[0], motion), masks[1])
        sure = (motion.confidence >= SURE) & (there == PEAK)
        if not sure.any():
            return None
        errors = []
        for earlier, later in rows:
            now = cv2.cvtColor(later, cv2.COLOR_RGB2GRAY)
            then = cv2.cvtColor(moved(earlier, motion), cv2.COLOR_RGB2GRAY)
            errors.append(float(cv2.absdiff(now, then)[sure].mean()))
        return tuple(errors)


def psnr_outside(one_HWC: UInt8Array, other_HWC: UInt8Array, mask_HW: UInt8Array) -> float:
    """Peak signal to noise ratio in dB of all pixels outside the mask."""
    outside = mask_HW == 0
    if not outside.any():
        return BEST_DB
    error = float(np.mean(cv2.absdiff(one_HWC, other_HWC)[outside].astype(np.float32) ** 2))
    return BEST_DB if error == 0 else min(BEST_DB, 10 * math.log10(PEAK**2 / error))


def report(samples: Sequence[Sample], kept: Sequence[Kept]) -> dict[str, Json]:
    """The numbers as plain data; `warp_error` is None where nothing could be compared."""
    warp: Json = None
    if samples:
        source, before, after = (
            sum(getter) / len(samples) for getter in (
                [sample.source for sample in samples], [sample.before for sample in samples],
                [sample.after for sample in samples]))
        warp = {"source": round(source, 4), "before": round(before, 4), "after": round(after, 4),
                "ratio": round(after / before, 4) if before else None}
    noise = sum(10 ** (-row.psnr_db / 10) for row in kept) / len(kept) if kept else 0.0
    outside: Json = None if not kept else {
        "changed_pixels": sum(row.changed for row in kept), "psnr_db": round(-10 * math.log10(noise), 2),
        "worst_psnr_db": round(min(row.psnr_db for row in kept), 2)}
    return {"warp_error": warp, "outside_mask": outside,
            "samples": [{"frame": sample.frame, "source": round(sample.source, 4), "before": round(sample.before, 4),
                         "after": round(sample.after, 4)} for sample in samples],
            "kept": [{"frame": row.frame, "changed_pixels": row.changed, "psnr_db": round(row.psnr_db, 2)}
                     for row in kept]}


PLOT_PX = (960, 420)
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 60, 20, 40, 40
LINES = (("source", (120, 120, 120)), ("before", (200, 60, 40)), ("after", (30, 110, 190)))
INK, FAINT, PAPER = (40, 40, 40), (225, 225, 225), 255


def plot(numbers: Sequence[Sample], to: Path) -> None:
    """Draw the warp errors over the frames as a PNG. Raises MediaError when it cannot be written."""
    width, height = PLOT_PX
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    top_value = max([1.0, *(max(row.source, row.before, row.after) for row in numbers)]) * 1.05
    last = max([1, *(row.frame for row in numbers)])
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = round(height - BOTTOM_PX - share * (height - TOP_PX - BOTTOM_PX))
        cv2.line(canvas, (LEFT_PX, y), (width - RIGHT_PX, y), FAINT, 1)
        _write(canvas, f"{share * top_value:.1f}", (8, y + 4), INK)
        x = round(LEFT_PX + share * (width - LEFT_PX - RIGHT_PX))
        _write(canvas, str(round(share * last)), (x - 10, height - 14), INK)
    _write(canvas, "warp error inside the mask, grey values, by frame", (LEFT_PX, 22), INK)
    values = {"source": [row.source for row in numbers], "before": [row.before for row in numbers],
              "after": [row.after for row in numbers]}
    for place, (name, colour) in enumerate(LINES):
        _write(canvas, name, (width - 260 + 85 * place, 22), colour)
        points = [(LEFT_PX + row.frame / last * (width - LEFT_PX - RIGHT_PX),
                   height - BOTTOM_PX - value / top_value * (height - TOP_PX - BOTTOM_PX))
                  for row, value in zip(numbers, values[name], strict=True)]
        if points:
            cv2.polylines(canvas, [np.rint(points).astype(np.int32)], isClosed=False, color=colour, thickness=2,
                          lineType=cv2.LINE_AA)
    write_png(canvas, to)


def samples_of(report_data: Json) -> list[Sample]:
    """The samples of a report as plain data; ValueError for what `report` never writes."""
    rows = report_data.get("samples") if isinstance(report_data, dict) else None
    if not isinstance(rows, list):
        raise ValueError("a flicker report holds no list of samples")
    return [Sample(frame=int(str(row["frame"])), source=float(str(row["source"])), before=float(str(row["before"])),
                   after=float(str(row["after"]))) for row in rows if isinstance(row, dict)]


def _write(canvas: UInt8Array, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
