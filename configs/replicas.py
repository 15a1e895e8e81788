"""Settings of one model card's replicas: how many, with what, where."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from configs.base import Frozen


class ReplicaSettings(Frozen):
    """How many replicas of one model card run, and with what."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """With `min_replicas` the most."""
    min_replicas: Annotated[int, Field(ge=0)] | None = None
    """Fewest; between it and `replicas` their number follows the work that waits (`models.scaling`), and with 0 no GPU
    is held when there is none. Unset: always `replicas`."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the machines that they may run on, e.g. `{pool: spot}`; what Ray's label selectors understand."""
    num_gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs per replica; unset: the card's own number, or else by its peak (`models.gpu_memory_gb`)."""
    num_cpus: Annotated[float, Field(ge=0)] | None = None
    """CPUs per replica; unset: the card's own number."""

    @model_validator(mode="after")
    def _fewest_is_not_the_most(self) -> ReplicaSettings:
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than replicas {self.replicas}; "
                             f"nearest {self.replicas}")
        return self

    @property
    def at_start(self) -> int:
        """How many are started with the application."""
        return self.replicas if self.min_replicas is None else self.min_replicas


class ScalingSettings(Frozen):
    """How the number of replicas follows the work, for cards with `min_replicas`."""

    finish_within_s: Annotated[float, Field(gt=0)] = 600.0
    """As many replicas as finish what is ready in this time; a new machine and a loaded model must be worth it."""
    idle_s: Annotated[float, Field(ge=0)] = 300.0
    """Replicas that are too many for this long are stopped; a clip in the making is handed over at its next step."""
    look_s: Annotated[float, Field(gt=0)] = 2.0
    """How often the work is counted."""
    load_s: Annotated[float, Field(gt=0)] = 30.0
    """What it takes until another card's replica works in the place of one. Where the GPUs are too few for the cards
    that have work, each keeps its own for at least six times as long."""
    yield_s: Annotated[float, Field(ge=0)] = 5.0
    """So long a replica with nothing to do keeps a GPU that another card waits for, while more work for it is coming;
    with none coming it goes at once."""
