"""What no replica's GPU memory will ever hold is refused at the door, as far as the door knows that memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from configs.memory import Shape, nearest_that_fits, rungs_of, smaller_sizes, too_large
from configs.model_card import ModelCard, Task
from workflows.errors import InvalidDocument, Problem
from workflows.failing import OutOfMemory
from workflows.scene import Film, Scene, at_their_source
from workflows.storyboard import Shot, Storyboard


def refuse_too_large(storyboard: Storyboard, scenes: Iterable[Scene], film: Film) -> None:
    """Raise InvalidDocument with every length that fits no replica, where it is written, and once with the pictures,
    which have one size.
    """
    problems = tuple(dict.fromkeys(at_their_source(_problems(scenes, film), storyboard)))
    if problems:
        raise InvalidDocument(problems=problems)


def shrink_hints(scenes: Sequence[Scene], film: Film) -> Iterator[str]:
    """Which models make nothing smaller in a film that allows it."""
    if film.out_of_memory is not OutOfMemory.SMALLER:
        return
    cards = {film.cards[task].name: film.cards[task] for scene in scenes for task in scene.tasks}
    for card in cards.values():
        if not smaller_sizes(card.size, film.size.width_px, film.size.height_px):
            yield (f"model {card.name} has no smaller size of the form of {film.size.text()}, so what fits no GPU "
                   "fails in spite of on_out_of_memory: smaller")


def _problems(scenes: Iterable[Scene], film: Film) -> Iterator[Problem]:
    for scene in scenes:
        for task in scene.tasks:
            if task is Task.TEXT_TO_IMAGE:
                yield from _problem(film.cards[task], film, 1, shot_id="", field="size")
            else:
                field = _length_field(scene.shot)
                # Where nobody wrote a length there is only the film's size to change.
                yield from _problem(scene.card, film, scene.render_frames, shot_id=scene.shot.id if field else "",
                                    field=field or "size")


def _length_field(shot: Shot) -> str:
    if shot.frames is not None:
        return "frames"
    return "" if shot.duration_s is None else "duration_s"


def _problem(card: ModelCard, film: Film, frames: int, *, shot_id: str, field: str) -> Iterator[Problem]:
    room, remedies = card.resources.room_gb, rungs_of(card)[-1]
    if room is None:
        return
    shape = Shape(width_px=film.size.width_px, height_px=film.size.height_px, frames=frames)
    if text := too_large(card, shape, room, remedies):
        yield Problem(shot_id=shot_id, field=field, problem=text,
                      nearest=nearest_that_fits(card, shape, room, remedies))
