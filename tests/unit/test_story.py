"""A script as a job: refused at the door or one node, which later becomes the same film as its storyboard."""

from __future__ import annotations

import pytest

from configs.model_card import CallDefaults, ModelCard, Task
from workflows.errors import InvalidDocument
from workflows.plan import plan_film, plan_keys
from workflows.script import parse_script
from workflows.story import RuleWriter, check_submitted, plan_script, story_nodes, tell_story
from workflows.storyboard import FilmFields, Size
from workflows.types import NodeKind, canonical_json

CARD = ModelCard(name="any", title="x", repo="x/x", pipelines={Task.TEXT_TO_VIDEO: "WanPipeline"},
                 defaults=CallDefaults(width_px=96, height_px=64, frames=17, fps=8))
CARDS = {Task.TEXT_TO_VIDEO: CARD}
SCRIPT = "INT. HALL\n\nA cat.\n\nANNA\nLook!\n"
FILM = FilmFields(size=Size(width_px=64, height_px=64), fps=12.0)


def test_a_script_is_one_node_that_says_all_that_decides_the_film() -> None:
    node = plan_script(SCRIPT, cards=CARDS, film=FILM, file="/somewhere/play.fountain")
    assert (node.id, node.kind, node.lane, node.deps) == ("story", NodeKind.STORY, "cpu", ())
    assert node.payload == {
        "script": SCRIPT, "suffix": ".fountain", "film": {"size": "64x64", "fps": 12.0},
        "cards": {"text_to_video": {"card": "any", "card_digest": CARD.digest()}}}
    assert canonical_json(node.payload)


async def test_the_node_becomes_the_film_that_the_script_promised() -> None:
    node = plan_script(SCRIPT, cards=CARDS, film=FILM, file="play.fountain")
    told = await tell_story(node.payload, cards=CARDS, writer=RuleWriter())
    storyboard, plan = told.told.storyboard, told.plan
    assert storyboard == parse_script(SCRIPT, file="play.fountain", film=FILM)
    assert plan_keys(plan.nodes) == plan_keys(plan_film(storyboard, cards=CARDS).nodes)
    assert [node.id for node in plan.nodes] == ["s1.clip", "s1.caption", "compose"]


def test_a_story_is_not_told_with_other_models_than_it_was_planned_for() -> None:
    node = plan_script(SCRIPT, cards=CARDS)
    other = {Task.TEXT_TO_VIDEO: CARD.model_copy(update={"repo": "x/y"})}
    with pytest.raises(InvalidDocument, match="the models were changed after the script was submitted"):
        check_submitted(node.payload, cards=other, writer=RuleWriter())


@pytest.mark.parametrize(("script", "film", "message"), [
    ("", FilmFields(), "the script has nothing to shoot: no action, no dialogue, no scene"),
    ("A cat.", FilmFields(size=Size(width_px=20, height_px=64)),
     "size: 20x64: width 20 is not a multiple of 8 (model any); nearest valid: 16x64 or 24x64"),
], ids=["nothing to shoot", "a size that no model takes"])
def test_a_script_that_cannot_become_a_film_is_refused_at_the_door(script: str, film: FilmFields, message: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        plan_script(script, cards=CARDS, film=film)
    assert str(refused.value) == message


def test_a_new_name_of_the_same_script_is_not_a_new_film() -> None:
    named, renamed = (plan_script(SCRIPT, cards=CARDS, file=name) for name in ("a.fountain", "b.fountain"))
    assert plan_keys([named]) == plan_keys([renamed])


def test_a_storyboard_and_its_film_can_be_seen_before_the_job_is_submitted() -> None:
    storyboard, plan = story_nodes(SCRIPT, cards=CARDS, file="play.fountain")
    assert [shot.prompt for shot in storyboard.shots] == [plan.shots[0].prompt] == ["A cat. Interior, hall."]
