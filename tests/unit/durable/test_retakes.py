"""Shots that are rendered again while they score too low: which takes are made, which is chosen, and what lasts."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from functools import partial
from operator import le
from typing import Any

import pytest

from configs.load import load_cards, load_settings
from tests.studio import Studio
from tests.unit.test_references import DRAWS, FILM, PICTURES
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.keys import Keys, Role
from workflows.durable.rows import NewJob
from workflows.durable.takes import takes_of
from workflows.errors import InvalidDocument, ModelFailed
from workflows.plan import plan_film, plan_keys
from workflows.stages.pick import pick
from workflows.storyboard import dump_storyboard, parse_storyboard
from workflows.types import Artifact, JobStatus, NodeCall, NodeKind, NodeResult, NodeSpec, NodeStatus, Stage

SCORER = load_cards(load_settings("laptop", [], {}))["dinov2-base"]
SHOT = {"id": "a", "prompt": "rex walks", "characters": ["rex"], "retake": {"below": 0.6}}
MODELS = (NodeKind.KEYFRAME, NodeKind.CLIP)


def plan_of(*shots: dict[str, Any], **fields: Any) -> tuple[NodeSpec, ...]:
    board = parse_storyboard(json.dumps({"characters": FILM["characters"], "shots": list(shots), **fields}))
    return plan_film(board, cards=DRAWS, assets=PICTURES, scorer=SCORER).nodes


@dataclass
class Screening(Studio):
    """A studio in which every take has the score that a test gives it."""

    scores: dict[str, float] = field(default_factory=dict)

    def engine(self, *, only: frozenset[str] | None = None) -> Engine:
        steps = {**dict.fromkeys(NodeKind, self.step), NodeKind.SCORE: self.score, NodeKind.PICK: pick}
        lanes = dict.fromkeys(["cpu", *(card.name for card in DRAWS.values())], self.slots)
        return Engine(self.ledger, steps, store=self.store, dispatcher=Dispatcher(lanes), settings=self.settings,
                      only=only)

    async def score(self, call: NodeCall) -> NodeResult:
        self.step.calls.append(call)
        return NodeResult(artifact=self.store.keep(call.key, score=self.scores[call.node_id]))

    def submit(self, job_id: str, *shots: dict[str, Any], **fields: Any) -> None:
        self.ledger.submit(NewJob(id=job_id, document={"job": job_id}, nodes=plan_of(*shots, **fields)))

    def models_asked(self) -> list[str]:
        return [call.node_id for call in self.step.calls if call.kind in MODELS]


@pytest.fixture
def shop(studio: Studio) -> Screening:
    return Screening(ledger=studio.ledger, store=studio.store, step=studio.step)


def scores(*values: float) -> dict[str, float]:
    return {("a.score" if take == 1 else f"a.score.{take}"): value for take, value in enumerate(values, 1)}


@pytest.mark.parametrize(("measured", "made", "chosen", "warned"), [
    ((0.7,), 1, "a.clip", ""),
    ((0.4, 0.6), 2, "a.clip.2", ""),
    ((0.4, 0.5, 0.45), 3, "a.clip.2", "shot a: no take scores 0.6 or more (take 1 0.40, take 2 0.50, take 3 0.45); the "
                                      "film uses take 2"),
    ((0.5, 0.5, 0.5), 3, "a.clip", "the film uses take 1"),
], ids=["good at once", "the second", "none is good", "all alike"])
async def test_a_shot_is_rendered_again_only_while_it_scores_too_low(
        shop: Screening, measured: tuple[float, ...], made: int, chosen: str, warned: str) -> None:
    shop.scores = scores(*measured)
    shop.submit("film", SHOT)
    done = await shop.render()
    assert done.status is JobStatus.SUCCEEDED
    assert sorted(shop.models_asked()) == sorted(
        f"a.{kind}{'' if take == 1 else f'.{take}'}" for take in range(1, made + 1) for kind in ("keyframe", "clip"))
    assert shop.node("a.pick").artifact == shop.node(chosen).artifact
    assert shop.step.calls[-1].inputs == {"a.pick": shop.node(chosen).artifact}
    assert (warned in "".join(done.warnings)) if warned else not done.warnings
    if made < 3:
        spared = shop.node("a.clip.3")
        assert (spared.status, spared.artifact, spared.attempt) == (NodeStatus.SUCCEEDED, None, 0)
        assert "a.clip.3: not needed" in shop.log()
    seeds = [call.payload["seed"] for call in shop.step.calls if call.kind is NodeKind.KEYFRAME]
    assert len(set(seeds)) == made


async def test_the_same_film_again_asks_no_model_and_a_stricter_one_only_for_what_is_new(shop: Screening) -> None:
    shop.scores = scores(0.4, 0.62, 0.7)
    shop.submit("film", SHOT)
    await shop.render()
    shop.step.calls.clear()
    shop.submit("again", SHOT)
    await shop.render("again")
    assert shop.step.calls == []
    shop.submit("strict", {**SHOT, "retake": {"below": 0.65}})
    await shop.render("strict")
    assert [call.node_id for call in shop.step.calls] == ["a.keyframe.3", "a.clip.3", "a.score.3", "compose"]


async def test_what_is_made_of_the_chosen_take_has_the_keys_of_that_take_asked_for(shop: Screening) -> None:
    shop.scores = scores(0.4, 0.7)
    following = {"id": "b", "prompt": "it sits", "continues": "a"}
    shop.submit("film", {**SHOT, "caption": "Rex"}, following)
    await shop.render()
    by_hand = plan_of({**SHOT, "caption": "Rex", "take": 2}, following)
    assert [node.id for node in by_hand] == ["a.keyframe.2", "a.clip.2", "a.score.2", "a.caption", "b.clip", "compose"]
    keys = plan_keys(by_hand)
    assert {name: shop.node(name).key for name in keys} == keys


async def test_a_director_that_is_stopped_anywhere_goes_on_without_rendering_anything_twice(shop: Screening) -> None:
    shop.scores = scores(0.4, 0.5, 0.7)
    shop.submit("film", SHOT)
    for many in (1, 3, 4, 6, 9):
        async with shop.running():
            await shop.until(lambda: list(shop.statuses().values()).count(NodeStatus.SUCCEEDED), partial(le, many))
    await shop.render()
    asked = shop.models_asked()
    assert len(asked) == len(set(asked)) == 6
    assert shop.node("a.pick").artifact == shop.node("a.clip.3").artifact


async def test_a_cancelled_film_renders_no_further_take(shop: Screening) -> None:
    shop.scores = scores(0.4, 0.5, 0.7)

    async def cancel(call: NodeCall) -> NodeResult:
        shop.ledger.cancel("film")
        await asyncio.sleep(30)
        return shop.step.result(call)

    shop.step.script["a.clip.2"] = [cancel]
    shop.submit("film", SHOT)
    assert (await shop.render()).status is JobStatus.CANCELLED
    assert shop.models_asked() == ["a.keyframe", "a.clip", "a.keyframe.2", "a.clip.2"]
    assert shop.node("a.keyframe.3").status is NodeStatus.CANCELLED


@pytest.mark.parametrize(("fails", "film", "shown"), [
    ("a.clip.2", JobStatus.PARTIAL, "a.clip"), ("a.clip", JobStatus.FAILED, None)])
async def test_a_take_that_fails_costs_the_shot_nothing_but_itself(
        shop: Screening, fails: str, film: JobStatus, shown: str | None) -> None:
    shop.scores = scores(0.4, 0.5, 0.7)
    shop.step.script[fails] = [ModelFailed(node_id=fails, reason="grey")] * 3
    if shown is None:  # the film itself has nothing to show then
        shop.step.script["compose"] = [ModelFailed(node_id="compose", reason="no shot")] * 3
    shop.submit("film", SHOT)
    assert (await shop.render()).status is film
    assert shop.node("a.pick").artifact == (shop.node(shown).artifact if shown else None)
    assert shop.node("a.clip.3").status is NodeStatus.SKIPPED


async def test_every_take_counts_towards_the_budget(shop: Screening) -> None:
    """A keyframe and a clip cost half a second each, so the second take is not begun."""
    shop.scores = scores(0.4, 0.7)
    key = Keys(shop.ledger.database).create("me", Role.USER, gpu_budget_s=1.0).key
    shop.ledger.submit(NewJob(id="film", document={}, nodes=plan_of(SHOT), key_id=key.id))
    assert (await shop.render()).status is JobStatus.PARTIAL
    error = shop.node("a.keyframe.2").error
    assert error is not None
    assert error.type == "BudgetSpent"
    assert shop.node("a.pick").artifact == shop.node("a.clip").artifact
    assert shop.models_asked() == ["a.keyframe", "a.clip"]


async def test_a_forced_take_keeps_the_chosen_one_and_every_take_is_drawn_anew(shop: Screening) -> None:
    shop.scores = scores(0.4, 0.7)
    shop.submit("film", SHOT)
    await shop.render()
    chosen = shop.node("a.clip.2")
    shop.ledger.rerun("film", ["a"], force=True)
    with shop.ledger.database.read() as connection:
        assert [kept.key for kept in takes_of(connection, "film")] == [chosen.key]
    await shop.render()
    assert shop.node("a.clip.2").key != chosen.key
    assert shop.node("a.pick").artifact == shop.node("a.clip.2").artifact


def test_a_take_asked_for_says_itself_which_and_a_default_passes_over_shots_without_pictures() -> None:
    silent, plain = {**SHOT, "retake": None}, {"id": "b", "prompt": "a street"}
    nodes = [node.id for node in plan_of(silent, plain, {**silent, "id": "c", "takes": 2},
                                         defaults={"retake": {"below": 0.5, "takes": 2}})]
    assert [name for name in nodes if name.startswith("a.")] == [
        "a.keyframe", "a.clip", "a.score", "a.keyframe.2", "a.clip.2", "a.score.2", "a.pick"]
    assert [name for name in nodes if name.startswith("b.")] == ["b.clip"]
    assert [name for name in nodes if name.startswith("c.")] == ["c.keyframe", "c.clip", "c.clip.2", "c.score"]
    once = plan_of({**SHOT, "retake": {"below": 0.5, "takes": 1}})
    assert plan_keys(once) == plan_keys(plan_of({name: value for name, value in SHOT.items() if name != "retake"}))


def test_a_take_chosen_by_hand_needs_nobody_who_measures() -> None:
    board = parse_storyboard(json.dumps({"characters": FILM["characters"], "shots": [{**SHOT, "take": 2}]}))
    nodes = plan_film(board, cards=DRAWS, assets=PICTURES).nodes
    assert [node.id for node in nodes] == ["a.keyframe.2", "a.clip.2", "compose"]


def test_the_storyboard_is_written_as_it_is_read() -> None:
    board = parse_storyboard(json.dumps({"characters": FILM["characters"], "shots": [SHOT]}))
    assert parse_storyboard(dump_storyboard(board)) == board
    assert "retake:\n    below: 0.6" in dump_storyboard(board)


@pytest.mark.parametrize(("shots", "fields", "scorer", "said"), [
    ([SHOT], {}, None, "shot a: retake: nothing compares clips with pictures here: models.scorer is not set; nearest "
                       "valid: --set models.scorer=dinov2-base, or leave it out"),
    ([{**SHOT, "characters": ["bird"]}], {}, SCORER, "shot a: retake: clips are compared with reference pictures, and "
     "no character of this shot has one; nearest valid: name a character with a `reference`, or leave it out"),
    ([{"prompt": "a street"}], {"defaults": {"retake": {"below": 0.5}}}, SCORER, "defaults.retake: clips are compared "
     "with reference pictures, and no character of any shot has one"),
    ([{"prompt": "a street", "take": 2}, SHOT], {"defaults": {"retake": {"below": 0.5}}}, SCORER,
     "shot s1: take: take 2 is chosen, and 1 is rendered; nearest valid: 1"),
    ([{**SHOT, "takes": 2}], {}, SCORER, "takes: give takes or retake, not both"),
    ([{**SHOT, "take": 4}], {}, SCORER, "take 4 is chosen, but takes is 3; nearest valid: 3"),
    ([{**SHOT, "retake": {"below": 2}}], {}, SCORER, "retake.below"),
    ([{**SHOT, "retake": {"takes": 2}}], {}, SCORER, "below"),
], ids=["no scorer", "no picture", "no picture anywhere", "a take that is not", "two fields", "too high a take",
        "no such score", "no score"])
def test_what_cannot_be_decided_is_refused_at_the_door(
        shots: list[dict[str, Any]], fields: dict[str, Any], scorer: Any, said: str) -> None:
    text = json.dumps({"characters": FILM["characters"], "shots": shots, **fields})
    with pytest.raises(InvalidDocument) as refused:
        plan_film(parse_storyboard(text), cards=DRAWS, assets=PICTURES, scorer=scorer)
    assert said in str(refused.value)


def test_pictures_alone_are_those_of_the_first_takes() -> None:
    board = parse_storyboard(json.dumps({"characters": FILM["characters"], "shots": [SHOT]}))
    alone = plan_film(board, cards=DRAWS, assets=PICTURES, last_stage=Stage.IMAGES)
    assert plan_keys(alone.nodes)["a.keyframe"] == plan_keys(plan_of(SHOT))["a.keyframe"]


async def test_a_choice_without_scores_takes_the_first_and_says_so() -> None:
    clip = Artifact(key="k", uri="u", sha256="0" * 64, size_bytes=1, media_type=PICTURES["a.png"].media_type)
    call = NodeCall(job_id="j", node_id="a.pick", shot_id="a", kind=NodeKind.PICK, key="p", attempt=1, generation=0,
                    payload={"below": 0.5}, inputs={"a.clip": clip, "a.score": None,
                                                    "a.clip.2": replace(clip, key="l"), "a.score.2": None},
                    left_s=1.0)
    made = await pick(call)
    assert (made.artifact, made.warnings) == (clip, (
        "shot a: no take scores 0.5 or more (take 1 not measured, take 2 not measured); the film uses take 1",))
