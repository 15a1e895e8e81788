"""Thumbnails, contact sheets, slates."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.media.samples import moving
from workflows.errors import MediaError
from workflows.media.stills import contact_sheet, slate, slate_clip, sprite_places, sprite_sheet, thumbnail


@pytest.mark.parametrize(("size_px", "max_px", "expected"), [((96, 64), 48, (32, 48)), ((64, 96), 48, (48, 32)),
                                                             ((96, 64), 96, (64, 96)), ((96, 64), 500, (64, 96)),
                                                             ((96, 2), 8, (1, 8))], ids=str)
def test_a_thumbnail_keeps_its_shape_and_never_grows(
    size_px: tuple[int, int], max_px: int, expected: tuple[int, int],
) -> None:
    frame_HWC = moving(1, width_px=size_px[0], height_px=size_px[1])[0]
    assert thumbnail(frame_HWC, max_px).shape == (*expected, 3)


def test_a_thumbnail_keeps_the_mean_colour() -> None:
    frame_HWC = moving(1)[0]
    assert np.allclose(thumbnail(frame_HWC, 24).mean(axis=(0, 1)), frame_HWC.mean(axis=(0, 1)), atol=2)


def test_a_contact_sheet_shows_each_frame_in_reading_order() -> None:
    frames = [np.full((40, 60, 3), 50 + 40 * number, np.uint8) for number in range(5)]
    sheet_HWC = contact_sheet(frames, 3, [""] * 5)
    gap_px = (sheet_HWC.shape[1] - 3 * 60) // 4
    centres = [(gap_px + row * (40 + gap_px) + 20, gap_px + column * (60 + gap_px) + 30)
               for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))]
    assert [int(sheet_HWC[centre][0]) for centre in centres] == [50, 90, 130, 170, 210]
    assert sheet_HWC.shape == (2 * 40 + 3 * gap_px, 3 * 60 + 4 * gap_px, 3)


def test_labels_are_written_under_their_frames() -> None:
    frames = [np.zeros((40, 60, 3), np.uint8)] * 2
    plain, labelled = contact_sheet(frames, 2, ["", "x"]), contact_sheet(frames, 2, ["s1", "x"])
    rows, columns = np.nonzero((plain != labelled).any(axis=2))
    assert rows.min() >= 40
    assert columns.max() < 60


def test_frames_of_different_sizes_share_a_sheet() -> None:
    sheet_HWC = contact_sheet([moving(1)[0], moving(1, width_px=160, height_px=96)[0]], 2, ["a", "b"])
    assert sheet_HWC.shape[1] > 320


@pytest.mark.parametrize(("frames", "columns", "labels"), [(0, 1, 0), (2, 0, 2), (2, 1, 1)],
                         ids=["no frames", "no columns", "a label missing"])
def test_a_sheet_that_makes_no_sense_is_refused(frames: int, columns: int, labels: int) -> None:
    with pytest.raises(MediaError, match="a contact sheet of"):
        contact_sheet(list(moving(2))[:frames], columns, ["x"] * labels)


@pytest.mark.parametrize(("frames", "expected"), [
    (1, (0,)), (3, (0, 1, 2)), (4, (0, 1, 2, 3)), (5, (0, 1, 3, 4)), (100, (0, 33, 66, 99))], ids=str)
def test_a_sprite_sheet_shows_the_first_frame_the_last_and_some_between(frames: int, expected: tuple[int, ...]) -> None:
    assert sprite_places(frames, 2, 2) == expected


def test_a_sprite_sheet_has_its_frames_edge_to_edge_and_black_cells_after_them() -> None:
    frames = [np.full((4, 6, 3), 50 * number, np.uint8) for number in (1, 2, 3)]
    sheet_HWC = sprite_sheet(frames, 2, 2)
    assert sheet_HWC.shape == (8, 12, 3)
    cells = [sheet_HWC[top:top + 4, left:left + 6] for top in (0, 4) for left in (0, 6)]
    assert [(int(cell.min()), int(cell.max())) for cell in cells] == [(50, 50), (100, 100), (150, 150), (0, 0)]


@pytest.mark.parametrize("sizes", [[], [4] * 5, [4, 5]], ids=["none", "too many", "two sizes"])
def test_a_sprite_sheet_that_makes_no_sense_is_refused(sizes: list[int]) -> None:
    with pytest.raises(MediaError):
        sprite_sheet([np.zeros((size, 6, 3), np.uint8) for size in sizes], 2, 2)


def test_slates_of_different_shots_differ_in_colour_and_equal_ones_do_not() -> None:
    """The corner below the bar is plain colour."""
    corners = {tuple(int(value) for value in slate(text, width_px=96, height_px=64)[-1, 0])
               for text in ("s1", "s2", "s3", "s4", "s5")}
    assert len(corners) >= 4
    assert np.array_equal(slate("s1", width_px=96, height_px=64), slate("s1", width_px=96, height_px=64))


TEXTS = {"latin": "A red ball", "chinese": "红色的球", "long": "long " * 200, "long chinese": "无" * 400}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(("width_px", "height_px"), [(32, 32), (96, 64), (64, 96), (832, 480)], ids=str)
def test_a_slate_shows_its_text_and_that_something_is_missing(text: str, width_px: int, height_px: int) -> None:
    plain = slate(text, width_px=width_px, height_px=height_px)
    marked = slate(text, width_px=width_px, height_px=height_px, detail="MISSING SHOT")
    assert plain.shape == marked.shape == (height_px, width_px, 3)
    assert (plain.max(axis=2) > 180).any(), "letters are light"
    top = marked[:max(12, height_px // 6)]
    assert (top.max(axis=2) > 180).any()
    assert not np.array_equal(top, plain[:len(top)])


def test_a_slate_clip_holds_one_picture() -> None:
    clip_THWC = slate_clip("s1", width_px=96, height_px=64, frames=7, detail="MISSING SHOT")
    assert clip_THWC.shape == (7, 64, 96, 3)
    assert np.array_equal(clip_THWC[0], slate("s1", width_px=96, height_px=64, detail="MISSING SHOT"))
    assert np.array_equal(clip_THWC[0], clip_THWC[6])


BAD_SLATES = {
    "no text": (" ", 96, 64, 5, "needs a text"),
    "too small": ("s1", 30, 64, 5, "nearest valid: 32x64"),
    "no frames": ("s1", 96, 64, 0, "nearest valid: 1"),
}


@pytest.mark.parametrize(("text", "width_px", "height_px", "frames", "problem"), BAD_SLATES.values(), ids=BAD_SLATES)
def test_a_slate_that_cannot_be_drawn_is_refused(
    text: str, width_px: int, height_px: int, frames: int, problem: str,
) -> None:
    with pytest.raises(MediaError, match=problem):
        slate_clip(text, width_px=width_px, height_px=height_px, frames=frames)


def test_a_thumbnail_of_nothing_is_refused() -> None:
    with pytest.raises(MediaError, match="nearest valid: 1"):
        thumbnail(moving(1)[0], 0)
    with pytest.raises(MediaError, match="needed: uint8"):
        thumbnail(np.zeros((0, 4, 3), np.uint8), 8)
