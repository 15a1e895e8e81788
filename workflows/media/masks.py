"""Masks: where something is in each frame. Written without loss, made larger and smaller, and read across chunks.

Legend: T frames, H rows, W columns. A mask is uint8, 0 or 255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from workflows.errors import MediaError
from workflows.media.frames import UInt8Array
from workflows.media.lossless import read_lossless, write_lossless

INSIDE = 255
LIGHT = 128
"""From this brightness on a pixel of a given mask video is inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What is done to a mask after it was found, in this order."""

    invert: bool = False
    erode_px: int = 0
    """Diameter by which it is made smaller."""
    dilate_px: int = 0
    """Diameter by which it is made larger."""

    def of(self, mask_HW: UInt8Array) -> UInt8Array:
        """The mask in its final shape."""
        shaped = cv2.bitwise_not(mask_HW) if self.invert else mask_HW
        if self.erode_px > 1:
            # What lies beyond the picture counts as inside: a region cut off by the picture's edge keeps that edge.
            shaped = cv2.erode(shaped, _disc(self.erode_px), borderType=cv2.BORDER_CONSTANT, borderValue=INSIDE)
        if self.dilate_px > 1:
            shaped = cv2.dilate(shaped, _disc(self.dilate_px))
        return np.asarray(shaped, np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One chunk's masks, and which frames of the edit are taken from it."""

    node: str
    """The node that found them."""
    first: int
    """Frame of the edit that its first mask belongs to."""
    frames: int
    own_first: int
    """Frames `own_first` to `own_end - 1` are taken from here; the others from the neighbours."""
    own_end: int


def write_masks(masks: Sequence[UInt8Array] | UInt8Array, to: Path) -> None:
    """Write masks (H, W) of one size; raise MediaError for anything that is not 0 or 255."""
    with write_lossless(to) as writer:
        for number, mask_HW in enumerate(masks):
            if not is_mask(mask_HW):
                raise MediaError(path=str(to), problem=f"mask {number} holds other values than 0 and {INSIDE}")
            writer.write(mask_HW)


def is_mask(mask_HW: UInt8Array) -> bool:
    """Whether it is uint8, 0 or 255 throughout."""
    # 0 - 1 wraps round to 255: what is left are 254 and 255.
    return mask_HW.dtype == np.uint8 and bool((mask_HW - np.uint8(1) >= INSIDE - 1).all())


class MaskReel:
    """The masks of a whole edit, out of its chunks, in their final shape."""

    def __init__(self, pieces: Sequence[Piece], path_of: Callable[[str], Path], shaping: Shaping) -> None:
        """`path_of(node)`: the file of a node's masks; asked only for those that are read."""
        self._pieces = pieces
        self._path_of = path_of
        self._shaping = shaping

    def read(self, *, first: int, frames: int) -> Iterator[UInt8Array]:
        """Masks of these frames of the edit. Raises MediaError."""
        for piece in self._pieces:
            begin, end = max(piece.own_first, first), min(piece.own_end, first + frames)
            if begin >= end:
                continue
            for mask_HW in read_lossless(self._path_of(piece.node), first=begin - piece.first, frames=end - begin):
                yield self._shaping.of(mask_HW)


def box_of(mask_HW: UInt8Array) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom around all that is inside, right and bottom the first outside; None: nothing is."""
    left, top, width, height = cv2.boundingRect(mask_HW)
    return (left, top, left + width, top + height) if width else None


def overlap(one_HW: UInt8Array, other_HW: UInt8Array) -> float:
    """Intersection over union, 0..1; 1 for two empty masks."""
    union = cv2.countNonZero(cv2.bitwise_or(one_HW, other_HW))
    return cv2.countNonZero(cv2.bitwise_and(one_HW, other_HW)) / union if union else 1.0


def light(frame_HWC: UInt8Array) -> UInt8Array:
    """A frame of a given mask video as a mask."""
    grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    return np.where(grey_HW >= LIGHT, np.uint8(INSIDE), np.uint8(0))


def _disc(diameter_px: int) -> UInt8Array:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter_px, diameter_px)), np.uint8)
