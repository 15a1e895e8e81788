"""What a draft of a model's pictures and clips changes: the part `draft` of a model card."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from configs.base import Frozen


class StepCache(Frozen):
    """Denoising steps that are guessed from the one before where little changes: faster, and less exact."""

    kind: Literal["first_block"] = "first_block"
    """diffusers' first-block cache: the first block is always computed, the others where its output has changed."""
    threshold: Annotated[float, Field(gt=0, le=1)]
    """Relative change of the first block's output below which a step is guessed; higher is faster and worse."""


class DraftCall(Frozen):
    """What a draft changes; what is not named is as in the final film.

    No part of the card's digest: a draft's own key holds what it was made with.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    """Denoising steps; a shot that asks for fewer gets fewer."""
    guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    """Instead of the shot's and the card's; 0 or 1 is none, which halves the work of most models."""
    cache: StepCache | None = None
    seconds_per_step: Annotated[float, Field(gt=0)] | None = None
    """As the card's own, of a draft; unset: the same."""
    approximations: Annotated[str, Field(min_length=1, max_length=300)]
    """What is less exact than in the final film, in words for users."""

    def problem(self, steps: int, guidance: float, sends: Collection[str] | None) -> str:
        """Why this is no draft of a model with these defaults; empty when it is one.

        `sends`: what a remote model's API is told; None for a model that runs here.
        """
        if self.steps is not None and self.steps > steps:
            return f"draft.steps {self.steps} is more than the final film's {steps}; nearest {steps}"
        if self.steps in (None, steps) and self.guidance in (None, guidance) and self.cache is None:
            return "draft changes none of steps, guidance, cache; leave it out"
        if sends is None:
            return ""
        if self.cache is not None:
            return "draft.cache works inside a pipeline, and a remote model has none here; leave it out"
        told = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
        lacking = [name for name, value in told.items() if value is not None and name not in sends]
        return f"draft: remote.sends has no {lacking[0]}, so nothing would change; add it, or leave draft out" if (
            lacking) else ""
