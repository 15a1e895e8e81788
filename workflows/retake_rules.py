"""Whether shots can be rendered again until they score enough, and what users are told of it. Pure; makes no node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from configs.model_card import ModelCard
from workflows.errors import InvalidDocument, Problem
from workflows.references import referenced
from workflows.scene import Scene
from workflows.storyboard import Storyboard


def refuse_retakes(storyboard: Storyboard, scorer: ModelCard | None) -> None:
    """Raise InvalidDocument where a film asks for retakes, and nothing can be measured, or nothing measures."""
    problems = tuple(dict.fromkeys(_retake_problems(storyboard, scorer)))
    if problems:
        raise InvalidDocument(problems=problems)


def _retake_problems(storyboard: Storyboard, scorer: ModelCard | None) -> Iterator[Problem]:
    shots = [storyboard.resolved(shot) for shot in storyboard.shots]
    asked = {shot.id: "retake" for shot in storyboard.shots if shot.retake is not None}
    if storyboard.defaults.retake is not None:
        asked[""] = "defaults.retake"
    for shot in shots:
        most = shot.retake.takes if shot.retake else shot.takes or 1
        if (shot.take or 1) > most:
            yield Problem(shot_id=shot.id, field="take", nearest=str(most),
                          problem=f"take {shot.take} is chosen, and {most} is rendered")
    for shot_id, field in asked.items():
        compared = [shot for shot in shots if shot.id == (shot_id or shot.id) and referenced(storyboard, shot)]
        if not compared:
            whose = "of this shot" if shot_id else "of any shot"
            yield Problem(shot_id=shot_id, field=field, nearest="name a character with a `reference`, or leave it out",
                          problem=f"clips are compared with reference pictures, and no character {whose} has one")
        elif scorer is None and any(shot.take is None for shot in compared):
            yield Problem(shot_id=shot_id, field=field, nearest="--set models.scorer=dinov2-base, or leave it out",
                          problem="nothing compares clips with pictures here: models.scorer is not set")


def retake_hints(scenes: Iterable[Scene]) -> Iterator[str]:
    """What cannot be foretold of a film: how often its shots are rendered."""
    for scene in scenes:
        if scene.retake:
            yield (f"shot {scene.shot.id} is rendered up to {scene.retake.takes} times while its clip scores below "
                   f"{scene.retake.below:g}; what is foretold counts all")
