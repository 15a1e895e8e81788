"""Films: what is copied is bit for bit the clips' own, what is mixed is close to the ideal, times are uniform."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.unit.media.samples import (
    FPS,
    HEIGHT_PX,
    OPTIONS,
    WIDTH_PX,
    digests,
    ffmpeg,
    film_options,
    length_s,
    psnr,
    stream_of,
    write,
    yuv_frames,
)
from workflows.errors import MediaError
from workflows.media.compose import ComposeReport, Method, Part, compose
from workflows.media.decode import first_frame, last_frame
from workflows.media.encode import EncodeOptions, encode
from workflows.media.probe import BT709, probe
from workflows.media.stills import slate_clip


def clips(folder: Path, *lengths: int) -> list[Path]:
    return [write(folder / f"{number}.mp4", frames, seed=number) for number, frames in enumerate(lengths)]


def join(folder: Path, paths: list[Path], *fades: int, **changes: object) -> tuple[ComposeReport, Path]:
    film = folder / "film.mp4"
    fade_of = [0, *(fades or [0] * (len(paths) - 1))]
    parts = [Part(path=path, fade_in_frames=fade) for path, fade in zip(paths, fade_of, strict=True)]
    return compose(parts, film, options=film_options(**changes)), film


def check_film(film: Path, frames: int, fps: Fraction = FPS) -> None:
    """What holds for every film, however it was joined; FFmpeg decodes it without a warning."""
    times, time_base, size_px, keys = stream_of(film)
    shown = sorted(pts for pts, _ in times)
    assert len(times) == frames
    assert shown[0] == 0
    assert {(later - earlier) * time_base for earlier, later in pairwise(shown)} <= {1 / fps}
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(times)), "decoding times must rise"
    assert all(pts >= dts for pts, dts in times)
    assert keys[0]
    info = probe(film)
    assert (info.codec, info.pix_fmt, info.colour, info.frames) == ("h264", "yuv420p", BT709, frames)
    assert info.duration_s == pytest.approx(float(frames / fps))
    assert size_px == (info.width_px, info.height_px)
    assert length_s(film)[0] == frames / fps
    data = film.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert b"avc1" in data
    assert len(yuv_frames(film)) == frames


# Hard cuts


@pytest.mark.parametrize("lengths", [(9,), (1,), (17, 9, 25), (8, 16), (2, 3, 2), (24, 1)], ids=str)
def test_hard_cuts_copy_every_frame_bit_for_bit(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    paths = clips(tmp_path, *lengths)
    report, film = join(tmp_path, paths)
    assert digests(film) == [digest for path in paths for digest in digests(path)]
    assert (report.method, report.reason, report.copied_frames, report.reencoded_frames) == (
        Method.REMUX, "", sum(lengths), 0)
    check_film(film, sum(lengths))


def test_times_are_uniform_where_the_rate_is_not_a_whole_number(tmp_path: Path) -> None:
    fps = Fraction(30000, 1001)
    paths = [write(tmp_path / f"{seed}.mp4", 17, seed=seed, fps=fps) for seed in (1, 2, 3)]
    report, film = join(tmp_path, paths, fps=fps)
    assert report.method is Method.REMUX
    check_film(film, 51, fps)


def test_clips_from_another_muxer_are_copied_too(tmp_path: Path) -> None:
    """Another time base and a first frame that is not at zero: times come from frame numbers."""
    paths = clips(tmp_path, 17, 17)
    ffmpeg("-i", paths[1], "-c", "copy", "-video_track_timescale", "90000", "-output_ts_offset", "2",
           tmp_path / "moved.mp4")
    report, film = join(tmp_path, [paths[0], tmp_path / "moved.mp4"])
    assert report.method is Method.REMUX
    assert digests(film) == digests(paths[0]) + digests(paths[1])
    check_film(film, 34)


def test_a_slate_encoded_like_the_clips_is_copied_beside_them(tmp_path: Path) -> None:
    paths = clips(tmp_path, 17, 17)
    slate = slate_clip("s2: a boat", width_px=WIDTH_PX, height_px=HEIGHT_PX, frames=17, detail="MISSING SHOT")
    encode(slate, fps=FPS, to=tmp_path / "slate.mp4", options=OPTIONS)
    report, _ = join(tmp_path, [paths[0], tmp_path / "slate.mp4", paths[1]])
    assert report.method is Method.REMUX


def test_a_single_picture_between_clips_is_encoded_with_what_follows(tmp_path: Path) -> None:
    paths = clips(tmp_path, 17, 1, 17)
    report, film = join(tmp_path, paths)
    assert (report.method, report.copied_frames, report.reencoded_frames) == (Method.SMART, 26, 9)
    check_film(film, 35)


# Crossfades


def ideal_film(paths: list[Path], fades: tuple[int, ...]) -> list[np.ndarray]:
    """Each frame as it should be, computed in floats from the decoded clips."""
    film: list[np.ndarray] = []
    for path, fade in zip(paths, (0, *fades), strict=True):
        frames = [frame.astype(float) for frame in yuv_frames(path)]
        for index in range(fade):
            share = (index + 1) / (fade + 1)
            film[index - fade] = film[index - fade] * (1 - share) + frames[index] * share
        film += frames[fade:]
    return film


FADES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "one frame": ((40, 40), (1,), 15),
    "three frames": ((40, 40), (3,), 13),
    "a group": ((40, 40), (8,), 8),
    "more than a group": ((41, 41), (11,), 22),
    "several": ((41, 33, 41, 41), (4, 13, 8), 42),
    "a clip without a free group": ((32, 9, 32), (4, 5), 16),
    "a fade and cuts": ((24, 24, 24), (0, 6), 10),
    "joins that reorder more than the copied clip": ((2, 9, 9), (0, 2), 16),
    "fades that meet": ((24, 16, 24), (8, 8), 16),
}
"""Lengths, fades, frames that must be encoded."""


@pytest.mark.parametrize(("lengths", "fades", "encoded"), FADES.values(), ids=FADES)
def test_crossfades_leave_everything_else_bit_for_bit(
    tmp_path: Path, lengths: tuple[int, ...], fades: tuple[int, ...], encoded: int,
) -> None:
    paths = clips(tmp_path, *lengths)
    report, film = join(tmp_path, paths, *fades)
    total = sum(lengths) - sum(fades)
    assert (report.method, report.reason) == (Method.SMART, "")
    assert (report.copied_frames, report.reencoded_frames, report.frames) == (total - encoded, encoded, total)
    check_film(film, total)
    ideal, made = ideal_film(paths, fades), yuv_frames(film)
    same = [bool((one == other).all()) for one, other in zip(made, ideal, strict=True)]
    assert sum(same) >= report.copied_frames
    assert min(psnr(one, other) for one, other in zip(made, ideal, strict=True)) >= 40


def test_players_can_seek_to_the_start_of_every_copied_group_and_every_join(tmp_path: Path) -> None:
    """Lengths 40 and 40, a fade of 5: groups at 0, 8, 16, 24, the join at 32 with groups at 0 and 8, copies from 43."""
    _, film = join(tmp_path, clips(tmp_path, 40, 40), 5)
    _, _, _, keys = stream_of(film)
    assert [number for number, is_key in enumerate(keys) if is_key] == [0, 8, 16, 24, 32, 40, 43, 51, 59, 67]


def test_joins_are_within_45_db_of_the_ideal_mix(tmp_path: Path) -> None:
    """At crf 12, where the encoder is not what limits the measure."""
    options = EncodeOptions(crf=12)
    paths = [write(tmp_path / f"{seed}.mp4", 33, seed=seed, options=options, size_px=(160, 96)) for seed in (1, 2)]
    report, film = join(tmp_path, paths, 8, width_px=160, height_px=96, encode=options)
    assert report.method is Method.SMART
    ideal, made = ideal_film(paths, (8,)), yuv_frames(film)
    assert min(psnr(one, other) for one, other in zip(made, ideal, strict=True)) >= 45


@pytest.mark.parametrize("preset", ["ultrafast", "medium"])
def test_joins_match_clips_of_any_preset(tmp_path: Path, preset: str) -> None:
    options = EncodeOptions(preset=preset, crf=20)
    paths = [write(tmp_path / f"{seed}.mp4", 33, seed=seed, options=options) for seed in (1, 2)]
    report, film = join(tmp_path, paths, 8, encode=options)
    assert report.method is Method.SMART
    check_film(film, 58)


@pytest.mark.parametrize("name", ["remux", "smart", "reencode"])
def test_a_film_is_the_same_bytes_each_time(tmp_path: Path, name: str) -> None:
    paths = clips(tmp_path, 33, 33)
    fades, preset = {"remux": (0, "veryfast"), "smart": (8, "veryfast"), "reencode": (8, "medium")}[name]
    takes = set()
    for _ in range(2):
        report, film = join(tmp_path, paths, fades, encode=EncodeOptions(preset=preset))
        assert report.method == name
        takes.add(film.read_bytes())
    assert len(takes) == 1


# Everything else is encoded anew


def test_clips_of_another_size_are_fitted_and_centred_on_black(tmp_path: Path) -> None:
    """A square clip in a 96x64 film: 64 pixels of picture with 16 of black on each side."""
    white = np.full((9, 80, 80, 3), 255, np.uint8)
    encode(white, fps=FPS, to=tmp_path / "square.mp4", options=OPTIONS)
    report, film = join(tmp_path, [*clips(tmp_path, 9), tmp_path / "square.mp4"])
    assert report.method is Method.REENCODE
    assert "square.mp4 is 80x80 px at 16 fps, the film is 96x64 px at 16 fps" in report.reason
    check_film(film, 18)
    picture_HWC = last_frame(film).astype(int)
    assert picture_HWC[:, 20:76].min() > 245
    assert picture_HWC[:, :14].max() < 10
    assert picture_HWC[:, 82:].max() < 10


RATES = [(Fraction(8), 10, 20), (Fraction(24), 30, 20), (Fraction(25), 10, 6), (Fraction(30000, 1001), 30, 16),
         (Fraction(1, 2), 2, 64)]


@pytest.mark.parametrize(("fps", "frames", "expected"), RATES, ids=str)
def test_clips_of_another_rate_keep_their_length_in_seconds(
    tmp_path: Path, fps: Fraction, frames: int, expected: int,
) -> None:
    report, film = join(tmp_path, [write(tmp_path / "clip.mp4", frames, fps=fps)])
    assert (report.method, report.reencoded_frames, report.copied_frames) == (Method.REENCODE, expected, 0)
    check_film(film, expected)


STEPS = [(8, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]), (24, [0, 2, 3, 5]), (32, [1, 3, 5])]


@pytest.mark.parametrize(("fps", "expected"), STEPS, ids=["8 fps", "24 fps", "32 fps"])
def test_another_rate_shows_what_the_clip_shows_in_the_middle_of_each_frame(
    tmp_path: Path, fps: int, expected: list[int],
) -> None:
    """Six grey steps of 40 levels; frame k at 16 fps is the clip's frame at (k + 1/2) / 16 s."""
    steps = np.empty((6, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    steps[:] = np.arange(20, 260, 40, dtype=np.uint8)[:, None, None, None]
    encode(steps, fps=fps, to=tmp_path / "steps.mp4", options=OPTIONS)
    _, film = join(tmp_path, [tmp_path / "steps.mp4"])
    luma = [float(frame[:HEIGHT_PX].mean()) for frame in yuv_frames(film)]
    assert [round(((value - 16) / 219 * 255 - 20) / 40) for value in luma] == expected


def test_fades_between_clips_that_do_not_match_are_in_frames_of_the_film(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.mp4", 20), write(tmp_path / "b.mp4", 10, fps=Fraction(8), size_px=(160, 96), seed=1)]
    report, film = join(tmp_path, paths, 6)
    assert report.method is Method.REENCODE
    check_film(film, 20 + 20 - 6)
    with pytest.raises(MediaError, match="longest possible: 20"):
        join(tmp_path, paths, 21)


RED = ("color=0xDC2828:s=96x64:r=16:d=1,format=rgb24,scale=out_color_matrix=smpte170m:out_range=tv,format=yuv420p,"
       "setparams=colorspace=smpte170m:range=tv")


def foreign(path: Path, *arguments: str) -> Path:
    """A red clip from FFmpeg's own command."""
    ffmpeg("-f", "lavfi", "-i", RED, *arguments, path)
    return path


FOREIGN: dict[str, tuple[str, tuple[str, ...], str]] = {
    "other colours": ("a.mp4", ("-c:v", "libx264"), "not tagged as BT.709"),
    "another codec": ("a.mp4", ("-c:v", "mpeg4"), "codec is mpeg4"),
    "a profile that browsers do not play": (
        "a.mp4", ("-vf", "format=yuv444p,setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709",
                  "-c:v", "libx264"), "browsers do not play"),
    "another container": ("a.mkv", ("-c:v", "libx264"), "not equally far apart|not tagged|fps"),
    "open groups of pictures": (
        "a.mp4", ("-vf", "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709", "-c:v", "libx264",
                  "-x264-params", "open-gop=1:keyint=6:bframes=3:b-adapt=0"), "not closed"),
}


@pytest.mark.parametrize(("name", "arguments", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_clips_from_elsewhere_are_encoded_anew_and_the_report_says_why(
    tmp_path: Path, name: str, arguments: tuple[str, ...], reason: str,
) -> None:
    report, film = join(tmp_path, [foreign(tmp_path / name, *arguments), *clips(tmp_path, 17)], 0)
    assert report.method is Method.REENCODE
    assert any(word in report.reason for word in reason.split("|"))
    check_film(film, 33)


def test_colours_of_another_matrix_are_converted(tmp_path: Path) -> None:
    _, film = join(tmp_path, [foreign(tmp_path / "red.mp4", "-c:v", "libx264")])
    assert np.abs(first_frame(film).astype(int) - (220, 40, 40)).max() <= 5


@pytest.mark.parametrize(("fade", "method"), [(0, Method.REMUX), (8, Method.REENCODE)])
def test_clips_of_another_preset_can_be_cut_but_not_faded_by_copying(
    tmp_path: Path, fade: int, method: Method,
) -> None:
    paths = [write(tmp_path / f"{seed}.mp4", 33, seed=seed, options=EncodeOptions(preset="medium")) for seed in (1, 2)]
    report, film = join(tmp_path, paths, fade)
    assert report.method is method
    assert ("preset veryfast" in report.reason) == bool(fade)
    check_film(film, 66 - fade)


def test_clips_of_two_presets_cannot_share_a_track(tmp_path: Path) -> None:
    presets = ("veryfast", "slow")
    paths = [write(tmp_path / f"{preset}.mp4", 17, options=EncodeOptions(preset=preset)) for preset in presets]
    report, film = join(tmp_path, paths)
    assert report.method is Method.REENCODE
    assert report.reason == "slow.mp4 and veryfast.mp4 were encoded with different settings"
    check_film(film, 34)


def test_sound_is_left_out_and_reported(tmp_path: Path) -> None:
    paths = clips(tmp_path, 17, 17)
    ffmpeg("-i", paths[0], "-f", "lavfi", "-i", "sine=d=1", "-c:v", "copy", "-c:a", "aac", tmp_path / "loud.mp4")
    report, film = join(tmp_path, [tmp_path / "loud.mp4", paths[1]])
    assert report.silenced == ("loud.mp4",)
    assert not probe(film).has_audio
    check_film(film, 34)


# Refusals and progress


@pytest.mark.parametrize("fades", [(0, 0), (0, 8)], ids=["remux", "smart"])
def test_progress_counts_every_frame_of_the_film(tmp_path: Path, fades: tuple[int, int]) -> None:
    seen: list[tuple[int, int]] = []
    parts = [Part(path=path, fade_in_frames=fade) for path, fade in zip(clips(tmp_path, 33, 33), fades, strict=True)]
    compose(parts, tmp_path / "film.mp4", options=film_options(), on_progress=lambda *call: seen.append(call))
    total = 66 - sum(fades)
    assert seen == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(("fade", "preset"), [(0, "veryfast"), (8, "veryfast"), (8, "medium")])
def test_a_callback_that_raises_stops_the_work_and_leaves_no_file(tmp_path: Path, fade: int, preset: str) -> None:
    paths = clips(tmp_path, 33, 33)

    def stop(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compose([Part(path=paths[0]), Part(path=paths[1], fade_in_frames=fade)], tmp_path / "film.mp4",
                options=film_options(encode=EncodeOptions(preset=preset)), on_progress=stop)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_a_film_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="at least one part"):
        compose([], tmp_path / "film.mp4", options=film_options())


def test_an_odd_film_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="nearest valid: 96x64 or 98x64"):
        join(tmp_path, clips(tmp_path, 9), width_px=97)


def test_a_fade_that_is_too_long_names_the_part_by_its_label(tmp_path: Path) -> None:
    one, two = clips(tmp_path, 9, 17)
    with pytest.raises(MediaError, match=r"into 'the harbour' does not fit.*longest possible: 9"):
        compose([Part(path=one), Part(path=two, fade_in_frames=10, label="the harbour")], tmp_path / "film.mp4",
                options=film_options())


@pytest.mark.parametrize("fade", [0, 8])
def test_a_part_that_is_cut_off_is_refused_by_name(tmp_path: Path, fade: int) -> None:
    paths = clips(tmp_path, 33, 33)
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    with pytest.raises(MediaError, match=r"1\.mp4: cut off: \d+ of 33 frames"):
        join(tmp_path, paths, fade)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
