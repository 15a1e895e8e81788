"""What replies about the pictures of a job look like. Knows no route."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from serve_app.http.schemas import Part


class ImageReply(Part):
    """A picture that a job draws."""

    id: str
    """Key in the store; empty until its shot is taken up."""
    storyboard: str
    """Id of its shot."""
    status: Literal["pending", "processing", "completed", "failed"]
    image_url: str | None
    thumbnail_url: str | None
    width: int
    height: int
    file_size: int | None
    """Bytes."""
    model_provider: str
    """Name of the model card."""
    generation_params: dict[str, JsonValue]
    """Prompt, seed, steps ... as the model gets them."""
    error: str | None
    """Why there is none, or why the last try failed."""


class ImageList(Part):
    """The pictures of a job, in film order."""

    images: tuple[ImageReply, ...]
