"""A script as a job: one node now, the film's nodes when it has run. Pure; the stage that runs it only calls this."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Protocol

from workflows.plan import Plan, plan_film
from workflows.scene import Cards
from workflows.script import parse_script
from workflows.source import refusal
from workflows.storyboard import FilmFields, Storyboard
from workflows.types import Json, NodeKind, NodeSpec, Stage, canonical_json

_COST_S = 0.05


class StoryWriter(Protocol):
    """Who breaks a script into shots."""

    async def write(self, script: str, *, file: str, film: FilmFields) -> Storyboard:
        """The storyboard of a script. Raises InvalidDocument."""


class RuleWriter:
    """Breaks scripts into shots by the fixed rules of `workflows.script`."""

    async def write(self, script: str, *, file: str, film: FilmFields) -> Storyboard:
        """The storyboard of a script. Raises InvalidDocument."""
        return parse_script(script, file=file, film=film)


def plan_script(
    script: str, *, cards: Cards, film: FilmFields | None = None, file: str = "",
    last_stage: Stage = Stage.COMPOSITION,
) -> NodeSpec:
    """The one node of a script's job.

    Raises InvalidDocument for a script that cannot become a film, so that it is refused at the door.
    """
    story_nodes(script, cards=cards, film=film, file=file, last_stage=last_stage)
    return script_node(script, cards=cards, film=film, file=file, last_stage=last_stage)


def script_node(
    script: str, *, cards: Cards, film: FilmFields | None = None, file: str = "",
    last_stage: Stage = Stage.COMPOSITION,
) -> NodeSpec:
    """The one node of the job of a script that was planned already."""
    payload: dict[str, Json] = {
        "script": script,
        # Only the ending decides how a script is read; a new name is not a new film.
        "suffix": PurePath(file).suffix.lower(),
        "film": (film or FilmFields()).model_dump(mode="json", exclude_defaults=True),
        "cards": _digests(cards),
    }
    if last_stage is not Stage.COMPOSITION:
        payload["last_stage"] = last_stage.value
    return NodeSpec(id="story", kind=NodeKind.STORY, payload=payload, cost=_COST_S)


def story_nodes(
    script: str, *, cards: Cards, film: FilmFields | None = None, file: str = "",
    last_stage: Stage = Stage.COMPOSITION,
) -> tuple[Storyboard, Plan]:
    """A script as storyboard and film. Raises InvalidDocument."""
    storyboard = parse_script(script, file=file, film=film)
    return storyboard, plan_film(storyboard, cards=cards, last_stage=last_stage)


async def tell_story(payload: Mapping[str, Json], *, cards: Cards, writer: StoryWriter) -> tuple[Storyboard, Plan]:
    """What a story node's payload stands for: the storyboard, and the nodes that the job gets.

    Raises InvalidDocument, also when the models have been changed since the script was submitted.
    """
    if payload["cards"] != _digests(cards):
        raise refusal("the models were changed after the script was submitted; submit it again")
    film = FilmFields.model_validate_json(canonical_json(payload["film"]))
    storyboard = await writer.write(str(payload["script"]), file=f"script{payload['suffix']}", film=film)
    last_stage = Stage(str(payload.get("last_stage", Stage.COMPOSITION.value)))
    return storyboard, plan_film(storyboard, cards=cards, last_stage=last_stage)


def _digests(cards: Cards) -> dict[str, Json]:
    return {task.value: {"card": card.name, "card_digest": card.digest()} for task, card in cards.items()}
