"""What a tracker's or an editor's card cannot be asked for, known without loading it. Pure.

The door asks before a job exists, and the loaded model asks again before GPU time is spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from configs.model_card import ModelCard, Task
from workflows.edit_ports import Find
from workflows.errors import Problem

NO_NEGATIVE_PROMPT = frozenset({"Flux2KleinPipeline", "Flux2Pipeline", "FluxKontextPipeline"})
"""Editors whose pipelines have none, or only beside a guidance that they were not made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditShape:
    """What of an edit decides whether a card can do it."""

    size_px: int
    """Side of the crops."""
    frames: int
    """Of the largest chunk."""
    steps: int
    negative_prompt: str = ""
    image_guidance: float = 1.5


def find_problems(card: ModelCard, find: Find) -> tuple[Problem, ...]:
    """What this tracker cannot look for; empty: nothing stands in its way. A chunk may point at nothing: what was
    pointed at in another is carried over.
    """
    if card.finds_by == "text":
        return tuple(_no_words(card, find))
    if find.prompt:
        return (Problem(field="mask_prompt", problem=f"card {card.name} follows what it is shown, and knows no words",
                        nearest="points or boxes, or a tracker that finds by words, such as sam3"),)
    return ()


def _no_words(card: ModelCard, find: Find) -> Iterator[Problem]:
    other = "a tracker that is shown points, such as sam2.1-large"
    if not find.prompt:
        yield Problem(field="mask_prompt", problem=f"card {card.name} finds by words, and has none",
                      nearest=f"a mask_prompt, or {other}")
    for field, given in (("points", find.points), ("boxes", find.boxes)):
        if given:
            yield Problem(field=field, problem=f"card {card.name} finds by words alone",
                          nearest=f"leave them out, or {other}")


def edit_problems(card: ModelCard, shape: EditShape) -> tuple[Problem, ...]:
    """What of an edit this card cannot do; empty when all of it."""
    return tuple(_edit_problems(card, shape))


def _edit_problems(card: ModelCard, shape: EditShape) -> Iterator[Problem]:
    pipeline = next(iter(card.pipelines.values()))
    if text := card.size.problem(shape.size_px):
        yield Problem(field="edit_size", problem=f"{text} ({card.name})",
                      nearest=" or ".join(map(str, card.size.nearest(shape.size_px))))
    if shape.steps < 1:
        yield Problem(field="steps", problem=f"{shape.steps} steps", nearest="1")
    if shape.negative_prompt and pipeline in NO_NEGATIVE_PROMPT:
        yield Problem(field="negative_prompt", problem=f"{pipeline} has nothing to do it with",
                      nearest="leave it empty")
    if card.edit is not None and card.edit.image_guidance is not None and shape.image_guidance < 1:
        yield Problem(field="image_guidance_scale", nearest="1", problem=(
            f"{shape.image_guidance:g}: below 1 this model drops the text's guidance too"))
    most = card.frames.nearest(card.frames.max_frames)[0]
    if Task.EDIT_VIDEO in card.pipelines and shape.frames > most:
        yield Problem(field="chunk_frames", problem=f"{shape.frames} frames at once are more than the {most} of "
                                                    f"{card.name}", nearest=str(most))
