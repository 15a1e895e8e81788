"""Frames between frames: the given ones untouched, the new ones where the motion puts them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.media.samples import OPTIONS, moving, psnr, write
from workflows.errors import MediaError
from workflows.media.decode import read_frames
from workflows.media.interpolate import interpolate, interpolate_clip
from workflows.media.probe import probe


def sliding_disc(frames: int, step_px: float, *, size_px: tuple[int, int] = (96, 64)) -> np.ndarray:
    """A red disc moving right by `step_px` a frame, placed to a sixteenth of a pixel."""
    clip_THWC = np.empty((frames, size_px[1], size_px[0], 3), np.uint8)
    for t, frame_HWC in enumerate(clip_THWC):
        frame_HWC[:] = (70, 110, 160)
        centre = round((20 + step_px * t) * 16), size_px[1] // 2 * 16
        cv2.circle(frame_HWC, centre, min(10, size_px[1] // 4) * 16, (230, 60, 40), -1, cv2.LINE_AA, 4)
    return clip_THWC


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_the_frames_given_stay_bit_for_bit(factor: int) -> None:
    frames_THWC = moving(4)
    dense_THWC = interpolate(frames_THWC, factor)
    assert dense_THWC.shape == (3 * factor + 1, *frames_THWC.shape[1:])
    assert np.array_equal(dense_THWC[::factor], frames_THWC)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_moving_shape_is_followed_where_mixing_would_double_it(factor: int) -> None:
    """6 px between the frames given; every new frame at least 6 dB closer to the truth than a mix."""
    truth_THWC = sliding_disc(4 * factor + 1, 6 / factor)
    dense_THWC = interpolate(truth_THWC[::factor], factor)
    for number, truth_HWC in enumerate(truth_THWC):
        if number % factor:
            before, share = number // factor * factor, number % factor / factor
            mixed = (1 - share) * truth_THWC[before].astype(float) + share * truth_THWC[before + factor]
            assert psnr(dense_THWC[number], truth_HWC) > psnr(truth_HWC, mixed) + 6


def test_nothing_moves_in_a_still_clip() -> None:
    still_THWC = np.repeat(moving(1), 3, axis=0)
    assert np.abs(interpolate(still_THWC, 3).astype(int) - still_THWC[0]).max() <= 1


@pytest.mark.parametrize("size_px", [(2, 2), (94, 26), (26, 94), (160, 18), (33, 31)], ids=str)
def test_small_and_flat_pictures_do_not_crash_the_flow(size_px: tuple[int, int]) -> None:
    """OpenCV's DIS ends the process on wide pictures under 32 rows."""
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, size_px[1], size_px[0], 3), dtype=np.uint8)
    assert interpolate(frames_THWC, 2).shape == (3, size_px[1], size_px[0], 3)


def test_one_frame_stays_one_frame() -> None:
    assert np.array_equal(interpolate(moving(1), 4), moving(1))


@pytest.mark.parametrize(("factor", "nearest"), [(1, 2), (0, 2), (-3, 2), (9, 8)])
def test_a_factor_out_of_range_is_refused_with_the_nearest(factor: int, nearest: int) -> None:
    with pytest.raises(MediaError, match=f"nearest valid: {nearest}"):
        interpolate(moving(2), factor)


def test_the_same_frames_give_the_same_frames() -> None:
    assert np.array_equal(interpolate(moving(3), 2), interpolate(moving(3), 2))


def test_progress_counts_every_frame() -> None:
    seen: list[tuple[int, int]] = []
    interpolate(moving(3), 2, on_progress=lambda *call: seen.append(call))
    assert seen == [(done, 5) for done in range(1, 6)]


def test_a_clip_gets_a_higher_rate(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    clip = write(tmp_path / "clip.mp4", 5, fps=Fraction(8))
    info = interpolate_clip(clip, tmp_path / "out.mp4", 3, options=OPTIONS, on_progress=lambda *call: seen.append(call))
    assert (info.fps, info.frames) == (Fraction(24), 13)
    assert info == probe(tmp_path / "out.mp4")
    assert psnr(read_frames(tmp_path / "out.mp4")[::3], read_frames(clip)) > 30
    assert seen[-1] == (13, 13)


def test_a_clip_is_refused_a_wrong_factor_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="nearest valid: 8"):
        interpolate_clip(tmp_path / "missing.mp4", tmp_path / "out.mp4", 12, options=OPTIONS)
