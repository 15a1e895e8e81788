"""What is refused at the door: requests that say too little or too much, and videos that cannot be edited."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from tests.edit_clips import HEIGHT_PX, WIDTH_PX, ffmpeg, red_ball, write_source
from workflows.edit import parse_edit
from workflows.edit_door import mask_video_problems, part_of, require_source, source_problems, source_warnings
from workflows.edit_ports import SourceVideo
from workflows.errors import InvalidDocument, MediaError
from workflows.media.source import describe, thread
from workflows.media.window import read_window

FIELDS = {"job_id": "e1", "input_video_path": "in.mp4", "output_dir": "out", "mask_prompt": "hair",
          "edit_prompt": "make the hair red"}
GOOD = SourceVideo(width_px=640, height_px=360, rotation_deg=0, fps=Fraction(25), constant_rate=True, frames=100,
                   duration_s=4.0, codec="h264", pix_fmt="yuv420p", bits=8, has_alpha=False, transfer="bt709",
                   interlaced=False, audio_codecs=("aac",))


def request(**changes: object):
    return parse_edit({name: value for name, value in {**FIELDS, **changes}.items() if value is not None})


BAD_REQUESTS = {
    "no_edit": ({"edit_prompt": None}, "edit_prompt: is required"),
    "blank_edit": ({"edit_prompt": "  "}, "edit_prompt: is empty"),
    "nothing_to_find": ({"mask_prompt": ""}, "mask_prompt: nothing says what to edit; nearest valid: a mask_prompt, "
                                             "points, boxes or a mask_video"),
    "found_and_given": ({"mask_video": "m.mp4"}, "mask_video: masks are given, and also something to find; nearest "
                                                 "valid: one of the two"),
    "bad_name": ({"job_id": "../e 1"}, "job_id: '../e 1' cannot name files; nearest valid: e-1"),
    "zero_steps": ({"steps": 0}, "steps: 0 is below 1; nearest valid: 1"),
    "text_for_number": ({"steps": "20"}, "steps: must be a whole number, not the text '20'; nearest valid: 20"),
    "text_for_truth": ({"keep_audio": "yes"}, "keep_audio: must be true or false, not the text 'yes'"),
    "odd_edit_size": ({"edit_size": 500}, "edit_size: 500 is no multiple of 8; nearest valid: 496 or 504"),
    "small_edit_size": ({"edit_size": 32}, "edit_size: 32 is below 64; nearest valid: 64"),
    "short_chunks": ({"chunk_frames": 4}, "chunk_frames: 4 is below 8; nearest valid: 8"),
    "no_number": ({"start_s": float("nan")}, "start_s: must be a finite number, not the number nan"),
    "backwards": ({"start_s": 2, "end_s": 1.5}, "end_s: 1.5 s is not after start_s, 2 s; nearest valid: more than 2"),
    "too_smooth": ({"smoothing": 1.5}, "smoothing: 1.5 is above 1; nearest valid: 1"),
    "unknown_field": ({"erode_kernal": 3}, "erode_kernal: unknown field; nearest valid: erode_kernel"),
    "unknown_extra": ({"extra": {"SAM3_PATH": "x"}}, "extra: 'SAM3_PATH' is not one of INSTRUCT_PIX2PIX_MODEL_PATH, "
                      "SAM3_MODEL_PATH, SAM2_MODEL_PATH; nearest valid: SAM3_MODEL_PATH"),
    "unknown_choice": ({"instances": "first"}, "instances: 'first' is not one of all, best"),
    "half_a_point": ({"points": [{"x": 3}]}, "points[0].y: is required"),
    "empty_box": ({"boxes": [{"left": 9, "top": 1, "right": 9, "bottom": 5}]},
                  "boxes[0]: a box from (9, 1) to (9, 5) holds no pixel; nearest valid: left < right and top < bottom"),
    "only_outside": ({"mask_prompt": "", "points": [{"x": 1, "y": 1, "inside": False}]},
                     "points: all of them are beside the thing; nearest valid: at least one with inside: true"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_cannot_be_meant_is_refused_in_words(name: str) -> None:
    changes, told = BAD_REQUESTS[name]
    with pytest.raises(InvalidDocument) as refused:
        request(**changes)
    assert str(refused.value) == told


BAD_SOURCES = {
    "pq": ({"transfer": "smpte2084", "bits": 10}, {}, "input_video_path: high dynamic range (PQ, smpte2084)"),
    "hlg": ({"transfer": "arib-std-b67"}, {}, "input_video_path: high dynamic range (HLG, arib-std-b67)"),
    "interlaced": ({"interlaced": True}, {}, "input_video_path: interlaced: each frame holds two moments, line by "
                   "line; deinterlace it first; nearest valid: ffmpeg -i IN -vf bwdif -c:a copy OUT.mp4"),
    "transparent": ({"has_alpha": True, "codec": "vp9", "pix_fmt": "yuva420p"}, {},
                    "input_video_path: transparent (vp9, yuva420p), which H.264 cannot hold"),
    "tiny": ({"width_px": 16}, {}, "input_video_path: 16x360 px; nearest valid: sides of 32 to 8192 px"),
    "huge": ({"width_px": 9000}, {}, "input_video_path: 9000x360 px; nearest valid: sides of 32 to 8192 px"),
    "too_fast": ({"fps": Fraction(1000)}, {}, "input_video_path: 1000 frames per second; nearest valid: 0.1 to 240 "
                 "frames per second"),
    "too_long": ({"frames": 600_000, "duration_s": 24_000.0}, {},
                 "input_video_path: too long: 600000 frames (24000 s at 25 per second); nearest valid: at most 500000 "
                 "frames; edit it in parts with start_s and end_s"),
    "pcm": ({"audio_codecs": ("pcm_s16le",)}, {}, "keep_audio: the source's sound (pcm_s16le) cannot be copied into an "
            "MP4; nearest valid: false, or convert it first: ffmpeg -i IN -c:v copy -c:a aac OUT.mp4"),
    "late_start": ({}, {"start_s": 4.5}, "start_s: 4.5 s is past the end of a video of 4.000 s; nearest valid: 3.960"),
    "point_outside": ({}, {"points": [{"x": 640, "y": 3}]}, "points[0]: (640, 3) is outside the picture; nearest "
                      "valid: 0 to 639 across and 0 to 359 down"),
    "box_outside": ({}, {"boxes": [{"left": 0, "top": 0, "right": 700, "bottom": 9}]},
                    "boxes[0]: (0, 0) to (700, 9) reaches beyond 640x360 px"),
    "late_point": ({}, {"points": [{"x": 1, "y": 1, "frame": 30}], "max_frames": 30},
                   "points[0].frame: frame 30 of 30; nearest valid: 0 to 29"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_video_that_cannot_be_edited_is_refused_with_what_to_do(name: str) -> None:
    source, changes, told = BAD_SOURCES[name]
    (problem,) = source_problems(request(**changes), replace(GOOD, **source))
    assert problem.render().startswith(told)


def test_a_good_source_has_no_problems_and_nothing_is_said_of_it() -> None:
    assert source_problems(request(), GOOD) == ()
    assert source_warnings(request(), GOOD) == ()
    assert require_source(request(start_s=1, max_frames=30), GOOD) == part_of(request(start_s=1, end_s=2.2), GOOD)


def test_sound_that_an_mp4_cannot_hold_is_no_problem_when_it_is_left_out() -> None:
    assert source_problems(request(keep_audio=False), replace(GOOD, audio_codecs=("pcm_s16le",))) == ()


def test_what_is_taken_otherwise_than_it_is_is_said() -> None:
    odd = replace(GOOD, width_px=641, rotation_deg=90, constant_rate=False, bits=10, pix_fmt="yuv420p10le")
    said = source_warnings(request(keep_audio=False, end_s=9), odd)
    assert [text.split(";")[0][:44] for text in said] == [
        "the frames of the source come at changing di", "the source is stored turned and shown turned",
        "the source has 641x360 px", "the source has 10 bits per sample (yuv420p10",
        "the source's sound is left out, as keep_audi",
        "end_s is 9 s"]


def test_given_masks_must_fit_the_video() -> None:
    part = part_of(request(), GOOD)
    small = replace(GOOD, width_px=320, frames=40)
    assert [problem.render() for problem in mask_video_problems(part, GOOD, small)] == [
        "mask_video: 320x360 px for a video of 640x360; nearest valid: 640x360",
        "mask_video: 40 frames; the edit needs those up to frame 99; nearest valid: at least 100 frames"]
    assert mask_video_problems(part, GOOD, GOOD) == ()


# -- files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(red_ball(12).frames_THWC, tmp_path_factory.mktemp("door") / "plain.mp4")


def test_files_that_are_no_videos_are_refused_by_name(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all, not even a little")
    ffmpeg("-i", plain, "-vn", "-c", "copy", tmp_path / "sound.m4a")
    (tmp_path / "cut.mp4").write_bytes(plain.read_bytes()[:-2000])
    told = {"missing.mp4": "no such file", "empty.mp4": "the file is empty", ".": "not a file",
            "sound.m4a": "no video stream; the file holds only audio"}
    for name, problem in told.items():
        with pytest.raises(MediaError) as refused:
            describe(tmp_path / name)
        assert refused.value.problem == problem
    for name in ("text.mp4", "cut.mp4"):
        with pytest.raises(MediaError):
            describe(tmp_path / name)


def test_real_files_are_described_as_what_they_are(tmp_path: Path, plain: Path) -> None:
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", tmp_path / "turned.mp4")
    ffmpeg("-i", plain, "-c", "copy", tmp_path / "plain.mkv")
    ffmpeg("-i", plain, "-vf", "crop=97:65", "-c:v", "libvpx-vp9", "-an", tmp_path / "odd.webm")
    ffmpeg("-i", plain, "-flags", "+ilme+ildct", "-x264opts", "tff=1", tmp_path / "lines.mp4")
    ffmpeg("-i", plain, "-pix_fmt", "yuv420p10le", "-x264-params", "transfer=smpte2084:colorprim=bt2020",
           tmp_path / "hdr.mp4")
    ffmpeg("-i", plain, "-vf", "select='lt(n,6)+not(mod(n,3))'", "-fps_mode", "vfr", tmp_path / "uneven.mp4")
    told = {name: describe(tmp_path / name) for name in (
        "turned.mp4", "plain.mkv", "odd.webm", "lines.mp4", "hdr.mp4", "uneven.mp4")}
    assert (told["turned.mp4"].width_px, told["turned.mp4"].height_px) == (HEIGHT_PX, WIDTH_PX)
    assert told["turned.mp4"].rotation_deg == 270
    # Milliseconds round 1/24 s; that is not a changing rate.
    assert (told["plain.mkv"].constant_rate, told["plain.mkv"].fps, told["plain.mkv"].frames) == (True, 24, 12)
    assert told["lines.mp4"].interlaced
    assert (told["hdr.mp4"].transfer, told["hdr.mp4"].bits) == ("smpte2084", 10)
    assert (told["uneven.mp4"].constant_rate, told["uneven.mp4"].fps, told["uneven.mp4"].frames) == (False, 24, 8)
    assert told["uneven.mp4"].timeline_frames in (10, 11, 12)


def test_pictures_minutes_apart_are_no_video_of_any_rate(tmp_path: Path, plain: Path) -> None:
    ffmpeg("-i", plain, "-vf", "setpts=N*N*60/TB", "-fps_mode", "passthrough", "-an", tmp_path / "slow.mkv")
    with pytest.raises(MediaError, match="its frames come at changing distances, 660 s in the mean"):
        describe(tmp_path / "slow.mkv")


def test_a_part_of_a_file_is_the_same_as_that_part_of_the_whole(tmp_path: Path, plain: Path) -> None:
    ffmpeg("-i", plain, "-c", "copy", tmp_path / "plain.ts")
    for path in (plain, tmp_path / "plain.ts"):
        reel = thread(path, first=0, frames=12, fps=Fraction(24))
        whole = read_window(path, reel, first=0, frames=12)
        assert (read_window(path, reel, first=7, frames=3) == whole[7:10]).all()


def test_a_spoilt_file_is_refused_or_read_and_never_anything_else(tmp_path: Path, plain: Path) -> None:
    """Spoilt copies: bytes changed, cut off."""
    rng, good, path = random.Random(5), plain.read_bytes(), tmp_path / "spoilt.mp4"
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice((1, 8, 100))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)):]
        path.write_bytes(bytes(data))
        try:
            told = describe(path)
            reel = thread(path, first=0, frames=told.timeline_frames, fps=told.fps)
            read_window(path, reel, first=reel.frames // 2, frames=1)
        except MediaError:
            refused += 1
    assert 0 < refused < 60
