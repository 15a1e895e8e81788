"""Opening and replacing media files: which containers are read, how FFmpeg's errors become ours. Knows no pixel."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from workflows.errors import MediaError

CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg"
"""Demuxers that may look at a file. Playlists (HLS, concat scripts) are left out: they name other files and URLs."""


@contextmanager
def media_errors(path: Path | None, verb: str) -> Iterator[None]:
    """Turn FFmpeg's errors into MediaError: `PATH: VERB: what FFmpeg said`."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise MediaError(path=str(path or ""), problem=f"{verb}: {error.strerror or error}") from error
    except IndexError as error:
        # PyAV looks a stream that a damaged file begins in its middle up in the list made at its start.
        raise MediaError(path=str(path or ""), problem=f"{verb}: its streams change in the middle") from error


def require_file(path: Path) -> None:
    """Refuse a path that is missing, a directory or empty."""
    if not path.exists():
        raise MediaError(path=str(path), problem="no such file")
    if not path.is_file():
        raise MediaError(path=str(path), problem="not a file")
    if path.stat().st_size == 0:
        raise MediaError(path=str(path), problem="the file is empty")


def require_count(found: int, needed: int, path: Path) -> None:
    """Refuse a file from which other than `needed` frames can be read."""
    if found != needed:
        raise MediaError(path=str(path), problem=f"damaged: {needed} frames are stored, {found} can be read")


@contextmanager
def open_video(path: Path, *, quick: bool = False) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file's first video stream; raise MediaError for anything that is not a video.

    `quick` reads headers only, 2 ms instead of 15 ms at 480p: FFmpeg otherwise decodes seven H.264 frames to guess the
    reorder delay. The stream's pixel format is then unknown until a frame is decoded.
    """
    require_file(path)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"} | ({"skip_frame": "all"} if quick else {})
    with media_errors(path, "not a readable video, or cut off"):
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    with container:
        streams = container.streams
        if not streams.video:
            found = "only audio" if streams.audio else "no audio or video"
            raise MediaError(path=str(path), problem=f"no video stream; the file holds {found}")
        stream = streams.video[0]
        if stream.codec_context is None:
            raise MediaError(path=str(path), problem="no decoder for its video stream")
        stream.codec_context.skip_frame = "DEFAULT"
        yield container, stream


@contextmanager
def replacing(to: Path) -> Iterator[Path]:
    """Give a path beside `to` to write; at the end it takes `to`'s place at once, after an error it is removed."""
    part = to.with_name(f".{to.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        try:
            part.replace(to)
        except OSError as error:
            raise MediaError(path=str(to), problem=f"cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
