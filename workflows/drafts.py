"""What a picture or a clip is made with, as a draft and in the final film, and what users are told of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.draft import StepCache
from configs.model_card import ModelCard
from workflows.scene import Film, Scene
from workflows.tiers import Tier
from workflows.types import Json

_MOST_NAMES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What one call of a model is given to work with."""

    steps: int
    guidance: float
    seconds_per_step: float
    """Expected, at the card's default shape."""
    cache: StepCache | None = None

    def payload(self) -> dict[str, Json]:
        """Of the node: only what decides the result, so a draft that changes nothing is the final film's node."""
        told: dict[str, Json] = {"steps": self.steps, "guidance": self.guidance}
        return {**told, "cache": self.cache.model_dump(mode="json")} if self.cache else told


def effort(card: ModelCard, tier: Tier, steps: int | None = None, guidance: float | None = None) -> Effort:
    """What a call gets; `steps` and `guidance` are the shot's own, and mean the final film."""
    final = Effort(steps=card.defaults.steps if steps is None else steps,
                   guidance=card.defaults.guidance if guidance is None else guidance,
                   seconds_per_step=card.seconds_per_step)
    draft = card.draft
    if tier is Tier.FINAL or draft is None:
        return final
    return Effort(steps=min(final.steps, draft.steps or final.steps),
                  guidance=final.guidance if draft.guidance is None else draft.guidance,
                  seconds_per_step=draft.seconds_per_step or card.seconds_per_step, cache=draft.cache)


def draft_hints(scenes: Sequence[Scene], film: Film) -> tuple[str, ...]:
    """What a draft is less exact in, what has no draft, and what a draft under a final shot will cost."""
    drafts = [scene for scene in scenes if scene.tier is Tier.DRAFT]
    cards = {film.cards[task].name: film.cards[task] for scene in drafts for task in scene.tasks}
    hints = []
    for card in cards.values():
        mine = [scene.shot.id for scene in drafts if any(film.cards[task].name == card.name for task in scene.tasks)]
        if card.draft is None:
            hints.append(f"model {card.name} has no draft, so what it makes is final at once ({_shots(mine)})")
        else:
            hints.append(f"drafts by model {card.name}, {draft_text(card)} ({_shots(mine)})")
    tiers = {scene.shot.id: scene.tier for scene in scenes}
    hints += [f"shot {scene.shot.id} is final and goes on from {scene.shot.continues}, which is a draft: once that is "
              "final too, it is rendered again" for scene in scenes
              if scene.tier is Tier.FINAL and tiers.get(scene.shot.continues or "") is Tier.DRAFT]
    return tuple(hints)


def changes(card: ModelCard) -> str:
    """`20 steps instead of 50, guidance 1 instead of 5, first-block cache 0.1`; empty without a draft."""
    draft, final = card.draft, card.defaults
    if draft is None:
        return ""
    told = [f"{draft.steps} steps instead of {final.steps}" if draft.steps not in (None, final.steps) else "",
            f"guidance {draft.guidance:g} instead of {final.guidance:g}"
            if draft.guidance is not None and draft.guidance != final.guidance else "",
            f"first-block cache {draft.cache.threshold:g}" if draft.cache else ""]
    return ", ".join(text for text in told if text)


def draft_text(card: ModelCard) -> str:
    """What a draft changes and is less exact in; empty without one."""
    return f"{changes(card)}: {card.draft.approximations}" if card.draft else ""


def _shots(names: Iterable[str]) -> str:
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return f"shot{'s' if len(every) > 1 else ''} {', '.join(every[:_MOST_NAMES])}{more}"
