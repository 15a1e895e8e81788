"""Captions burned into frames: white letters with a dark edge on a dark band, low in the picture. Knows no story."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.media.decode import iter_frames
from workflows.media.encode import EncodeOptions, VideoFormat, write_clip
from workflows.media.frames import OnProgress, UInt8Array, require_frames
from workflows.media.probe import VideoInfo, probe
from workflows.media.typeset import draw_text, fit_text

SIZE = 0.052
"""Font size as a share of the picture's height; about 25 px at 480p."""
MIN_SIZE_PX = 9
"""Below this, Chinese characters run together."""
WIDTH = 0.92
HEIGHT = 0.75
"""Largest block of text, as shares of the picture."""
MARGIN = 0.045
"""From the band's lower edge to the picture's, as a share of its height."""
BAND = 0.45
"""Opacity of the band behind the letters."""
EDGE = 0.085
"""Width of the dark edge around letters, in font sizes."""


def burn(frames_THWC: UInt8Array, text: str) -> UInt8Array:
    """Return a copy of the frames with `text` in it: centred, low, wrapped, sized by the picture's height.

    Any script in OpenCV's built-in font, mixed at will; line breaks are kept, long lines wrapped (between any two
    Chinese, Japanese or Korean characters). Text that needs more than its share of the picture is set smaller.

    Raises:
        MediaError: the text is empty, or does not fit even at the smallest readable size.
    """
    require_frames(frames_THWC)
    overlay = _Overlay.of(text, width_px=frames_THWC.shape[2], height_px=frames_THWC.shape[1])
    captioned_THWC = frames_THWC.copy()
    for frame_HWC in captioned_THWC:
        overlay.draw_on(frame_HWC)
    return captioned_THWC


def caption_clip(
    src: Path, text: str, to: Path, *, options: EncodeOptions, on_progress: OnProgress | None = None,
) -> VideoInfo:
    """Write a copy of a clip with `text` burned in; same size, rate and length.

    `on_progress` is called after each frame with (frames done, frames in all).

    Raises:
        MediaError: as `burn`, or the clip cannot be read or written.
    """
    info = probe(src)
    overlay = _Overlay.of(text, width_px=info.width_px, height_px=info.height_px)
    video_format = VideoFormat(width_px=info.width_px, height_px=info.height_px, fps=info.fps)
    with write_clip(to, video_format=video_format, options=options) as clip:
        for done, frame_HWC in enumerate(iter_frames(src), start=1):
            overlay.draw_on(frame_HWC)
            clip.write(frame_HWC)
            if on_progress is not None:
                on_progress(done, info.frames)
    return probe(to)


@dataclass(frozen=True, slots=True)
class _Overlay:
    """A caption drawn once, laid over any number of frames: out = frame * keep + add, within rows `top`..`bottom`."""

    top: int
    bottom: int
    left: int
    right: int
    keep_HWC: NDArray[np.float32]
    add_HWC: NDArray[np.float32]

    @classmethod
    def of(cls, text: str, *, width_px: int, height_px: int) -> _Overlay:
        size_px = max(MIN_SIZE_PX, round(height_px * SIZE))
        block = fit_text(text, width_px=round(width_px * WIDTH), height_px=round(height_px * HEIGHT),
                         size_px=size_px, min_size_px=MIN_SIZE_PX)
        pad_px = max(2, round(block.size_px * 0.3))
        left = max(0, (width_px - block.width_px) // 2 - 2 * pad_px)
        right = width_px - left
        bottom = height_px - max(1, round(height_px * MARGIN))
        top = max(0, bottom - block.height_px - pad_px)
        box_px = right - left, bottom - top
        letters_HW = draw_text(block, box_px, top_px=pad_px // 2, centred=True)
        letters = letters_HW[..., None].astype(np.float32) / 255
        edges = _spread(letters_HW, max(1, round(block.size_px * EDGE)))[..., None].astype(np.float32) / 255
        # Band, edge and letters are painted one over the other; only the letters add light.
        keep = (1 - BAND * _soft_corners(*box_px, pad_px)) * (1 - edges) * (1 - letters)
        return cls(top, bottom, left, right, keep.astype(np.float32), (255 * letters).astype(np.float32))

    def draw_on(self, frame_HWC: UInt8Array) -> None:
        """Lay the caption over one frame, in place."""
        region = frame_HWC[self.top:self.bottom, self.left:self.right]
        region[:] = np.rint(region * self.keep_HWC + self.add_HWC).astype(np.uint8)


def _spread(mask_HW: UInt8Array, radius_px: int) -> UInt8Array:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))
    spread: UInt8Array = cv2.dilate(mask_HW, kernel)
    return spread


def _soft_corners(width_px: int, height_px: int, radius_px: int) -> NDArray[np.float32]:
    """A rounded rectangle, 1 inside, as a mask with one channel."""
    radius_px = min(radius_px, width_px // 2, height_px // 2)
    core_HW = np.zeros((height_px, width_px), np.uint8)
    core_HW[radius_px:height_px - radius_px, radius_px:width_px - radius_px] = 255
    return _spread(core_HW, radius_px)[..., None].astype(np.float32) / np.float32(255)
