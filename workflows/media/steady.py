"""Flicker taken out of an edit: each edited crop is drawn to the one before it, moved as the source moved.

Flow: T. Kroeger, R. Timofte, D. Dai, L. Van Gool, "Fast Optical Flow using Dense Inverse Search", ECCV 2016, as in
OpenCV (`DISOpticalFlow`), between crops of the source, which do not flicker. Where the moved source crop differs from
the new one (something appeared, the flow is wrong), the crop before has no say: W.-S. Lai et al., "Learning Blind
Video Temporal Consistency", ECCV 2018, section 3, use the same weight in a loss. All images are uint8, so that
OpenCV's vector code does the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.media.frames import UInt8Array

Flow = NDArray[np.float32]
"""(H, W, 2): pixels to the right and down."""
LEAST_FLOW_PX = 32
"""OpenCV's DIS crashes the process on wide pictures under 32 rows."""
DOUBT = 6
SURE_OF_NOTHING = 30
"""Differences of grey values at which confidence begins to fall, and at which it is nothing."""
STRONGEST = 0.95
"""At strength 1 the crop before counts so much: a mistake still fades in a second."""

_differences = np.arange(256, dtype=np.float32)
_CONFIDENCE = np.clip((SURE_OF_NOTHING - _differences) / (SURE_OF_NOTHING - DOUBT), 0, 1)


@dataclass(frozen=True, slots=True)
class Motion:
    """How the source moved into a crop from the one before."""

    places: tuple[NDArray[np.int16], NDArray[np.uint16]]
    """For each pixel where it was before, as OpenCV's fixed-point maps."""
    confidence: UInt8Array
    """0 or more per pixel (H, W), 255: it was certainly there."""


class FlowReader:
    """Motion between source crops; keeps OpenCV's buffers. One per thread."""

    def __init__(self, side_px: int) -> None:
        """`side_px`: of the crops."""
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        # Half the size is a third of the time, and blurs what only flickers.
        self._small_px = max(side_px // 2, LEAST_FLOW_PX)
        places = np.arange(side_px, dtype=np.float32)
        self._columns, self._rows = np.meshgrid(places, places)
        self._side_px = side_px

    def between(self, before_HWC: UInt8Array, after_HWC: UInt8Array) -> Motion:
        """From the later crop back to the earlier one, for each pixel of the later."""
        before, after = cv2.cvtColor(before_HWC, cv2.COLOR_RGB2GRAY), cv2.cvtColor(after_HWC, cv2.COLOR_RGB2GRAY)
        small = (self._small_px, self._small_px)
        flow: Flow = self._dis.calc(cv2.resize(after, small, interpolation=cv2.INTER_AREA),
                                    cv2.resize(before, small, interpolation=cv2.INTER_AREA), None)
        scale = self._side_px / self._small_px
        whole = cv2.resize(flow, (self._side_px, self._side_px), interpolation=cv2.INTER_LINEAR)
        columns, rows = cv2.split(whole)
        maps = cv2.convertMaps(cv2.scaleAdd(columns, scale, self._columns), cv2.scaleAdd(rows, scale, self._rows),
                               cv2.CV_16SC2)
        was = cv2.remap(before, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        unlike = cv2.blur(cv2.absdiff(was, after), (5, 5))
        return Motion((maps[0], maps[1]), np.asarray(cv2.LUT(unlike, _table(255.0)), np.uint8))


def moved(image: UInt8Array, motion: Motion) -> UInt8Array:
    """An image of the crop before as it would be seen now."""
    return np.asarray(cv2.remap(image, motion.places[0], motion.places[1], cv2.INTER_LINEAR,
                                borderMode=cv2.BORDER_REPLICATE), np.uint8)


class Steadier:
    """Smooths a row of edited crops, one after the other; remembers one."""

    def __init__(self, side_px: int, strength: float) -> None:
        """`strength` 0..1: how much the crop before counts; 0: crops go through unchanged."""
        self._reader = FlowReader(side_px)
        self._weight = strength * STRONGEST
        self._last: tuple[UInt8Array, UInt8Array] | None = None

    def forget(self) -> None:
        """Nothing was edited here: what comes next has nothing before it."""
        self._last = None

    def steady(self, source_HWC: UInt8Array, edited_HWC: UInt8Array) -> UInt8Array:
        """The next edited crop, drawn to what the ones before came to."""
        if self._weight == 0:
            return edited_HWC
        calm = edited_HWC
        if self._last is not None:
            motion = self._reader.between(self._last[0], source_HWC)
            calm = _mixed(moved(self._last[1], motion), edited_HWC,
                          np.asarray(cv2.convertScaleAbs(motion.confidence, alpha=self._weight), np.uint8))
        self._last = (source_HWC, calm)
        return calm


def _table(highest: float) -> UInt8Array:
    return np.rint(_CONFIDENCE * highest).astype(np.uint8)


def _mixed(one_HWC: UInt8Array, other_HWC: UInt8Array, share_HW: UInt8Array) -> UInt8Array:
    """`one` by share / 255, the rest `other`."""
    share = cv2.merge([share_HW] * 3)
    return np.asarray(cv2.add(cv2.multiply(one_HWC, share, scale=1 / 255),
                              cv2.multiply(other_HWC, cv2.bitwise_not(share), scale=1 / 255)), np.uint8)


def faded(one_HWC: UInt8Array, other_HWC: UInt8Array, share: float) -> UInt8Array:
    """`share` (0..1) of `other`, the rest `one`: from one chunk's edit of a frame to the next one's."""
    return np.asarray(cv2.addWeighted(one_HWC, 1 - share, other_HWC, share, 0.0), np.uint8)
