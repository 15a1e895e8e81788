"""What a frame is in this room, and the checks at its door. Knows no file and no codec.

Legend: T frames, H rows, W columns, C red/green/blue. All frames are uint8, RGB, 0-255.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from workflows.errors import MediaError

UInt8Array = NDArray[np.uint8]
"""`frame_HWC` or `frames_THWC`, RGB; `mask_HW` is one channel."""

OnProgress = Callable[[int, int], None]
"""Called with (frames done, frames in all) after each frame or group of frames; may raise to stop the work."""

CHANNELS = 3


def require_frame(frame_HWC: UInt8Array, what: str = "frame") -> None:
    """Refuse anything but a non-empty (H, W, 3) uint8 array; raise MediaError naming `what`."""
    if frame_HWC.dtype != np.uint8 or frame_HWC.ndim != 3 or frame_HWC.shape[2] != CHANNELS or frame_HWC.size == 0:
        raise MediaError(
            problem=f"{what} is {frame_HWC.dtype} {frame_HWC.shape}; needed: uint8 (height, width, 3), RGB")


def require_frames(frames_THWC: UInt8Array, what: str = "clip") -> None:
    """Refuse anything but (T, H, W, 3) uint8 with at least one frame; raise MediaError naming `what`."""
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != CHANNELS:
        raise MediaError(
            problem=f"{what} is {frames_THWC.dtype} {frames_THWC.shape}; needed: uint8 (frames, height, width, 3), RGB")
    if frames_THWC.size == 0:
        raise MediaError(problem=f"{what} has no frames: shape {frames_THWC.shape}")


def require_video_format(*, width_px: int, height_px: int, fps: Fraction) -> None:
    """Refuse what H.264 4:2:0 cannot hold: odd or empty sizes, a rate that is not positive."""
    if width_px < 2 or height_px < 2 or width_px % 2 or height_px % 2:
        raise MediaError(problem=f"{width_px}x{height_px} px cannot be H.264 4:2:0, which needs even sides; "
                                 f"nearest valid: {nearest_even(width_px, height_px)}")
    if fps <= 0:
        raise MediaError(problem=f"{fps} frames per second; a rate must be positive")


def nearest_even(width_px: int, height_px: int) -> str:
    """`96x64 or 98x66`: the next even sizes below and above."""
    below = f"{max(2, width_px - width_px % 2)}x{max(2, height_px - height_px % 2)}"
    above = f"{max(2, width_px + width_px % 2)}x{max(2, height_px + height_px % 2)}"
    return below if below == above else f"{below} or {above}"
