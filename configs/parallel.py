"""Several GPUs for one call of a model: how many, and how they share attention. Knows no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from configs.base import Frozen

Degree = Annotated[int, Field(ge=1, le=64)]


class Parallel(Frozen):
    """Context parallelism: every GPU holds the whole model and works on its share of one call's tokens.

    Results are those of one GPU within rounding. Sources: Ulysses arXiv:2309.14509, ring attention arXiv:2310.01889.
    """

    ulysses: Degree = 1
    """GPUs that exchange tokens for heads before attention and back after it; must divide the number of heads."""
    ring: Degree = 1
    """Groups of them that pass keys and values on instead; for more GPUs than heads can be divided by."""
    uneven: bool = False
    """Take token sequences and heads that cannot be shared out evenly; costs a small exchange per attention. For models
    whose text is cut up too (Qwen-Image), and for sizes that do not come out even (those on GPUs only)."""

    @property
    def degree(self) -> int:
        """GPUs, and processes, of one replica."""
        return self.ulysses * self.ring

    @model_validator(mode="after")
    def _is_parallel(self) -> Parallel:
        if self.degree == 1:
            raise ValueError("parallel: ulysses and ring are both 1, which is one GPU; nearest valid: ulysses: 2, or "
                             "no `parallel` at all")
        if self.uneven and min(self.ulysses, self.ring) > 1:
            raise ValueError("parallel: uneven goes with ulysses or with ring, not with both; nearest valid: "
                             f"ulysses: {self.degree}, ring: 1")
        return self

    def __str__(self) -> str:
        ways = [f"{name} {value}" for name, value in (("ulysses", self.ulysses), ("ring", self.ring)) if value > 1]
        return f"{self.degree} GPUs per call ({', '.join(ways)}{', uneven shares' if self.uneven else ''})"


class Elastic(Frozen):
    """Idle replicas of the same model on the same machine help with a call: each holds the whole model already.

    How many do is decided for each call when it begins. Results are those of one GPU within rounding.
    """

    ulysses: Annotated[int, Field(ge=2, le=64)]
    """Most GPUs for one call, its own among them; must divide the number of attention heads."""
    uneven: bool = False
    """As in Parallel."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """GPUs that a call may get, ascending: the numbers that divide the most, since those divide the heads too."""
        return tuple(size for size in range(1, self.ulysses + 1) if self.ulysses % size == 0)

    def shared_by(self, gpus: int) -> Parallel:
        """How so many of them share one call; above 1."""
        return Parallel(ulysses=gpus, uneven=self.uneven)

    def __str__(self) -> str:
        return f"up to {self.ulysses} idle GPUs per call{' (uneven shares)' if self.uneven else ''}"
