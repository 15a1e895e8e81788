"""Drafts and final films: what a tier changes in the plan, and what it must never change."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.draft import DraftCall, StepCache
from configs.load import load_cards, load_settings
from configs.model_card import ModelCard, Task
from workflows.drafts import changes, effort
from workflows.estimate import shape_of
from workflows.plan import Plan, plan_film, plan_keys
from workflows.revise import at_tier, change_shot, drafts_in, promoted
from workflows.scene import Cards
from workflows.stages.render import render_call
from workflows.storyboard import Storyboard, dump_storyboard, parse_storyboard
from workflows.tiers import Tier, kept_tiers, tier_of
from workflows.types import NodeCall, NodeKind

SIZES = {"defaults": {"steps": 40, "guidance": 5, "width_px": 64, "height_px": 64, "frames": 17},
         "size": {"multiple_px": 16}, "frames": {"step": 4, "offset": 1}}
QUICK = DraftCall(steps=10, guidance=1, cache=StepCache(threshold=0.1), seconds_per_step=0.2, approximations="rough")
PLAIN = ModelCard.model_validate({
    "name": "any", "title": "any", "repo": "a/b", **SIZES,
    "pipelines": {"text_to_image": "WanPipeline", "text_to_video": "WanPipeline", "image_to_video": "WanPipeline"}})
QUICKER = PLAIN.model_copy(update={"draft": QUICK})
FILM = parse_storyboard("""
title: Four
seed: 5
shots:
  - {prompt: a ball, mode: keyframe}
  - {prompt: a box, continues: s1}
  - {prompt: a star, takes: 2, take: 2, caption: A star}
  - {prompt: a moon, steps: 6}
""")


def cast(card: ModelCard) -> Cards:
    return dict.fromkeys(Task, card)


def planned(storyboard: Storyboard, card: ModelCard = QUICKER) -> Plan:
    return plan_film(storyboard, cards=cast(card))


def keys(storyboard: Storyboard, card: ModelCard = QUICKER) -> dict[str, str]:
    return plan_keys(planned(storyboard, card).nodes)


def test_a_film_of_which_every_draft_was_promoted_is_the_film_that_was_final_from_the_start() -> None:
    draft = at_tier(FILM, Tier.DRAFT)
    ended = promoted(promoted(draft, ["s1", "s3"]), drafts_in(promoted(draft, ["s1", "s3"])))
    unused = "s3.clip"  # the film uses the shot's second take: the first stays the draft that it was
    assert {**keys(ended), unused: ""} == {**keys(FILM), unused: ""}
    assert keys(ended)[unused] == keys(draft)[unused]
    assert [node for node in planned(ended).nodes if node.id != unused] == [
        node for node in planned(FILM).nodes if node.id != unused]
    assert not set(keys(draft).values()) & set(keys(FILM).values())


def test_another_take_chosen_after_the_promotion_is_made_final_too() -> None:
    ended = promoted(at_tier(FILM, Tier.DRAFT), ["s3"])
    chosen = change_shot(ended, "s3", {"take": 1})
    assert keys(chosen)["s3.clip"] == keys(FILM)["s3.clip"]
    assert keys(chosen)["s3.clip.2"] == keys(at_tier(FILM, Tier.DRAFT))["s3.clip.2"]


def test_only_the_promoted_shots_cone_has_other_keys() -> None:
    draft = at_tier(FILM, Tier.DRAFT)
    before, after = keys(draft), keys(promoted(draft, ["s1"]))
    assert {name for name in after if after[name] != before[name]} == {"s1.keyframe", "s1.clip", "s2.clip", "compose"}
    assert after["s1.clip"] == keys(FILM)["s1.clip"]
    assert after["s2.clip"] not in (before["s2.clip"], keys(FILM)["s2.clip"])


def test_a_draft_keeps_seeds_and_all_but_what_the_card_says() -> None:
    final = {node.id: dict(node.payload) for node in planned(FILM).nodes}
    for node in planned(at_tier(FILM, Tier.DRAFT)).nodes:
        different = {name for name, value in node.payload.items() if value != final[node.id].get(name)}
        assert different <= {"steps", "guidance", "cache"}
        assert bool(different) == (node.kind in (NodeKind.KEYFRAME, NodeKind.CLIP))


def test_a_cards_draft_changes_no_key_of_a_final_film() -> None:
    assert QUICKER.digest() == PLAIN.digest()
    assert keys(FILM, QUICKER) == keys(FILM, PLAIN)


def test_a_draft_that_changes_nothing_is_the_final_films_node() -> None:
    few = QUICKER.model_copy(update={"draft": DraftCall(steps=10, approximations="rough")})
    draft, final = keys(at_tier(FILM, Tier.DRAFT), few), keys(FILM, few)
    assert draft["s4.clip"] == final["s4.clip"]  # its own 6 steps are fewer than the draft's 10
    assert draft["s1.clip"] != final["s1.clip"]


def test_a_model_without_drafts_renders_the_final_film_and_says_so() -> None:
    plan = planned(at_tier(FILM, Tier.DRAFT), PLAIN)
    assert plan.nodes == planned(FILM, PLAIN).nodes
    assert plan.warnings == ("model any has no draft, so what it makes is final at once (shots s1, s2, s3, s4)",)


def test_users_are_told_what_is_less_exact_and_what_will_be_rendered_twice() -> None:
    assert planned(FILM).warnings == ()
    draft = at_tier(FILM, Tier.DRAFT)
    assert planned(promoted(draft, ["s2", "s3"])).warnings == (
        "drafts by model any, 10 steps instead of 40, guidance 1 instead of 5, first-block cache 0.1: rough (shots s1, "
        "s4)", "shot s2 is final and goes on from s1, which is a draft: once that is final too, it is rendered again")


def test_a_shots_own_tier_wins_over_the_films_and_survives_the_document() -> None:
    text = dump_storyboard(FILM).replace("prompt: a box", "prompt: a box\n  tier: final")
    mixed = parse_storyboard(dump_storyboard(at_tier(parse_storyboard(text), Tier.DRAFT)))
    assert drafts_in(mixed) == ("s1", "s3", "s4")
    kept = kept_tiers(mixed.tier, {shot.id: shot.tier for shot in mixed.shots})
    assert [tier_of(kept, shot.id).value for shot in mixed.shots] == ["draft", "final", "draft", "draft"]
    assert kept_tiers(Tier.FINAL, {"s1": None, "s2": Tier.FINAL}) == {}
    assert tier_of({}, "s1") is Tier.FINAL


def test_a_draft_is_expected_to_be_quicker_and_is_never_measured_by_finals() -> None:
    draft, final = ({node.id: node for node in planned(film).nodes} for film in (at_tier(FILM, Tier.DRAFT), FILM))
    assert draft["s1.clip"].cost == pytest.approx(10 * 0.2)
    assert final["s1.clip"].cost == pytest.approx(40 * 1.0)
    shapes = {shape_of(nodes["s4.clip"].kind, nodes["s4.clip"].payload) for nodes in (draft, final)}
    assert len(shapes) == 2  # the same 6 steps, with and without guidance and cache


def test_the_replica_is_told_the_cache_of_drafts_alone() -> None:
    for tier, threshold in ((Tier.DRAFT, 0.1), (Tier.FINAL, None)):
        node = next(node for node in planned(at_tier(FILM, tier)).nodes if node.id == "s4.clip")
        call = render_call(NodeCall(job_id="j", node_id=node.id, shot_id="s4", kind=node.kind, attempt=1, generation=0,
                                    key="k", payload=node.payload, inputs={}, left_s=1.0))
        assert (call.cache_threshold, call.steps) == (threshold, 6)


def test_a_placeholder_has_no_draft() -> None:
    placeholder = load_cards(load_settings())["placeholder"].model_dump(exclude={"remote"})
    with pytest.raises(ValueError, match="a placeholder draws in no steps"):
        ModelCard.model_validate({**placeholder, "draft": {"steps": 1, "guidance": 1, "approximations": "rough"}})


@pytest.mark.parametrize(("draft", "problem"), [
    ({"steps": 60}, "draft.steps 60 is more than the final film's 40; nearest 40"),
    ({"steps": 40}, "draft changes none of steps, guidance, cache"),
    ({"seconds_per_step": 0.1}, "draft changes none of steps, guidance, cache"),
], ids=["slower", "the same", "nothing"])
def test_a_card_whose_draft_is_none_is_refused(draft: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ModelCard.model_validate({**PLAIN.model_dump(), "draft": {"approximations": "rough", **draft}})


@pytest.mark.parametrize(("draft", "problem"), [
    ({"steps": 4}, "remote.sends has no num_inference_steps"), ({"guidance": 1}, "remote.sends has no guidance_scale"),
    ({"cache": {"threshold": 0.1}}, "a remote model has none here"),
], ids=["steps", "guidance", "cache"])
def test_a_remote_model_drafts_only_by_what_its_api_is_told(draft: dict[str, float], problem: str) -> None:
    said = DraftCall.model_validate({"approximations": "rough", **draft}).problem(40, 5.0, ("seed",))
    assert problem in said


def test_every_shipped_draft_is_quicker_and_stands_in_the_documents() -> None:
    cards = load_cards(load_settings())
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    drafting = [card for card in cards.values() if card.draft]
    assert {"sketch", "sdxl", "wan2.1-t2v-1.3b", "ltx-video"} <= {card.name for card in drafting}
    for card in drafting:
        assert effort(card, Tier.DRAFT).steps < effort(card, Tier.FINAL).steps
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {changes(card)} |")]
        assert f"`{card.name}`" in row
