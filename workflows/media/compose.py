"""Clips to one film: copies packets where it can, encodes only where it must, and says which. Knows no job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

from workflows.errors import MediaError
from workflows.media.conform import conformed, film_frames
from workflows.media.encode import EncodeOptions, VideoFormat, open_join_encoder, write_clip
from workflows.media.frames import OnProgress
from workflows.media.gops import Track, scan
from workflows.media.h264 import read_headers
from workflows.media.joins import write_sections
from workflows.media.timeline import Copy, Encode, Part, Section, plan_copies, plan_whole, require_fades, shown

__all__ = ["ComposeOptions", "ComposeReport", "Method", "Part", "compose"]


class Method(StrEnum):
    """How a film was joined."""

    REMUX = "remux"
    """All packets copied; every decoded frame is the clips' own."""
    SMART = "smart"
    """Packets copied outside the crossfades; the groups of pictures that a fade touches are encoded."""
    REENCODE = "reencode"
    """Everything decoded, fitted to the film and encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeOptions:
    """What the film is to be."""

    width_px: int
    height_px: int
    fps: Fraction | int
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    """How the clips were encoded, where they come from `encode`; joins are encoded alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeReport:
    """What was done."""

    method: Method
    reason: str
    """Why packets were not copied; empty when they were."""
    copied_frames: int
    reencoded_frames: int
    duration_s: float
    silenced: tuple[str, ...] = ()
    """Labels of the parts whose sound is not in the film: films are silent."""

    @property
    def frames(self) -> int:
        """Length of the film."""
        return self.copied_frames + self.reencoded_frames


def compose(
    parts: Sequence[Part], to: Path, *, options: ComposeOptions, on_progress: OnProgress | None = None,
) -> ComposeReport:
    """Join clips, in order, into an H.264 MP4 (BT.709, `moov` first, uniform times).

    Clips of the film's size and rate with equal codec headers are joined by copying packets; crossfades between such
    clips encode only the groups of pictures they touch (known as smart rendering). All other clips are decoded, scaled
    to fit, centred on black, brought to the film's rate and encoded. `on_progress` is called after each frame with
    (frames done, frames in all); what it raises stops the work and leaves no file.

    Raises:
        MediaError: no parts, a part that is not a whole video, an odd size, or a fade that does not fit.
    """
    # 1. look at the parts   2. choose   3. write
    if not parts:
        raise MediaError(path=str(to), problem="a film needs at least one part")
    film = VideoFormat(width_px=options.width_px, height_px=options.height_px, fps=Fraction(options.fps))
    tracks = [scan(part.path, part.label) for part in parts]
    frames = [film_frames(track, film.fps) for track in tracks]
    require_fades(frames, parts)
    fades = [part.fade_in_frames for part in parts]

    sections: list[Section] = []
    reason = _why_not_copy(tracks, film)
    if not reason:
        sections = plan_copies(tracks, fades)
        reason = _why_not_join(sections, tracks, film, options.encode)
    if reason:
        sections = plan_whole(tracks, fades, frames)

    count = _Counter(sum(section.frames for section in sections), on_progress)
    if reason:
        _encode_whole(sections, to, film, options.encode, count.up)
    else:
        write_sections(sections, to, video_format=film, options=options.encode, on_frame=count.up)
    return _report(sections, tracks, film, reason)


class _Counter:
    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def up(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _why_not_copy(tracks: Sequence[Track], film: VideoFormat) -> str:
    """The first reason that keeps a part's packets out of the film; empty when there is none."""
    first = tracks[0]
    for track in tracks:
        if (track.width_px, track.height_px, track.fps) != (film.width_px, film.height_px, film.fps):
            return (f"{track.label} is {track.width_px}x{track.height_px} px at {track.fps} fps, "
                    f"the film is {film}")
        if track.obstacle:
            return f"{track.label}: {track.obstacle}"
        if track.headers != first.headers:
            return f"{track.label} and {first.label} were encoded with different settings"
    return ""


def _why_not_join(
    sections: Sequence[Section], tracks: Sequence[Track], film: VideoFormat, encode: EncodeOptions,
) -> str:
    """Why the encoded sections could not sit beside copied ones; empty when they can, or when there are none."""
    if all(isinstance(section, Copy) for section in sections):
        return ""
    if all(isinstance(section, Encode) for section in sections):
        return "no group of pictures is free of fades"
    if read_headers(open_join_encoder(film, encode).extradata or b"") != tracks[0].headers:
        return f"the clips were encoded with other settings than preset {encode.preset}"
    return ""


def _encode_whole(
    sections: Sequence[Section], to: Path, film: VideoFormat, options: EncodeOptions, on_frame: Callable[[], None],
) -> None:
    spans = [span for section in sections if isinstance(section, Encode) for span in section.spans]
    with ExitStack() as stack:
        decoded = [stack.enter_context(closing(conformed(span.track, film))) for span in spans]
        clip = stack.enter_context(write_clip(to, video_format=film, options=options))
        for frame in shown(spans, decoded):
            clip.write_yuv(frame)
            on_frame()


def _report(sections: Sequence[Section], tracks: Sequence[Track], film: VideoFormat, reason: str) -> ComposeReport:
    copied = sum(section.frames for section in sections if isinstance(section, Copy))
    encoded = sum(section.frames for section in sections if isinstance(section, Encode))
    method = Method.REENCODE if reason else Method.SMART if encoded else Method.REMUX
    return ComposeReport(
        method=method, reason=reason, copied_frames=copied, reencoded_frames=encoded,
        duration_s=float((copied + encoded) / film.fps),
        silenced=tuple(track.label for track in tracks if track.has_audio))
