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
from workflows.media.files import media_errors, open_video, replacing, require_file
from workflows.media.frames import OnProgress, UInt8Array, require_frame
from workflows.media.probe import probe

PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
JPEG = b"\xff\xd8\xff"
JPEG_SCAN = 0xDA
JPEG_END = b"\xff\xd9"
RIFF_HEADER_BYTES = 8


def iter_yuv(path: Path) -> Iterator[av.VideoFrame]:
    """Decode a file's first video stream, one frame at a time, in the order shown."""
    with open_video(path) as (container, stream):
        yield from _decoded(container, stream, path)


def iter_frames(path: Path) -> Iterator[UInt8Array]:
    """Decode a file to RGB `frame_HWC` arrays, one at a time: memory for one frame, whatever the length.

    Raises:
        MediaError: not a video, or its data is damaged.
    """
    colour = ColourConverter()
    for frame in iter_yuv(path):
        yield colour.to_rgb(frame)


def read_frames(path: Path, *, on_progress: OnProgress | None = None) -> UInt8Array:
    """Decode a whole file to RGB `frames_THWC`.

    Raises:
        MediaError: not a video, damaged, or fewer frames than the file promises.
    """
    info = probe(path)
    frames_THWC = np.empty((info.frames, info.height_px, info.width_px, 3), np.uint8)
    done = 0
    for frame_HWC in iter_frames(path):
        if frame_HWC.shape != frames_THWC.shape[1:]:
            raise MediaError(path=str(path), problem=f"frame {done} is {frame_HWC.shape[1]}x{frame_HWC.shape[0]} px "
                                                     f"in a video of {info.width_px}x{info.height_px}")
        if done < info.frames:
            frames_THWC[done] = frame_HWC
        done += 1
        if on_progress is not None:
            on_progress(min(done, info.frames), info.frames)
    if done != info.frames:
        raise MediaError(path=str(path), problem=f"damaged: {info.frames} frames are stored, {done} can be decoded")
    return frames_THWC


def first_frame(path: Path) -> UInt8Array:
    """The first frame shown, RGB; raise MediaError when there is none."""
    for frame_HWC in iter_frames(path):
        return frame_HWC
    raise MediaError(path=str(path), problem="no frame can be decoded")


def last_frame(path: Path) -> UInt8Array:
    """The last frame shown, RGB, decoding only the last group of pictures; raise MediaError when there is none."""
    with open_video(path) as (container, stream):
        with media_errors(path, "cannot be read at its end"):
            if stream.duration is not None:
                container.seek((stream.start_time or 0) + stream.duration, stream=stream, backward=True)
        last = deque(_decoded(container, stream, path), maxlen=1)
        if not last:
            raise MediaError(path=str(path), problem="no frame can be decoded")
        return ColourConverter().to_rgb(last[0])


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


def write_png(frame_HWC: UInt8Array, to: Path) -> None:
    """Write an RGB frame as PNG, whole or not at all; raise MediaError when that fails."""
    require_frame(frame_HWC)
    done, data = cv2.imencode(".png", cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2BGR))
    if not done:
        raise MediaError(path=str(to), problem="OpenCV cannot encode this picture as PNG")
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
