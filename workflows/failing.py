"""What a film does where a shot cannot be made as asked, or does not look as it should. Knows no storyboard."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from configs.base import Frozen

MAX_TAKES = 8


class Part(Frozen):
    """Part of a storyboard: what is written is taken as it stands."""

    model_config = ConfigDict(strict=True)


class Missing(StrEnum):
    """What the film shows where a shot failed."""

    CUT = "cut"
    """Nothing: the film goes on with the next shot."""
    SLATE = "slate"
    """A still with the shot's text, as long as the shot would have been."""


class OutOfMemory(StrEnum):
    """What becomes of a shot that fits no GPU, whatever is done."""

    FAIL = "fail"
    """It fails, as a shot does for any other reason."""
    SMALLER = "smaller"
    """It is rendered smaller, and scaled up in the film."""


class Retake(Part):
    """Render a shot again from another seed while its clip looks too little like its characters' pictures."""

    below: Annotated[float, Field(gt=-1, le=1)]
    """A score that is lower is not good enough."""
    takes: Annotated[int, Field(ge=1, le=MAX_TAKES)] = 3
    """How often it is rendered at most; 1: once, which takes a default away."""
