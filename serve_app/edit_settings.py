"""The settings under which this machine starts what one edit needs, and nothing of films. Knows no Ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from configs.settings import Settings
from serve_app.edit_submit import KIND
from workflows.types import NO_MODEL_LANES

NO_MODEL = "placeholder"


class Laned(Protocol):
    """What is asked of a node."""

    @property
    def lane(self) -> str:
        """The card that runs it, or a lane without one."""


def settings_for(settings: Settings, kind: str, nodes: Iterable[Laned]) -> Settings:
    """Settings for a job with these nodes: an edit has its own tracker and editor started, every other kind of job all
    that the settings name.
    """
    if kind != KIND:
        return settings
    names = tuple(dict.fromkeys(node.lane for node in nodes if node.lane not in NO_MODEL_LANES))
    models = settings.models.model_copy(update={
        "edit_cards": names, "scorer": "", "text_to_image": NO_MODEL, "text_to_video": NO_MODEL,
        "image_to_video": NO_MODEL})
    story = settings.story.model_copy(update={"writer": "rules", "enhance_prompts": False})
    return settings.model_copy(update={"models": models, "story": story})
