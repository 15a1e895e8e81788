"""`reelray models` for cards that edit videos: what they say of themselves. Knows no torch."""

from __future__ import annotations

from configs.model_card import FILM_TASKS, ModelCard, Task

FINDS = {"text": "words (mask_prompt)", "points": "points and boxes"}
NOT_TOLD = frozenset({"draft"})
"""Labels that say something of films alone."""


def usual(card: ModelCard) -> str:
    """What one call usually is, in a line; empty for a card that makes films."""
    if not card.tasks or card.tasks[0] in FILM_TASKS:
        return ""
    default = card.defaults
    if card.finds_by is not None:
        return f"finds by {FINDS[card.finds_by]}; looks at squares of {default.width_px} pixels"
    assert card.edit is not None
    at_once = "the whole chunk" if Task.EDIT_VIDEO in card.pipelines else f"{card.edit.frames_at_once} at once"
    scale = "" if card.edit.image_guidance is None else f", image guidance {card.edit.image_guidance:g}"
    return (f"crops of {default.width_px}x{default.height_px}, {at_once}, {default.steps} steps, guidance "
            f"{default.guidance:g}{scale}")


def adjusted(card: ModelCard, facts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The facts of a card, with what one of films says and this one does not put right."""
    if not (line := usual(card)):
        return facts
    said = dict(facts)
    told = {"default": line,
            "prompt": "" if card.finds_by == "points" else said["prompt"],
            "sizes": "" if card.finds_by else said["sizes"],
            "frames": said["frames"] if Task.EDIT_VIDEO in card.pipelines else "",
            "speed": said["speed"].replace("per step at the default shape",
                                           "per frame" if card.finds_by else "per step of one call")}
    return [*((label, told.get(label, text)) for label, text in facts if label not in NOT_TOLD),
            ("path", f"${card.repo_env} stands for the repo where it is set" if card.repo_env else "")]
