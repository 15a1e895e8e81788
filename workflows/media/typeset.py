"""Text into masks: wrapping, sizing, drawing, in any script that OpenCV's built-in font holds. Knows no frame.

OpenCV 5 carries WenQuanYi Micro Hei (`uni`): Latin, Greek, Cyrillic, Chinese, Japanese, Korean, without a font file.
Arabic and Hebrew letters are drawn, but neither joined nor right to left; emoji come out as question marks.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import cv2
import numpy as np

from workflows.errors import MediaError
from workflows.media.frames import UInt8Array

FONT = "uni"
WEIGHT = 500
"""A little heavier than regular (400), for white text on moving pictures."""
LINE_HEIGHT = 1.25
"""Distance between lines, in font sizes."""
ASCENT = 1.05
"""From the top of a line's box to its baseline, in font sizes."""
NARROWEST = 0.15
"""No letter is narrower, in font sizes."""
CLOSERS = frozenset({"Pe", "Pf", "Po"})
"""Unicode categories of what may not begin a line: closing brackets and quotes, stops."""
OPENERS = frozenset({"Ps", "Pi"})
"""Of what may not end one."""


@dataclass(frozen=True, slots=True)
class Block:
    """Text broken into lines at one font size."""

    lines: tuple[str, ...]
    size_px: int
    width_px: int
    """Of the longest line."""

    @property
    def height_px(self) -> int:
        """Of all lines."""
        return round(len(self.lines) * self.size_px * LINE_HEIGHT)


def fit_text(text: str, *, width_px: int, height_px: int, size_px: int, min_size_px: int) -> Block:
    """Break text to fit a box, at `size_px` or the largest smaller size that fits.

    Raises:
        MediaError: the text is empty, or too long for the box even at `min_size_px`.
    """
    setter = _Setter(text, width_px, height_px)
    if not setter.paragraphs:
        raise MediaError(problem="the text is empty")
    size = setter.largest_size(min_size_px, size_px)
    if size is None:
        length, shown = len(" ".join(setter.paragraphs)), sum(map(len, setter.visible_lines(min_size_px)))
        raise MediaError(problem=f"a text of {length} characters does not fit {width_px}x{height_px} px; "
                                 f"nearest valid: about {shown} characters")
    return setter.balanced(size)


def cut_text(text: str, *, width_px: int, height_px: int, size_px: int, min_size_px: int) -> Block:
    """As `fit_text`, but a text that is too long is cut and ends with an ellipsis; an empty one has no lines."""
    try:
        return fit_text(text, width_px=width_px, height_px=height_px, size_px=size_px, min_size_px=min_size_px)
    except MediaError:
        setter = _Setter(text, width_px, height_px)
    lines = setter.visible_lines(min_size_px)
    if lines:
        last = lines[-1]
        while last and not setter.is_within(last + "…", min_size_px, width_px):
            last = last[:-1].rstrip()
        lines[-1] = last + "…"
    return setter.block(lines, min_size_px)


def draw_text(block: Block, size_px: tuple[int, int], *, top_px: int, centred: bool) -> UInt8Array:
    """Draw a block into a mask, (width, height) `size_px`: 0 outside the letters, 255 inside, soft edges between.

    Lines are centred in the mask, or begin at its left edge.
    """
    mask_HW = np.zeros(size_px[::-1], np.uint8)
    font = cv2.FontFace(FONT)
    for row, line in enumerate(block.lines):
        left = (size_px[0] - _width(line, font, block.size_px)) // 2 if centred else 0
        baseline = top_px + round((row * LINE_HEIGHT + ASCENT) * block.size_px)
        cv2.putText(mask_HW, line, (left, baseline), (255,), font, block.size_px, WEIGHT)
    return mask_HW


class _Setter:
    """Breaks one text into lines for one box, at any size; gives up where the box is full."""

    def __init__(self, text: str, width_px: int, height_px: int) -> None:
        paragraphs = [" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines()]
        self.paragraphs = [line for line in paragraphs if line]
        self._width_px, self._height_px = width_px, height_px
        self._font = cv2.FontFace(FONT)

    def largest_size(self, least_px: int, most_px: int) -> int | None:
        """The largest font size from `least_px` to `most_px` at which all of the text is in the box."""
        if not self._fits(least_px):
            return None
        fits, too_large = least_px, most_px + 1
        while too_large - fits > 1:
            middle = (fits + too_large) // 2
            fits, too_large = (middle, too_large) if self._fits(middle) else (fits, middle)
        return fits

    def visible_lines(self, size_px: int) -> list[str]:
        """The lines that the box has room for, from the first."""
        return self._lines(size_px, self._width_px)[:self._most_lines(size_px)]

    def block(self, lines: list[str], size_px: int) -> Block:
        return Block(tuple(lines), size_px, max((_width(line, self._font, size_px) for line in lines), default=0))

    def balanced(self, size_px: int) -> Block:
        """The narrowest block with as few lines, so that no single word is left on the last one."""
        lines = self._lines(size_px, self._width_px)
        best = self.block(lines, size_px)
        narrow, wide = 0, best.width_px
        while wide - narrow > 1:
            middle = (narrow + wide) // 2
            tried = self._lines(size_px, middle)
            if len(tried) <= len(lines) and all(self.is_within(line, size_px, middle) for line in tried):
                best, wide = self.block(tried, size_px), middle
            else:
                narrow = middle
        return best

    def is_within(self, line: str, size_px: int, width_px: int) -> bool:
        # Counting first spares measuring a hundred thousand characters again and again.
        return len(line) * NARROWEST * size_px <= width_px and _width(line, self._font, size_px) <= width_px

    def _fits(self, size_px: int) -> bool:
        lines = self._lines(size_px, self._width_px)
        return len(lines) <= self._most_lines(size_px) and all(
            self.is_within(line, size_px, self._width_px) for line in lines)

    def _most_lines(self, size_px: int) -> int:
        return int(self._height_px / (size_px * LINE_HEIGHT))

    def _lines(self, size_px: int, width_px: int) -> list[str]:
        """All lines, or one more than the box has room for."""
        lines: list[str] = []
        enough = self._most_lines(size_px) + 1
        for paragraph in self.paragraphs:
            line = ""
            for piece in _pieces(paragraph):
                if line and not self.is_within((line + piece).rstrip(), size_px, width_px):
                    lines.append(line.rstrip())
                    line = ""
                line += piece
                while len(lines) < enough and len(line) > 1 and not self.is_within(line.rstrip(), size_px, width_px):
                    head = self._longest_head(line, size_px, width_px)
                    lines.append(head)
                    line = line[len(head):]
                if len(lines) >= enough:
                    return lines
            lines.append(line.rstrip())
        return lines[:enough]

    def _longest_head(self, line: str, size_px: int, width_px: int) -> str:
        """The most of a word longer than a line that fits one, at least a character."""
        fits, too_long = 1, len(line)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if self.is_within(line[:middle], size_px, width_px) else (fits, middle)
        return line[:fits]


def _pieces(paragraph: str) -> list[str]:
    """Where a line may break: after a space, and around each wide (East Asian) character."""
    pieces: list[str] = []
    for char in paragraph:
        if pieces and (char == " " or not _may_break(pieces[-1][-1], char)):
            pieces[-1] += char
        else:
            pieces.append(char)
    return pieces


def _may_break(before: str, after: str) -> bool:
    if before == " ":
        return True
    glued = unicodedata.category(after) in CLOSERS or unicodedata.category(before) in OPENERS
    return (_is_wide(before) or _is_wide(after)) and not glued and not unicodedata.combining(after)


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _width(line: str, font: cv2.FontFace, size_px: int) -> int:
    _, _, width_px, _ = cv2.getTextSize((0, 0), line, (0, 0), font, size_px, WEIGHT)
    return int(width_px)
