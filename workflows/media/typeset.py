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
    paragraphs = [" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines()]
    paragraphs = [line for line in paragraphs if line]
    if not paragraphs:
        raise MediaError(problem="the text is empty")
    font = cv2.FontFace(FONT)
    for size in range(max(size_px, min_size_px), min_size_px - 1, -1):
        lines = [line for paragraph in paragraphs for line in _wrap(paragraph, width_px, font, size)]
        block = Block(tuple(lines), size, max(_width(line, font, size) for line in lines))
        if block.width_px <= width_px and block.height_px <= height_px:
            return _balanced(block, paragraphs, font)
    length, fitting = len(" ".join(paragraphs)), lines[:int(height_px / (min_size_px * LINE_HEIGHT))]
    raise MediaError(problem=f"a text of {length} characters does not fit {width_px}x{height_px} px; "
                             f"nearest valid: about {sum(map(len, fitting))} characters")


def cut_text(text: str, *, width_px: int, height_px: int, size_px: int, min_size_px: int) -> Block:
    """As `fit_text`, but a text that is too long is cut and ends with an ellipsis."""
    try:
        return fit_text(text, width_px=width_px, height_px=height_px, size_px=size_px, min_size_px=min_size_px)
    except MediaError:
        best, fits, too_long = Block((), min_size_px, 0), 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        try:
            best = fit_text(text[:middle].rstrip() + "…", width_px=width_px, height_px=height_px,
                            size_px=min_size_px, min_size_px=min_size_px)
            fits = middle
        except MediaError:
            too_long = middle
    return best


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


def _balanced(block: Block, paragraphs: list[str], font: cv2.FontFace) -> Block:
    """The narrowest block with as many lines, so that no single word is left on the last one."""
    narrow, wide = 0, block.width_px
    best = block
    while wide - narrow > 1:
        middle = (narrow + wide) // 2
        lines = [line for paragraph in paragraphs for line in _wrap(paragraph, middle, font, block.size_px)]
        widest = max(_width(line, font, block.size_px) for line in lines)
        if len(lines) <= len(block.lines) and widest <= middle:
            best, wide = Block(tuple(lines), block.size_px, widest), middle
        else:
            narrow = middle
    return best


def _wrap(paragraph: str, width_px: int, font: cv2.FontFace, size_px: int) -> list[str]:
    lines, line = [], ""
    for piece in _pieces(paragraph):
        if line and _width((line + piece).rstrip(), font, size_px) > width_px:
            lines.append(line.rstrip())
            line = ""
        line += piece if line else piece.lstrip()
        while _width(line.rstrip(), font, size_px) > width_px and len(line.rstrip()) > 1:
            head = _longest_head(line, width_px, font, size_px)
            lines.append(head)
            line = line[len(head):]
    return [*lines, line.rstrip()] if line.strip() else lines


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


def _longest_head(line: str, width_px: int, font: cv2.FontFace, size_px: int) -> str:
    """The most of a word longer than a line that fits one, at least a character."""
    end = len(line)
    while end > 1 and _width(line[:end], font, size_px) > width_px:
        end -= 1
    return line[:end]


def _width(line: str, font: cv2.FontFace, size_px: int) -> int:
    _, _, width_px, _ = cv2.getTextSize((0, 0), line, (0, 0), font, size_px, WEIGHT)
    return int(width_px)
