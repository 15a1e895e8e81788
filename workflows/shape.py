"""Size, frame rate, lengths and fades of a film under the rules of its models. Pure arithmetic; makes no nodes.

Every function returns a value, or the Problem that says which value would be right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from configs.model_card import ModelCard, SizeRule
from workflows.errors import Problem
from workflows.framing import Ratio, Resolution
from workflows.storyboard import Shot, Size

FILM_SIZE = SizeRule(multiple_px=2, min_px=16, max_px=8192)
"""What H.264 with 4:2:0 colour takes, whatever the models do."""

NEAR = 0.1
"""Share by which a shape, and a longer side, may differ from what a ratio and a resolution ask for."""

_SHORTEST_S = 0.01
"""The least that a storyboard may ask for, of a clip or a fade."""


def exact_fps(fps: float) -> Fraction:
    """The rate as a fraction: 23.976 is 2997/125, not the nearest double."""
    return Fraction(fps).limit_denominator(1001)


def interpolated(frames: int, factor: int) -> int:
    """Frames of a clip whose rate was raised by `factor`: new frames only lie between two old ones."""
    return (frames - 1) * factor + 1


def size_problem(size: Size, cards: Iterable[ModelCard]) -> Problem | None:
    """None when every model takes the size, else what is wrong and the sizes around it that all take."""
    rules = [(f"model {card.name}", card.size) for card in cards]
    rules.append(("H.264", FILM_SIZE))
    wrong = [f"{side} {problem} ({who})" for who, rule in rules
             for side, px in (("width", size.width_px), ("height", size.height_px)) if (problem := rule.problem(px))]
    if not wrong:
        return None
    widths = _sides_around(size.width_px, [rule for _, rule in rules])
    heights = _sides_around(size.height_px, [rule for _, rule in rules])
    corners = [(widths[0], heights[0]), (widths[-1], heights[-1])] if widths and heights else []
    nearest = " or ".join(dict.fromkeys(f"{width_px}x{height_px}" for width_px, height_px in corners))
    return Problem(field="size", problem=f"{size.text()}: {', '.join(wrong)}", nearest=nearest)


def framed_size(ratio: Ratio | None, resolution: Resolution | None, default: Size, cards: Sequence[ModelCard],
                ) -> Size | Problem:
    """The size that every model takes, nearest to what was asked for; `default` decides what was not.

    What the models cannot come near (by a tenth) is a problem.
    """
    found = _framed(ratio, resolution, default, cards)
    if found:
        return found
    asked = " in ".join(value for value in (ratio, resolution) if value)
    limits = ", ".join(f"{card.name}: {card.size.min_px} to {card.size.max_px} px" for card in cards)
    fitting = [other.value for other in Ratio if _framed(other, resolution, default, cards)]
    return Problem(field="ratio" if fitting or not resolution else "resolution",
                   problem=f"{asked} is no picture that the models can make ({limits})",
                   nearest=" or ".join(fitting) or f"leave it out for {default.text()}")


def _framed(ratio: Ratio | None, resolution: Resolution | None, default: Size, cards: Sequence[ModelCard],
            ) -> Size | None:
    shape = ratio.width_to_height if ratio else default.width_px / default.height_px
    height_px = math.sqrt(default.width_px * default.height_px / shape)
    if resolution:
        height_px = resolution.longer_side_px / max(shape, 1)
    rules = [*(card.size for card in cards), FILM_SIZE]
    longer_px = height_px * max(shape, 1)
    corners = itertools.product(_sides_around(_rounded(height_px * shape), rules),
                                _sides_around(_rounded(height_px), rules))
    near = [(abs(width / height / shape - 1), abs(height - height_px), width, height) for width, height in corners
            if not resolution or abs(max(width, height) / longer_px - 1) <= NEAR]
    distance, _, width, height = min(near, default=(math.inf, 0.0, 0, 0))
    return Size(width_px=width, height_px=height) if distance <= NEAR else None


def clip_frames(shot: Shot, card: ModelCard, render_fps: float) -> int | Problem:
    """How many frames the model renders for a shot with its defaults in place.

    `frames` must fit the card's rule. `duration_s` fits when its number of frames does, or one more: models of the 4n+1
    family count the first frame apart, and 81 frames at 16 fps are what they call five seconds. Neither given: the
    card's default.
    """
    if shot.frames is not None:
        problem = card.frames.problem(shot.frames)
        if not problem:
            return shot.frames
        nearest = " or ".join(str(n) for n in card.frames.nearest(shot.frames))
        return Problem(shot_id=shot.id, field="frames", problem=f"{problem} (model {card.name})", nearest=nearest)
    if shot.duration_s is None:
        return card.defaults.frames
    fitting = frames_of(shot.duration_s, card, render_fps)
    if fitting is not None:
        return fitting
    count = _rounded(shot.duration_s * render_fps)
    problem = (f"{shot.duration_s:g} s at {render_fps:g} fps is {count} or {count + 1} frames, "
               f"and {card.frames.problem(count)} (model {card.name})")
    lengths = [f"{duration_text(n, card, render_fps)} ({n} frames)" for n in card.frames.nearest(count)]
    return Problem(shot_id=shot.id, field="duration_s", problem=problem, nearest=" or ".join(lengths))


def frames_of(duration_s: float, card: ModelCard, render_fps: float) -> int | None:
    """Frames of a clip of this length, or None when neither of the two candidates fits the card."""
    count = _rounded(duration_s * render_fps)
    return next((n for n in (count, count + 1) if not card.frames.problem(n)), None)


def duration_text(frames: int, card: ModelCard, render_fps: float) -> str:
    """The shortest number of seconds that `frames_of` turns into `frames`, for messages."""
    # The rounder of the two spellings first: 81 frames at 16 fps read as 5 s, not as 5.0625 s.
    counts = (frames - 1, frames) if card.frames.offset == 1 and frames > 1 else (frames, frames - 1)
    texts = [f"{count / render_fps:.{digits}f}" for count in counts for digits in range(5)]
    allowed = [text for text in texts if float(text) >= _SHORTEST_S]
    fitting = (text for text in allowed if frames_of(float(text), card, render_fps) == frames)
    return next(fitting, f"{frames / render_fps:.6f}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One clip in the film, for the arithmetic of fades."""

    shot_id: str
    frames: int
    """In the film, after interpolation."""
    fade_s: float
    """Crossfade from the clip before; 0: a cut."""


def fade_frames(cuts: Sequence[Cut], fps: float) -> tuple[list[int], list[Problem]]:
    """Length of each clip's crossfade in frames, and what is wrong with them.

    A clip's two fades may meet but not overlap.
    """
    fades: list[int] = []
    problems: list[Problem] = []
    for place, cut in enumerate(cuts):
        wanted = _rounded(cut.fade_s * fps) if place else 0
        room = min(cuts[place - 1].frames - fades[place - 1], cut.frames) if place else 0
        if cut.fade_s and place and not 1 <= wanted <= room:
            problems.append(_fade_problem(cut, room, fps))
        fades.append(min(wanted, room))
    return fades, problems


def _fade_problem(cut: Cut, room: int, fps: float) -> Problem:
    if room and _rounded(cut.fade_s * fps) < 1:
        problem, nearest = f"a crossfade of {cut.fade_s:g} s is shorter than one frame", _seconds(1, fps)
    else:
        problem = f"a crossfade of {cut.fade_s:g} s is longer than the clips that it joins leave room for"
        nearest = _seconds(room, fps) if room / fps >= _SHORTEST_S else "cut"
    return Problem(shot_id=cut.shot_id, field="transition.duration_s" if nearest != "cut" else "transition",
                   problem=problem, nearest=nearest)


def _seconds(frames: int, fps: float) -> str:
    """Seconds that round to this many frames, with as few digits as that takes."""
    texts = [f"{frames / fps:.{digits}f}" for digits in range(7)]
    return next((text for text in texts if _rounded(float(text) * fps) == frames), texts[-1])


def _rounded(value: float) -> int:
    """To the nearest whole number, halves up."""
    return math.floor(value + 0.5)


def _sides_around(px: int, rules: Sequence[SizeRule]) -> list[int]:
    """The nearest lengths below and above that every rule takes; one when `px` itself is right, none when none is."""
    downward, upward = range(px, 0, -1), range(px, FILM_SIZE.max_px + 1)
    around = [next((side for side in sides if not any(rule.problem(side) for rule in rules)), None)
              for sides in (downward, upward)]
    return [side for side in dict.fromkeys(around) if side is not None]
