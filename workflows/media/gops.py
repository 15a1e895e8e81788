"""Which packets of a file can be copied into a film, and where its groups of pictures start. Decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

from workflows.errors import MediaError
from workflows.media.files import open_video
from workflows.media.h264 import Headers, read_headers
from workflows.media.probe import BT709, PacketIndex, colour_tags, frame_rate, read_index

PLAYABLE_PROFILES = frozenset({"Constrained Baseline", "Baseline", "Main", "High"})
"""H.264 profiles with 8-bit 4:2:0, the ones browsers play."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One file's video stream as joining sees it."""

    path: Path
    label: str
    """What messages call it."""
    width_px: int
    height_px: int
    fps: Fraction
    frames: int
    has_audio: bool
    headers: Headers | None
    """None where `obstacle` is set."""
    gop_starts: tuple[int, ...]
    """First shown frame of each closed group, from 0; empty where `obstacle` is set."""
    reorder: int
    """How many frames later than shown a frame may be stored."""
    obstacle: str
    """Why its packets cannot be copied; empty when they can."""

    @property
    def duration_s(self) -> Fraction:
        """Frames over rate."""
        return self.frames / self.fps


def scan(path: Path, label: str = "") -> Track:
    """Read a file's headers and packet times; raise MediaError when it is not a whole video."""
    with open_video(path, quick=True) as (container, stream):
        index = read_index(container, stream, path)
        codec = stream.codec_context
        order, gop_starts = _display_order(index)
        obstacle = _stream_obstacle(stream) or ("" if index.step() else "its frames are not equally far apart")
        headers: Headers | None = None
        if not obstacle:
            try:
                headers = read_headers(codec.extradata or b"")
            except MediaError as error:
                obstacle = error.problem
        if not obstacle and not gop_starts:
            obstacle = "its groups of pictures are not closed"
        return Track(
            path=path, label=label or path.name, width_px=codec.width, height_px=codec.height,
            fps=frame_rate(stream, index, path), frames=len(order), has_audio=bool(container.streams.audio),
            headers=headers, gop_starts=() if obstacle else gop_starts,
            reorder=max(stored - shown for stored, shown in enumerate(order)), obstacle=obstacle,
        )


def _stream_obstacle(stream: av.VideoStream) -> str:
    codec = stream.codec_context
    if codec.codec.canonical_name != "h264":
        return f"its codec is {codec.codec.canonical_name}, not h264"
    if not (codec.extradata or b"").startswith(b"\x01"):
        return "its H.264 is not framed for MP4"
    if codec.profile not in PLAYABLE_PROFILES:
        return f"browsers do not play its H.264 profile {codec.profile}"
    if colour_tags(stream) != BT709:
        return "it is not tagged as BT.709, limited range"
    if stream.sample_aspect_ratio not in (None, 0, 1):
        return f"its pixels are not square ({stream.sample_aspect_ratio})"
    return ""


def _display_order(index: PacketIndex) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Each stored frame's place in the order shown, and where closed groups start (empty when one is open)."""
    rank = {pts: place for place, pts in enumerate(sorted(index.pts))}
    order = tuple(rank[pts] for pts in index.pts)
    starts = tuple(order[stored] for stored, is_key in enumerate(index.is_key) if is_key)
    bounds = [stored for stored, is_key in enumerate(index.is_key) if is_key] + [len(order)]
    closed = bounds[0] == 0 and all(
        # All of a group's frames are shown before the next group's, and none before its key frame.
        set(order[first:stop]) == set(range(first, stop)) and order[first] == first
        for first, stop in pairwise(bounds))
    return order, starts if closed else ()
