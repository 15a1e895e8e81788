"""Video and picture files to RGB frames. Knows no pipeline: a file in, arrays out (and a picture back to PNG)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from workflows.errors import MediaError
from workflows.media.colour import ColourConverter
from workflows.media.files import media_errors, open_video, replacing, require_count, require_file
from workflows.media.frames import OnProgress, UInt8Array, require_frame
from workflows.media.probe import VideoInfo, probe

PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG = b"\xff\xd8\xff"
JPEG_SCAN = 0xDA
JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Segments that hold the size."""
JPEG_SEGMENTS = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, JPEG_SCAN + 1))
"""Segments with a length that may stand before the picture data."""
JPEG_END = b"\xff\xd9"
RIFF_HEADER_BYTES = 8


def iter_frames(path: Path) -> Iterator[UInt8Array]:
    """Decode a file to RGB `frame_HWC` arrays, one at a time: memory for one frame, whatever the length.

    Raises:
        MediaError: not a video, damaged, or fewer frames than the file promises.
    """
    yield from _checked_frames(path, probe(path))


def read_frames(path: Path, *, on_progress: OnProgress | None = None) -> UInt8Array:
    """Decode a whole file to RGB `frames_THWC`.

    Raises:
        MediaError: as `iter_frames`.
    """
    info = probe(path)
    frames_THWC = np.empty((info.frames, info.height_px, info.width_px, 3), np.uint8)
    for number, frame_HWC in enumerate(_checked_frames(path, info)):
        frames_THWC[number] = frame_HWC
        if on_progress is not None:
            on_progress(number + 1, info.frames)
    return frames_THWC


def first_frame(path: Path) -> UInt8Array:
    """The first frame shown, RGB; raise MediaError when there is none."""
    with open_video(path, quick=True) as (container, stream):
        for frame in _decoded(container, stream, path):
            return ColourConverter().to_rgb(frame)
    raise MediaError(path=str(path), problem="no frame can be decoded")


def last_frame(path: Path) -> UInt8Array:
    """The last frame shown, RGB, decoding only the last group of pictures; raise MediaError when there is none."""
    with open_video(path, quick=True) as (container, stream):
        with media_errors(path, "cannot be read at its end"):
            if stream.duration is not None:
                container.seek((stream.start_time or 0) + stream.duration, stream=stream, backward=True)
        last = deque(_decoded(container, stream, path), maxlen=1)
        if not last:
            raise MediaError(path=str(path), problem="no frame can be decoded")
        return ColourConverter().to_rgb(last[0])


def _checked_frames(path: Path, info: VideoInfo) -> Iterator[UInt8Array]:
    colour, found = ColourConverter(), 0
    with open_video(path, quick=True) as (container, stream):
        for frame in _decoded(container, stream, path):
            if (frame.width, frame.height) != (info.width_px, info.height_px):
                raise MediaError(path=str(path), problem=f"frame {found} is {frame.width}x{frame.height} px in a video "
                                                         f"of {info.width_px}x{info.height_px}")
            found += 1
            if found <= info.frames:
                yield colour.to_rgb(frame)
    require_count(found, info.frames, path)


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path,
) -> Iterator[av.VideoFrame]:
    with media_errors(path, "damaged video data"):
        yield from container.decode(stream)


def read_picture(path: Path) -> UInt8Array:
    """Read a PNG, JPEG or WebP file as RGB `frame_HWC`, turned as its EXIF data says.

    Grey and palette pictures become RGB, 16-bit ones are rounded down to 8 bits, of an animation the first picture is
    taken. A picture that is transparent anywhere is refused: there is no right background to put behind it.

    Raises:
        MediaError: missing, empty, another format, cut off, damaged or transparent.
    """
    require_file(path)
    data = path.read_bytes()
    problem = _format_problem(data)
    if problem:
        raise MediaError(path=str(path), problem=problem)
    encoded = np.frombuffer(data, np.uint8)
    stored = _decode(encoded, cv2.IMREAD_UNCHANGED, path)
    if stored.ndim == 3 and stored.shape[2] == 4 and int(stored[..., 3].min()) < np.iinfo(stored.dtype).max:
        raise MediaError(path=str(path), problem="the picture is transparent in places; put it on a background first")
    # Only this mode turns the picture as EXIF says; it drops an alpha channel, by now known to be opaque.
    return _decode(encoded, cv2.IMREAD_COLOR_RGB, path)


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels of a PNG or JPEG as its header has them, decoding nothing; None: another format, or
    a header that no decoder should be trusted with.

    Not turned as EXIF data says.
    """
    if data.startswith(PNG) and data[12:16] == b"IHDR":
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    at = 2
    # Stricter than decoders are: what stands between segments could hide a larger size from us.
    while data.startswith(JPEG) and at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] in JPEG_SEGMENTS:
        if data[at + 1] in JPEG_SIZES:
            return int.from_bytes(data[at + 7:at + 9], "big"), int.from_bytes(data[at + 5:at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return None


def write_png(frame_HWC: UInt8Array, to: Path) -> None:
    """Write an RGB frame as PNG, whole or not at all; raise MediaError when that fails."""
    _write(frame_HWC, to, ".png", ())


def write_jpeg(frame_HWC: UInt8Array, to: Path, *, quality: int) -> None:
    """Write an RGB frame as JPEG of this quality (0..100), whole or not at all; raise MediaError when that fails."""
    _write(frame_HWC, to, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, quality))


def _write(frame_HWC: UInt8Array, to: Path, suffix: str, options: tuple[int, ...]) -> None:
    require_frame(frame_HWC)
    done, data = cv2.imencode(suffix, cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise MediaError(path=str(to), problem=f"OpenCV cannot encode this picture as {suffix.removeprefix('.')}")
    with replacing(to) as part:
        try:
            part.write_bytes(data.tobytes())
        except OSError as error:
            raise MediaError(path=str(to), problem=f"cannot be written: {error.strerror or error}") from error


def _decode(encoded: UInt8Array, flags: int, path: Path) -> UInt8Array:
    try:
        picture = cv2.imdecode(encoded, flags)
    except cv2.error as error:
        raise MediaError(path=str(path), problem=f"the picture cannot be decoded: {error.err}") from error
    if picture is None or picture.size == 0:
        raise MediaError(path=str(path), problem="the picture is damaged and cannot be decoded")
    decoded: UInt8Array = picture
    return decoded


def _format_problem(data: bytes) -> str:
    # OpenCV fills the missing part of a cut-off picture with grey and reports success.
    if data.startswith(PNG):
        whole = PNG_END in data
    elif data.startswith(JPEG):
        whole = data.find(JPEG_END, _first_scan(data)) > 0
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        whole = len(data) >= int.from_bytes(data[4:8], "little") + RIFF_HEADER_BYTES
    else:
        return "not a PNG, JPEG or WebP picture"
    return "" if whole else "the picture is cut off"


def _first_scan(data: bytes) -> int:
    """Where a JPEG's picture data begins, past its header segments (one may hold a thumbnail, a whole JPEG itself)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != JPEG_SCAN:
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    return min(at, len(data))
