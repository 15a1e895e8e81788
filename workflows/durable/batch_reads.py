"""Questions about one batch: how far it is, what is open, what it has cost. Reads only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from workflows.durable.batch_rules import OPEN_JOBS
from workflows.durable.database import Database
from workflows.durable.rows import NodeRow
from workflows.durable.tables import batch, batch_file, job, node, usage
from workflows.durable.usage import FREE, Outcome
from workflows.progress import NodeShare
from workflows.types import JobStatus, NodeStatus

OPEN_NODES = (NodeStatus.PENDING.value, NodeStatus.RUNNING.value)
OPEN_LIMIT = 20_000
"""Open nodes that are looked at, as in `overview`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What attempts at one shot of one job came to, by outcome and lane."""

    job_id: str
    shot_id: str
    """Empty for what concerns the whole film."""
    lane: str
    outcome: Outcome
    count: int
    wall_s: float
    gpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A node, as far as a report tells of it."""

    job_id: str
    shot_id: str
    lane: str
    status: NodeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Which files a job of a batch is."""

    files: tuple[str, ...]
    replaced: bool
    """All of them came back with other content."""


class BatchReads:
    """The batches of one database, looked at."""

    def __init__(self, database: Database) -> None:
        """Read this database."""
        self._database = database

    def counts(self, batch_ids: Sequence[str]) -> Mapping[str, Counter[JobStatus]]:
        """How many jobs of each batch are in which status; jobs of files that were replaced do not count."""
        current = (sa.select(batch_file.c.batch_id, batch_file.c.job_id).distinct().where(
            batch_file.c.batch_id.in_(batch_ids), batch_file.c.replaced_at.is_(None)).subquery())
        grouped = (sa.select(current.c.batch_id, job.c.status, sa.func.count()).join(job, job.c.id == current.c.job_id)
                   .group_by(current.c.batch_id, job.c.status))
        found: dict[str, Counter[JobStatus]] = {batch_id: Counter() for batch_id in batch_ids}
        with self._database.read() as connection:
            for batch_id, status, count in connection.execute(grouped):
                found[batch_id][JobStatus(status)] = int(count)
        return found

    def shares(self, batch_id: str) -> Mapping[str, tuple[NodeShare, ...]]:
        """What progress needs to know of the nodes of each job, added up by status."""
        grouped = (sa.select(node.c.job_id, node.c.status, sa.func.sum(node.c.cost))
                   .join(job, job.c.id == node.c.job_id).where(job.c.batch_id == batch_id)
                   .group_by(node.c.job_id, node.c.status))
        found: dict[str, list[NodeShare]] = defaultdict(list)
        with self._database.read() as connection:
            for job_id, status, cost in connection.execute(grouped):
                found[job_id].append(NodeShare(cost=float(cost), status=NodeStatus(status)))
        return {job_id: tuple(shares) for job_id, shares in found.items()}

    def errors(self, batch_id: str) -> Mapping[str, str]:
        """Why the first node of a job that failed did, by job id."""
        wanted = (sa.select(node.c.job_id, node.c.error).join(job, job.c.id == node.c.job_id)
                  .where(job.c.batch_id == batch_id, node.c.status == NodeStatus.FAILED.value)
                  .order_by(node.c.job_id, node.c.ord.desc()))
        with self._database.read() as connection:
            return {job_id: error["message"] for job_id, error in connection.execute(wanted) if error}

    def running(self, batch_id: str) -> int:
        """Nodes that run now."""
        wanted = (sa.select(sa.func.count()).select_from(node).join(job, job.c.id == node.c.job_id)
                  .where(job.c.batch_id == batch_id, node.c.status == NodeStatus.RUNNING.value))
        with self._database.read() as connection:
            return int(connection.scalar(wanted) or 0)

    def open_nodes(self, batch_id: str) -> tuple[NodeRow, ...]:
        """Nodes of its open jobs that are not settled."""
        wanted = (sa.select(node).join(job, job.c.id == node.c.job_id)
                  .where(job.c.batch_id == batch_id, job.c.status.in_(OPEN_JOBS), node.c.status.in_(OPEN_NODES))
                  .limit(OPEN_LIMIT))
        with self._database.read() as connection:
            return tuple(NodeRow.of(row) for row in connection.execute(wanted).mappings())

    def spent_s(self, batch_ids: Sequence[str]) -> Mapping[str, float]:
        """GPU-seconds that each of these batches was charged; those that used none are missing."""
        grouped = (sa.select(usage.c.batch_id, sa.func.sum(usage.c.gpu_s))
                   .where(usage.c.batch_id.in_(batch_ids), usage.c.outcome.not_in(FREE)).group_by(usage.c.batch_id))
        with self._database.read() as connection:
            return {batch_id: float(seconds) for batch_id, seconds in connection.execute(grouped)}

    def bills(self, batch_id: str) -> tuple[Bill, ...]:
        """All that was written of work for this batch, also for jobs that are forgotten."""
        keys = (usage.c.job_id, usage.c.shot_id, usage.c.lane, usage.c.outcome)
        grouped = (sa.select(*keys, sa.func.count(), sa.func.sum(usage.c.wall_s), sa.func.sum(usage.c.gpu_s))
                   .where(usage.c.batch_id == batch_id, usage.c.shot_id.is_not(None)).group_by(*keys).order_by(*keys))
        with self._database.read() as connection:
            return tuple(Bill(job_id=row[0], shot_id=row[1], lane=row[2], outcome=Outcome(row[3]), count=int(row[4]),
                              wall_s=float(row[5]), gpu_s=float(row[6])) for row in connection.execute(grouped))

    def parts(self, batch_id: str) -> tuple[Part, ...]:
        """Every node of its jobs: jobs in the order in which they were queued, nodes in that of the film."""
        wanted = (sa.select(node.c.job_id, node.c.shot_id, node.c.lane, node.c.status)
                  .join(job, job.c.id == node.c.job_id).where(job.c.batch_id == batch_id)
                  .order_by(job.c.created_at, job.c.id, node.c.ord))
        with self._database.read() as connection:
            return tuple(Part(job_id=row.job_id, shot_id=row.shot_id, lane=row.lane, status=NodeStatus(row.status))
                         for row in connection.execute(wanted))

    def owners(self, batch_id: str) -> Mapping[str, Owner]:
        """The files of each job, those too that were replaced."""
        wanted = (sa.select(batch_file.c.file, batch_file.c.job_id, batch_file.c.replaced_at)
                  .where(batch_file.c.batch_id == batch_id).order_by(batch_file.c.ord, batch_file.c.file))
        rows: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        with self._database.read() as connection:
            for file, job_id, replaced_at in connection.execute(wanted):
                rows[job_id].append((file, replaced_at is not None))
        return {job_id: Owner(files=tuple(file for file, _ in found), replaced=all(gone for _, gone in found))
                for job_id, found in rows.items()}

    def tally(self) -> Mapping[str, int]:
        """How many batches there are: `running`, `held` (paused or out of budget), and `over`."""
        is_open = sa.exists().where(job.c.batch_id == batch.c.id, job.c.status.in_(OPEN_JOBS))
        state = sa.case((sa.not_(is_open), "over"), (batch.c.held != "", "held"), else_="running")
        with self._database.read() as connection:
            found = {name: int(count) for name, count in connection.execute(
                sa.select(state, sa.func.count()).select_from(batch).group_by(state))}
        return {name: found.get(name, 0) for name in ("running", "held", "over")}
