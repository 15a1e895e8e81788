"""Who does an edit's work: its tracker's and its editor's cards, checked before a job exists. Pure; loads nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from configs.model_card import EDIT_TASKS, ModelCard, Task
from workflows.edit import EditRequest, parse_edit
from workflows.edit_doors import EditShape, edit_problems, find_problems
from workflows.edit_plan import CLASSICAL, Hand
from workflows.errors import InvalidDocument, Problem
from workflows.types import Json


def with_card_defaults(request: EditRequest, cards: Mapping[str, ModelCard]) -> EditRequest:
    """The request with its editor's own numbers where it says none: a model made for four steps is not asked for 20.

    What the request says stays, right or wrong; so does all of it for `classical` and for cards that edit nothing.
    """
    card = cards.get(request.editor)
    if card is None or not set(card.tasks) & set(EDIT_TASKS):
        return request
    own: dict[str, Json] = {"steps": card.defaults.steps, "guidance_scale": card.defaults.guidance,
                            "edit_size": card.defaults.width_px}
    if card.edit is not None and card.edit.image_guidance is not None:
        own["image_guidance_scale"] = card.edit.image_guidance
    said = request.model_dump(mode="json", include=request.model_fields_set)
    return parse_edit({**own, **said})


def hands_of(request: EditRequest, cards: Mapping[str, ModelCard]) -> tuple[Hand, Hand]:
    """The tracker and the editor of an edit; `classical` needs no card, and checks its prompts itself.

    Raises InvalidDocument with everything that is wrong: no such card, one that does something else, or an edit that
    it cannot do.
    """
    if problems := tuple(_problems(request, cards)):
        raise InvalidDocument(problems=problems)
    tracker, editor = cards.get(request.tracker), cards.get(request.editor)
    return (CLASSICAL if tracker is None or request.mask_video else _tracking(tracker),
            CLASSICAL if editor is None else _editing(editor, request))


def _problems(request: EditRequest, cards: Mapping[str, ModelCard]) -> Iterator[Problem]:
    if not request.mask_video and request.tracker != CLASSICAL.card:
        able = [name for name, card in cards.items() if card.tasks == (Task.TRACK,)]
        if request.tracker in able:
            yield from find_problems(cards[request.tracker], request.find)
        else:
            yield _unable("tracker", request.tracker, able, cards)
    if request.editor != CLASSICAL.card:
        able = [name for name, card in cards.items() if set(card.tasks) & set(EDIT_TASKS)]
        if request.editor in able:
            yield from edit_problems(cards[request.editor], EditShape(
                size_px=request.edit_size, frames=request.chunk_frames, steps=request.steps,
                negative_prompt=request.negative_prompt.strip(), image_guidance=request.image_guidance_scale))
        else:
            yield _unable("editor", request.editor, able, cards)


def _unable(field: str, name: str, able: list[str], cards: Mapping[str, ModelCard]) -> Problem:
    does = cards[name].tasks if name in cards else ()
    told = f"card {name!r} does {', '.join(does) or 'comparisons'}" if name in cards else f"there is no card {name!r}"
    near = difflib.get_close_matches(name, [*able, CLASSICAL.card], n=1)
    return Problem(field=field, problem=told, nearest=near[0] if near else " or ".join([*able, CLASSICAL.card]))


def _tracking(card: ModelCard) -> Hand:
    return Hand(card=card.name, digest=card.digest(), lane=card.name, seconds_per_frame=card.seconds_per_step)


def _editing(card: ModelCard, request: EditRequest) -> Hand:
    assert card.edit is not None
    together = request.chunk_frames if Task.EDIT_VIDEO in card.pipelines else card.edit.frames_at_once
    return Hand(card=card.name, digest=card.digest(), lane=card.name,
                seconds_per_frame=card.seconds_per_step * request.steps / together)
