"""Pictures that come back bit for bit: FFV1 in Matroska, grey or RGB, every frame a key frame. Knows no film.

One file is a row of frames without a rate of its own; who reads it knows when each is shown. FFV1: RFC 9043.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from workflows.errors import MediaError
from workflows.media.files import media_errors, open_video, replacing
from workflows.media.frames import UInt8Array

FRAMES_PER_S = 25
"""Nominal, so that frames fall on whole ticks of Matroska's milliseconds and any of them can be found."""
FRAME_S = Fraction(1, FRAMES_PER_S)
TICKS = 1000 // FRAMES_PER_S
GREY, COLOUR = "gray", "bgr0"


class LosslessWriter:
    """Writes frame by frame; made by `write_lossless`."""

    def __init__(self, container: av.container.OutputContainer, to: Path) -> None:
        self._container = container
        self._to = to
        self._stream: av.VideoStream | None = None
        self._shape: tuple[int, ...] = ()
        self.frames = 0
        """Written so far."""

    def write(self, frame: UInt8Array) -> None:
        """Append a grey frame (H, W) or an RGB one (H, W, 3), all of one shape; raise MediaError otherwise."""
        stream = self._stream or self._begin(frame)
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise MediaError(path=str(self._to), problem=f"frame {self.frames} is {frame.dtype} {frame.shape}; needed: "
                                                         f"uint8 {self._shape}")
        if frame.ndim == 2:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=GREY)
        else:
            padded = np.zeros((*frame.shape[:2], 4), np.uint8)
            padded[..., :3] = frame[..., ::-1]
            picture = av.VideoFrame.from_ndarray(padded, format="bgra").reformat(format=COLOUR)
        picture.pts, picture.time_base = self.frames, FRAME_S
        self._container.mux(stream.encode(picture))
        self.frames += 1

    def _begin(self, frame: UInt8Array) -> av.VideoStream:
        if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] != 3) or frame.size == 0:
            raise MediaError(path=str(self._to), problem=f"a frame of shape {frame.shape} is neither grey nor RGB")
        self._shape = frame.shape
        stream = self._container.add_stream("ffv1", rate=FRAMES_PER_S)
        stream.height, stream.width = frame.shape[:2]
        stream.pix_fmt = GREY if frame.ndim == 2 else COLOUR
        stream.codec_context.thread_count = 1  # the bytes must not depend on the machine
        # Fast, and small for masks.
        stream.options = {"level": "3", "slices": "4", "coder": "rice", "context": "0", "g": "1"}
        self._stream = stream
        return stream

    def finish(self) -> None:
        """Write what the encoder still holds; raise MediaError when there was no frame."""
        if self._stream is None:
            raise MediaError(path=str(self._to), problem="no frames to write")
        self._container.mux(self._stream.encode(None))


@contextmanager
def write_lossless(to: Path) -> Iterator[LosslessWriter]:
    """Open a file for writing; it appears at `to`, whole, when the `with` block ends without an error.

    Raises:
        MediaError: no frame was written, frames of several shapes, or the file cannot be written.
    """
    with replacing(to) as part, media_errors(to, "cannot be written"), av.open(
            f"file:{part}", "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        writer = LosslessWriter(container, to)
        yield writer
        writer.finish()


def read_lossless(path: Path, *, first: int, frames: int) -> Iterator[UInt8Array]:
    """So many frames from the `first` on (from 0), as they were written.

    Raises:
        MediaError: not such a file, or it ends before.
    """
    given = 0
    with open_video(path, quick=True) as (container, stream), media_errors(path, "damaged video data"):
        grey = stream.codec_context.pix_fmt == GREY
        container.seek(first * TICKS, stream=stream, backward=True)
        for picture in container.decode(stream):
            number = round(picture.pts / TICKS)
            if number < first + given or given == frames:
                continue
            if number > first + given:
                break
            yield _array(picture, grey=grey)
            given += 1
            if given == frames:
                return
    if given < frames:
        raise MediaError(path=str(path), problem=f"frame {first + given} was asked for; the file ends before")


def _array(picture: av.VideoFrame, *, grey: bool) -> UInt8Array:
    if grey:
        return np.asarray(picture.to_ndarray(format=GREY), np.uint8)
    plane = np.frombuffer(picture.planes[0], np.uint8).reshape(picture.height, picture.planes[0].line_size // 4, 4)
    return np.ascontiguousarray(plane[:, :picture.width, 2::-1])
