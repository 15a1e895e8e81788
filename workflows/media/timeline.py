"""What a film is made of, frame by frame: which packets are copied, which frames are encoded. Pure, except `shown`.

A film is its parts one after the other; where a part fades in over F frames, the last F frames of the part before and
its own first F are shown mixed, so the film is F frames shorter. Every group of pictures that no fade touches can be
copied; what is left of a touched group is encoded together with the fade.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2

from workflows.errors import MediaError
from workflows.media.gops import Track


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One clip of a film."""

    path: Path
    fade_in_frames: int = 0
    """Length of the crossfade from the part before, in frames of the film; 0 is a hard cut."""
    label: str = ""
    """What messages call it; empty: the file's name."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Frames `start` up to `stop` of a track, whole groups of pictures, copied without decoding."""

    track: Track
    start: int
    stop: int

    @property
    def frames(self) -> int:
        """Frames it adds to the film."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Span:
    """Frames `start` up to `stop` of a track, decoded; the first `fade` mix with the last of the span before."""

    track: Track
    start: int
    stop: int
    fade: int = 0


@dataclass(frozen=True, slots=True)
class Encode:
    """Spans encoded in one go."""

    spans: tuple[Span, ...]

    @property
    def frames(self) -> int:
        """Frames it adds to the film."""
        return sum(span.stop - span.start - span.fade for span in self.spans)


Section = Copy | Encode


def require_fades(frames: Sequence[int], parts: Sequence[Part]) -> None:
    """Refuse fades that do not fit.

    `frames` are the parts' lengths at the film's rate. A fade needs its frames from both neighbours, and a part's two
    fades must not overlap.

    Raises:
        MediaError: names the part and the longest fade possible.
    """
    fades = [part.fade_in_frames for part in parts]
    if fades[0]:
        raise MediaError(path=str(parts[0].path), problem="the first part has nothing to fade in from; "
                                                          "nearest valid: fade_in_frames 0")
    for here in range(1, len(parts)):
        before = frames[here - 1] - fades[here - 1]
        longest = max(0, min(before, frames[here]))
        if not 0 <= fades[here] <= longest:
            overlap = " beside the fade before it" if longest == before and fades[here - 1] else ""
            raise MediaError(
                path=str(parts[here].path),
                problem=f"a fade of {fades[here]} frames into {parts[here].label or parts[here].path.name!r} does not "
                        f"fit between clips of {frames[here - 1]} and {frames[here]} frames{overlap}; "
                        f"longest possible: {longest}")


def plan_whole(tracks: Sequence[Track], fades: Sequence[int], frames: Sequence[int]) -> list[Section]:
    """Encode everything in one go; `frames` are the parts' lengths at the film's rate."""
    spans = (Span(track, 0, length, fade) for track, length, fade in zip(tracks, frames, fades, strict=True))
    return [Encode(tuple(spans))]


def plan_copies(tracks: Sequence[Track], fades: Sequence[int]) -> list[Section]:
    """Copy every group of pictures that no fade touches; encode the rest, neighbours together."""
    sections: list[Section] = []
    pending: list[Span] = []
    ranges = _copy_ranges(tracks, fades)
    for track, fade, (start, stop) in zip(tracks, fades, ranges, strict=True):
        if start == stop:
            pending.append(Span(track, 0, track.frames, fade))
            continue
        if start:
            pending.append(Span(track, 0, start, fade))
        if pending:
            sections.append(Encode(tuple(pending)))
        sections.append(Copy(track, start, stop))
        pending = [Span(track, stop, track.frames)] if stop < track.frames else []
    return [*sections, Encode(tuple(pending))] if pending else sections


def _copy_ranges(tracks: Sequence[Track], fades: Sequence[int]) -> list[tuple[int, int]]:
    """For each track the frames that whole, untouched groups hold; equal bounds where there are none."""
    ranges = []
    lone_before = False
    for here, track in enumerate(tracks):
        is_last = here == len(tracks) - 1
        solo_stop = track.frames if is_last else track.frames - fades[here + 1]
        bounds = (*track.gop_starts, track.frames)
        first = next(bound for bound in bounds if bound >= fades[here])
        if lone_before and first == 0:
            first = bounds[1]
        last = next(bound for bound in reversed(bounds) if bound <= solo_stop)
        # An IDR picture directly after another one needs an id of its own, which copying cannot give it:
        # a group of one picture at a clip's end is encoded with what follows.
        lone_before = not is_last and last == track.frames and bounds[-1] - bounds[-2] == 1
        if lone_before:
            last = bounds[-2]
        ranges.append((first, last) if first < last else (track.frames, track.frames))
    return ranges


def shown(spans: Sequence[Span], decoded: Sequence[Iterator[av.VideoFrame]]) -> Iterator[av.VideoFrame]:
    """The frames that `spans` show, in order; `decoded` gives each span's frames in yuv420p, one size for all."""
    fading_out: Iterator[av.VideoFrame] = iter(())
    for here, (span, frames) in enumerate(zip(spans, decoded, strict=True)):
        for index in range(span.fade):
            yield mix(next(fading_out), next(frames), weight=(index + 1) / (span.fade + 1))
        next_fade = spans[here + 1].fade if here + 1 < len(spans) else 0
        for _ in range(span.stop - span.start - span.fade - next_fade):
            yield next(frames)
        fading_out = frames


def mix(before: av.VideoFrame, after: av.VideoFrame, *, weight: float) -> av.VideoFrame:
    """Blend two yuv420p frames of one size; `weight` (0..1) is the share of `after`."""
    planes = cv2.addWeighted(before.to_ndarray(format="yuv420p"), 1.0 - weight,
                             after.to_ndarray(format="yuv420p"), weight, 0.0)
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")
