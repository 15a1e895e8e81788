"""Questions about many jobs at once: what is open, how long things took, how far the newest are. Reads only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.rows import EventRow, JobRow
from workflows.durable.tables import event, job, node
from workflows.estimate import Work, shape_of
from workflows.types import JobStatus, NodeKind, NodeStatus, Priority

OPEN_JOBS = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
OPEN_NODES = (NodeStatus.PENDING.value, NodeStatus.RUNNING.value)
WORK = (node.c.job_id, node.c.id, node.c.kind, node.c.lane, node.c.cost, node.c.payload)
"""What an estimate needs of a node."""
FINISHED_LIMIT = 1000
"""Newest finished nodes that tell how long things take."""
OPEN_LIMIT = 20_000
"""Open nodes that are counted; more than a day's work for any machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How far a job is, by its rows alone."""

    costs: Mapping[tuple[NodeKind, NodeStatus], float]
    """Planned seconds by kind and status."""
    shots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is open everywhere."""

    jobs: Mapping[JobStatus, int]
    running: Mapping[str, int]
    """Nodes by lane."""
    waiting: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One row of any job's history."""

    event: EventRow
    shot_id: str
    """Empty for what concerns no shot."""


class Overview:
    """One database, looked at from above."""

    def __init__(self, database: Database) -> None:
        """Read this database."""
        self._database = database

    def finished(self) -> tuple[Work, ...]:
        """Nodes that were really run, newest first."""
        wanted = (sa.select(*WORK, node.c.started_at, node.c.finished_at)
                  .where(node.c.status == NodeStatus.SUCCEEDED.value, node.c.started_at.is_not(None),
                         sa.not_(node.c.cached))
                  .order_by(node.c.finished_at.desc()).limit(FINISHED_LIMIT))
        with self._database.read() as connection:
            rows = connection.execute(wanted).mappings().all()
        return tuple(_work(row, seconds=max(row["finished_at"] - row["started_at"], 0.0)) for row in rows)

    def open_work(self) -> tuple[tuple[Work, Priority], ...]:
        """Nodes of active jobs that are not settled, each with its job's class."""
        wanted = (sa.select(*WORK, job.c.priority)
                  .join(job, job.c.id == node.c.job_id)
                  .where(job.c.status.in_(OPEN_JOBS), node.c.status.in_(OPEN_NODES)).limit(OPEN_LIMIT))
        with self._database.read() as connection:
            rows = connection.execute(wanted).mappings().all()
        return tuple((_work(row), Priority(row["priority"])) for row in rows)

    def queue_position(self, row: JobRow) -> int | None:
        """How many jobs the Director takes until it takes this one, itself included; None once it was taken."""
        if row.status is not JobStatus.QUEUED:
            return None
        older = sa.and_(job.c.priority == row.priority.value, sa.tuple_(job.c.created_at, job.c.id) < sa.tuple_(
            sa.literal(row.created_at_s, sa.Double), sa.literal(row.id, sa.String)))
        if row.priority is Priority.BATCH:
            older = sa.or_(older, job.c.priority == Priority.INTERACTIVE.value)
        wanted = sa.select(sa.func.count()).where(job.c.status == JobStatus.QUEUED.value, older)
        with self._database.read() as connection:
            return int(connection.scalar(wanted) or 0) + 1

    def tallies(self, job_ids: Sequence[str]) -> dict[str, Tally]:
        """How far each of these jobs is."""
        grouped = (sa.select(node.c.job_id, node.c.kind, node.c.status, sa.func.sum(node.c.cost))
                   .where(node.c.job_id.in_(job_ids)).group_by(node.c.job_id, node.c.kind, node.c.status))
        counted = (sa.select(node.c.job_id, sa.func.count(sa.distinct(node.c.shot_id)))
                   .where(node.c.job_id.in_(job_ids), node.c.shot_id != "").group_by(node.c.job_id))
        costs: dict[str, dict[tuple[NodeKind, NodeStatus], float]] = defaultdict(dict)
        with self._database.read() as connection:
            for job_id, kind, status, cost in connection.execute(grouped):
                costs[job_id][NodeKind(kind), NodeStatus(status)] = float(cost)
            shots = {job_id: int(count) for job_id, count in connection.execute(counted)}
        return {job_id: Tally(costs=costs[job_id], shots=shots.get(job_id, 0)) for job_id in job_ids}

    def first_pictures(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The first shot of each of these jobs that has a picture; a job without one is missing."""
        first = (sa.select(node.c.job_id, sa.func.min(node.c.ord).label("ord"))
                 .where(node.c.job_id.in_(job_ids), node.c.shot_id != "", node.c.status == NodeStatus.SUCCEEDED.value)
                 .group_by(node.c.job_id).subquery())
        wanted = sa.select(node.c.job_id, node.c.shot_id).join(
            first, sa.and_(node.c.job_id == first.c.job_id, node.c.ord == first.c.ord))
        with self._database.read() as connection:
            return {job_id: shot_id for job_id, shot_id in connection.execute(wanted)}

    def newest_events(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Number of the newest event of each of these jobs; a job that is gone is missing."""
        wanted = (sa.select(event.c.job_id, sa.func.max(event.c.seq)).where(event.c.job_id.in_(job_ids))
                  .group_by(event.c.job_id))
        with self._database.read() as connection:
            return {job_id: int(seq) for job_id, seq in connection.execute(wanted)}

    def load(self) -> Load:
        """What is open everywhere, counted."""
        by_status = sa.select(job.c.status, sa.func.count()).where(job.c.status.in_(OPEN_JOBS)).group_by(job.c.status)
        by_lane = (sa.select(node.c.lane, node.c.status, sa.func.count()).join(job, job.c.id == node.c.job_id)
                   .where(job.c.status.in_(OPEN_JOBS), node.c.status.in_(OPEN_NODES))
                   .group_by(node.c.lane, node.c.status))
        running: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        with self._database.read() as connection:
            jobs = {JobStatus(status): int(count) for status, count in connection.execute(by_status)}
            for lane, status, count in connection.execute(by_lane):
                (running if status == NodeStatus.RUNNING.value else waiting)[lane] += int(count)
        return Load(jobs=jobs, running=running, waiting=waiting)

    def newest(self) -> int:
        """Number of the newest event of any job; 0 when nothing has happened yet."""
        with self._database.read() as connection:
            return int(connection.scalar(sa.select(sa.func.max(event.c.seq))) or 0)

    def happened(self, after_seq: int, limit: int) -> tuple[Happening, ...]:
        """What happened to any job after event `after_seq`, oldest first."""
        wanted = (sa.select(event, node.c.shot_id)
                  .outerjoin(node, sa.and_(node.c.job_id == event.c.job_id, node.c.id == event.c.node_id))
                  .where(event.c.seq > after_seq).order_by(event.c.seq).limit(limit))
        with self._database.read() as connection:
            return tuple(Happening(event=EventRow.of(row), shot_id=row["shot_id"] or "")
                         for row in connection.execute(wanted).mappings())

    def ask(self) -> None:
        """Raise unless the database answers."""
        with self._database.read() as connection:
            connection.execute(sa.select(1))


def _work(row: sa.RowMapping, *, seconds: float = 0.0) -> Work:
    kind = NodeKind(row["kind"])
    return Work(job_id=row["job_id"], id=row["id"], kind=kind, lane=row["lane"], cost=row["cost"],
                shape=shape_of(kind, row["payload"]), seconds=seconds)
