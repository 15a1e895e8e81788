"""Colours by name: which words are colours, and how much a pixel looks like one. Knows no video.

Words are matched with hue, saturation and value (A. R. Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978); targets
of a recolouring are sRGB values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.media.frames import UInt8Array

LEVELS = 32
"""A table of looks has so many steps per channel."""
STEP = 256 // LEVELS
Look = NDArray[np.uint8]
"""Table of 32768 entries: how much each coarse colour looks like what is sought, 0..255."""
LIKE = 128
"""From this on it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedColour:
    """A colour that has a word."""

    rgb: tuple[int, int, int]
    """What a recolouring to it aims at."""
    hue_deg: float = 0.0
    width_deg: float = 0.0
    """Hues so far from it to both sides are called so; 0: a colour without hue."""
    saturation: tuple[float, float] = (0.35, 1.01)
    value: tuple[float, float] = (0.2, 1.01)


COLOURS = {
    "red": NamedColour(rgb=(200, 30, 35), hue_deg=0, width_deg=16),
    "orange": NamedColour(rgb=(240, 130, 20), hue_deg=28, width_deg=13, value=(0.55, 1.01)),
    "brown": NamedColour(rgb=(120, 75, 40), hue_deg=26, width_deg=16, value=(0.15, 0.6)),
    "yellow": NamedColour(rgb=(240, 215, 40), hue_deg=56, width_deg=16),
    "green": NamedColour(rgb=(40, 150, 60), hue_deg=120, width_deg=45),
    "cyan": NamedColour(rgb=(30, 190, 200), hue_deg=183, width_deg=18),
    "blue": NamedColour(rgb=(35, 80, 200), hue_deg=225, width_deg=28),
    "purple": NamedColour(rgb=(125, 55, 175), hue_deg=275, width_deg=24),
    "pink": NamedColour(rgb=(235, 110, 175), hue_deg=325, width_deg=26, saturation=(0.25, 1.01)),
    "white": NamedColour(rgb=(235, 235, 235), saturation=(-0.01, 0.2), value=(0.8, 1.01)),
    "grey": NamedColour(rgb=(128, 128, 128), saturation=(-0.01, 0.2), value=(0.25, 0.8)),
    "black": NamedColour(rgb=(25, 25, 25), saturation=(-0.01, 1.01), value=(-0.01, 0.2)),
}
OTHER_WORDS = {"gray": "grey", "violet": "purple", "magenta": "pink", "turquoise": "cyan", "golden": "yellow",
               "scarlet": "red", "crimson": "red"}
EDGE = 0.08
"""Saturation and value fade out over so much beyond their bounds."""


def words_of(text: str) -> list[str]:
    """The words of a prompt in small letters."""
    return re.findall(r"[a-z]+", text.lower())


def colour_word(word: str) -> str | None:
    """The name in `COLOURS` that a word means; None: it is no colour."""
    name = OTHER_WORDS.get(word, word)
    return name if name in COLOURS else None


def look_of(names: Sequence[str]) -> Look:
    """How much each coarse colour is one of these names."""
    return np.asarray(np.rint(255 * np.max([_fit(COLOURS[name]) for name in names], axis=0)), np.uint8)


def codes_of(frame_HWC: UInt8Array) -> NDArray[np.uint16]:
    """Place in a table of looks for each pixel (H, W)."""
    coarse = (frame_HWC >> 3).astype(np.uint16)
    return np.asarray((coarse[..., 0] << 10) | (coarse[..., 1] << 5) | coarse[..., 2], np.uint16)


def _fit(colour: NamedColour) -> NDArray[np.float32]:
    steps = (np.arange(LEVELS, dtype=np.float32) * STEP + STEP / 2) / 255
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
    hue, saturation, value = np.moveaxis(cv2.cvtColor(grid, cv2.COLOR_RGB2HSV)[0], -1, 0)
    fit = _between(saturation, *colour.saturation) * _between(value, *colour.value)
    if colour.width_deg:
        off = np.abs((hue - colour.hue_deg + 180) % 360 - 180)
        # 1 in the middle, a half where the name ends.
        fit = fit * np.clip(1.25 - 0.75 * off / colour.width_deg, 0, 1)
    return np.asarray(fit, np.float32)


def _between(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """1 between the bounds, fading to 0 beyond them."""
    return np.asarray(np.clip(np.minimum(values - low, high - values) / EDGE + 1, 0, 1), np.float32)
