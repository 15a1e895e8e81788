"""What the server says of itself, on the wire."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from serve_app.http.schemas import Part


class HealthReply(Part):
    """The server answers."""

    status: Literal["ok"]
    version: str = Field(examples=["0.1.0"])
    """Of reelray."""


class Readiness(StrEnum):
    """Whether jobs will be run."""

    READY = "ready"
    STARTING = "starting"


class ReadyReply(Part):
    """Whether models and Director are up."""

    status: Readiness
    parts: dict[str, str] = Field(examples=[{"model-sketch": "HEALTHY", "director": "HEALTHY", "database": "ok"}])
