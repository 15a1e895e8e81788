"""Which packets are copied and which frames are encoded: rules, without files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.errors import MediaError
from workflows.media.gops import Track
from workflows.media.timeline import Copy, Encode, Part, Section, Span, plan_copies, plan_whole, require_fades, shown


def track(frames: int, gop: int = 8) -> Track:
    """As our encoder places groups: every `gop` frames, but never one of a single picture at the end."""
    starts = tuple(start for start in range(0, frames, gop) if start == 0 or start < frames - 1)
    return Track(path=Path(f"{frames}.mp4"), label=str(frames), width_px=96, height_px=64, fps=Fraction(16),
                 frames=frames, has_audio=False, headers=None, gop_starts=starts, reorder=2, obstacle="")


def spans_of(section: Section) -> tuple[Span, ...]:
    return section.spans if isinstance(section, Encode) else (Span(section.track, section.start, section.stop),)


def outline(sections: Sequence[Section]) -> list[str]:
    """`copy 8-73` or `encode 73-81 0-8/8`: frames of each span, and after the slash its fade."""
    lines = []
    for section in sections:
        words = [f"{span.start}-{span.stop}" + (f"/{span.fade}" if span.fade else "") for span in spans_of(section)]
        lines.append(" ".join([type(section).__name__.lower(), *words]))
    return lines


PLANS: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[str]]] = {
    "one clip": ((81,), (0,), ["copy 0-81"]),
    "hard cuts": ((81, 17, 9), (0, 0, 0), ["copy 0-81", "copy 0-17", "copy 0-9"]),
    "a fade on group bounds": ((80, 80), (0, 8), ["copy 0-72", "encode 72-80 0-8/8", "copy 8-80"]),
    "the rest of a group goes with the fade": ((81, 81), (0, 8), ["copy 0-72", "encode 72-81 0-8/8", "copy 8-81"]),
    "a short fade touches one group on each side": ((80, 80), (0, 3), ["copy 0-72", "encode 72-80 0-8/3", "copy 8-80"]),
    "a long fade": ((81, 81), (0, 21), ["copy 0-56", "encode 56-81 0-24/21", "copy 24-81"]),
    "a cut and a fade": ((16, 16, 16), (0, 0, 4), ["copy 0-16", "copy 0-8", "encode 8-16 0-8/4", "copy 8-16"]),
    "a clip that fades all through": ((24, 8, 24), (0, 4, 4), ["copy 0-16", "encode 16-24 0-8/4 0-8/4", "copy 8-24"]),
    "no group is free": ((8, 8), (0, 4), ["encode 0-8 0-8/4"]),
    "one picture is encoded with what follows": ((1, 24), (0, 0), ["encode 0-1 0-8", "copy 8-24"]),
    "one picture between clips": ((24, 1, 24), (0, 0, 0), ["copy 0-24", "encode 0-1 0-8", "copy 8-24"]),
    "one picture at the end": ((24, 1), (0, 0), ["copy 0-24", "copy 0-1"]),
    "single pictures only": ((1, 1, 1), (0, 0, 0), ["encode 0-1 0-1 0-1"]),
}


@pytest.mark.parametrize(("frames", "fades", "expected"), PLANS.values(), ids=PLANS)
def test_groups_that_no_fade_touches_are_copied(
    frames: tuple[int, ...], fades: tuple[int, ...], expected: list[str],
) -> None:
    assert outline(plan_copies([track(count) for count in frames], fades)) == expected


def test_a_film_that_cannot_be_copied_is_one_encoding() -> None:
    assert outline(plan_whole([track(9), track(17)], [0, 4], [18, 34])) == ["encode 0-18 0-34/4"]


@st.composite
def films(draw: st.DrawFn) -> tuple[list[Track], list[int]]:
    tracks = [track(draw(st.integers(1, 40)), draw(st.integers(2, 9))) for _ in range(draw(st.integers(1, 5)))]
    fades = [0]
    for before, after in pairwise(tracks):
        fades.append(draw(st.integers(0, min(before.frames - fades[-1], after.frames))))
    return tracks, fades


@given(film=films())
def test_every_plan_shows_every_frame_once_and_copies_whole_groups_only(film: tuple[list[Track], list[int]]) -> None:
    tracks, fades = film
    sections = plan_copies(tracks, fades)
    assert sum(section.frames for section in sections) == sum(each.frames for each in tracks) - sum(fades)
    spans = [span for section in sections for span in spans_of(section)]
    for here in tracks:
        mine = [span for span in spans if span.track is here]
        assert [number for span in mine for number in range(span.start, span.stop)] == list(range(here.frames))
        bounds = {*here.gop_starts, here.frames}
        assert all({span.start, span.stop} <= bounds for span in mine)
    for section, after in pairwise(sections):
        if isinstance(section, Copy):
            last_group = max(start for start in section.track.gop_starts if start < section.stop)
            assert section.stop - last_group > 1, "a copied picture stands directly before another IDR picture"
        assert isinstance(section, Copy) or isinstance(after, Copy)


BAD_FADES: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "before the first part": ((20, 20), (4, 0), "nothing to fade in from; nearest valid: fade_in_frames 0"),
    "longer than the clip before": ((10, 30), (0, 11), "between clips of 10 and 30 frames; longest possible: 10"),
    "longer than its own clip": ((30, 10), (0, 11), "between clips of 30 and 10 frames; longest possible: 10"),
    "overlapping the fade before": ((30, 20, 30), (0, 12, 9), "beside the fade before it; longest possible: 8"),
    "negative": ((30, 20), (0, -1), "longest possible: 20"),
}


@pytest.mark.parametrize(("frames", "fades", "problem"), BAD_FADES.values(), ids=BAD_FADES)
def test_a_fade_that_does_not_fit_is_refused_with_the_longest_possible(
    frames: tuple[int, ...], fades: tuple[int, ...], problem: str,
) -> None:
    parts = [Part(path=Path(f"{here}.mp4"), fade_in_frames=fade) for here, fade in enumerate(fades)]
    with pytest.raises(MediaError, match=problem):
        require_fades(frames, parts)


def test_fades_that_use_up_a_clip_fit() -> None:
    require_fades([30, 20, 30], [Part(path=Path("a")), Part(path=Path("b"), fade_in_frames=12),
                                 Part(path=Path("c"), fade_in_frames=8)])


def level(value: int) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.full((6, 4), value, np.uint8), format="yuv420p")


def levels(*values: int) -> Iterator[av.VideoFrame]:
    return (level(value) for value in values)


def test_a_fade_mixes_in_even_steps_between_the_frames_beside_it() -> None:
    """Three frames of fade from 0 to 200: shares of 1/4, 2/4 and 3/4."""
    spans = [Span(track(5), 0, 5), Span(track(5), 0, 5, fade=3)]
    frames = shown(spans, [levels(0, 0, 0, 0, 0), levels(200, 200, 200, 200, 200)])
    assert [int(frame.to_ndarray(format="yuv420p").mean()) for frame in frames] == [0, 0, 50, 100, 150, 200, 200]


def test_both_clips_move_on_during_a_fade() -> None:
    spans = [Span(track(4), 0, 4), Span(track(4), 0, 4, fade=2)]
    frames = shown(spans, [levels(0, 30, 60, 90), levels(120, 150, 180, 210)])
    assert [int(frame.to_ndarray(format="yuv420p").mean()) for frame in frames] == [0, 30, 80, 130, 180, 210]
