"""What a storyboard may say, what stands for what it does not say, and that writing and reading change nothing."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workflows.errors import InvalidDocument, Problem
from workflows.revise import change_shot, with_lines
from workflows.source import decode_text
from workflows.storyboard import (
    Missing,
    Mode,
    Shot,
    Size,
    Transition,
    TransitionType,
    dump_storyboard,
    parse_storyboard,
    storyboard_value,
)

FULL = """
title: A ball at sea
style: watercolour
size: 832x480
fps: 16
seed: 42
negative_prompt: blur
interpolate: 2
missing: slate
characters:
  - id: hero
    description: a small red ball
defaults:
  duration_s: 5
  steps: 30
  characters: [hero]
shots:
  - id: opening
    prompt: |
      the ball rolls
      along the beach
    takes: 3
    take: 2
    caption: 出发
  - prompt: it falls into the sea
    continues: opening
    transition: {type: crossfade, duration_s: 0.25}
    frames: 81
  - prompt: a ship
    image: ship.png
    transition: crossfade
    characters: []
  - prompt: a lighthouse
    mode: keyframe
    guidance: 7
    negative_prompt: ''
"""

# Characters that YAML or JSON treat specially, and texts that unquoted would not be texts.
LETTERS = st.sampled_from("ab:-#&*!|>'\"%@`{}[],? \n\t\r\\<=~019.\x85\u2028\u00e9\u4e2d\ufeff\U0001f3ac\u200b\u0301")
TEXTS = st.text(LETTERS, max_size=12) | st.sampled_from(
    ["yes", "Off", "null", "~", "1", "-1.5", "1e5", "0x1f", "0o17", "007", "1_000", "12:30", "2026-01-31", ".nan", "*a",
     "&a", "!t", "@x", "%x", "- a", "? a", "a: b", "a #b", "<<", "=", "{", "[x]", "---", "...", " a ", "a\n\nb\n"])
WORDS = TEXTS.filter(lambda text: bool(text.strip()))
NUMBERS = st.floats(min_value=0.01, max_value=10)


@st.composite
def storyboard_values(draw: st.DrawFn) -> dict[str, object]:
    """Plain data of a valid storyboard."""
    def some(fields: dict[str, st.SearchStrategy[object]]) -> dict[str, object]:
        return draw(st.fixed_dictionaries({}, optional=fields))

    names = draw(st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), min_size=1, max_size=4, unique=True))
    shots = []
    for place, name in enumerate(names):
        shot: dict[str, object] = {"id": name, "prompt": draw(WORDS)}
        shot |= some({"caption": TEXTS, "negative_prompt": TEXTS, "seed": st.integers(0, 2**32 - 1),
                      "guidance": NUMBERS, "takes": st.just(3), "characters": st.just(["hero"])})
        shot |= some({"frames": st.integers(1, 99)}) or some({"duration_s": NUMBERS})
        if place:
            fades = ["cut", "crossfade", {"type": "crossfade", "duration_s": 1.5}]
            shot |= some({"transition": st.sampled_from(fades)})
            shot |= some({"continues": st.just(names[0])}) or some({"image": WORDS})
        shots.append(shot)
    film = some({"title": TEXTS, "style": TEXTS, "fps": st.integers(1, 240), "seed": st.integers(0, 9),
                 "size": st.sampled_from(["96x64", {"width_px": 64, "height_px": 32}]),
                 "interpolate": st.integers(1, 8), "missing": st.sampled_from(["cut", "slate"])})
    film["characters"] = [{"id": "hero", "description": draw(WORDS)}]
    return {**film, "shots": shots}


def shot_of(text: str) -> Shot:
    storyboard = parse_storyboard(text)
    return storyboard.resolved(storyboard.shots[-1])


def test_every_field_is_read() -> None:
    film = parse_storyboard(FULL)
    assert (film.title, film.style, film.negative_prompt) == ("A ball at sea", "watercolour", "blur")
    assert (film.size, film.fps, film.seed) == (Size(width_px=832, height_px=480), 16.0, 42)
    assert (film.interpolate, film.missing) == (2, Missing.SLATE)
    assert [shot.id for shot in film.shots] == ["opening", "s2", "s3", "s4"]
    assert (film.shots[0].takes, film.shots[0].take, film.shots[0].caption) == (3, 2, "出发")
    assert film.shots[1].transition == Transition(type=TransitionType.CROSSFADE, duration_s=0.25)


def test_a_size_is_the_same_in_both_notations() -> None:
    text = "size: 96x64\nshots: [{prompt: a}]"
    mapping = "size: {width_px: 96, height_px: 64}\nshots: [{prompt: a}]"
    assert parse_storyboard(text) == parse_storyboard(mapping)


def test_a_crossfade_lasts_half_a_second_unless_said_otherwise() -> None:
    shot = shot_of("shots: [{prompt: a}, {prompt: b, transition: crossfade}]")
    assert shot.transition is not None
    assert shot.transition.fade_s == 0.5


@pytest.mark.parametrize(("text", "mode"), [
    ("shots: [{prompt: a}]", Mode.TEXT_TO_VIDEO),
    ("shots: [{prompt: a, image: a.png}]", Mode.IMAGE),
    ("shots: [{prompt: a, mode: keyframe}]", Mode.KEYFRAME),
    ("defaults: {mode: keyframe}\nshots: [{prompt: a}]", Mode.KEYFRAME),
    ("defaults: {mode: keyframe}\nshots: [{prompt: a, image: a.png}]", Mode.IMAGE),
    ("defaults: {mode: keyframe}\nshots: [{prompt: a}, {prompt: b, continues: s1}]", None),
], ids=["nothing", "picture", "keyframe", "default", "picture over default", "continues"])
def test_what_a_clip_starts_from_follows_from_what_the_shot_says(text: str, mode: Mode | None) -> None:
    assert shot_of(text).mode is mode


def test_a_shot_takes_from_the_defaults_what_it_does_not_say() -> None:
    film = parse_storyboard(FULL)
    shots = [film.resolved(shot) for shot in film.shots]
    assert [shot.steps for shot in shots] == [30, 30, 30, 30]
    assert [shot.characters for shot in shots] == [("hero",), ("hero",), (), ("hero",)]


def test_a_length_in_frames_wins_over_a_default_in_seconds() -> None:
    film = parse_storyboard(FULL)
    assert [(shot.frames, shot.duration_s) for shot in map(film.resolved, film.shots)] == [
        (None, 5.0), (81, None), (None, 5.0), (None, 5.0)]


def test_a_default_crossfade_passes_over_the_first_shot() -> None:
    film = parse_storyboard("defaults: {transition: crossfade}\nshots: [{prompt: a}, {prompt: b}]")
    assert [shot.transition is not None for shot in map(film.resolved, film.shots)] == [False, True]


def test_a_shot_can_take_a_default_caption_away() -> None:
    assert shot_of("defaults: {caption: draft}\nshots: [{prompt: a, caption: ''}]").caption == ""


def test_an_optional_field_without_value_is_not_given() -> None:
    assert parse_storyboard("shots:\n  - prompt: a\n    caption:\n    id: null\n") == parse_storyboard(
        "shots: [{prompt: a}]")


def test_json_and_yaml_mean_the_same() -> None:
    value = storyboard_value(parse_storyboard(FULL))
    text = json.dumps(value, indent="\t").replace('"fps": 16.0', '"fps": 1.6e1')
    assert parse_storyboard(text) == parse_storyboard(FULL)


def test_json_escapes_beyond_the_basic_plane_are_read() -> None:
    assert parse_storyboard('{"title": "\\ud83c\\udfac \\/", "shots": [{"prompt": "a"}]}').title == "\U0001f3ac /"


def test_a_dump_begins_with_what_a_reader_looks_for_first() -> None:
    assert dump_storyboard(parse_storyboard("shots: [{caption: b, prompt: '1e5'}]\nseed: 3\ntitle: x")) == (
        'title: x\nseed: 3\nshots:\n- id: s1\n  prompt: "1e5"\n  caption: b\n')


def test_a_dump_keeps_every_script_readable() -> None:
    assert "caption: 出发\n" in dump_storyboard(parse_storyboard(FULL))


def test_what_a_film_does_not_say_has_a_plain_default() -> None:
    film = parse_storyboard("shots: [{prompt: a}]")
    assert (film.seed, film.interpolate, film.missing, film.size, film.fps) == (0, 1, Missing.CUT, None, None)
    assert (film.shots[0].id, film.shots[0].takes, film.shots[0].take) == ("s1", None, None)


@settings(max_examples=40, deadline=None)
@given(storyboard_values())
def test_a_dumped_storyboard_reads_back_as_an_equal_one(value: dict[str, object]) -> None:
    storyboard = parse_storyboard(json.dumps(value))
    assert parse_storyboard(dump_storyboard(storyboard)) == storyboard
    assert parse_storyboard(json.dumps(storyboard_value(storyboard))) == storyboard


KEYS = st.sampled_from(["title", "shots", "id", "prompt", "frames", "size", "transition", "type", "duration_s", "x",
                        "characters", "continues", "defaults", "mode", "take", "takes", "image", "fps", "<<", ""])
LEAVES = (st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | TEXTS
          | st.sampled_from(["cut", "keyframe", "s1", "96x64"]))
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
                     max_leaves=25)


def require_a_storyboard_or_reasons(text: str, file: str = "film.yaml") -> None:
    """Anything but a storyboard or InvalidDocument with its reasons fails the test."""
    refused: InvalidDocument | None = None
    try:
        parse_storyboard(text, file=file)
    except InvalidDocument as error:
        refused = error
    assert refused is None or (refused.problems and all(problem.problem for problem in refused.problems))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
@example(b"\xff\xfet\x00")
@example(b"\x00")
def test_random_bytes_are_a_storyboard_or_refused(data: bytes) -> None:
    try:
        text = decode_text(data)
    except InvalidDocument:
        return
    require_a_storyboard_or_reasons(text)


@settings(max_examples=100, deadline=None)
@given(st.text(LETTERS, max_size=30))
def test_random_marks_are_a_storyboard_or_refused(text: str) -> None:
    require_a_storyboard_or_reasons(text)
    require_a_storyboard_or_reasons("shots:\n - prompt: " + text)
    require_a_storyboard_or_reasons('{"shots": [{"prompt": "a", "caption": ' + text, file="film.json")


@settings(max_examples=60, deadline=None)
@given(TREES, st.dictionaries(KEYS, TREES, max_size=6))
def test_random_trees_are_a_storyboard_or_refused(tree: object, shot: dict[str, object]) -> None:
    require_a_storyboard_or_reasons(json.dumps(tree))
    require_a_storyboard_or_reasons(yaml.safe_dump({"shots": [{"prompt": "a"} | shot], "defaults": tree}))


def test_a_changed_shot_leaves_the_others_alone() -> None:
    film = parse_storyboard(FULL)
    changed = change_shot(film, "s2", {"prompt": "it floats", "frames": None, "duration_s": 3})
    assert (changed.shots[1].prompt, changed.shots[1].frames, changed.shots[1].duration_s) == ("it floats", None, 3.0)
    assert changed.model_copy(update={"shots": film.shots}) == film


@pytest.mark.parametrize(("shot_id", "changes", "message"), [
    ("openin", {"prompt": "b"}, "no shot has the id 'openin'; nearest valid: opening"),
    ("s2", {"promt": "b"}, "shot s2: promt: unknown field; nearest valid: prompt"),
    ("s2", {"steps": float("nan")}, "shot s2: steps: NaN is not a number that can be used"),
    ("s2", {"prompt": "\ud800"}, "the character U+D800 is not allowed; remove it"),
    ("opening", {"id": "start"}, "shot s2: continues: no shot has the id 'opening'; nearest valid: start, s3, s4"),
], ids=["unknown shot", "unknown field", "not a number", "half a character", "renamed under a reference"])
def test_a_change_that_breaks_the_storyboard_is_refused(shot_id: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        change_shot(parse_storyboard(FULL), shot_id, changes)
    assert str(refused.value) == message


@pytest.mark.parametrize(("problem", "there"), [
    (Problem(problem="x", shot_id="s2", field="transition.duration_s"), "transition: {type"),
    (Problem(problem="x", shot_id="s3", field="frames"), "- prompt: a ship"),
    (Problem(problem="x", field="size"), "size: 832x480"),
    (Problem(problem="x", field="defaults.duration_s"), "duration_s: 5"),
    (Problem(problem="x", field="characters[0].reference"), "- id: hero"),
], ids=["field", "field not given", "film", "defaults", "list"])
def test_a_problem_found_later_is_traced_to_its_line(problem: Problem, there: str) -> None:
    traced = with_lines(InvalidDocument(problems=(problem,)), FULL, file="film.yaml")
    assert (traced.file, traced.problems[0].line) == ("film.yaml", FULL[: FULL.index(there)].count("\n") + 1)


def test_a_text_that_has_no_lines_of_fields_leaves_problems_as_they_are() -> None:
    error = InvalidDocument(problems=(Problem(problem="x", field="size"),))
    assert with_lines(error, "title: 'open").problems == error.problems
