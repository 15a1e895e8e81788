"""The edited video as a file: the source's sound packet for packet, its rate, colours and pixel shape. Knows no mask.

Sound is copied, never encoded anew. What the picture's tags say of the source's colours the result says too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from workflows.errors import MediaError
from workflows.media.encode import EncodeOptions, H264Encoder, VideoFormat, configure, create_mp4
from workflows.media.files import media_errors, open_video, replacing
from workflows.media.planes import matrix_of
from workflows.media.reel import Reel

QUARTER_TURNS = (90, 270)
RGB = 0
"""AVCOL_SPC_RGB: no matrix, which no yuv420p can say of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the source's pictures are meant to be seen, as its stream says it (numbers of FFmpeg's enumerations)."""

    color_range: int
    primaries: int
    transfer: int
    matrix: int
    pixel_aspect: Fraction
    """Width of a pixel by its height, as shown."""
    tick_s: Fraction
    """One tick of the stream's clock."""

    @classmethod
    def of(cls, path: Path, reel: Reel) -> Look:
        """Read from the stream's first frame. Raises MediaError."""
        with open_video(path, quick=True) as (container, stream), media_errors(path, "damaged video data"):
            first = next(iter(container.decode(stream)), None)
            if first is None:
                raise MediaError(path=str(path), problem="no frame can be decoded")
            told = int(first.colorspace)
            matrix = matrix_of(first) if told == RGB else told
            aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
            return cls(color_range=int(first.color_range), primaries=int(first.color_primaries),
                       transfer=int(first.color_trc), matrix=matrix, tick_s=Fraction(stream.time_base),
                       pixel_aspect=1 / aspect if reel.rotation_deg in QUARTER_TURNS else aspect)


class Remaster:
    """Writes the pictures of an edit and, between them, the source's sound; made by `write_remaster`."""

    def __init__(self, container: av.container.OutputContainer, video_format: VideoFormat, options: EncodeOptions,
                 look: Look, sound: _Sound | None) -> None:
        self._container = container
        self._format = video_format
        self._stream = container.add_stream("libx264", rate=video_format.fps)
        context = self._stream.codec_context
        configure(context, video_format, options)
        context.color_range, context.color_primaries = look.color_range, look.primaries
        context.color_trc, context.colorspace = look.transfer, look.matrix
        context.sample_aspect_ratio = look.pixel_aspect
        self._sound = sound
        if sound is not None:
            sound.attach(container)
        container.start_encoding()
        self._encoder = H264Encoder(context, video_format, options)

    def write(self, picture: av.VideoFrame) -> None:
        """Append one yuv420p picture of the edit's size."""
        self._mux(self._encoder.add(picture))
        if self._sound is not None:
            self._sound.copy(self._container, until_s=self._encoder.frames / self._format.fps)

    def finish(self) -> None:
        """Write what is left; raise MediaError when there was no picture."""
        if not self._encoder.frames:
            raise MediaError(problem="no frames to write")
        self._mux(self._encoder.finish())
        if self._sound is not None:
            self._sound.copy(self._container, until_s=None)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.stream = self._stream
            self._container.mux(packet)


class _Sound:
    """The sound packets of a source, in order, of the edit's part of it."""

    def __init__(self, source: av.container.InputContainer, path: Path, *, begin_s: Fraction,
                 end_s: Fraction | None) -> None:
        """`begin_s`: what becomes time 0; packets that begin before it by more than their own length are left out, and
        those from `end_s` on (None: none)."""
        self._path = path
        self._begin_s, self._end_s = begin_s, end_s
        self._streams = list(source.streams.audio)
        self._packets = source.demux(self._streams)
        self._waiting: deque[av.Packet] = deque()
        self._copies: dict[int, av.AudioStream] = {}

    def attach(self, container: av.container.OutputContainer) -> None:
        """Add a stream like each of the source's. Raises MediaError where MP4 cannot hold one."""
        for stream in self._streams:
            try:
                self._copies[stream.index] = container.add_stream_from_template(stream)
            except (ValueError, av.error.FFmpegError) as error:
                raise MediaError(path=str(self._path), problem=(
                    f"its sound ({stream.codec_context.name}) cannot be copied into an MP4: {error}")) from error

    def copy(self, container: av.container.OutputContainer, *, until_s: Fraction | None) -> None:
        """Copy what begins before `until_s` of the edit; None: all that is left."""
        with media_errors(self._path, "its sound cannot be read"):
            while (packet := self._next()) is not None:
                tick_s = Fraction(packet.time_base)
                begins_s = packet.dts * tick_s - self._begin_s
                if until_s is not None and begins_s >= until_s:
                    return
                self._waiting.popleft()
                copy = self._copies[packet.stream.index]
                shift = round(self._begin_s / tick_s)
                packet.dts -= shift
                packet.pts = packet.dts if packet.pts is None else packet.pts - shift
                packet.stream = copy
                container.mux(packet)

    def _next(self) -> av.Packet | None:
        """The next packet of the part, left in the queue."""
        while not self._waiting:
            packet = next(self._packets, None)
            if packet is None:
                return None
            if packet.size and packet.dts is not None and self._is_wanted(packet):
                self._waiting.append(packet)
        return self._waiting[0]

    def _is_wanted(self, packet: av.Packet) -> bool:
        tick_s = Fraction(packet.time_base)
        begins_s = packet.dts * tick_s
        if self._end_s is None:
            return True
        middle_s = begins_s + (packet.duration or 0) * tick_s / 2
        return bool(self._begin_s <= middle_s < self._end_s)


@contextmanager
def write_remaster(to: Path, source: Path, reel: Reel, *, options: EncodeOptions, keep_audio: bool,
                   is_whole: bool) -> Iterator[Remaster]:
    """Open the edited MP4 for writing; it appears at `to`, whole, when the `with` block ends without an error.

    `is_whole`: the reel is all of the source, so all of its sound is kept, also what goes on after the last frame; of
    a part, those packets whose middle lies in it.

    Raises:
        MediaError: no picture was written, the sound cannot be in an MP4, or the file cannot be written.
    """
    look = Look.of(source, reel)
    video_format = VideoFormat(width_px=reel.width_px, height_px=reel.height_px, fps=reel.fps)
    with ExitStack() as stack:
        sound = None
        if keep_audio:
            container, _ = stack.enter_context(open_video(source))
            if container.streams.audio:
                begin_s = reel.start * look.tick_s
                end_s = None if is_whole else begin_s + reel.duration_s
                sound = _Sound(container, source, begin_s=begin_s, end_s=end_s)
        part = stack.enter_context(replacing(to))
        stack.enter_context(media_errors(to, "cannot be written"))
        writer = Remaster(stack.enter_context(create_mp4(part, video_format)), video_format, options, look, sound)
        yield writer
        writer.finish()
