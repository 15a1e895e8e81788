"""Files that browsers play: sizes, times, colours, bytes."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.unit.media.samples import (
    HEIGHT_PX,
    OPTIONS,
    WIDTH_PX,
    ffmpeg,
    length_s,
    moving,
    psnr,
    stream_of,
    write,
    yuv_frames,
)
from workflows.errors import MediaError
from workflows.media.decode import read_frames
from workflows.media.encode import EncodeOptions, VideoFormat, encode, open_join_encoder, write_clip
from workflows.media.gops import scan
from workflows.media.h264 import read_headers
from workflows.media.probe import BT709

RATES = [Fraction(8), Fraction(16), Fraction(30000, 1001), Fraction(24), Fraction(2997, 100), Fraction(1, 2)]
COLOURS = {
    "red": (220, 40, 40), "green": (30, 200, 60), "blue": (40, 60, 220), "skin": (224, 172, 140),
    "yellow": (250, 230, 20), "magenta": (200, 0, 200),
    "grey": (128, 128, 128), "white": (255, 255, 255), "black": (0, 0, 0)}


def flat(colour: tuple[int, ...], frames: int = 3) -> np.ndarray:
    frames_THWC = np.empty((frames, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    frames_THWC[:] = colour
    return frames_THWC


def test_a_clip_is_tagged_as_bt709_limited_range(tmp_path: Path) -> None:
    info = encode(moving(9), fps=16, to=tmp_path / "clip.mp4", options=OPTIONS)
    assert info.colour == BT709
    assert (info.codec, info.pix_fmt) == ("h264", "yuv420p")


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
def test_a_colour_comes_back_within_three_levels(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    encode(flat(colour), fps=16, to=tmp_path / "clip.mp4", options=OPTIONS)
    difference = np.abs(read_frames(tmp_path / "clip.mp4").astype(int) - flat(colour))
    assert difference.max() <= 3


def test_the_pixels_are_converted_with_the_bt709_matrix(tmp_path: Path) -> None:
    """Y of (220, 40, 40) is 16 + 219 * (0.2126 * 220 + 0.7874 * 40) / 255 = 83.2; BT.601 would give 96.6."""
    encode(flat(COLOURS["red"]), fps=16, to=tmp_path / "clip.mp4", options=OPTIONS)
    luma = yuv_frames(tmp_path / "clip.mp4")[1][:HEIGHT_PX]
    assert abs(float(luma.mean()) - 83.2) < 1.5


def test_the_header_stands_before_the_data_so_that_browsers_can_start(tmp_path: Path) -> None:
    data = write(tmp_path / "clip.mp4", 9).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"avc1" in data
    assert b"colrnclx\x00\x01\x00\x01\x00\x01" in data


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_frames_are_equally_far_apart_at_any_rate(tmp_path: Path, fps: Fraction) -> None:
    info = encode(moving(11), fps=fps, to=tmp_path / "clip.mp4", options=OPTIONS)
    times, time_base, _, _ = stream_of(tmp_path / "clip.mp4")
    shown = sorted(pts for pts, _ in times)
    assert shown[0] == 0
    assert {(later - earlier) * time_base for earlier, later in pairwise(shown)} == {1 / fps}
    assert (info.fps, info.frames, info.constant_rate) == (fps, 11, True)
    assert info.duration_s == pytest.approx(float(11 / fps))
    track_s, file_s = length_s(tmp_path / "clip.mp4")
    assert track_s == 11 / fps, "the last frame lasts as long as the others"
    assert file_s == pytest.approx(11 / fps, abs=1e-6)


@pytest.mark.parametrize(("frames", "starts"), [(1, [0]), (2, [0]), (8, [0]), (9, [0]), (10, [0, 8]), (17, [0, 8]),
                                                (20, [0, 8, 16])], ids=str)
def test_groups_start_every_half_second_and_none_has_one_picture(
    tmp_path: Path, frames: int, starts: list[int],
) -> None:
    """At 16 fps a group has 8 frames; the 9th of 9 joins the group before."""
    write(tmp_path / "clip.mp4", frames)
    _, _, _, keys = stream_of(tmp_path / "clip.mp4")
    assert [number for number, is_key in enumerate(keys) if is_key] == starts


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    """Large enough to have found x264's AVX-512 code giving other bytes on each run."""
    size_px = (416, 240)
    digests = {hashlib.sha256(write(tmp_path / f"{take}.mp4", 17, size_px=size_px).read_bytes()).hexdigest()
               for take in range(4)}
    assert len(digests) == 1


def test_a_lower_crf_is_closer_to_the_picture(tmp_path: Path) -> None:
    frames_THWC = moving(9)
    for crf in (10, 35):
        encode(frames_THWC, fps=16, to=tmp_path / f"{crf}.mp4", options=EncodeOptions(crf=crf))
    assert psnr(read_frames(tmp_path / "10.mp4"), frames_THWC) > psnr(read_frames(tmp_path / "35.mp4"), frames_THWC) + 3


@pytest.mark.parametrize("preset", ["ultrafast", "veryfast", "medium"])
def test_codec_headers_do_not_depend_on_crf_content_or_length(tmp_path: Path, preset: str) -> None:
    headers = set()
    for crf, frames in ((12, 1), (18, 9), (30, 12)):
        options = EncodeOptions(crf=crf, preset=preset)
        info = encode(moving(frames, seed=crf), fps=16, to=tmp_path / "clip.mp4", options=options)
        headers.add(info.extradata_sha256)
    assert len(headers) == 1


@pytest.mark.parametrize("preset", ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"])
def test_the_encoder_for_joins_has_the_headers_of_clips(tmp_path: Path, preset: str) -> None:
    clip = scan(write(tmp_path / "clip.mp4", 3, options=EncodeOptions(preset=preset)))
    film = VideoFormat(width_px=WIDTH_PX, height_px=HEIGHT_PX, fps=Fraction(16))
    joins = open_join_encoder(film, EncodeOptions(preset=preset))
    assert clip.headers is not None
    assert clip.headers == read_headers(joins.extradata or b"")


def test_ffmpeg_decodes_a_clip_without_a_warning(tmp_path: Path) -> None:
    assert ffmpeg("-i", write(tmp_path / "clip.mp4", 20), "-f", "null", "-") == ""


@pytest.mark.parametrize(("shape", "nearest"), [((3, 63, 96, 3), "96x62 or 96x64"), ((3, 64, 97, 3), "96x64 or 98x64"),
                                                ((3, 1, 1, 3), "2x2")], ids=str)
def test_odd_sides_are_refused_with_the_nearest_even_ones(tmp_path: Path, shape: tuple[int, ...], nearest: str) -> None:
    with pytest.raises(MediaError, match=f"nearest valid: {nearest}"):
        encode(np.zeros(shape, np.uint8), fps=16, to=tmp_path / "clip.mp4", options=OPTIONS)
    assert list(tmp_path.iterdir()) == []


BAD_ARRAYS = {
    "no frames": (np.zeros((0, 64, 96, 3), np.uint8), "no frames"),
    "floats": (np.zeros((2, 64, 96, 3), np.float32), "needed: uint8"),
    "one frame without T": (np.zeros((64, 96, 3), np.uint8), "needed: uint8"),
    "alpha": (np.zeros((2, 64, 96, 4), np.uint8), "needed: uint8"),
}


@pytest.mark.parametrize(("frames_THWC", "problem"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_are_not_rgb_clips_are_refused(tmp_path: Path, frames_THWC: np.ndarray, problem: str) -> None:
    with pytest.raises(MediaError, match=problem):
        encode(frames_THWC, fps=16, to=tmp_path / "clip.mp4", options=OPTIONS)


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="must be positive"):
        encode(moving(2), fps=0, to=tmp_path / "clip.mp4", options=OPTIONS)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"nowhere/clip\.mp4: cannot be written"):
        encode(moving(2), fps=16, to=tmp_path / "nowhere" / "clip.mp4", options=OPTIONS)


def test_a_preset_that_x264_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be written"):
        encode(moving(2), fps=16, to=tmp_path / "clip.mp4", options=EncodeOptions(preset="warp"))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    encode(moving(5), fps=16, to=tmp_path / "clip.mp4", options=OPTIONS, on_frame=lambda *call: seen.append(call))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]


class StopHereError(OSError):
    """What a caller raises to stop the work; an OSError, which this room handles elsewhere."""


def test_a_callback_that_raises_stops_the_work_and_leaves_the_old_file(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StopHereError

    with pytest.raises(StopHereError):
        encode(moving(9), fps=16, to=clip, options=OPTIONS, on_frame=stop)
    assert clip.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [clip]


def test_a_writer_refuses_a_frame_of_another_size(tmp_path: Path) -> None:
    clip = VideoFormat(width_px=WIDTH_PX, height_px=HEIGHT_PX, fps=Fraction(16))
    with write_clip(tmp_path / "clip.mp4", video_format=clip, options=OPTIONS) as writer:
        writer.write(moving(1)[0])
        with pytest.raises(MediaError, match=r"frame 1 is 98x64 px; needed: 96x64"):
            writer.write(moving(1, width_px=98)[0])


def test_a_writer_without_frames_leaves_no_file(tmp_path: Path) -> None:
    clip = VideoFormat(width_px=WIDTH_PX, height_px=HEIGHT_PX, fps=Fraction(16))
    with (pytest.raises(MediaError, match="no frames to write"),
          write_clip(tmp_path / "clip.mp4", video_format=clip, options=OPTIONS)):
        pass
    assert list(tmp_path.iterdir()) == []
