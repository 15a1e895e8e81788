"""A mask laid over its video, to be looked at. Knows arrays only."""

from __future__ import annotations

import cv2
import numpy as np

from workflows.media.frames import UInt8Array

TINT = (255, 64, 160)
"""A colour that few things have."""
SHARE = 0.45
OUTLINE_PX = 2


def overlaid(frame_HWC: UInt8Array, mask_HW: UInt8Array) -> UInt8Array:
    """A copy of the frame with what is inside the mask tinted and outlined."""
    shown = frame_HWC.copy()
    x, y, width, height = cv2.boundingRect(mask_HW)
    if not width:
        return shown
    part = shown[y:y + height, x:x + width]
    tint = np.full_like(part, TINT)
    tinted = cv2.addWeighted(part, 1 - SHARE, tint, SHARE, 0.0)
    cv2.copyTo(tinted, np.ascontiguousarray(mask_HW[y:y + height, x:x + width]), part)
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(shown, contours, -1, TINT, OUTLINE_PX)
    return shown
