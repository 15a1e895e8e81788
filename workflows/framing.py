"""Shapes and sizes of pictures as people name them. Pure words; which a model takes is `workflows.shape`'s."""

from __future__ import annotations

from enum import StrEnum


class Ratio(StrEnum):
    """Width to height."""

    SQUARE = "1:1"
    WIDE = "16:9"
    TALL = "9:16"
    FOUR_TO_THREE = "4:3"
    THREE_TO_FOUR = "3:4"
    THREE_TO_TWO = "3:2"
    TWO_TO_THREE = "2:3"
    CINEMA = "21:9"

    @property
    def width_to_height(self) -> float:
        """16:9 is 1.777..."""
        width, height = self.value.split(":")
        return int(width) / int(height)


class Resolution(StrEnum):
    """About how long the longer side is."""

    ONE_K = "1k"
    TWO_K = "2k"
    FOUR_K = "4k"

    @property
    def longer_side_px(self) -> int:
        """1k: 1024."""
        return 1024 * int(self.value.removesuffix("k"))
