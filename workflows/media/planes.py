"""A decoded picture as its planes, changed in one region and nowhere else. Knows 4:2:0 and the source's own colours.

The planes outside the region go to the encoder as they came from the decoder: no conversion to RGB and back, which
would blur the colours of the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from workflows.media.colour import HD_HEIGHT_PX
from workflows.media.crop_track import CropTrack
from workflows.media.frames import UInt8Array
from workflows.media.paste import alpha_of, laid_over, region_of
from workflows.media.reel import Reel
from workflows.media.window import TURNS

BT709, BT601, FULL = 1, 6, 2
"""AVCOL_SPC_BT709, AVCOL_SPC_SMPTE170M, AVCOL_RANGE_JPEG."""
PLAIN = "yuv420p"
_DOWN = Interpolation.AREA | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_SPACES = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
           7: Colorspace.SMPTE240M, 9: Colorspace.BT2020}


@dataclass(frozen=True, slots=True)
class Planes:
    """A picture as it is shown: luma (H, W), and two of chroma (H/2, W/2)."""

    luma: UInt8Array
    blue: UInt8Array
    red: UInt8Array
    matrix: int
    """AVCOL_SPC_* in force: what the file says, or what players take."""
    full_range: bool


def matrix_of(picture: av.VideoFrame) -> int:
    """AVCOL_SPC_* that a picture's colours are read with, or made with where it has none: what players take."""
    told = int(picture.colorspace)
    return told if told in _SPACES else BT709 if picture.height >= HD_HEIGHT_PX else BT601


class PlaneReader:
    """Decoded pictures to planes; keeps swscale's tables. One per thread."""

    def __init__(self, reel: Reel) -> None:
        self._reel = reel
        self._reformatter = VideoReformatter()

    def read(self, picture: av.VideoFrame) -> Planes:
        """Planes of 8 bits, turned as they are shown, without odd last rows and columns."""
        full_range = int(picture.color_range) == FULL or picture.format.name.startswith("yuvj")
        matrix = matrix_of(picture)
        if picture.format.name not in (PLAIN, "yuvj420p"):
            side = ColorRange.JPEG if full_range else ColorRange.MPEG
            picture = self._reformatter.reformat(
                picture, format=PLAIN, interpolation=_DOWN, threads=1, src_colorspace=_SPACES[matrix],
                dst_colorspace=_SPACES[matrix], src_color_range=side, dst_color_range=side)
        luma, blue, red = (self._shown(plane, 1 if number == 0 else 2) for number, plane in enumerate(picture.planes))
        return Planes(luma, blue, red, matrix, full_range)

    def _shown(self, plane: Any, shrink: int) -> UInt8Array:
        stored = _samples(plane)
        turned = cv2.rotate(stored, TURNS[self._reel.rotation_deg]) if self._reel.rotation_deg else stored
        return np.array(turned[:self._reel.height_px // shrink, :self._reel.width_px // shrink], np.uint8)


class Painter:
    """Puts edited crops into planes."""

    def __init__(self, track: CropTrack, feather_px: int) -> None:
        self._track = track
        self._feather_px = feather_px
        self._reformatter = VideoReformatter()

    def paint(self, planes: Planes, frame_HWC: UInt8Array, crop_HWC: UInt8Array, mask_HW: UInt8Array,
              frame: int) -> None:
        """Change the planes in place: luma inside the mask, chroma of blocks that are inside whole; nothing else.

        `frame_HWC`: the same picture in RGB.
        """
        region = region_of(mask_HW)
        if region is None:
            return
        alpha_HW = alpha_of(np.ascontiguousarray(region.of(mask_HW)), self._feather_px)
        parts = [region.of(planes.luma), region.of(planes.blue, 2), region.of(planes.red, 2)]
        pasted_HWC = laid_over(region.of(frame_HWC), crop_HWC, alpha_HW, region, (self._track, frame))
        edited = self._to_planes(pasted_HWC, planes)
        blocks = alpha_HW.reshape(alpha_HW.shape[0] // 2, 2, alpha_HW.shape[1] // 2, 2).min(axis=(1, 3))
        for part, plane, inside in zip(parts, edited, (alpha_HW, blocks, blocks), strict=True):
            np.copyto(part, plane, where=inside > 0)

    def _to_planes(self, frame_HWC: UInt8Array, like: Planes) -> list[UInt8Array]:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
        picture = self._reformatter.reformat(
            rgb, format=PLAIN, interpolation=_DOWN, threads=1, src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.JPEG if like.full_range else ColorRange.MPEG,
            dst_colorspace=_SPACES[like.matrix])
        return [_samples(plane)
                for plane in picture.planes]


def _samples(plane: Any) -> UInt8Array:
    """A plane of a picture without the padding of its lines; shares its memory."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, :plane.width]


def to_picture(planes: Planes) -> av.VideoFrame:
    """Planes as a picture for an encoder."""
    height, width = planes.luma.shape
    picture = av.VideoFrame(width, height, PLAIN)
    for plane, part in zip(picture.planes, (planes.luma, planes.blue, planes.red), strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, :plane.width] = part
        plane.update(padded)
    return picture


