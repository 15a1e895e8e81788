"""Reading videos and pictures, and refusing everything else with a reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.media.samples import HEIGHT_PX, OPTIONS, WIDTH_PX, ffmpeg, film_options, moving, psnr, write
from workflows.errors import MediaError
from workflows.media.caption import caption_clip
from workflows.media.compose import Part, compose
from workflows.media.decode import first_frame, iter_frames, last_frame, read_frames, read_picture, write_png
from workflows.media.interpolate import interpolate_clip
from workflows.media.probe import probe


def test_probe_describes_a_clip(tmp_path: Path) -> None:
    info = probe(write(tmp_path / "clip.mp4", 9, fps=Fraction(24)))
    assert (info.width_px, info.height_px, info.fps, info.frames) == (WIDTH_PX, HEIGHT_PX, Fraction(24), 9)
    assert info.duration_s == pytest.approx(0.375)
    assert not info.has_audio


def test_probe_sees_sound(tmp_path: Path) -> None:
    ffmpeg("-i", write(tmp_path / "clip.mp4", 9), "-f", "lavfi", "-i", "sine=d=0.5", "-c:v", "copy", "-c:a", "aac",
           tmp_path / "loud.mp4")
    assert probe(tmp_path / "loud.mp4").has_audio


def test_frames_come_back_as_they_were_to_the_eye(tmp_path: Path) -> None:
    assert psnr(read_frames(write(tmp_path / "clip.mp4", 12)), moving(12)) > 32


def test_iterating_gives_the_frames_of_reading(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", 12)
    assert np.array_equal(np.stack(list(iter_frames(clip))), read_frames(clip))


@pytest.mark.parametrize("frames", [1, 2, 9, 21])
def test_first_and_last_frame_are_those_of_the_whole(tmp_path: Path, frames: int) -> None:
    clip = write(tmp_path / "clip.mp4", frames)
    whole_THWC = read_frames(clip)
    assert np.array_equal(first_frame(clip), whole_THWC[0])
    assert np.array_equal(last_frame(clip), whole_THWC[-1])


def test_reading_reports_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    read_frames(write(tmp_path / "clip.mp4", 3), on_progress=lambda *call: seen.append(call))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("range_", ["tv", "pc"])
@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_a_file_is_read_with_the_matrix_and_range_it_is_tagged_with(tmp_path: Path, matrix: str, range_: str) -> None:
    red = tmp_path / "red.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=0xDC2828:s=96x64:d=0.3,format=rgb24,"
           f"scale=out_color_matrix={matrix}:out_range={range_},format=yuv420p,"
           f"setparams=colorspace={matrix}:range={range_}", "-c:v", "libx264", red)
    assert (probe(red).colour.matrix, probe(red).colour.range) == (matrix, range_)
    assert np.abs(first_frame(red).astype(int) - (220, 40, 40)).max() <= 4


def silent_wav(path: Path) -> None:
    samples = bytes(3200)
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt "
                     + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data"
                     + struct.pack("<I", len(samples)) + samples)


def audio_mp4(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.3", "-c:a", "aac", path)


def headless_clip(path: Path) -> None:
    write(path, 9)
    path.write_bytes(path.read_bytes()[:600])


def caption_it(path: Path) -> None:
    caption_clip(path, "text", path.with_name("out.mp4"), options=OPTIONS)


def interpolate_it(path: Path) -> None:
    interpolate_clip(path, path.with_name("out.mp4"), 2, options=OPTIONS)


NOT_VIDEOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "directory": (lambda path: path.mkdir(), "not a file"),
    "text": (lambda path: path.write_text("Once upon a time\n" * 50), "not a readable video"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "not a readable video"),
    "playlist": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
                 "not a readable video"),
    "concat script": (lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"), "not a readable video"),
    "picture": (lambda path: path.write_bytes(cv2.imencode(".png", moving(1)[0])[1].tobytes()), "not a readable video"),
    "sound": (silent_wav, "not a readable video"),
    "sound in mp4": (audio_mp4, "no video stream; the file holds only audio"),
    "cut in its header": (headless_clip, "not a readable video, or cut off"),
}


@pytest.mark.parametrize("ask", [probe, read_frames, first_frame], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize(("make", "problem"), NOT_VIDEOS.values(), ids=NOT_VIDEOS)
def test_what_is_not_a_whole_video_is_refused_with_its_path(
    tmp_path: Path, make: Callable[[Path], object], problem: str, ask: Callable[[Path], object],
) -> None:
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(MediaError, match=problem) as refused:
        ask(path)
    assert refused.value.path == str(path)


def test_a_clip_cut_off_in_its_data_says_how_much_is_left(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", 20)
    clip.write_bytes(clip.read_bytes()[:-400])
    for ask in (probe, read_frames):
        with pytest.raises(MediaError, match=r"cut off: 1\d of 20 frames"):
            ask(clip)


@pytest.mark.parametrize("ask", [read_frames, lambda path: list(iter_frames(path)), caption_it, interpolate_it],
                         ids=["read", "iterate", "caption", "interpolate"])
def test_a_frame_that_is_stored_but_cannot_be_decoded_is_missed(tmp_path: Path, ask: Callable[[Path], object]) -> None:
    """The last frame's NAL unit becomes filler data (type 12)."""
    clip = write(tmp_path / "clip.mp4", 20)
    with av.open(str(clip)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray(clip.read_bytes())
    data[places[-1] + 4] = 12
    clip.write_bytes(bytes(data))
    with pytest.raises(MediaError, match=r"clip\.mp4: damaged"):
        ask(clip)
    assert list(tmp_path.iterdir()) == [clip]


def test_damage_in_the_middle_never_passes_for_a_whole_clip(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", 20)
    whole_THWC = read_frames(clip)
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat") + 800
    data[start:start + 300] = bytes(300)
    clip.write_bytes(bytes(data))
    try:
        damaged_THWC = read_frames(clip)
    except MediaError:
        return
    assert damaged_THWC.shape == whole_THWC.shape


# Pictures


def encoded(suffix: str, picture: np.ndarray, *parameters: int) -> bytes:
    return cv2.imencode(suffix, picture, parameters)[1].tobytes()


def red_left(height_px: int = 40, width_px: int = 60) -> np.ndarray:
    """BGR: red in the left half, blue in the right."""
    picture = np.zeros((height_px, width_px, 3), np.uint8)
    picture[:, :width_px // 2, 2] = picture[:, width_px // 2:, 0] = 200
    return picture


def turned_jpeg(orientation: int) -> bytes:
    """A JPEG whose EXIF data asks for a turn: 3 is half a turn, 6 a quarter to the right."""
    tag = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + tag + bytes(4)
    jpeg = encoded(".jpg", red_left(), cv2.IMWRITE_JPEG_QUALITY, 95)
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_read_as_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(suffix, red_left()))
    frame_HWC = read_picture(path)
    assert frame_HWC.shape == (40, 60, 3)
    assert np.abs(frame_HWC[20, 10].astype(int) - (200, 0, 0)).max() <= 12


TURNS = {"as is": (1, (40, 60, 3), (20, 5)), "half": (3, (40, 60, 3), (20, 55)), "quarter": (6, (60, 40, 3), (5, 20))}


@pytest.mark.parametrize(("orientation", "shape", "red_at"), TURNS.values(), ids=TURNS)
def test_a_photo_is_turned_as_its_exif_data_says(
    tmp_path: Path, orientation: int, shape: tuple[int, ...], red_at: tuple[int, int],
) -> None:
    (tmp_path / "photo.jpg").write_bytes(turned_jpeg(orientation))
    frame_HWC = read_picture(tmp_path / "photo.jpg")
    assert frame_HWC.shape == shape
    assert frame_HWC[red_at][0] > 150
    assert frame_HWC[red_at][2] < 50


ODD_PICTURES = {
    "grey": np.full((40, 60), 90, np.uint8),
    "opaque alpha": np.dstack([np.full((40, 60, 3), 90, np.uint8), np.full((40, 60), 255, np.uint8)]),
    "16 bits": np.full((40, 60, 3), 90 * 257, np.uint16),
    "16 bits with opaque alpha": np.dstack([*[np.full((40, 60), 90 * 257, np.uint16)] * 3,
                                            np.full((40, 60), 65535, np.uint16)]),
}


@pytest.mark.parametrize("picture", ODD_PICTURES.values(), ids=ODD_PICTURES)
def test_other_kinds_of_png_become_8_bit_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    (tmp_path / "picture.png").write_bytes(encoded(".png", picture))
    assert (read_picture(tmp_path / "picture.png") == 90).all()


def see_through() -> bytes:
    picture = np.dstack([red_left(), np.full((40, 60), 255, np.uint8)])
    picture[0, 0, 3] = 254
    return encoded(".png", picture)


NOT_PICTURES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "text": (b"Once upon a time", "not a PNG, JPEG or WebP picture"),
    "gif": (b"GIF89a" + bytes(20), "not a PNG, JPEG or WebP picture"),
    "see-through": (see_through(), "transparent in places"),
    "cut png": (encoded(".png", red_left())[:-20], "cut off"),
    "cut jpeg": (encoded(".jpg", red_left())[:-20], "cut off"),
    "cut jpeg with a thumbnail": (
        turned_jpeg(1)[:2] + b"\xff\xe2\x00\x08\xff\xd8\xff\xd9ab" + turned_jpeg(1)[2:-20], "cut off"),
    "cut webp": (encoded(".webp", red_left())[:-20], "cut off"),
    "hollow png": (b"\x89PNG\r\n\x1a\n" + bytes(40) + b"IEND\xaeB`\x82", "damaged"),
}


@pytest.mark.parametrize(("data", "problem"), NOT_PICTURES.values(), ids=NOT_PICTURES)
def test_what_is_not_a_whole_picture_is_refused_with_its_path(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=problem) as refused:
        read_picture(path)
    assert refused.value.path == str(path)


def test_a_png_comes_back_bit_for_bit(tmp_path: Path) -> None:
    frame_HWC = moving(1)[0]
    write_png(frame_HWC, tmp_path / "frame.png")
    assert np.array_equal(read_picture(tmp_path / "frame.png"), frame_HWC)
    assert [path.name for path in tmp_path.iterdir()] == ["frame.png"]


def test_a_png_that_cannot_be_written_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"nowhere/frame\.png: cannot be written"):
        write_png(moving(1)[0], tmp_path / "nowhere" / "frame.png")


# Bytes from anywhere

HEADS = st.sampled_from([
    b"", b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2", b"\x1aE\xdf\xa3", b"RIFF", b"FLV\x01\x05", b"OggS\x00",
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x00\x00\x01\xba", b"G" * 200])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=HEADS, body=st.binary(max_size=600))
def test_random_bytes_give_nothing_but_media_errors(tmp_path: Path, head: bytes, body: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(head + body)
    for ask in (probe, read_frames, first_frame, last_frame, read_picture):
        with pytest.raises(MediaError):
            ask(path)
    with pytest.raises(MediaError):
        compose([Part(path=path)], tmp_path / "film.mp4", options=film_options())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_clip_with_changed_bytes_gives_frames_or_a_media_error(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[float, int]],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    good = folder / "good.mp4"
    if not good.exists():
        write(good, 10)
    data = bytearray(good.read_bytes())
    for where, value in places:
        data[int(where * (len(data) - 1))] = value
    bad = folder / "bad.mp4"
    bad.write_bytes(bytes(data))
    for ask in (probe, read_frames, last_frame):
        with suppress(MediaError):
            ask(bad)
    with suppress(MediaError):
        compose([Part(path=bad), Part(path=good)], folder / "film.mp4", options=film_options())
