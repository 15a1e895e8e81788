"""A storyboard after its first reading: a shot changed, later problems traced back to its text. Knows no model card."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from workflows.document import parse_document
from workflows.errors import InvalidDocument, Problem
from workflows.source import DocPath, closest_or_few, shortened
from workflows.storyboard import Storyboard, parse_storyboard, shot_values, storyboard_value
from workflows.storyboard_rules import shot_ids
from workflows.tiers import Tier
from workflows.types import Json


def change_shot(storyboard: Storyboard, shot_id: str, changes: Mapping[str, Json]) -> Storyboard:
    """The storyboard with fields of one shot replaced; null takes a field away.

    Raises InvalidDocument, also for a shot that does not exist.
    """
    ids = [shot.id for shot in storyboard.shots]
    if shot_id not in ids:
        problem = f"no shot has the id {shortened(shot_id)!r}"
        raise InvalidDocument(problems=(Problem(problem=problem, nearest=closest_or_few(shot_id, ids)),))
    value = storyboard_value(storyboard)
    value["shots"] = [{**shot, **changes} if shot["id"] == shot_id else shot for shot in shot_values(value)]
    try:
        return parse_storyboard(json.dumps(value, ensure_ascii=False))
    except InvalidDocument as error:
        # Lines of a text that nobody wrote would mislead.
        raise InvalidDocument(problems=tuple(replace(problem, line=None) for problem in error.problems)) from error


def at_tier(storyboard: Storyboard, tier: Tier | None) -> Storyboard:
    """The storyboard with another tier for the shots that do not say their own; None: as it is."""
    return storyboard if tier in (None, storyboard.tier) else storyboard.model_copy(update={"tier": tier})


def promoted(storyboard: Storyboard, shot_ids: Collection[str], takes: Mapping[str, int] | None = None) -> Storyboard:
    """The storyboard with these shots final; `takes`: those that scores decided for, which stay what the film uses.

    Nothing that a seed is drawn from changes.
    """
    shots = tuple(shot if shot.id not in shot_ids else shot.model_copy(
        update={"tier": Tier.FINAL, "take": (takes or {}).get(shot.id, shot.take)}) for shot in storyboard.shots)
    return storyboard.model_copy(update={"shots": shots})


def drafts_in(storyboard: Storyboard) -> tuple[str, ...]:
    """Ids of the shots that are drafts, in film order."""
    return tuple(shot.id for shot in storyboard.shots if (shot.tier or storyboard.tier) is Tier.DRAFT)


def with_lines(error: InvalidDocument, text: str, *, file: str = "") -> InvalidDocument:
    """The same problems, each with its line in the storyboard's text: for problems that the plan found.

    A text that is no storyboard (a script has no such lines) leaves the error as it is.
    """
    try:
        document = parse_document(text, file=file)
    except InvalidDocument:
        return error
    ids = shot_ids(document.value)
    problems = []
    for problem in error.problems:
        path: DocPath = tuple(int(part) if part.isdigit() else part for part in re.findall(r"\w+", problem.field))
        if problem.shot_id in ids:
            path = ("shots", ids.index(problem.shot_id), *path)
        line = document.line_of(path) if path else None
        problems.append(replace(problem, line=problem.line or line))
    return InvalidDocument(file=file or error.file, problems=tuple(problems))
