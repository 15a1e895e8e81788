"""Reference pictures of characters: which shots use which, and what forbids it. Pure; knows no node and no key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from configs.model_card import ModelCard, Task
from configs.references import SHIPPED, NativeReferences
from workflows.errors import Problem
from workflows.prompt import closed
from workflows.source import closest_or_few
from workflows.storyboard import Character, Shot, Storyboard
from workflows.types import Artifact


def referenced(storyboard: Storyboard, shot: Shot) -> tuple[Character, ...]:
    """The characters of a shot (with its defaults in place) that have a reference picture, in the shot's order."""
    people = {who.id: who for who in storyboard.characters if who.reference is not None}
    return tuple(people[name] for name in shot.characters or () if name in people)


def mentioned(prompt: str, card: ModelCard, people: Sequence[str]) -> str:
    """The prompt with what tells the card's model whose picture is which; `people` are the characters' ids."""
    part = card.references
    if not people or not isinstance(part, NativeReferences) or not part.mention:
        return prompt
    said = (part.mention.replace("{n}", str(number)).replace("{who}", who) for number, who in enumerate(people, 1))
    return " ".join([closed(prompt), *said])


def reference_problems(storyboard: Storyboard, shots: Iterable[tuple[Shot, tuple[Task, ...]]], card: ModelCard | None,
                       assets: Mapping[str, Artifact]) -> Iterator[Problem]:
    """What forbids the reference pictures of shots (with their defaults and tasks) whose pictures `card` draws.

    Shots that start from a picture of their own or from another shot use none. Several of a kind may be alike.
    """
    for shot, tasks in shots:
        people = referenced(storyboard, shot)
        for who in people:
            if who.reference not in assets:
                yield Problem(field=_field(storyboard, who), problem=f"the picture {who.reference!r} was not found",
                              nearest=closest_or_few(str(who.reference), list(assets)))
        if Task.TEXT_TO_IMAGE in tasks and card is not None:
            yield from _drawn(storyboard, shot, people, card)
        elif people and tasks == (Task.TEXT_TO_VIDEO,):
            names = ", ".join(who.id for who in people)
            yield Problem(shot_id=shot.id, field="mode", nearest="mode: keyframe, or no mode", problem=(
                f"text to video takes no reference pictures, and there are some of {names}; a drawn frame does"))


def unused_references(storyboard: Storyboard, shots: Iterable[tuple[Shot, tuple[Task, ...]]]) -> Iterator[str]:
    """A hint about shots whose characters have reference pictures that nothing is drawn from."""
    names = [shot.id for shot, tasks in shots if Task.TEXT_TO_IMAGE not in tasks and referenced(storyboard, shot)]
    if names:
        yield ("reference pictures are not used where a clip starts from a picture of its own or where another shot "
               f"ends: {', '.join(names)}")


def _drawn(storyboard: Storyboard, shot: Shot, people: Sequence[Character], card: ModelCard) -> Iterator[Problem]:
    takes = card.references
    if takes is None:
        for who in people:
            yield Problem(field=_field(storyboard, who), nearest=" or ".join(SHIPPED), problem=(
                f"model {card.name}, which draws the first frames, takes no reference pictures; choose one that does "
                "with models.text_to_image (`reelray models list` shows them)"))
        return
    if len(people) > takes.max_pictures:
        yield Problem(shot_id=shot.id, field="characters", nearest=f"at most {takes.max_pictures}", problem=(
            f"{len(people)} of them have a reference picture, and model {card.name} takes {takes.max_pictures}"))
    if not people and isinstance(takes, NativeReferences) and takes.required:
        yield Problem(shot_id=shot.id, field="characters", nearest="name a character with a `reference`", problem=(
            f"model {card.name} draws nothing without a reference picture, and no character of this shot has one"))


def _field(storyboard: Storyboard, who: Character) -> str:
    return f"characters[{storyboard.characters.index(who)}].reference"
