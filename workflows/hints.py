"""Hints about prompts that a model will not follow to the letter. They are warnings: the film is still rendered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.model_card import ModelCard, Task
from configs.prompt_world import PromptWorld
from workflows.prompt import count_words

_MOST_NAMES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """One prompt on its way to one model."""

    shot_id: str
    task: Task
    card: ModelCard
    prompt: str


def prompt_hints(prompts: Sequence[Spoken]) -> tuple[str, ...]:
    """At most two sentences per model: words outside its small world, and prompts longer than it reads."""
    hints: list[str] = []
    for card in {said.card.name: said.card for said in prompts}.values():
        mine = [said for said in prompts if said.card.name == card.name]
        hints += _unknown_words(card, mine)
        hints += _too_long(card, mine)
    return tuple(hints)


def _unknown_words(card: ModelCard, prompts: Sequence[Spoken]) -> Iterable[str]:
    if card.world is None:
        return
    unknown = [(said, words) for said in prompts if (words := card.world.unknown_words(said.prompt))]
    if unknown:
        strange = dict.fromkeys(word for _, group in unknown for word in group)
        yield (f"model {card.name} knows only {_world(card.world)}; these words mean nothing to it: {_few(strange)} "
               f"({_shots(said for said, _ in unknown)}). To render any prompt choose another model: "
               f"`--set models.{unknown[0][0].task.value}=NAME`; `reelray models list` shows the names")


def _too_long(card: ModelCard, prompts: Sequence[Spoken]) -> Iterable[str]:
    long = [said for said in prompts if count_words(said.prompt) > card.prompt_words]
    if long:
        yield (f"model {card.name} reads {card.prompt_words} words of a prompt and no more; with characters and style "
               f"these are longer: {_shots(long)}")


def _world(world: PromptWorld) -> str:
    return f"a small world ({_few(world.objects)} in {_few(world.colours)}, and {len(world.motions)} motions)"


def _shots(prompts: Iterable[Spoken]) -> str:
    names = dict.fromkeys(said.shot_id for said in prompts)
    return f"shot{'s' if len(names) > 1 else ''} {_few(names)}"


def _few(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return ", ".join(every[:_MOST_NAMES]) + more
