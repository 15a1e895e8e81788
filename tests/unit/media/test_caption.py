"""Captions: readable at any size, in any script of the built-in font, and only where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.media.samples import OPTIONS, moving, write
from workflows.errors import MediaError
from workflows.media.caption import burn, caption_clip
from workflows.media.decode import read_frames
from workflows.media.probe import probe
from workflows.media.typeset import cut_text, fit_text

SIZES_PX = [(96, 64), (160, 96), (272, 480), (832, 480), (1920, 1080)]
TEXTS = {"latin": "A red ball rolls over the hill", "chinese": "红色的球滚过山丘", "japanese": "赤いボールが転がる",
         "korean": "빨간 공이 굴러간다", "cyrillic": "Красный мяч катится", "mixed": "Act 第一幕: 红色的 ball"}


def grey(width_px: int, height_px: int, level: int = 128) -> np.ndarray:
    return np.full((2, height_px, width_px, 3), level, np.uint8)


def changed_HW(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before[0] != after[0]).any(axis=2)


@pytest.mark.parametrize(("width_px", "height_px"), SIZES_PX, ids=str)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_letters_are_white_on_dark_over_any_picture(width_px: int, height_px: int, level: int) -> None:
    frames_THWC = grey(width_px, height_px, level)
    captioned_THWC = burn(frames_THWC, "A red ball")
    rows, columns = np.nonzero(captioned_THWC[0].max(axis=2) < 90) if level else np.nonzero(captioned_THWC[0, ..., 0])
    box = captioned_THWC[0, rows.min():rows.max(), columns.min():columns.max()]
    assert box.max() >= 225
    assert np.percentile(box, 5) <= 30


@pytest.mark.parametrize(("width_px", "height_px"), SIZES_PX, ids=str)
def test_a_short_caption_stays_low_and_centred(width_px: int, height_px: int) -> None:
    rows, columns = np.nonzero(changed_HW(grey(width_px, height_px), burn(grey(width_px, height_px), "A ball")))
    assert rows.min() > height_px * 0.6
    assert rows.max() < height_px - 1
    assert abs((columns.min() + columns.max()) / 2 - width_px / 2) <= 2


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_script_changes_the_lower_third(text: str) -> None:
    changed = changed_HW(grey(160, 96), burn(grey(160, 96), text))
    assert changed[64:].sum() > 300


def test_different_characters_give_different_pixels() -> None:
    """A font without the characters would draw the same box for each."""
    texts = ("红色的球", "山丘夜晚", "第一幕终", "빨간공이", "赤い球が")
    pictures = [burn(grey(160, 96), text)[0].tobytes() for text in texts]
    assert len(set(pictures)) == len(pictures)


def test_a_caption_grows_with_the_picture() -> None:
    heights = []
    for width_px, height_px in ((160, 96), (832, 480), (1920, 1080)):
        letters = burn(grey(width_px, height_px, 0), "Hill")[0, ..., 0] > 200
        rows = np.nonzero(letters.any(axis=1))[0]
        heights.append(rows.max() - rows.min())
    assert heights[0] < heights[1] < heights[2]
    assert heights[2] == pytest.approx(heights[1] * 1080 / 480, rel=0.15)


@pytest.mark.parametrize("text", ["word " * 14, "没有空格的很长的句子也必须换行显示在画面里面", "x" * 60,
                                  "two\nlines"], ids=["latin", "chinese", "one long word", "line break"])
def test_long_text_is_wrapped_inside_the_picture(text: str) -> None:
    rows, columns = np.nonzero(changed_HW(grey(160, 96), burn(grey(160, 96), text)))
    one_row, _ = np.nonzero(changed_HW(grey(160, 96), burn(grey(160, 96), "one")))
    assert rows.max() - rows.min() > 1.5 * (one_row.max() - one_row.min())
    assert columns.min() >= 0
    block = fit_text(text, width_px=147, height_px=72, size_px=9, min_size_px=9)
    assert block.width_px <= 147
    assert "".join("".join(block.lines).split()) == "".join(text.split())


LINES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "at spaces, evenly": ("one two three four", 70, ("one two", "three four")),
    "between chinese characters": ("红色的球滚过山丘", 70, ("红色的球", "滚过山丘")),
    "never before a stop": ("红色的球、滚过", 48, ("红色的", "球、滚", "过")),
    "never after an opening bracket": ("红色「球」滚过山", 62, ("红色「球」", "滚过山")),
    "between chinese and latin words": ("球ball球", 40, ("球ball", "球")),
    "never inside a latin word that fits": ("球球ball", 40, ("球球", "ball")),
}


@pytest.mark.parametrize(("text", "width_px", "lines"), LINES.values(), ids=LINES)
def test_lines_break_where_readers_expect_it(text: str, width_px: int, lines: tuple[str, ...]) -> None:
    block = fit_text(text, width_px=width_px, height_px=200, size_px=12, min_size_px=12)
    assert block.lines == lines


@pytest.mark.parametrize("text", ["", "   ", "\n\t\n"], ids=["empty", "spaces", "line breaks"])
def test_an_empty_caption_is_refused(text: str) -> None:
    with pytest.raises(MediaError, match="the text is empty"):
        burn(grey(96, 64), text)


def test_a_caption_that_cannot_be_readable_is_refused_with_the_length_that_fits() -> None:
    with pytest.raises(MediaError, match=r"a text of 899 characters does not fit .*; nearest valid: about \d+ "):
        burn(grey(96, 64), "far too long " * 69 + "ab")


def test_a_text_may_be_cut_with_an_ellipsis_instead() -> None:
    block = cut_text("far too long " * 30, width_px=80, height_px=30, size_px=12, min_size_px=9)
    assert "".join(block.lines).endswith("…")
    assert block.height_px <= 30
    assert cut_text("short", width_px=80, height_px=30, size_px=12, min_size_px=9).lines == ("short",)


def test_the_frames_given_are_left_as_they_were() -> None:
    frames_THWC = moving(3)
    before = frames_THWC.copy()
    captioned_THWC = burn(frames_THWC, "A ball")
    assert np.array_equal(frames_THWC, before)
    assert np.array_equal(captioned_THWC[:, :30], before[:, :30])


def test_a_clip_gets_its_caption_and_keeps_everything_else(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    clip = write(tmp_path / "clip.mp4", 9)
    info = caption_clip(clip, "第一幕 ball", tmp_path / "out.mp4", options=OPTIONS,
                        on_progress=lambda *call: seen.append(call))
    assert info == probe(clip)
    before, after = read_frames(clip).astype(int), read_frames(tmp_path / "out.mp4").astype(int)
    assert np.abs(before[:, :30] - after[:, :30]).mean() < 3
    assert np.abs(before[:, 44:] - after[:, 44:]).mean() > 20
    assert seen == [(done, 9) for done in range(1, 10)]


def test_a_caption_on_what_is_not_a_clip_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("no clip")
    with pytest.raises(MediaError, match=r"clip\.mp4: not a readable video"):
        caption_clip(tmp_path / "clip.mp4", "text", tmp_path / "out.mp4", options=OPTIONS)
