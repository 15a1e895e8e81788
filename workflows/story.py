"""A script as a job: one node now, the film's nodes when it has run. Pure; the stage that runs it only calls this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Protocol

from configs.chat_card import ChatCard
from configs.settings import StorySettings
from workflows.plan import Plan, plan_film
from workflows.revise import at_tier
from workflows.scene import Cards
from workflows.script import parse_script
from workflows.source import refusal
from workflows.storyboard import FilmFields, Storyboard
from workflows.tiers import TIER, Tier, film_tier
from workflows.types import STORY_LANE, Json, NodeKind, NodeSpec, Stage, canonical_json

LAST_STAGE = "last_stage"
"""Of a story node's payload, and of a job's document: the stage after which the job is over."""
_COST_S, _ASKED_COST_S = 0.05, 10.0
"""Of the rules; of a language model, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A script as its writer broke it into shots."""

    storyboard: Storyboard
    warnings: tuple[str, ...] = ()
    is_own: bool = True
    """False: somebody else's, because the writer failed; it is not kept for the next film of this script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A script as a film."""

    told: Told
    plan: Plan

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the writer and the plan have to say."""
        return (*self.told.warnings, *self.plan.warnings)


class StoryWriter(Protocol):
    """Who breaks a script into shots."""

    @property
    def identity(self) -> Mapping[str, Json]:
        """What of the writer decides a story, as part of the story's key; empty: the fixed rules."""

    async def write(self, script: str, *, file: str, film: FilmFields, cards: Cards, until_s: float) -> Told:
        """The storyboard of a script, for these models; done before `until_s` of `time.monotonic()`.

        Raises InvalidDocument.
        """


class RuleWriter:
    """Breaks scripts into shots by the fixed rules of `workflows.script`."""

    @property
    def identity(self) -> Mapping[str, Json]:
        """Nothing: the rules are the same everywhere."""
        return {}

    async def write(self, script: str, *, file: str, film: FilmFields, cards: Cards, until_s: float) -> Told:
        """The storyboard of a script. Raises InvalidDocument."""
        return Told(storyboard=parse_script(script, file=file, film=film))


def writer_identity(settings: StorySettings, card: ChatCard | None = None) -> dict[str, Json]:
    """What `StoryWriter.identity` is under these settings; `card` is that of `story.card`. The key and the waits decide
    no story."""
    if not settings.asks_model:
        return {}
    if settings.card:
        if card is None:
            raise ValueError("story.card is set, and its card was not given")
        return {"writer": settings.writer, "enhance_prompts": settings.enhance_prompts, "card": card.name,
                "card_digest": card.digest(), "max_shots": settings.max_shots, "temperature": settings.temperature}
    return {"writer": settings.writer, "enhance_prompts": settings.enhance_prompts, "api_url": settings.api_url,
            "model_name": settings.model_name, "max_shots": settings.max_shots, "temperature": settings.temperature}


def plan_script(
    script: str, *, cards: Cards, film: FilmFields | None = None, file: str = "",
    last_stage: Stage = Stage.COMPOSITION, writer: Mapping[str, Json] | None = None,
) -> NodeSpec:
    """The one node of a script's job; `writer` is the identity of who will break it into shots.

    Raises InvalidDocument for a script that cannot become a film, so that it is refused at the door. The door asks the
    rules, whoever the writer is: they are what the writer falls back on, and a script that they cannot break into shots
    would have nothing under it.
    """
    story_nodes(script, cards=cards, film=film, file=file, last_stage=last_stage)
    return script_node(script, cards=cards, film=film, file=file, last_stage=last_stage, writer=writer)


def script_node(
    script: str, *, cards: Cards, film: FilmFields | None = None, file: str = "",
    last_stage: Stage = Stage.COMPOSITION, writer: Mapping[str, Json] | None = None,
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
        payload[LAST_STAGE] = last_stage.value
    if not writer:
        return NodeSpec(id="story", kind=NodeKind.STORY, payload=payload, cost=_COST_S)
    return NodeSpec(id="story", kind=NodeKind.STORY, payload={**payload, "writer": dict(writer)}, lane=STORY_LANE,
                    cost=_ASKED_COST_S)


def story_nodes(
    script: str, *, cards: Cards, film: FilmFields | None = None, file: str = "",
    last_stage: Stage = Stage.COMPOSITION, tier: Tier | None = None,
) -> tuple[Storyboard, Plan]:
    """A script as storyboard and film, by the rules. Raises InvalidDocument."""
    storyboard = at_tier(parse_script(script, file=file, film=film), tier)
    return storyboard, plan_film(storyboard, cards=cards, last_stage=last_stage)


def told_at(node: NodeSpec, tier: Tier | None) -> NodeSpec:
    """The story node of a film of this tier; the story itself is the same."""
    return replace(node, payload={**node.payload, TIER: tier.value}) if tier is Tier.DRAFT else node


async def tell_story(payload: Mapping[str, Json], *, cards: Cards, writer: StoryWriter, until_s: float = math.inf,
                     ) -> Story:
    """What a story node's payload, which passed `check_submitted`, stands for: the storyboard, and the job's nodes.

    A script that was submitted for the rules is broken by the rules. Raises InvalidDocument.
    """
    chosen = writer if payload.get("writer") else RuleWriter()
    film = FilmFields.model_validate_json(canonical_json(payload["film"]))
    told = await chosen.write(str(payload["script"]), file=f"script{payload['suffix']}", film=film, cards=cards,
                              until_s=until_s)
    return planned(told, payload, cards=cards)


def planned(told: Told, payload: Mapping[str, Json], *, cards: Cards) -> Story:
    """A told script as a film or as pictures, told now or found in the store. Raises InvalidDocument."""
    last_stage = last_stage_in(payload)
    storyboard = at_tier(told.storyboard, film_tier(payload))
    return Story(told=told, plan=plan_film(storyboard, cards=cards, last_stage=last_stage))


def last_stage_in(held: Mapping[str, Json]) -> Stage:
    """What a story node's payload, or a job's document, says of the stage after which the job is over."""
    return Stage(str(held.get(LAST_STAGE, Stage.COMPOSITION.value)))


def check_submitted(payload: Mapping[str, Json], *, cards: Cards, writer: StoryWriter) -> None:
    """Raise InvalidDocument when this is not what the script was submitted for."""
    if payload["cards"] != _digests(cards):
        raise refusal("the models were changed after the script was submitted; submit it again")
    if (submitted := payload.get("writer")) and submitted != dict(writer.identity):
        raise refusal("the story writer (settings story.*) was changed after the script was submitted; submit it again")


def _digests(cards: Cards) -> dict[str, Json]:
    return {task.value: {"card": card.name, "card_digest": card.digest()} for task, card in cards.items()}
