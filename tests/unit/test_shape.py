"""Sizes, lengths, rates and fades: what fits the models' rules is taken, what does not is answered with what would."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.model_card import CallDefaults, FrameRule, ModelCard, SizeRule, Task
from workflows.errors import InvalidDocument
from workflows.plan import Plan, plan_film
from workflows.shape import Cut, duration_text, fade_frames, frames_of, interpolated
from workflows.storyboard import parse_storyboard
from workflows.types import NodeKind


def card_of(name: str, task: Task, width_px: int, size: SizeRule, frames: FrameRule) -> ModelCard:
    return ModelCard(name=name, title=name, repo="x/x", pipelines={task: "WanPipeline"}, size=size, frames=frames,
                     defaults=CallDefaults(width_px=width_px, height_px=480, frames=81, fps=16))


WAN = card_of("wan", Task.TEXT_TO_VIDEO, 832, SizeRule(multiple_px=16, min_px=256, max_px=1280),
              FrameRule(step=4, offset=1, min_frames=5, max_frames=121))
I2V = card_of("i2v", Task.IMAGE_TO_VIDEO, 816, SizeRule(multiple_px=24, min_px=240, max_px=960),
              FrameRule(step=8, offset=1, min_frames=9, max_frames=257))
ANY = card_of("any", Task.TEXT_TO_VIDEO, 832, SizeRule(multiple_px=1, min_px=16), FrameRule())
CARDS = {Task.TEXT_TO_VIDEO: WAN, Task.IMAGE_TO_VIDEO: I2V}


def plan(text: str, card: ModelCard = WAN) -> Plan:
    return plan_film(parse_storyboard(text), cards={**CARDS, Task.TEXT_TO_VIDEO: card})


def refusal(text: str, card: ModelCard = WAN) -> str:
    with pytest.raises(InvalidDocument) as refused:
        plan(text, card)
    return str(refused.value)


@pytest.mark.parametrize(("shot", "frames"), [
    ("", 81), ("duration_s: 5", 81), ("duration_s: 5.05", 81), ("duration_s: 5.0625", 81), ("duration_s: 3", 49),
    ("frames: 33", 33), ("duration_s: 0.25", 5), ("duration_s: 7.5", 121),
], ids=["default", "first frame apart", "rounded", "counted whole", "three", "frames", "shortest", "longest"])
def test_a_length_is_taken_in_frames_or_in_seconds_of_the_models_own_count(shot: str, frames: int) -> None:
    assert plan(f"shots: [{{prompt: a, {shot}}}]").shots[0].render_frames == frames


def test_whole_numbers_of_frames_win_over_one_more() -> None:
    assert plan("shots: [{prompt: a, duration_s: 2}]", ANY).shots[0].render_frames == 32


@pytest.mark.parametrize(("shot", "message"), [
    ("frames: 80", "shot s1: frames: 80 frames does not fit 4n+1 (model wan); nearest valid: 77 or 81"),
    ("frames: 125", "shot s1: frames: 125 frames is outside 5..121 (model wan); nearest valid: 121"),
    ("frames: 1", "shot s1: frames: 1 frames is outside 5..121 (model wan); nearest valid: 5"),
    ("duration_s: 5.4", "shot s1: duration_s: 5.4 s at 16 fps is 86 or 87 frames, and 86 frames does not fit 4n+1 "
                        "(model wan); nearest valid: 5.25 (85 frames) or 5.5 (89 frames)"),
    ("duration_s: 60", "shot s1: duration_s: 60 s at 16 fps is 960 or 961 frames, and 960 frames is outside 5..121 "
                       "(model wan); nearest valid: 7.5 (121 frames)"),
    ("duration_s: 0.01", "shot s1: duration_s: 0.01 s at 16 fps is 0 or 1 frames, and 0 frames is outside 5..121 "
                         "(model wan); nearest valid: 0.25 (5 frames)"),
])
def test_a_length_that_does_not_fit_is_answered_with_the_nearest_that_do(shot: str, message: str) -> None:
    assert refusal(f"shots: [{{prompt: a, {shot}}}]") == message


def test_a_default_length_that_does_not_fit_is_told_once() -> None:
    assert refusal("defaults: {frames: 80}\nshots: [{prompt: a}, {prompt: b}, {prompt: c}]") == (
        "defaults.frames: 80 frames does not fit 4n+1 (model wan); nearest valid: 77 or 81")


def test_each_shot_is_measured_by_the_rule_of_its_own_model() -> None:
    assert refusal("size: 480x480\ndefaults: {frames: 85}\nshots: [{prompt: a}, {prompt: b, continues: s1}]") == (
        "defaults.frames: 85 frames does not fit 8n+1 (model i2v); nearest valid: 81 or 89")


RULES = st.builds(
    lambda step, offset, low, span: FrameRule(step=step, offset=offset, min_frames=low, max_frames=low + span),
    st.integers(1, 9), st.integers(0, 8), st.integers(1, 40), st.integers(9, 200))


@settings(max_examples=150, deadline=None)
@given(RULES, st.sampled_from([1.0, 7.5, 8.0, 12.0, 23.976, 24.0, 25.0, 29.97, 60.0, 240.0]), st.integers(1, 250))
def test_every_length_that_a_refusal_offers_is_taken(rule: FrameRule, fps: float, wanted: int) -> None:
    card = WAN.model_copy(update={"frames": rule})
    for frames in rule.nearest(wanted):
        assert frames_of(float(duration_text(frames, card, fps)), card, fps) == frames


@pytest.mark.parametrize(("film", "fps", "render_fps", "frames"), [
    ("", 16.0, 16.0, 81), ("fps: 24", 24.0, 24.0, 81), ("interpolate: 2", 32.0, 16.0, 161),
    ("fps: 24\ninterpolate: 2", 24.0, 12.0, 161), ("fps: 60\ninterpolate: 4", 60.0, 15.0, 321),
], ids=["card", "film", "raised card", "raised film", "by four"])
def test_clips_are_rendered_at_the_films_rate_divided_by_the_factor(
    film: str, fps: float, render_fps: float, frames: int,
) -> None:
    made = plan(f"{film}\nshots: [{{prompt: a}}]")
    assert (made.film.fps, made.film.frames, made.shots[0].render_frames) == (fps, frames, 81)
    assert made.nodes[0].payload["fps"] == render_fps
    factors = [node.payload["factor"] for node in made.nodes if node.kind is NodeKind.INTERPOLATE]
    assert factors == ([] if fps == render_fps else [round(fps / render_fps)])


@pytest.mark.parametrize(("frames", "factor", "after"), [(81, 1, 81), (81, 2, 161), (2, 8, 9), (1, 4, 1)])
def test_new_frames_lie_between_old_ones_only(frames: int, factor: int, after: int) -> None:
    assert interpolated(frames, factor) == after


@pytest.mark.parametrize(("size", "shot", "message"), [
    ("100x480", "", "size: 100x480: width 100 is not a multiple of 16 (model wan); nearest valid: 256x480"),
    ("840x470", "", "size: 840x470: width 840 is not a multiple of 16 (model wan), height 470 is not a multiple of 16 "
                    "(model wan); nearest valid: 832x464 or 848x480"),
    ("2560x480", "", "size: 2560x480: width 2560 is outside 256..1280 (model wan); nearest valid: 1280x480"),
    ("832x480", "image: a.png", "size: 832x480: width 832 is not a multiple of 24 (model i2v); "
                                "nearest valid: 816x480 or 840x480"),
], ids=["width", "both", "too large", "model of pictures"])
def test_a_size_that_a_model_does_not_take_is_answered_with_the_nearest(size: str, shot: str, message: str) -> None:
    told = refusal(f"size: {size}\nshots: [{{prompt: a, {shot}}}]").split("\n")
    assert told[0] == message


def test_a_size_must_suit_every_model_of_the_film() -> None:
    told = refusal("size: 840x480\nshots: [{prompt: a}, {prompt: b, continues: s1}]")
    assert told == ("size: 840x480: width 840 is not a multiple of 16 (model wan); nearest valid: 816x480 or 864x480")


def test_an_odd_size_is_refused_although_the_model_takes_it() -> None:
    assert refusal("size: 101x64\nshots: [{prompt: a}]", ANY) == (
        "size: 101x64: width 101 is not a multiple of 2 (H.264); nearest valid: 100x64 or 102x64")


def test_a_default_size_that_another_model_does_not_take_is_refused_as_size() -> None:
    assert refusal("shots: [{prompt: a}, {prompt: b, continues: s1}]") == (
        "size: 832x480: width 832 is not a multiple of 24 (model i2v); nearest valid: 816x480 or 864x480")


@pytest.mark.parametrize(("fade", "message"), [
    ("duration_s: 3.2", "shot s2: transition.duration_s: a crossfade of 3.2 s is longer than the clips that it joins "
                        "leave room for; nearest valid: 3.06"),
    ("duration_s: 0.02", "shot s2: transition.duration_s: a crossfade of 0.02 s is shorter than one frame; "
                         "nearest valid: 0.06"),
])
def test_a_fade_that_does_not_fit_is_answered_with_the_longest_or_shortest(fade: str, message: str) -> None:
    film = f"shots: [{{prompt: a, frames: 49}}, {{prompt: b, transition: {{type: crossfade, {fade}}}}}]"
    assert refusal(film) == message


@pytest.mark.parametrize(("frames", "fades", "places", "longest"), [
    ((17, 17), (0.0, 1.0), [0, 8], None),
    ((17, 5), (0.0, 1.0), [0, 5], "0.6"),
    ((17, 17, 17), (0.0, 1.0, 1.0), [0, 8, 8], None),
    ((17, 17, 17), (0.0, 1.5, 1.5), [0, 12, 5], "0.6"),
    ((17, 8, 17), (0.0, 1.0, 0.5), [0, 8, 0], "cut"),
    ((17, 8, 17), (0.0, 1.0, 0.1), [0, 8, 0], "cut"),
    ((17, 17), (1.0, 0.0), [0, 0], None),
], ids=["fits", "short clip", "two fades meet", "two fades overlap", "no room at all", "no room for one frame",
        "first is never faded"])
def test_two_fades_of_a_clip_may_meet_but_not_overlap(
    frames: tuple[int, ...], fades: tuple[float, ...], places: list[int], longest: str | None,
) -> None:
    cuts = [Cut(shot_id="s", frames=count, fade_s=fade) for count, fade in zip(frames, fades, strict=True)]
    found, problems = fade_frames(cuts, 8.0)
    assert found == places
    assert [problem.nearest for problem in problems] == ([longest] if longest else [])


CLIPS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 10)), min_size=2, max_size=6)


@settings(max_examples=100, deadline=None)
@given(CLIPS, st.sampled_from([8.0, 23.976, 30.0]))
def test_every_fade_that_a_refusal_offers_fits(clips: list[tuple[int, float]], fps: float) -> None:
    cuts = {str(n): Cut(shot_id=str(n), frames=frames, fade_s=fade) for n, (frames, fade) in enumerate(clips)}
    for _ in clips:
        _, problems = fade_frames([*cuts.values()], fps)
        for problem in problems[:1]:
            fade_s = 0.0 if problem.nearest == "cut" else float(problem.nearest)
            cuts[problem.shot_id] = replace(cuts[problem.shot_id], fade_s=fade_s)
    assert not fade_frames([*cuts.values()], fps)[1]
