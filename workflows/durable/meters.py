"""What the whole database tells of how work goes, counted for measurements. Reads only.

Everything is taken from rows, so it is the same from every process and after every restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.tables import job, node, usage
from workflows.durable.usage import Outcome
from workflows.types import JobStatus, NodeKind, NodeStatus, Priority

BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Upper bounds of durations that are counted apart: from a cancel (half a second) to a long clip (an hour)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """Usage rows of one outcome, kind and lane, added up."""

    outcome: Outcome
    kind: str
    """Of node, or `job`."""
    lane: str
    count: int
    wall_s: float
    gpu_s: float
    steps: int
    diffusion_s: float
    within: tuple[int, ...]
    """How many took at most so long, for each of `BUCKETS_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One look at the database."""

    jobs: Mapping[JobStatus, int]
    queued: Mapping[Priority, int]
    """Jobs that no Director has taken yet."""
    nodes: Mapping[tuple[NodeKind, NodeStatus], int]
    spells: tuple[Spell, ...]


class Meters:
    """One database, measured."""

    def __init__(self, database: Database) -> None:
        """Read this database."""
        self._database = database

    def read(self) -> Readings:
        """Count everything; costs a pass over each table."""
        count = sa.func.count()
        jobs = sa.select(job.c.status, count).group_by(job.c.status)
        queued = sa.select(job.c.priority, count).where(job.c.status == JobStatus.QUEUED.value).group_by(job.c.priority)
        nodes = sa.select(node.c.kind, node.c.status, count).group_by(node.c.kind, node.c.status)
        within = [sa.func.sum(sa.case((usage.c.wall_s <= bound, 1), else_=0)) for bound in BUCKETS_S]
        sums = [sa.func.sum(column) for column in (usage.c.wall_s, usage.c.gpu_s, usage.c.steps, usage.c.diffusion_s)]
        spells = (sa.select(usage.c.outcome, usage.c.kind, usage.c.lane, count, *sums, *within)
                  .group_by(usage.c.outcome, usage.c.kind, usage.c.lane)
                  .order_by(usage.c.outcome, usage.c.kind, usage.c.lane))
        with self._database.read() as connection:
            return Readings(
                jobs={JobStatus(status): int(found) for status, found in connection.execute(jobs)},
                queued={Priority(priority): int(found) for priority, found in connection.execute(queued)},
                nodes={(NodeKind(kind), NodeStatus(status)): int(found)
                       for kind, status, found in connection.execute(nodes)},
                spells=tuple(Spell(
                    outcome=Outcome(row[0]), kind=row[1], lane=row[2], count=int(row[3]), wall_s=float(row[4]),
                    gpu_s=float(row[5]), steps=int(row[6]), diffusion_s=float(row[7]),
                    within=tuple(int(found) for found in row[8:])) for row in connection.execute(spells)))
