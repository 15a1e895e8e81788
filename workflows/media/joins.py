"""A film's packets: whole groups of pictures copied, joins encoded to match them. Knows no choice: it writes a plan."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import av

from workflows.media.encode import EncodeOptions, H264Encoder, VideoFormat, create_mp4, open_join_encoder
from workflows.media.files import media_errors, open_video, replacing, require_count
from workflows.media.h264 import to_length_prefixed
from workflows.media.timeline import Copy, Encode, Section, Span, shown

ENCODER_REORDER = 2
"""Frames that x264 may store a frame later than shown, with any preset."""

OnFrame = Callable[[], None]
"""Called once for each frame written."""


def write_sections(
    sections: Sequence[Section], to: Path, *, video_format: VideoFormat, options: EncodeOptions, on_frame: OnFrame,
) -> None:
    """Write a film with at least one copied section; encoded ones must have the same headers.

    Times are computed from frame numbers, so they are uniform however the sources count theirs.

    Raises:
        MediaError: a source is damaged, or the film cannot be written.
    """
    copied = [section.track for section in sections if isinstance(section, Copy)]
    reorder = max(track.reorder for track in copied)
    if any(isinstance(section, Encode) for section in sections):
        reorder = max(reorder, ENCODER_REORDER)
    with replacing(to) as part, media_errors(to, "cannot be written"), create_mp4(part, video_format) as container:
        with open_video(copied[0].path, quick=True) as (_, template):
            stream = container.add_stream_from_template(template)
        film = _Film(container, stream, video_format, reorder)
        for section in sections:
            if isinstance(section, Copy):
                _copy(section, film, on_frame)
            else:
                _encode(section, film, options, on_frame)


@dataclass(slots=True)
class _Film:
    container: av.container.OutputContainer
    stream: av.VideoStream
    video_format: VideoFormat
    reorder: int
    frames: int = 0
    """Frames stored so far."""

    def put(self, packet: av.Packet, *, shown_at: int) -> None:
        """Store one packet; `shown_at` is its frame's number in the film."""
        packet.stream = self.stream
        packet.time_base = 1 / self.video_format.fps
        packet.pts, packet.dts, packet.duration = shown_at, self.frames - self.reorder, 1
        self.frames += 1
        self.container.mux(packet)


def _copy(section: Copy, film: _Film, on_frame: OnFrame) -> None:
    path, base = section.track.path, film.frames
    with open_video(path, quick=True) as (container, stream):
        ticks = int(1 / (section.track.fps * stream.time_base))
        key_pts = None
        for packet in _packets(container, stream, section):
            key_pts = packet.pts if key_pts is None else key_pts
            film.put(packet, shown_at=base + (packet.pts - key_pts) // ticks)
            on_frame()
    require_count(film.frames - base, section.frames, path)


def _encode(section: Encode, film: _Film, options: EncodeOptions, on_frame: OnFrame) -> None:
    base = film.frames
    encoder = H264Encoder(open_join_encoder(film.video_format, options), film.video_format, options)

    def put(packets: list[av.Packet]) -> None:
        for encoded in packets:
            packet = av.Packet(to_length_prefixed(bytes(encoded)))
            packet.is_keyframe = encoded.is_keyframe
            film.put(packet, shown_at=base + encoded.pts)

    with ExitStack() as stack:
        decoded = [stack.enter_context(closing(decode_span(span))) for span in section.spans]
        for frame in shown(section.spans, decoded):
            put(encoder.add(frame))
            on_frame()
    put(encoder.finish())


def decode_span(span: Span) -> Generator[av.VideoFrame, None, None]:
    """Decode a span that begins and ends with whole groups of pictures; raise MediaError when frames are missing."""
    path, found = span.track.path, 0
    with open_video(path, quick=True) as (container, stream), media_errors(path, "damaged video data"):
        for packet in chain(_packets(container, stream, span), (None,)):
            for frame in stream.codec_context.decode(packet):
                found += 1
                yield frame
    require_count(found, span.stop - span.start, path)


def _packets(
    container: av.container.InputContainer, stream: av.VideoStream, frames: Copy | Span,
) -> Iterator[av.Packet]:
    """The packets of some frames, which begin and end with whole groups: there, storing and showing order agree."""
    with media_errors(frames.track.path, "cannot be read"):
        kept = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        yield from islice(kept, frames.start, frames.stop)
