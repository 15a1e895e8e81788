"""How many replicas of a model there should be, from the work that waits for it. Pure: knows no clock and no database.

Ray Serve's own rule counts requests in flight. Ours are as many as there is room for, so they would say that all is
well while a thousand shots wait in the database; and without a replica there is no request at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

WANTED = "wanted"
"""Beside the numbers of a backlog: replicas that the card is to have, where the GPUs are divided (`division`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Open nodes of one lane, over all active jobs."""

    ready: int
    """Pending, and nothing to wait for but a place."""
    running: int
    coming: int
    """Pending, and waiting for other nodes."""
    seconds: float
    """What one of them takes, in the middle."""
    interactive: int = 0
    """Of what is ready or running: of jobs that somebody waits for."""

    def to_json(self) -> dict[str, float]:
        """Numbers by name."""
        return {field.name: float(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, numbers: Mapping[str, float]) -> Backlog:
        """The inverse of `to_json`."""
        return cls(ready=int(numbers["ready"]), running=int(numbers["running"]), coming=int(numbers["coming"]),
                   seconds=numbers["seconds"], interactive=int(numbers.get("interactive", 0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the settings say of one model's replicas."""

    least: int
    most: int
    finish_within_s: float
    """For all that is ready, > 0."""
    idle_s: float
    """So long there may be too many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many replicas, and what must be remembered until the next decision."""

    replicas: int
    too_many_since_s: float | None
    """None while there are not too many."""


def enough(backlog: Backlog, rule: Rule) -> int:
    """Replicas that finish what is ready or running in time: never more than there are nodes, one if there is any."""
    nodes = backlog.ready + backlog.running
    in_time = math.ceil(nodes * backlog.seconds / rule.finish_within_s)
    return min(max(min(in_time, nodes), min(nodes, 1), rule.least), rule.most)


def decide(backlog: Backlog, rule: Rule, *, now: int, too_many_since_s: float | None, at_s: float) -> Decision:
    """How many there should be, when there are `now` at the time `at_s` (seconds of any clock).

    More are asked for at once. Fewer only when there have been too many for `idle_s` at a stretch; and the last one
    stays as long as work for it is still to come.
    """
    wanted = enough(backlog, rule)
    if wanted >= now:
        return Decision(replicas=wanted, too_many_since_s=None)
    since_s = at_s if too_many_since_s is None else too_many_since_s
    if at_s - since_s < rule.idle_s:
        return Decision(replicas=min(now, rule.most), too_many_since_s=since_s)
    replicas = max(wanted, min(backlog.coming, 1))
    # Serve goes to none by way of one, which is not to wait once more.
    return Decision(replicas=replicas, too_many_since_s=None if replicas else since_s)
