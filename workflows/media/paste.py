"""An edited crop back into its frame: only inside the mask, fading in from its edge. Knows RGB arrays only.

Outside the mask every pixel is bit for bit what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from workflows.media.crop_track import CropTrack
from workflows.media.frames import UInt8Array
from workflows.media.masks import INSIDE, box_of

BLOCK_PX = 2
"""A region begins and ends on whole chroma samples."""
MARGIN_PX = 8
"""Around the mask, so that colours at its edge are read from the same neighbours as in the whole frame."""


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a frame that a paste touches: rows `top` to `bottom - 1`, columns `left` to `right - 1`."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, array: UInt8Array, shrink: int = 1) -> UInt8Array:
        """The region's part of a frame or a mask; `shrink` 2 for a plane of half its size."""
        return array[self.top // shrink:self.bottom // shrink, self.left // shrink:self.right // shrink]


def region_of(mask_HW: UInt8Array) -> Region | None:
    """Where a paste with this mask happens; None: nowhere. Even borders, in the frame."""
    box = box_of(mask_HW)
    if box is None:
        return None
    height, width = mask_HW.shape
    left, top = (max(0, edge - MARGIN_PX) // BLOCK_PX * BLOCK_PX for edge in box[:2])
    right = min(width, -(-(box[2] + MARGIN_PX) // BLOCK_PX) * BLOCK_PX)
    bottom = min(height, -(-(box[3] + MARGIN_PX) // BLOCK_PX) * BLOCK_PX)
    return Region(left, top, right, bottom)


def alpha_of(mask_HW: UInt8Array, feather_px: int) -> UInt8Array:
    """How much of the edit shows: 0 outside the mask, rising over `feather_px` pixels inside its edge to 255.

    The frame's own edge is no edge of the mask.
    """
    if feather_px == 0 or not cv2.countNonZero(cv2.bitwise_not(mask_HW)):
        return mask_HW
    depth = cv2.distanceTransform(mask_HW, cv2.DIST_L2, cv2.DIST_MASK_3)
    return np.asarray(cv2.convertScaleAbs(depth, alpha=INSIDE / (feather_px + 1)), np.uint8)


def blended(under_HWC: UInt8Array, over_HWC: UInt8Array, alpha_HW: UInt8Array) -> UInt8Array:
    """`over` on `under`, by alpha / 255; where alpha is 0, bit for bit `under`."""
    alpha = alpha_HW[..., None].astype(np.uint16)
    mixed = under_HWC * (INSIDE - alpha) + over_HWC * alpha + INSIDE // 2
    return (mixed // INSIDE).astype(np.uint8)


def laid_over(under_HWC: UInt8Array, crop_HWC: UInt8Array, alpha_HW: UInt8Array, region: Region,
              at: tuple[CropTrack, int]) -> UInt8Array:
    """The region of a frame with the crop in it; `under` and `alpha` are the region's. `at`: track and frame."""
    track, frame = at
    matrix = track.matrix(frame)
    matrix[:, 2] += matrix[:, :2] @ np.array([region.left, region.top], np.float64)
    height, width = alpha_HW.shape
    over_HWC = np.asarray(cv2.warpAffine(
        crop_HWC, matrix, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE), np.uint8)
    return blended(under_HWC, over_HWC, alpha_HW)


def paste(frame_HWC: UInt8Array, crop_HWC: UInt8Array, mask_HW: UInt8Array, feather_px: int,
          at: tuple[CropTrack, int]) -> UInt8Array:
    """A copy of the frame with the edited crop inside the mask. `at`: the track that cut the crop, and the frame."""
    pasted = frame_HWC.copy()
    region = region_of(mask_HW)
    if region is not None:
        alpha = alpha_of(np.ascontiguousarray(region.of(mask_HW)), feather_px)
        region.of(pasted)[:] = laid_over(region.of(frame_HWC), crop_HWC, alpha, region, at)
    return pasted
