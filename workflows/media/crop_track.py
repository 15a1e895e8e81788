"""One square of fixed size that follows a region through a whole edit, and the crops that it cuts. Knows no model.

A fixed size means one shape for every batch and no jitter of scale; a smoothed centre means none of place. Crops are
cut at fractions of a pixel, so that a slow pan does not step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.media.frames import UInt8Array
from workflows.types import Json

Float64Array = NDArray[np.float64]
BoxPx = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are the first outside."""
SMOOTH_S = 0.25
"""Standard deviation of the Gaussian over centres."""
REACH = 4
"""The Gaussian ends after so many standard deviations."""
LEAST_SIDE_PX = 32
SHARP_SCALE = 0.5
"""Smaller scales than this leave pixels out when they are interpolated; they are averaged first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CropTrack:
    """Where the square is in each frame."""

    side_px: float
    """Of the square, in pixels of the video."""
    size_px: int
    """Of the crops."""
    centres: tuple[tuple[float, float], ...]
    """Per frame: pixels from the left and from the top, of the square's middle."""
    empty: frozenset[int]
    """Frames in which there is nothing to edit."""

    def matrix(self, frame: int) -> Float64Array:
        """From places in the frame to places in its crop, 2x3; places are middles of pixels."""
        scale = self.size_px / self.side_px
        x, y = self.centres[frame]
        half = self.side_px / 2
        return np.array([[scale, 0, (0.5 - x + half) * scale - 0.5], [0, scale, (0.5 - y + half) * scale - 0.5]])

    def crop(self, frame_HWC: UInt8Array, frame: int) -> UInt8Array:
        """What the square shows; beyond the picture its last pixels go on."""
        return _warped(frame_HWC, self.matrix(frame), self.size_px, cv2.INTER_LINEAR)

    def crop_mask(self, mask_HW: UInt8Array, frame: int) -> UInt8Array:
        """The mask in the square, 0 or 255; beyond the picture there is nothing."""
        return np.asarray(cv2.warpAffine(mask_HW, self.matrix(frame), (self.size_px, self.size_px),
                                         flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT), np.uint8)

    def to_json(self) -> dict[str, Json]:
        """As plain data; centres to a thousandth of a pixel."""
        empty: list[Json] = [*sorted(self.empty)]
        return {"side_px": self.side_px, "size_px": self.size_px, "empty": empty,
                "centres": [[round(x, 3), round(y, 3)] for x, y in self.centres]}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> CropTrack:
        """The inverse of `to_json`; ValueError for what that never writes."""
        centres, empty = data["centres"], data["empty"]
        if not isinstance(centres, list) or not isinstance(empty, list):
            raise ValueError("a crop track holds no lists of centres and empty frames")
        return cls(side_px=float(str(data["side_px"])), size_px=int(str(data["size_px"])),
                   centres=tuple((float(str(row[0])), float(str(row[1]))) for row in centres if isinstance(row, list)),
                   empty=frozenset(int(str(number)) for number in empty))


def follow(boxes: Sequence[BoxPx | None], *, size: tuple[int, int], margin: float, fps: float,
           crop_px: int) -> CropTrack:
    """The track for these boxes (None: nothing in that frame), in frames of `size` (width, height).

    Its square is the largest box plus `margin` of it, and holds every box whole. ValueError without any box.
    """
    found = [(number, box) for number, box in enumerate(boxes) if box is not None]
    if not found:
        raise ValueError("there is no box to follow")
    largest = max(max(right - left, bottom - top) for _, (left, top, right, bottom) in found)
    side = min(max(largest * (1 + margin), float(LEAST_SIDE_PX), largest + 2.0), float(max(size)))
    at = np.array([number for number, _ in found], np.float64)
    lines = []
    for axis in (0, 1):
        middles = np.array([(box[axis] + box[axis + 2]) / 2 for _, box in found])
        every = np.interp(np.arange(len(boxes)), at, middles)
        lines.append(_held(_smoothed(every, SMOOTH_S * fps), boxes, axis, side, size[axis]))
    centres = tuple((round(float(x), 3), round(float(y), 3)) for x, y in zip(*lines, strict=True))
    return CropTrack(side_px=side, size_px=crop_px, centres=centres,
                     empty=frozenset(number for number, box in enumerate(boxes) if box is None))


def _smoothed(line: Float64Array, sigma: float) -> Float64Array:
    reach = max(1, round(REACH * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    padded = np.pad(line, reach, mode="edge")
    return np.asarray(np.convolve(padded, weights / weights.sum(), mode="valid"))


def _held(line: Float64Array, boxes: Sequence[BoxPx | None], axis: int, side: float, length: int) -> Float64Array:
    """Centres such that each box lies in its square, and the square in the picture as far as it fits."""
    half = side / 2
    held = line.copy()
    for number, box in enumerate(boxes):
        if box is not None:
            held[number] = min(max(held[number], box[axis + 2] - half), box[axis] + half)
    return np.clip(held, half, length - half) if side <= length else np.full_like(held, length / 2)


def _warped(frame_HWC: UInt8Array, matrix: Float64Array, size_px: int, flags: int) -> UInt8Array:
    scale = matrix[0, 0]
    if scale < SHARP_SCALE:
        factor = int(1 / scale)
        height, width = frame_HWC.shape[0] // factor, frame_HWC.shape[1] // factor
        frame_HWC = np.asarray(cv2.resize(frame_HWC[:height * factor, :width * factor], (width, height),
                                          interpolation=cv2.INTER_AREA), np.uint8)
        # x in the small frame is (X + 0.5) / factor - 0.5 of the large one.
        shift = (factor - 1) / 2
        matrix = np.column_stack([matrix[:, :2] * factor, matrix[:, 2] + matrix[:, :2].sum(axis=1) * shift])
    return np.asarray(cv2.warpAffine(frame_HWC, matrix, (size_px, size_px), flags=flags,
                                     borderMode=cv2.BORDER_REPLICATE), np.uint8)
