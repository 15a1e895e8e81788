"""What a user's video is, and the part of it that is edited, from its packets and its first frame. Encodes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median

import av

from workflows.edit_ports import SourceVideo
from workflows.errors import MediaError
from workflows.media.files import media_errors, open_video
from workflows.media.probe import COLOUR_TRANSFERS, UNKNOWN_TAG
from workflows.media.reel import Reel, is_steady, resampled, steady_rate

PROGRESSIVE = frozenset({0, 1})
"""AVFieldOrder: not said, and whole frames."""
WITH_ALPHA = frozenset({2, 4})
"""Channels of formats with transparency: grey or red, green, blue, and alpha."""
QUARTER_DEG = 90
SLOWEST, FASTEST = Fraction(1), Fraction(120)
MOST_REPEATS = 4
"""A constant rate for pictures that come at odd times shows each at most so often, in the mean."""


@dataclass(frozen=True, slots=True)
class _Packets:
    times: tuple[int, ...]
    """Sorted, each once."""
    last_duration: int


def describe(path: Path) -> SourceVideo:
    """Describe a video file; reads all packets once and decodes the first frame.

    Raises:
        MediaError: missing, empty, not a video, audio only, no frames, cut off, turned by something else than quarters,
            or its first frame cannot be decoded.
    """
    first = _first_frame(path)
    if first.rotation % QUARTER_DEG:
        raise MediaError(path=str(path), problem=f"shown turned by {first.rotation} degrees; only quarter turns can be "
                                                 "followed")
    with open_video(path, quick=True) as (container, stream):
        packets = _packets(container, stream, path)
        codec, tick_s = stream.codec_context, Fraction(stream.time_base)
        fps, constant = _rate(stream, packets, path)
        quarter = first.rotation % 360
        turned = quarter in (90, 270)
        channels = first.format.components
        span = packets.times[-1] - packets.times[0] + (packets.last_duration or 1 / (fps * tick_s))
        return SourceVideo(
            width_px=first.height if turned else first.width, height_px=first.width if turned else first.height,
            rotation_deg=(360 - quarter) % 360, fps=fps, constant_rate=constant, frames=len(packets.times),
            duration_s=float(len(packets.times) / fps if constant else span * tick_s),
            codec=codec.codec.canonical_name, pix_fmt=first.format.name, bits=max(part.bits for part in channels),
            has_alpha=len(channels) in WITH_ALPHA or stream.metadata.get("alpha_mode") == "1",
            transfer=COLOUR_TRANSFERS.get(int(first.color_trc), UNKNOWN_TAG),
            interlaced=bool(first.interlaced_frame) or int(codec.field_order) not in PROGRESSIVE,
            audio_codecs=tuple(audio.codec_context.codec.canonical_name if audio.codec_context else "unknown"
                               for audio in container.streams.audio),
        )


def thread(path: Path, *, first: int, frames: int, fps: Fraction) -> Reel:
    """The reel of so many frames from the `first` on (from 0), at the rate that the plan named.

    Raises:
        MediaError: as `describe`, or the file has fewer frames than that.
    """
    source = describe(path)
    with open_video(path, quick=True) as (container, stream):
        times = _packets(container, stream, path).times
        tick_s = Fraction(stream.time_base)
    if not source.constant_rate:
        times = resampled(times, tick_s, fps, first + frames)
    if len(times) < first + frames:
        raise MediaError(path=str(path), problem=f"frames {first} to {first + frames - 1} were asked for; the file has "
                                                 f"{len(times)}")
    start = times[first] if source.constant_rate else round(times[0] + first / (fps * tick_s))
    return Reel(fps=fps, times=times[first:first + frames], start=start, width_px=source.width_px // 2 * 2,
                height_px=source.height_px // 2 * 2, rotation_deg=(360 - source.rotation_deg) % 360)


def _first_frame(path: Path) -> av.VideoFrame:
    with open_video(path, quick=True) as (container, stream), media_errors(path, "damaged video data"):
        for frame in container.decode(stream):
            return frame
    raise MediaError(path=str(path), problem="the video stream has no frames that can be decoded")


def _packets(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> _Packets:
    """When the stream's pictures are due; MediaError where some are missing that the header promises."""
    times: list[int] = []
    empty = last_duration = 0
    with media_errors(path, "cannot be read to the end"):
        for packet in container.demux(stream):
            if packet.size == 0:
                empty += packet.dts is not None  # AVI marks a picture that is shown again by a packet without data
                continue
            if packet.is_discard:
                continue
            if packet.is_corrupt:
                break
            time = packet.pts if packet.pts is not None else packet.dts
            times.append(len(times) if time is None else time)
            last_duration = packet.duration or 0
    if not times:
        raise MediaError(path=str(path), problem="the video stream has no frames")
    if container.format.name != "avi" and len(times) + empty < stream.frames:
        raise MediaError(path=str(path), problem=f"cut off: {len(times)} of {stream.frames} frames are in the file")
    return _Packets(tuple(sorted(set(times))), last_duration)


def _rate(stream: av.VideoStream, packets: _Packets, path: Path) -> tuple[Fraction, bool]:
    """Pictures per second, and whether they are equally far apart; where they are not, as most of them come.

    A mean would drop pictures wherever they come faster.
    """
    tick_s, times = Fraction(stream.time_base), packets.times
    told = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if len(times) == 1:
        alone = [1 / (packets.last_duration * tick_s)] if packets.last_duration else told
        return _positive(alone, path), True
    mean = (len(times) - 1) / ((times[-1] - times[0]) * tick_s)
    for rate in (*told, mean, steady_rate(mean)):
        if rate > 0 and is_steady(times, tick_s, rate):
            return rate, True
    if mean * MOST_REPEATS < SLOWEST:
        raise MediaError(path=str(path), problem=f"its frames come at changing distances, {float(1 / mean):.0f} s in "
                                                 "the mean; write it anew with a constant rate first")
    usual = median(later - earlier for earlier, later in pairwise(times))
    return steady_rate(min(max(1 / (Fraction(usual) * tick_s), mean, SLOWEST), mean * MOST_REPEATS, FASTEST)), False


def _positive(rates: list[Fraction], path: Path) -> Fraction:
    for rate in rates:
        if rate > 0:
            return rate
    raise MediaError(path=str(path), problem="the file does not say how many frames a second it has")
