"""What a video file is, without decoding it. Knows no frame and no encoder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

from workflows.errors import MediaError
from workflows.media.files import media_errors, open_video

COLOUR_RANGES = {1: "tv", 2: "pc"}
COLOUR_PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 12: "smpte432"}
COLOUR_TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
                    13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "arib-std-b67"}
COLOUR_MATRICES = {0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
UNKNOWN_TAG = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColourTags:
    """How the stream says its numbers are to be read (names as in ISO/IEC 23091-2); `unknown` where it does not."""

    range: str
    """`tv` (16-235) or `pc` (0-255)."""
    primaries: str
    transfer: str
    matrix: str


BT709 = ColourTags(range="tv", primaries="bt709", transfer="bt709", matrix="bt709")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """The first video stream of a file."""

    width_px: int
    height_px: int
    fps: Fraction
    """Exact where all frames are equally far apart, otherwise the mean."""
    constant_rate: bool
    """All frames are equally far apart."""
    frames: int
    """Frames really in the file, counted."""
    duration_s: float
    codec: str
    pix_fmt: str
    colour: ColourTags
    extradata_sha256: str
    """Digest of the codec's headers; equal digests and sizes mean that packets can be joined."""
    time_base: Fraction
    has_audio: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """When each frame of a stream is shown, in the order in which the packets are stored."""

    pts: tuple[int, ...]
    """Ticks of the stream's time base."""
    is_key: tuple[bool, ...]
    last_duration: int
    """Ticks the last packet lasts; 0 where the file does not say."""

    def step(self) -> int | None:
        """Ticks from one frame to the next; None where that is not the same everywhere."""
        if len(self.pts) == 1:
            return self.last_duration or None
        steps = {later - earlier for earlier, later in pairwise(sorted(self.pts))}
        return steps.pop() if len(steps) == 1 and 0 not in steps else None


def read_index(container: av.container.InputContainer, stream: av.VideoStream, path: Path) -> PacketIndex:
    """Read all packets of the stream once, keeping only their times; raise MediaError where frames are missing."""
    pts: list[int] = []
    keys: list[bool] = []
    last_duration = 0
    with media_errors(path, "cannot be read to the end"):
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.is_corrupt:
                break
            time = packet.pts if packet.pts is not None else packet.dts
            pts.append(len(pts) if time is None else time)
            keys.append(packet.is_keyframe)
            last_duration = packet.duration or 0
    if not pts:
        raise MediaError(path=str(path), problem="the video stream has no frames")
    if len(pts) < stream.frames:
        raise MediaError(path=str(path), problem=f"cut off: {len(pts)} of {stream.frames} frames are in the file")
    return PacketIndex(pts=tuple(pts), is_key=tuple(keys), last_duration=last_duration)


def frame_rate(stream: av.VideoStream, index: PacketIndex, path: Path) -> Fraction:
    """Frames per second: exact for equally spaced frames, otherwise the container's mean."""
    step = index.step()
    rate = 1 / (step * Fraction(stream.time_base)) if step else stream.average_rate or stream.guessed_rate
    if not rate or rate <= 0:
        raise MediaError(path=str(path), problem="the file does not say how many frames a second it has")
    return Fraction(rate)


def colour_tags(stream: av.VideoStream) -> ColourTags:
    """The stream's tags by name."""
    codec = stream.codec_context
    return ColourTags(
        range=COLOUR_RANGES.get(int(codec.color_range), UNKNOWN_TAG),
        primaries=COLOUR_PRIMARIES.get(int(codec.color_primaries), UNKNOWN_TAG),
        transfer=COLOUR_TRANSFERS.get(int(codec.color_trc), UNKNOWN_TAG),
        matrix=COLOUR_MATRICES.get(int(codec.colorspace), UNKNOWN_TAG),
    )


def probe(path: Path) -> VideoInfo:
    """Describe a video file.

    Reads the whole file once (no decoding beyond the first frames).

    Raises:
        MediaError: missing, empty, not a video, no video stream, no frames, or fewer frames than its header promises.
    """
    with open_video(path) as (container, stream):
        index = read_index(container, stream, path)
        fps = frame_rate(stream, index, path)
        codec = stream.codec_context
        if not codec.width or not codec.height or not codec.pix_fmt:
            raise MediaError(path=str(path), problem=f"no picture can be decoded from its {codec.name} stream")
        return VideoInfo(
            width_px=codec.width, height_px=codec.height, fps=fps, constant_rate=index.step() is not None,
            frames=len(index.pts), duration_s=float(len(index.pts) / fps), codec=codec.codec.canonical_name,
            pix_fmt=codec.pix_fmt, colour=colour_tags(stream),
            extradata_sha256=hashlib.sha256(codec.extradata or b"").hexdigest(),
            time_base=Fraction(stream.time_base), has_audio=bool(container.streams.audio),
        )
