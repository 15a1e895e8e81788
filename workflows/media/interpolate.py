"""More frames a second: motion between neighbours, estimated and followed. Knows no model.

Flow: T. Kroeger, R. Timofte, D. Dai, L. Van Gool, "Fast Optical Flow using Dense Inverse Search", ECCV 2016, as in
OpenCV (`DISOpticalFlow`). Flow at a moment between two frames and the mix of the two warped frames: H. Jiang et al.,
"Super SloMo: High Quality Estimation of Multiple Intermediate Frames for Video Interpolation", CVPR 2018, equations 4
and 1, without its network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.errors import MediaError
from workflows.media.decode import iter_frames
from workflows.media.encode import EncodeOptions, VideoFormat, write_clip
from workflows.media.frames import OnProgress, UInt8Array, require_frames
from workflows.media.probe import VideoInfo, probe

MIN_FACTOR, MAX_FACTOR = 2, 8
MIN_FLOW_PX = 32
"""OpenCV's DIS crashes the process on wide pictures under 32 rows; smaller ones are padded for it."""

Flow = NDArray[np.float32]
"""(H, W, 2): pixels to the right and down."""


def interpolate(frames_THWC: UInt8Array, factor: int, *, on_progress: OnProgress | None = None) -> UInt8Array:
    """Put `factor - 1` new frames between each two: (T - 1) * factor + 1 frames, for `factor` times the rate.

    The frames given stay bit for bit as they are, at every `factor`-th place. At 480p about 30 ms of CPU for
    the motion between two frames and 15 ms for each new one.

    Raises:
        MediaError: no frames, or a factor outside 2..8.
    """
    require_frames(frames_THWC)
    _require_factor(factor)
    total = (len(frames_THWC) - 1) * factor + 1
    dense_THWC = np.empty((total, *frames_THWC.shape[1:]), np.uint8)
    for done, frame_HWC in enumerate(_dense(iter(frames_THWC), factor)):
        dense_THWC[done] = frame_HWC
        if on_progress is not None:
            on_progress(done + 1, total)
    return dense_THWC


def interpolate_clip(
    src: Path, to: Path, factor: int, *, options: EncodeOptions, on_progress: OnProgress | None = None,
) -> VideoInfo:
    """Write a copy of a clip with `factor` times its rate.

    A clip of T frames becomes (T - 1) * factor + 1: there is nothing to follow after the last one.

    Raises:
        MediaError: a factor outside 2..8, or the clip cannot be read or written.
    """
    _require_factor(factor)
    info = probe(src)
    total = (info.frames - 1) * factor + 1
    video_format = VideoFormat(width_px=info.width_px, height_px=info.height_px, fps=info.fps * factor)
    with write_clip(to, video_format=video_format, options=options) as clip:
        for done, frame_HWC in enumerate(_dense(iter_frames(src), factor), start=1):
            clip.write(frame_HWC)
            if on_progress is not None:
                on_progress(done, total)
    return probe(to)


def _require_factor(factor: int) -> None:
    if not MIN_FACTOR <= factor <= MAX_FACTOR:
        nearest = min(max(factor, MIN_FACTOR), MAX_FACTOR)
        raise MediaError(problem=f"interpolation by a factor of {factor}; nearest valid: {nearest}")


def _dense(frames: Iterator[UInt8Array], factor: int) -> Iterator[UInt8Array]:
    before = next(frames)
    yield before
    for after in frames:
        yield from _between(before, after, factor)
        yield after
        before = after


def _between(before_HWC: UInt8Array, after_HWC: UInt8Array, factor: int) -> Iterator[UInt8Array]:
    """The `factor - 1` frames between two neighbours."""
    forth, back = _flows(before_HWC, after_HWC)
    height_px, width_px = before_HWC.shape[:2]
    columns, rows = np.meshgrid(np.arange(width_px, dtype=np.float32), np.arange(height_px, dtype=np.float32))
    places = np.dstack([columns, rows])
    for number in range(1, factor):
        t = number / factor
        from_before = places + (t * t * back - (1 - t) * t * forth)
        from_after = places + ((1 - t) * (1 - t) * forth - t * (1 - t) * back)
        mixed_HWC: UInt8Array = cv2.addWeighted(_look_up(before_HWC, from_before), 1 - t,
                                                _look_up(after_HWC, from_after), t, 0.0)
        yield mixed_HWC


def _flows(before_HWC: UInt8Array, after_HWC: UInt8Array) -> tuple[Flow, Flow]:
    """Motion from the first frame to the second, and back."""
    height_px, width_px = before_HWC.shape[:2]
    below, right = max(0, MIN_FLOW_PX - height_px), max(0, MIN_FLOW_PX - width_px)
    before_HW, after_HW = (
        cv2.copyMakeBorder(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 0, below, 0, right, cv2.BORDER_REPLICATE)
        for frame in (before_HWC, after_HWC))
    # FAST costs 10 ms a pair more than ULTRAFAST at 480p and is 3-5 dB better on small moving shapes.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    forth, back = dis.calc(before_HW, after_HW, None), dis.calc(after_HW, before_HW, None)
    return forth[:height_px, :width_px], back[:height_px, :width_px]


def _look_up(frame_HWC: UInt8Array, places: Flow) -> UInt8Array:
    moved_HWC: UInt8Array = cv2.remap(frame_HWC, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved_HWC
