"""What a card says of editing videos by text: how an editor takes frames, and what a tracker finds things by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from configs.base import Frozen

FindsBy = Literal["text", "points"]
FINDS_BY: Mapping[str, FindsBy] = {"Sam3VideoModel": "text", "Sam2VideoModel": "points"}
"""Video models of transformers that track, and what they are told: words, or points and boxes."""
IMAGE_GUIDANCE = frozenset({"StableDiffusionInstructPix2PixPipeline"})
"""Pipelines of diffusers with a guidance scale towards the frame as it was."""


class EditRules(Frozen):
    """How an editor takes the frames of a clip."""

    frames_at_once: Annotated[int, Field(ge=1, le=64)] = 1
    """Frames in one call of an image editor. Memory grows with it; frames are equal to those of single calls within
    rounding. A video editor takes the whole clip."""
    image_guidance: Annotated[float, Field(ge=1, le=20)] | None = None
    """What an edit gets when it says nothing: how closely a frame follows what it was, from 1 (hardly). None: the
    model has no such scale."""

    def problem(self, pipelines: Mapping[str, str]) -> str:
        """What of it does not fit the card's pipelines; empty when all of it does."""
        has_scale = bool(IMAGE_GUIDANCE & set(pipelines.values()))
        if has_scale and self.image_guidance is None:
            return "edit.image_guidance is missing; nearest valid: 1.5"
        if not has_scale and self.image_guidance is not None:
            return f"edit.image_guidance is for {', '.join(IMAGE_GUIDANCE)}; leave it out"
        if "edit_video" in pipelines and self.frames_at_once > 1:
            return "edit.frames_at_once: a video editor takes the whole clip; nearest valid: 1"
        return ""


def kinds_problem(pipelines: Mapping[str, str], loader: str, edit: EditRules | None) -> str:
    """What is wrong with a card's tasks, loader and `edit` together; empty when nothing is."""
    kinds = {"track" if task == "track" else "edit" if task.startswith("edit_") else "film" for task in pipelines}
    if len(kinds) > 1 or (len(pipelines) > 1 and "film" not in kinds):
        return f"one card does {', '.join(pipelines)}; films, either kind of edit and tracking need a card each"
    if ("track" in kinds) != (loader == "tracker"):
        return "`loader: tracker` and the task `track` belong together"
    if "track" in kinds and not set(pipelines.values()) <= set(FINDS_BY):
        return (f"pipelines.track: {pipelines['track']!r} is no tracker that is known; nearest valid: "
                f"{' or '.join(FINDS_BY)}")
    if "edit" in kinds and edit is None:
        return "a card that edits needs `edit`; nearest valid: edit: {frames_at_once: 1}"
    if edit is None:
        return ""
    return edit.problem(pipelines) if "edit" in kinds else "`edit` is for editors of videos; take it out"
