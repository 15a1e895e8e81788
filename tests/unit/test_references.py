"""Reference pictures in a plan: which nodes hold them, under which keys and in what order, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from configs.load import SettingsError, cards_in_use, load_settings
from configs.model_card import CallDefaults, ModelCard, Task
from configs.references import IpAdapter, NativeReferences
from tests.unit.test_plan import CARDS, SDXL, nodes_of
from workflows.errors import InvalidDocument
from workflows.plan import Plan, plan_film, plan_keys, reference_pictures, referenced_pictures
from workflows.stages.render import render_call
from workflows.storyboard import parse_storyboard
from workflows.types import Artifact, Json, MediaType, NodeCall, NodeKind, Stage

ADAPTER = IpAdapter(kind="ip_adapter", max_pictures=2, repo="x/adapter", weight_file="a.safetensors")
DRAWS = {**CARDS, Task.TEXT_TO_IMAGE: SDXL.model_copy(update={"references": ADAPTER})}
NATIVE = {**CARDS, Task.TEXT_TO_IMAGE: SDXL.model_copy(
    update={"references": NativeReferences(kind="native", max_pictures=2)})}
PICTURES = {f"{name}.png": Artifact(key=name * 32, uri=f"store/{name}.png", sha256=name * 64, size_bytes=9,
                                    media_type=MediaType.PNG) for name in "abc"}
FILM: dict[str, Json] = {
    "characters": [{"id": "rex", "description": "a small brown dog", "reference": "a.png"},
                   {"id": "mia", "description": "a girl in a red coat", "reference": "b.png"},
                   {"id": "bird", "description": "a blue bird"}],
    "shots": [
        {"id": "both", "prompt": "they walk", "characters": ["mia", "bird", "rex"]},
        {"id": "none", "prompt": "a street", "characters": ["bird"]},
        {"id": "next", "prompt": "rex sits down", "continues": "both", "characters": ["rex"]},
        {"id": "none-drawn", "prompt": "a street", "mode": "keyframe"},
    ],
}


def plan(film: Mapping[str, object] = FILM, cards: Mapping[Task, ModelCard] = DRAWS, **assets: Artifact) -> Plan:
    return plan_film(parse_storyboard(json.dumps(film)), cards=cards, assets={**PICTURES, **assets})


def changed(path: str, value: Json) -> dict[str, Json]:
    copy: dict[str, Json] = json.loads(json.dumps(FILM))
    part, place, field = path.split(".")
    copy[part][int(place)][field] = value  # type: ignore[index,call-overload]
    return copy


def refusals(film: Mapping[str, object], cards: Mapping[Task, ModelCard] = DRAWS) -> list[str]:
    with pytest.raises(InvalidDocument) as refused:
        plan(film, cards)
    return str(refused.value).split("\n")


def test_a_shot_with_a_reference_picture_starts_from_a_first_frame_that_is_drawn_from_it() -> None:
    made = nodes_of(plan())
    assert {"both.keyframe", "none-drawn.keyframe"} == {name for name in made if name.endswith(".keyframe")}
    assert made["both.clip"].deps == ("both.keyframe",)
    assert made["both.keyframe"].payload["references"] == [PICTURES["b.png"].to_json(), PICTURES["a.png"].to_json()]
    assert [node.id for node in made.values() if "references" in node.payload] == ["both.keyframe"]


def test_the_pictures_travel_to_the_model_in_the_shots_order() -> None:
    node = nodes_of(plan())["both.keyframe"]
    call = NodeCall(job_id="j", node_id=node.id, shot_id=node.shot_id, kind=node.kind, payload=node.payload, inputs={},
                    key="k", attempt=1, generation=0, left_s=1.0)
    assert render_call(call).references == (PICTURES["b.png"], PICTURES["a.png"])


def test_only_the_nodes_that_use_a_picture_have_another_key_without_it() -> None:
    with_pictures, without = plan(), plan({**FILM, "characters": [
        {"id": who["id"], "description": who["description"]} for who in FILM["characters"]]})  # type: ignore
    keys, plain = plan_keys(with_pictures.nodes), plan_keys(without.nodes)
    assert {name for name in keys.keys() & plain.keys() if keys[name] == plain[name]} == {
        "none.clip", "none-drawn.keyframe", "none-drawn.clip"}


def changed_by(film: dict[str, Json]) -> set[str]:
    old, new = plan_keys(plan().nodes), plan_keys(plan(film).nodes)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def test_another_picture_and_another_order_draw_the_shot_and_what_continues_it_anew() -> None:
    cone = {"both.keyframe", "both.clip", "next.clip", "compose"}
    assert changed_by(changed("characters.1.reference", "c.png")) == cone
    assert changed_by(changed("shots.0.characters", ["bird", "rex", "mia"])) == cone
    assert changed_by(changed("shots.2.characters", [])) == {"next.clip", "compose"}


def test_a_model_that_takes_pictures_by_itself_is_told_whose_they_are_and_the_clips_model_is_not() -> None:
    made = nodes_of(plan(cards=NATIVE))
    assert str(made["both.keyframe"].payload["prompt"]).endswith(
        "a blue bird. a small brown dog. Image 1 shows mia. Image 2 shows rex.")
    assert "Image 1" not in str(made["both.clip"].payload["prompt"])
    assert "Image" not in str(nodes_of(plan())["both.keyframe"].payload["prompt"])


def test_pictures_alone_are_drawn_from_references_too_and_are_the_films_own() -> None:
    board = parse_storyboard(json.dumps(FILM))
    alone = plan_keys(plan_film(board, cards=DRAWS, assets=PICTURES, last_stage=Stage.IMAGES).nodes)
    assert alone["both.keyframe"] == plan_keys(plan().nodes)["both.keyframe"]
    assert set(alone) == {"both.keyframe", "none.keyframe", "next.keyframe", "none-drawn.keyframe"}


def test_pictures_that_nothing_is_drawn_from_are_said() -> None:
    (hint,) = [warning for warning in plan().warnings if warning.startswith("reference pictures are not used")]
    assert hint.endswith(": next")


def test_the_pictures_of_characters_are_named_before_planning() -> None:
    board = parse_storyboard(json.dumps(FILM))
    assert [(ref.shot_id, ref.field, ref.path) for ref in referenced_pictures(board)] == [
        ("", "characters[0].reference", "a.png"), ("", "characters[1].reference", "b.png")]
    assert reference_pictures(board) == referenced_pictures(board)


@pytest.mark.parametrize(("film", "cards", "messages"), [
    (changed("shots.0.mode", "text_to_video"), DRAWS, [
        "shot both: mode: text to video takes no reference pictures, and there are some of mia, rex; a drawn frame "
        "does; nearest valid: mode: keyframe, or no mode"]),
    ({**changed("shots.0.prompt", "a"), "defaults": {"mode": "text_to_video"}}, DRAWS, [
        "defaults.mode: text to video takes no reference pictures, and there are some of mia, rex; a drawn frame "
        "does; nearest valid: mode: keyframe, or no mode"]),
    (FILM, {**DRAWS, Task.TEXT_TO_IMAGE: SDXL.model_copy(update={
        "references": ADAPTER.model_copy(update={"max_pictures": 1})})}, [
        "shot both: characters: 2 of them have a reference picture, and model sdxl takes 1; nearest valid: at most 1"]),
    (changed("characters.0.reference", "d.png"), DRAWS, [
        "characters[0].reference: the picture 'd.png' was not found; nearest valid: c.png"]),
    (FILM, {**DRAWS, Task.TEXT_TO_IMAGE: SDXL.model_copy(update={
        "references": NativeReferences(kind="native", max_pictures=2, required=True)})}, [
        "shot none-drawn: characters: model sdxl draws nothing without a reference picture, and no character of this "
        "shot has one; nearest valid: name a character with a `reference`"]),
], ids=["said text to video", "default text to video", "too many", "no such picture", "an editor without a picture"])
def test_what_cannot_be_drawn_is_refused(film: dict[str, Json], cards: Mapping[Task, ModelCard], messages: list[str],
                                         ) -> None:
    assert refusals(film, cards) == messages


def test_a_character_whose_picture_no_shot_uses_asks_nothing_of_the_models() -> None:
    film = {**FILM, "shots": [{"prompt": "a street"}]}
    assert plan(film, CARDS).nodes


def test_a_card_says_in_its_digest_how_it_takes_pictures_and_other_cards_keep_theirs() -> None:
    fields = SDXL.model_dump(exclude_unset=True)
    heavier = ADAPTER.model_copy(update={"scale": 0.7})
    digests = {ModelCard(**fields).digest(), ModelCard(**fields, references=ADAPTER).digest(),
               ModelCard(**fields, references=heavier).digest()}
    assert len(digests) == 3
    assert SDXL.digest() == ModelCard(**fields).digest()


@pytest.mark.parametrize(("part", "says"), [
    ({"kind": "ip_adapter", "max_pictures": 1, "repo": "x/y", "weight_file": "a.bin"}, "weight_file"),
    ({"kind": "ip_adapter", "max_pictures": 1, "repo": "x/y", "weight_file": "../a.safetensors"}, "weight_file"),
    ({"kind": "ip_adapter", "max_pictures": 1, "repo": "x/y", "weight_file": "a.safetensors", "revision": "main"},
     "not a commit"),
    ({"kind": "ip_adapter", "max_pictures": 1, "weight_file": "a.safetensors"}, "repo"),
    ({"kind": "native", "max_pictures": 0}, "max_pictures"),
    ({"kind": "native", "max_pictures": 1, "scale": 0.5}, "scale"),
    ({"kind": "native", "max_pictures": 1, "mention": "Image {number}"}, "only {n} and {who}"),
    ({"kind": "magic", "max_pictures": 1}, "kind"),
])
def test_a_part_of_a_card_that_is_none_is_refused(part: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModelCard(**{**SDXL.model_dump(exclude_unset=True), "references": part})


def test_attention_in_slices_would_lose_the_adapter() -> None:
    fields = {**SDXL.model_dump(exclude_unset=True), "options": {"attention_slicing": "auto"}}
    assert ModelCard(**fields).options.attention_slicing == "auto"
    with pytest.raises(ValueError, match="would take the IP-Adapter out of the attention; nearest valid: none"):
        ModelCard(**fields, references=ADAPTER)


@pytest.mark.parametrize("changes", [
    {"loader": "placeholder"}, {"pipelines": {Task.TEXT_TO_VIDEO: "WanPipeline"}},
    {"pipelines": {Task.TEXT_TO_IMAGE: "A", Task.IMAGE_TO_VIDEO: "B"}}])
def test_only_what_draws_pictures_takes_references(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"`references` is for|does text_to_image alone"):
        ModelCard(**{**SDXL.model_dump(exclude_unset=True), "references": ADAPTER, **changes})


# -- scores -------------------------------------------------------------------------------------------------------

SCORER = ModelCard(name="looks", title="Compares", loader="embedding", repo="x/looks", pipelines={},
                   defaults=CallDefaults(width_px=224, height_px=224), seconds_per_step=0.1)


def scored(film: Mapping[str, object] = FILM) -> Plan:
    return plan_film(parse_storyboard(json.dumps(film)), cards=DRAWS, assets=PICTURES, scorer=SCORER)


def test_every_clip_of_a_character_with_a_picture_is_compared_and_nothing_else_changes() -> None:
    made, keys = nodes_of(scored()), plan_keys(scored().nodes)
    assert {name: (made[name].kind, made[name].deps, made[name].lane) for name in made if name.endswith(".score")} == {
        "both.score": (NodeKind.SCORE, ("both.clip",), "cpu"), "next.score": (NodeKind.SCORE, ("next.clip",), "cpu")}
    assert made["both.score"].payload["characters"] == [
        {"id": who, "reference": PICTURES[f"{name}.png"].to_json()} for who, name in (("mia", "b"), ("rex", "a"))]
    assert list(made)[-1] == "compose"
    assert not [dep for dep in made["compose"].deps if dep.endswith(".score")]
    plain = plan_keys(plan().nodes)
    assert {name: keys[name] for name in plain} == plain


def test_a_score_is_of_the_take_that_the_film_uses_before_its_caption() -> None:
    shot = {"id": "both", "prompt": "rex", "characters": ["rex"], "takes": 2, "take": 2, "caption": "walk"}
    made = nodes_of(scored({**FILM, "interpolate": 2, "shots": [shot]}))
    assert made["both.score"].deps == ("both.clip.2",)


@pytest.mark.parametrize(("name", "says"), [
    ("dinov2", "models.scorer: no card 'dinov2'; cards that can: dinov2-base"),
    ("sdxl", "models.scorer: card 'sdxl' draws, and compares nothing; cards that can: dinov2-base")])
def test_a_scorer_that_is_none_is_refused(name: str, says: str) -> None:
    settings = load_settings("laptop", [f"models.scorer={name}"], {})
    with pytest.raises(SettingsError) as refused:
        cards_in_use(settings)
    assert str(refused.value) == says


def test_a_scorer_is_in_use_beside_the_models_that_draw() -> None:
    settings = load_settings("laptop", ["models.scorer=dinov2-base"], {})
    assert [card.name for card in cards_in_use(settings)] == ["sketch", "dinov2-base"]
    with pytest.raises(SettingsError, match=r"models\.text_to_image: card 'dinov2-base' does comparisons only"):
        cards_in_use(load_settings("laptop", ["models.text_to_image=dinov2-base"], {}))


@pytest.mark.parametrize("changes", [{"pipelines": {Task.TEXT_TO_IMAGE: "A"}}, {"repo": ""}])
def test_a_card_that_compares_draws_nothing(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="loader: embedding"):
        ModelCard(**{**SCORER.model_dump(exclude_unset=True), **changes})
