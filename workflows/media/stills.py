"""Pictures for people: thumbnails, contact sheets, and slates that stand in for a missing shot. Knows no file."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from workflows.errors import MediaError
from workflows.media.frames import UInt8Array, require_frame
from workflows.media.typeset import cut_text, draw_text

INK = (236, 236, 230)
"""Colour of letters, a soft white."""
SHEET_PAPER = (24, 24, 27)
CARD_LIGHTNESS = 0.24
STRIPE_LIGHTNESS = 0.15
SATURATION = 0.42
"""Dark and muted enough for white letters, whatever the hue."""
MIN_SIZE_PX = 9
"""Below this, letters run together."""
MIN_SLATE_PX = 32
"""A slate's shorter side has room for its bar and a line."""


def thumbnail(frame_HWC: UInt8Array, max_px: int) -> UInt8Array:
    """Shrink a frame so that its longer side is at most `max_px`; smaller frames are returned as they are."""
    require_frame(frame_HWC)
    if max_px < 1:
        raise MediaError(problem=f"a thumbnail of {max_px} px; nearest valid: 1")
    height_px, width_px = frame_HWC.shape[:2]
    scale = max_px / max(height_px, width_px)
    if scale >= 1:
        return frame_HWC
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    small_HWC: UInt8Array = cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA)
    return small_HWC


def contact_sheet(frames: Sequence[UInt8Array], columns: int, labels: Sequence[str]) -> UInt8Array:
    """Lay frames out in rows, one label (may be empty) under each, on a dark sheet.

    Frames may differ in size: each is centred in a cell as large as the largest. A label too long for its cell is cut.

    Raises:
        MediaError: no frames, no columns, or not one label per frame.
    """
    if not frames or columns < 1 or len(labels) != len(frames):
        raise MediaError(problem=f"a contact sheet of {len(frames)} frames in {columns} columns with {len(labels)} "
                                 "labels; needed: a frame, a column, and one label per frame")
    for number, frame_HWC in enumerate(frames):
        require_frame(frame_HWC, f"frame {number}")
    columns = min(columns, len(frames))
    cell_height_px = max(frame.shape[0] for frame in frames)
    cell_width_px = max(frame.shape[1] for frame in frames)
    size_px = max(MIN_SIZE_PX, round(cell_height_px * 0.08))
    gap_px, label_px = max(2, size_px // 2), round(size_px * 1.6) if any(labels) else 0
    rows = -(-len(frames) // columns)
    sheet_HWC = np.empty((gap_px + rows * (cell_height_px + label_px + gap_px),
                          gap_px + columns * (cell_width_px + gap_px), 3), np.uint8)
    sheet_HWC[:] = SHEET_PAPER
    for number, (frame_HWC, label) in enumerate(zip(frames, labels, strict=True)):
        top = gap_px + number // columns * (cell_height_px + label_px + gap_px)
        left = gap_px + number % columns * (cell_width_px + gap_px)
        height_px, width_px = frame_HWC.shape[:2]
        inner_top, inner_left = top + (cell_height_px - height_px) // 2, left + (cell_width_px - width_px) // 2
        sheet_HWC[inner_top:inner_top + height_px, inner_left:inner_left + width_px] = frame_HWC
        if label.strip():
            line = cut_text(label, width_px=cell_width_px, height_px=label_px, size_px=size_px, min_size_px=size_px)
            strip = sheet_HWC[top + cell_height_px:top + cell_height_px + label_px, left:left + cell_width_px]
            _ink(strip, draw_text(line, (cell_width_px, label_px), top_px=round(size_px * 0.2), centred=False))
    return sheet_HWC


def sprite_places(frames: int, columns: int, rows: int) -> tuple[int, ...]:
    """Which frames of a clip stand on its sheet, in order: the first, the last, and those evenly between; all of them
    where there are no more than cells.
    """
    cells = min(columns * rows, frames)
    return tuple(round(cell * (frames - 1) / max(cells - 1, 1)) for cell in range(cells))


def sprite_sheet(frames: Sequence[UInt8Array], columns: int, rows: int) -> UInt8Array:
    """Frames of one size in a grid for programs: row by row, edge to edge, cells without a frame black.

    Raises:
        MediaError: no frames, more of them than cells, or frames of different sizes.
    """
    if not 1 <= len(frames) <= columns * rows:
        raise MediaError(problem=f"{len(frames)} frames in {columns}x{rows} cells; nearest valid: "
                                 f"{min(max(len(frames), 1), columns * rows)}")
    height_px, width_px = frames[0].shape[:2]
    sheet_HWC = np.zeros((rows * height_px, columns * width_px, 3), np.uint8)
    for number, frame_HWC in enumerate(frames):
        require_frame(frame_HWC, f"frame {number}")
        if frame_HWC.shape != frames[0].shape:
            raise MediaError(problem=f"frame {number} has another size than frame 0")
        top, left = number // columns * height_px, number % columns * width_px
        sheet_HWC[top:top + height_px, left:left + width_px] = frame_HWC
    return sheet_HWC


def slate(text: str, *, width_px: int, height_px: int, detail: str = "") -> UInt8Array:
    """Draw a card that says what belongs here: `text` in the middle, `detail` (`MISSING SHOT`) in a striped bar above.

    The colour comes from the text, so that neighbouring slates differ and the same slate always looks the same. Text
    too long for the card is cut with an ellipsis: a slate must not fail over what it stands in for.

    Raises:
        MediaError: the text is empty, or a side is under 32 px.
    """
    if not text.strip():
        raise MediaError(problem="a slate needs a text")
    if min(width_px, height_px) < MIN_SLATE_PX:
        raise MediaError(problem=f"a slate of {width_px}x{height_px} px; nearest valid: "
                                 f"{max(width_px, MIN_SLATE_PX)}x{max(height_px, MIN_SLATE_PX)}")
    hue = hashlib.sha256(text.encode()).digest()[0] / 256
    card_HWC = np.empty((height_px, width_px, 3), np.uint8)
    card_HWC[:] = _colour(hue, CARD_LIGHTNESS)
    bar_px = 0
    if detail.strip():
        bar_px = max(MIN_SIZE_PX * 3 // 2, round(height_px * 0.17))
        _draw_stripes(card_HWC[:bar_px], _colour(hue, STRIPE_LIGHTNESS))
        _draw_centred(card_HWC[:bar_px], detail, size_px=round(bar_px * 0.5))
    margin_px = max(1, round(height_px * 0.05))
    body_HWC = card_HWC[bar_px + margin_px:height_px - margin_px, margin_px:width_px - margin_px]
    _draw_centred(body_HWC, text, size_px=round(height_px * 0.085))
    return card_HWC


def slate_clip(text: str, *, width_px: int, height_px: int, frames: int, detail: str = "") -> UInt8Array:
    """A slate held for `frames` frames, as `frames_THWC`: a read-only view of one picture, whatever the length.

    Raises:
        MediaError: as `slate`, or fewer than one frame.
    """
    if frames < 1:
        raise MediaError(problem=f"a slate of {frames} frames; nearest valid: 1")
    card_HWC = slate(text, width_px=width_px, height_px=height_px, detail=detail)
    return np.broadcast_to(card_HWC, (frames, *card_HWC.shape))


def _colour(hue: float, lightness: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, SATURATION)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_stripes(bar_HWC: UInt8Array, colour: tuple[int, int, int]) -> None:
    height_px, width_px = bar_HWC.shape[:2]
    rows, columns = np.mgrid[:height_px, :width_px]
    bar_HWC[(rows + columns) // max(2, height_px // 2) % 2 == 0] = colour


def _draw_centred(region_HWC: UInt8Array, text: str, *, size_px: int) -> None:
    height_px, width_px = region_HWC.shape[:2]
    block = cut_text(text, width_px=round(width_px * 0.94), height_px=height_px,
                     size_px=max(MIN_SIZE_PX, size_px), min_size_px=MIN_SIZE_PX)
    _ink(region_HWC, draw_text(block, (width_px, height_px), top_px=(height_px - block.height_px) // 2, centred=True))


def _ink(region_HWC: UInt8Array, letters_HW: UInt8Array) -> None:
    share = letters_HW[..., None].astype(np.float32) / 255
    region_HWC[:] = np.rint(region_HWC * (1 - share) + np.array(INK, np.float32) * share).astype(np.uint8)
