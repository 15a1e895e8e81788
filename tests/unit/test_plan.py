"""A storyboard becomes nodes: which, in what order, under which keys, with what frames, seeds, fades and costs."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.load import SettingsError, casting, load_cards, load_settings
from configs.model_card import CallDefaults, FrameRule, ModelCard, SizeRule, Task
from configs.prompt_world import PromptWorld
from workflows.errors import InvalidDocument
from workflows.plan import Plan, plan_film, plan_keys, referenced_pictures
from workflows.storyboard import parse_storyboard
from workflows.types import Artifact, Json, MediaType, NodeKind, NodeSpec, Stage

FOUR_N_PLUS_ONE = FrameRule(step=4, offset=1, min_frames=5, max_frames=121)
WAN = ModelCard(
    name="wan", title="Text to video", repo="x/wan", pipelines={Task.TEXT_TO_VIDEO: "WanPipeline"},
    defaults=CallDefaults(steps=50, guidance=5.0, negative_prompt="blurry", width_px=832, height_px=480, frames=81,
                          fps=16),
    size=SizeRule(multiple_px=16, min_px=256, max_px=1280), frames=FOUR_N_PLUS_ONE, seconds_per_step=2.0)
I2V = WAN.model_copy(update={"name": "i2v", "pipelines": {Task.IMAGE_TO_VIDEO: "WanImageToVideoPipeline"}})
SDXL = ModelCard(
    name="sdxl", title="Text to image", repo="x/sdxl", pipelines={Task.TEXT_TO_IMAGE: "StableDiffusionXLPipeline"},
    defaults=CallDefaults(steps=30, guidance=7.5, width_px=1024, height_px=1024),
    size=SizeRule(multiple_px=32, min_px=256, max_px=2048), seconds_per_step=0.5)
CARDS = {Task.TEXT_TO_VIDEO: WAN, Task.IMAGE_TO_VIDEO: I2V, Task.TEXT_TO_IMAGE: SDXL}
PICTURE = Artifact(key="k" * 32, uri="store/k.png", sha256="5" * 64, size_bytes=9, media_type=MediaType.PNG)

FILM: dict[str, Json] = {
    "seed": 7,
    "shots": [
        {"id": "a", "prompt": "a ball rolls", "caption": "one"},
        {"id": "b", "prompt": "it falls", "continues": "a"},
        {"id": "c", "prompt": "a star", "mode": "keyframe", "transition": {"type": "crossfade", "duration_s": 1}},
        {"id": "d", "prompt": "a ship", "image": "ship.png", "takes": 3, "take": 2},
    ],
}


def plan(film: Mapping[str, object], cards: Mapping[Task, ModelCard] = CARDS) -> Plan:
    return plan_film(parse_storyboard(json.dumps(film)), cards=cards, assets={"ship.png": PICTURE})


def plan_shots(*shots: dict[str, object], **film: object) -> Plan:
    return plan({**film, "shots": [{"prompt": "a ball", **shot} for shot in shots]})


def nodes_of(made: Plan) -> dict[str, NodeSpec]:
    return {node.id: node for node in made.nodes}


def refusals(film: Mapping[str, object], cards: Mapping[Task, ModelCard] = CARDS) -> list[str]:
    with pytest.raises(InvalidDocument) as refused:
        plan(film, cards)
    return str(refused.value).split("\n")


def changed(film: dict[str, Json], shot: int, **fields: Json) -> dict[str, Json]:
    copy = json.loads(json.dumps(film))
    copy["shots"][shot].update(fields)
    return copy


def changed_nodes(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    old, new = (plan_keys(plan(film).nodes) for film in (before, after))
    return {node for node in old.keys() | new.keys() if old.get(node) != new.get(node)}


def test_every_shot_gets_its_nodes_and_compose_joins_the_last_of_each() -> None:
    assert [(node.id, node.kind, node.deps) for node in plan(FILM).nodes] == [
        ("a.clip", NodeKind.CLIP, ()),
        ("a.caption", NodeKind.CAPTION, ("a.clip",)),
        ("b.clip", NodeKind.CLIP, ("a.clip",)),
        ("c.keyframe", NodeKind.KEYFRAME, ()),
        ("c.clip", NodeKind.CLIP, ("c.keyframe",)),
        ("d.clip", NodeKind.CLIP, ()),
        ("d.clip.2", NodeKind.CLIP, ()),
        ("d.clip.3", NodeKind.CLIP, ()),
        ("compose", NodeKind.COMPOSE, ("a.caption", "b.clip", "c.clip", "d.clip.2")),
    ]


def test_interpolation_comes_before_the_caption_and_only_for_the_chosen_take() -> None:
    made = nodes_of(plan({**changed(FILM, 3, caption="ship"), "interpolate": 2}))
    assert made["d.interpolate"].deps == ("d.clip.2",)
    assert made["d.caption"].deps == ("d.interpolate",)
    assert made["b.clip"].deps == ("a.clip",)
    assert made["compose"].deps == ("a.caption", "b.interpolate", "c.interpolate", "d.caption")


def test_a_shot_continues_the_chosen_take() -> None:
    made = nodes_of(plan_shots({"takes": 2, "take": 2}, {"continues": "s1", "takes": 2}))
    assert (made["s2.clip"].deps, made["s2.clip.2"].deps) == (("s1.clip.2",), ("s1.clip.2",))


def test_compose_alone_runs_when_something_is_missing() -> None:
    assert [node.id for node in plan(FILM).nodes if node.accepts_missing] == ["compose"]


def test_each_node_waits_in_the_lane_of_its_model() -> None:
    lanes = {node.id: node.lane for node in plan(FILM).nodes}
    assert (lanes["a.clip"], lanes["b.clip"], lanes["c.keyframe"], lanes["c.clip"]) == ("wan", "i2v", "sdxl", "i2v")
    assert {lanes["a.caption"], lanes["compose"]} == {"cpu"}


def test_a_shot_may_continue_one_that_comes_later_in_the_film() -> None:
    made = plan_shots({"continues": "s3"}, {}, {"continues": "s2"})
    assert [node.id for node in made.nodes] == ["s2.clip", "s3.clip", "s1.clip", "compose"]
    assert made.nodes[-1].deps == ("s1.clip", "s2.clip", "s3.clip")


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(8)), st.integers(0, 2**8 - 1))
def test_every_node_comes_after_all_that_it_depends_on(order: list[int], linked: int) -> None:
    shots: list[dict[str, object]] = [{} for _ in order]
    for before, after in itertools.pairwise(order):
        if linked >> after & 1:
            shots[after]["continues"] = f"s{before + 1}"
    seen: set[str] = set()
    for node in plan_shots(*shots).nodes:
        assert seen.issuperset(node.deps)
        seen.add(node.id)


def test_a_clip_is_asked_for_with_all_that_decides_it_and_nothing_else() -> None:
    made = nodes_of(plan_shots({"seed": 5, "steps": 9, "guidance": 3, "duration_s": 5, "caption": "x"}))
    assert dict(made["s1.clip"].payload) == {
        "card": "wan", "card_digest": WAN.digest(), "prompt": "a ball", "negative_prompt": "blurry", "width_px": 832,
        "height_px": 480, "frames": 81, "fps": 16.0, "steps": 9, "guidance": 3.0, "seed": 5}
    assert dict(made["s1.caption"].payload) == {"text": "x"}


def test_a_keyframe_is_one_picture_with_its_own_cards_steps_and_guidance() -> None:
    made = nodes_of(plan_shots({"mode": "keyframe", "seed": 5, "steps": 9, "guidance": 3}))
    assert dict(made["s1.keyframe"].payload) == {
        "card": "sdxl", "card_digest": SDXL.digest(), "prompt": "a ball", "negative_prompt": "", "width_px": 832,
        "height_px": 480, "frames": 1, "fps": 1.0, "steps": 30, "guidance": 7.5, "seed": 5}


def test_keyframes_that_share_a_run_say_how_many_may() -> None:
    """What is charged for one that was stopped depends on it."""
    many = SDXL.model_copy(update={"batch": 4})
    made = plan({"shots": [{"prompt": "a ball", "mode": "keyframe"}]}, {**CARDS, Task.TEXT_TO_IMAGE: many})
    payloads = {name: node.payload.get("batch") for name, node in nodes_of(made).items()}
    assert payloads == {"s1.keyframe": 4, "s1.clip": None, "compose": None}


def test_a_clip_from_a_picture_names_the_stored_file() -> None:
    made = nodes_of(plan(FILM))
    assert made["d.clip"].payload["image"] == PICTURE.to_json()
    assert "image" not in made["a.clip"].payload


def test_compose_knows_every_shots_place_length_and_fade() -> None:
    assert dict(nodes_of(plan(FILM))["compose"].payload) == {
        "width_px": 832, "height_px": 480, "fps": 16.0, "missing": "cut", "parts": [
            {"shot": "a", "node": "a.caption", "frames": 81, "fade_in_frames": 0, "text": ""},
            {"shot": "b", "node": "b.clip", "frames": 81, "fade_in_frames": 0, "text": ""},
            {"shot": "c", "node": "c.clip", "frames": 81, "fade_in_frames": 16, "text": ""},
            {"shot": "d", "node": "d.clip.2", "frames": 81, "fade_in_frames": 0, "text": ""}]}


def test_a_slate_shows_the_shots_own_words() -> None:
    parts = nodes_of(plan({**FILM, "missing": "slate", "style": "ink"}))["compose"].payload["parts"]
    assert isinstance(parts, list)
    texts = [part["text"] for part in parts if isinstance(part, dict)]
    assert texts == ["a ball rolls", "it falls", "a star", "a ship"]


def test_the_plan_tells_the_films_shape_and_where_each_shot_begins() -> None:
    made = plan(FILM)
    assert (made.film.width_px, made.film.height_px, made.film.fps) == (832, 480, 16.0)
    assert (made.film.frames, made.film.duration_s) == (4 * 81 - 16, (4 * 81 - 16) / 16)
    assert [(shot.id, shot.start_frame, shot.final_node) for shot in made.shots] == [
        ("a", 0, "a.caption"), ("b", 81, "b.clip"), ("c", 146, "c.clip"), ("d", 227, "d.clip.2")]


@pytest.mark.parametrize(("fields", "negative_prompt"), [
    ({}, "blurry"),
    ({"negative_prompt": "film"}, "film"),
    ({"negative_prompt": "film", "defaults": {"negative_prompt": "default"}}, "default"),
    ({"defaults": {"negative_prompt": ""}}, ""),
], ids=["card", "film", "defaults", "none on purpose"])
def test_the_nearest_negative_prompt_wins(fields: dict[str, object], negative_prompt: str) -> None:
    assert nodes_of(plan_shots({}, **fields))["s1.clip"].payload["negative_prompt"] == negative_prompt


CONES = {
    "caption": (0, {"caption": "two"}, {"a.caption", "compose"}),
    "no caption": (0, {"caption": None}, {"a.caption", "compose"}),
    "transition": (2, {"transition": "cut"}, {"compose"}),
    "prompt": (0, {"prompt": "a cube rolls"}, {"a.clip", "a.caption", "b.clip", "compose"}),
    "prompt of a leaf": (1, {"prompt": "it rises"}, {"b.clip", "compose"}),
    "prompt of a keyframe": (2, {"prompt": "a moon"}, {"c.keyframe", "c.clip", "compose"}),
    "steps after a keyframe": (2, {"steps": 9}, {"c.clip", "compose"}),
    "seed": (1, {"seed": 1}, {"b.clip", "compose"}),
    "take": (3, {"take": 3}, {"compose"}),
    "one take more": (3, {"takes": 4}, {"d.clip.4"}),
    "wrapped prompt": (0, {"prompt": " a ball\n  rolls\n"}, set()),
}


@pytest.mark.parametrize(("shot", "fields", "cone"), CONES.values(), ids=CONES)
def test_changing_one_thing_changes_exactly_what_follows_from_it(
    shot: int, fields: dict[str, Json], cone: set[str],
) -> None:
    assert changed_nodes(FILM, changed(FILM, shot, **fields)) == cone


def test_a_shot_keeps_its_key_wherever_it_stands() -> None:
    film = {**FILM, "shots": list(reversed(json.loads(json.dumps(FILM["shots"]))))}
    film["shots"][1].pop("transition")
    assert changed_nodes(FILM, film) == {"compose"}


def test_showing_slates_renders_no_clip_again() -> None:
    assert changed_nodes(FILM, {**FILM, "missing": "slate", "title": "x"}) == {"compose"}


def test_a_changed_card_changes_the_keys_of_its_clips() -> None:
    newer = {**CARDS, Task.IMAGE_TO_VIDEO: I2V.model_copy(update={"repo": "x/wan-2"})}
    old, new = plan_keys(plan(FILM).nodes), plan_keys(plan(FILM, newer).nodes)
    assert {node for node in old if old[node] == new[node]} == {"a.clip", "a.caption", "c.keyframe"}


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_keys_do_not_depend_on_the_order_of_fields(chance: random.Random) -> None:
    def shuffled(value: Json) -> Json:
        if isinstance(value, dict):
            return {name: shuffled(value[name]) for name in chance.sample(sorted(value), len(value))}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    film = shuffled(FILM)
    assert isinstance(film, dict)
    assert plan_keys(plan(film).nodes) == plan_keys(plan(FILM).nodes)


def test_keys_do_not_depend_on_how_a_number_is_written() -> None:
    assert changed_nodes({**FILM, "fps": 16}, {**FILM, "fps": 16.0}) == set()
    assert changed_nodes(FILM, {**FILM, "fps": 16}) == set()


def test_seeds_differ_between_shots_and_takes_and_follow_the_films_seed() -> None:
    def seeds(seed: int) -> list[Json]:
        made = plan_shots({"takes": 3}, {}, seed=seed)
        return [node.payload["seed"] for node in made.nodes if node.kind is NodeKind.CLIP]

    assert len(set(seeds(1))) == 4
    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds(1))


def test_the_first_take_has_the_seed_that_the_shot_names() -> None:
    made = plan_shots({"seed": 99, "takes": 2, "take": 2})
    assert nodes_of(made)["s1.clip"].payload["seed"] == 99
    assert made.shots[0].seed == nodes_of(made)["s1.clip.2"].payload["seed"] != 99


def test_words_of_shot_character_and_style_are_woven_in_this_order() -> None:
    film = {"style": "watercolour", "characters": [{"id": "rex", "description": "a small\nbrown dog"},
                                                   {"id": "ann", "description": "a tall woman"}],
            "shots": [{"prompt": "Rex runs", "characters": ["rex", "ann"]}]}
    assert plan(film).shots[0].prompt == "Rex runs. rex: a small brown dog. a tall woman. watercolour"


@pytest.mark.parametrize(("prompt", "woven"), [
    ("a ball", "a ball. ink"), ("a ball.", "a ball. ink"), ("Go!", "Go! ink"), ("球。", "球。 ink"),
])
def test_a_prompt_keeps_its_own_full_stop(prompt: str, woven: str) -> None:
    assert plan_shots({"prompt": prompt}, style="ink").shots[0].prompt == woven


def test_a_prompt_alone_is_passed_on_as_it_is() -> None:
    assert plan_shots({"prompt": "a red ball, slowly"}).shots[0].prompt == "a red ball, slowly"


def test_referenced_pictures_are_named_before_planning() -> None:
    (picture,) = referenced_pictures(parse_storyboard(json.dumps(FILM)))
    assert (picture.shot_id, picture.field, picture.path) == ("d", "image", "ship.png")


def test_a_clips_cost_grows_with_steps_pixels_and_frames() -> None:
    def cost(shot: dict[str, object], node: str = "s1.clip", **film: object) -> float:
        return nodes_of(plan_shots(shot, **film))[node].cost

    assert cost({}) == pytest.approx(50 * 2.0)
    assert cost({"steps": 25}) == pytest.approx(50.0)
    assert cost({"frames": 41}) == pytest.approx(100 * 41 / 81)
    assert cost({}, size="416x480") == pytest.approx(50.0)
    assert cost({"mode": "keyframe"}, "s1.keyframe") == pytest.approx(30 * 0.5 * 832 * 480 / 1024**2)


def test_work_on_the_cpu_costs_by_frames_and_pixels_but_never_nothing() -> None:
    def costs(**film: object) -> dict[str, float]:
        made = plan_shots({"caption": "x"}, {"frames": 41}, interpolate=2, **film)
        return {node.id: node.cost for node in made.nodes if node.lane == "cpu"}

    assert costs() == pytest.approx({
        "s1.interpolate": 80 * 0.015, "s1.caption": 161 * 0.01, "s2.interpolate": 40 * 0.015, "compose": 242 * 0.001})
    assert costs(size="416x480")["s1.caption"] == pytest.approx(161 * 0.01 / 2)
    assert min(costs(size="256x256").values()) == pytest.approx(0.242 * 256 * 256 / (832 * 480))
    assert plan_shots({"frames": 5}).nodes[-1].cost == 0.01


def test_a_thousand_shots_of_eight_takes_are_planned() -> None:
    made = plan_shots(*({"takes": 8} for _ in range(1000)))
    assert len(made.nodes) == 8001
    assert len(plan_keys(made.nodes)) == 8001


WORLD = PromptWorld(objects={"circle": ("circle", "ball")}, colours={"red": (255, 0, 0)},
                    backgrounds={"blue": (0, 0, 255)}, motions={"left": ("moves left",), "up": ("rises",)},
                    background_phrases=("over a {b} background",), fillers=("a",))
SMALL = WAN.model_copy(update={"name": "small", "world": WORLD, "prompt_words": 9})


def test_words_outside_a_models_world_are_one_warning_that_names_the_way_out() -> None:
    film = {"shots": [{"prompt": "a red ball moves left"}, {"prompt": "a dog runs"}, {"prompt": "a cat runs"}]}
    made = plan(film, {Task.TEXT_TO_VIDEO: SMALL})
    assert made.warnings == (
        "model small knows only a small world (circle in red, and 2 motions); these words mean nothing to it: dog, "
        "runs, cat (shots s2, s3). To render any prompt choose another model: `--set models.text_to_video=NAME`; "
        "`reelray models list` shows the names",)
    assert len(made.nodes) == 4


def test_prompts_longer_than_a_model_reads_are_one_warning() -> None:
    film = {"style": "red ball ball", "shots": [{"prompt": "a red ball moves left over a blue background"},
                                                {"prompt": "a red ball"}]}
    assert plan(film, {Task.TEXT_TO_VIDEO: SMALL}).warnings == (
        "model small reads 9 words of a prompt and no more; with characters and style these are longer: shot s1",)


def test_chinese_is_counted_by_characters() -> None:
    card = SMALL.model_copy(update={"world": None})
    assert not plan({"shots": [{"prompt": "红球向左移动"}]}, {Task.TEXT_TO_VIDEO: card}).warnings
    assert plan({"shots": [{"prompt": "红球在蓝色背景上向左移动"}]}, {Task.TEXT_TO_VIDEO: card}).warnings


def test_several_refusals_are_told_at_once() -> None:
    film = {"size": "100x480", "shots": [{"prompt": "a", "frames": 80}, {"prompt": "b", "duration_s": 60}]}
    assert len(refusals(film)) == 3


@pytest.mark.parametrize(("film", "cards", "message"), [
    ({"shots": [{"prompt": "a", "mode": "keyframe"}]}, {Task.TEXT_TO_VIDEO: WAN, Task.IMAGE_TO_VIDEO: I2V},
     "shot s1: mode: no model is configured for text_to_image; choose one with models.text_to_image"),
    ({"shots": [{"prompt": "a"}, {"prompt": "b", "continues": "s1"}]}, {Task.TEXT_TO_VIDEO: WAN},
     "shot s2: continues: no model is configured for image_to_video; choose one with models.image_to_video"),
    ({"characters": [{"id": "x", "description": "y", "reference": "ship.png"}],
      "shots": [{"prompt": "a", "characters": ["x"]}]}, CARDS,
     "characters[0].reference: model sdxl, which draws the first frames, takes no reference pictures; choose one that "
     "does with models.text_to_image (`reelray models list` shows them); nearest valid: flux2-klein-4b or "
     "sdxl-ip-adapter"),
    ({"shots": [{"prompt": "a", "image": "shipp.png"}]}, CARDS,
     "shot s1: image: the picture 'shipp.png' was not found; nearest valid: ship.png"),
], ids=["no model", "no model to continue with", "reference picture", "unknown picture"])
def test_what_no_model_or_file_can_serve_is_refused(
    film: dict[str, object], cards: dict[Task, ModelCard], message: str,
) -> None:
    assert refusals(film, cards) == [message]


def plan_pictures(film: Mapping[str, object], cards: Mapping[Task, ModelCard] = CARDS) -> Plan:
    return plan_film(parse_storyboard(json.dumps(film)), cards=cards, last_stage=Stage.IMAGES)


def test_a_job_of_pictures_has_the_keyframe_that_the_film_would_have_and_nothing_else() -> None:
    made = plan_pictures(FILM)
    assert [(node.id, node.kind, node.deps) for node in made.nodes] == [
        (f"{shot}.keyframe", NodeKind.KEYFRAME, ()) for shot in "abc"]
    assert made.film.frames == 0
    assert plan_keys(made.nodes)["c.keyframe"] == plan_keys(plan(FILM).nodes)["c.keyframe"]
    own, continuing = made.warnings
    assert own.endswith("a picture of their own: d")
    assert continuing.endswith("where another shot ends: b")


def test_pictures_need_no_model_of_clips_and_take_the_picture_models_size() -> None:
    made = plan_pictures({"shots": [{"prompt": "a ball", "frames": 6}]}, {Task.TEXT_TO_IMAGE: SDXL})
    assert (made.film.width_px, made.film.height_px) == (1024, 1024)


@pytest.mark.parametrize(("film", "cards", "problem"), [
    ({"shots": [{"prompt": "a"}]}, {Task.TEXT_TO_VIDEO: WAN},
     "stages: no model is configured for text_to_image; choose one with models.text_to_image"),
    ({"shots": [{"prompt": "a", "image": "ship.png"}]}, CARDS,
     "shots: every shot has a picture of its own, so none is to be drawn"),
    ({"size": "832x488", "shots": [{"prompt": "a"}]}, CARDS,
     "size: 832x488: height 488 is not a multiple of 32 (model sdxl); nearest valid: 832x480 or 832x512"),
])
def test_pictures_that_cannot_be_made_are_refused(
    film: Mapping[str, object], cards: Mapping[Task, ModelCard], problem: str,
) -> None:
    with pytest.raises(InvalidDocument) as refused:
        plan_pictures(film, cards)
    assert str(refused.value) == problem


# -- text to video by a model that only animates pictures --------------------------------------------------------


def svd_cast(*changes: str) -> dict[Task, ModelCard]:
    tree = load_settings("laptop", ("models.text_to_image=sdxl", "models.text_to_video=svd-xt",
                                    "models.image_to_video=svd-xt", *changes), environ={})
    return casting(tree, load_cards(tree))


def test_text_to_video_by_svd_is_a_keyframe_and_then_svd() -> None:
    storyboard = parse_storyboard("shots: [{prompt: a fox runs through snow}, {prompt: the fox looks up}]")
    plan = plan_film(storyboard, cards=svd_cast())
    assert [(node.id, node.lane, node.deps) for node in plan.nodes][:4] == [
        ("s1.keyframe", "sdxl", ()), ("s1.clip", "svd-xt", ("s1.keyframe",)),
        ("s2.keyframe", "sdxl", ()), ("s2.clip", "svd-xt", ("s2.keyframe",))]
    assert (plan.film.width_px, plan.film.height_px, plan.film.fps) == (1024, 576, 6)
    assert (plan.nodes[1].payload["steps"], plan.nodes[1].payload["frames"]) == (25, 25)


@pytest.mark.parametrize(("film", "shot", "told"), [
    ({"negative_prompt": "blurry"}, {}, "negative_prompt: "),
    ({}, {"negative_prompt": "blurry"}, "shot s1: negative_prompt: "),
    ({"defaults": {"negative_prompt": "blurry"}}, {}, "defaults.negative_prompt: "),
])
def test_a_negative_prompt_for_a_model_that_has_none_is_refused_at_the_door(
        film: dict[str, object], shot: dict[str, object], told: str) -> None:
    (line,) = refusals({**film, "shots": [{"id": "s1", "prompt": "a ball", **shot}]}, svd_cast())
    assert line.startswith(told)
    assert line.endswith("model card svd-xt has no negative prompt (StableVideoDiffusionPipeline); nearest valid: "
                         "leave it out")
    assert plan({**film, "shots": [{"id": "s1", "prompt": "a ball", "negative_prompt": ""}]}, svd_cast())


def test_svd_for_text_to_video_needs_it_for_image_to_video_too() -> None:
    with pytest.raises(SettingsError, match=r"animate it with 'svd-xt', set models\.image_to_video=svd-xt too"):
        svd_cast("models.image_to_video=sketch")


def test_a_film_of_keyframes_has_the_size_of_the_model_that_animates_them() -> None:
    storyboard = parse_storyboard("defaults: {mode: keyframe}\nshots: [{prompt: a fox runs}]")
    assert plan_film(storyboard, cards=svd_cast("models.text_to_video=sketch")).film.width_px == 1024
