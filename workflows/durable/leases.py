"""Who runs a job: claim, renew, release, finish. Knows the tables and the lease clock, not what a node does.

A claim is one statement and draws a fresh token. The token is the lease and the fence: whatever is written for a job is
written in a transaction that locked the job's row under that token, so a Director that was taken over commits nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate

from workflows.durable.batch_rules import Standing, may_be_taken, standings
from workflows.durable.database import Database
from workflows.durable.events import Note, append
from workflows.durable.ledger import OPEN_JOBS, OPEN_NODES, close_cancelled
from workflows.durable.rows import EventType, JobRow, Level, NodeRow, error_json
from workflows.durable.tables import job, node
from workflows.durable.usage import Payer, charge_interrupted, charge_running, note_waited
from workflows.errors import ErrorRecord, LeaseLost, PoisonNode
from workflows.types import JobStatus, NodeStatus, Priority, advance_job


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run one job, until somebody else draws a token for it."""

    job: JobRow
    token: str

    @property
    def payer(self) -> Payer:
        """Whom its nodes are charged to."""
        return Payer(key_id=self.job.key_id, batch_id=self.job.batch_id)


@dataclass(slots=True, kw_only=True)
class Lease:
    """A claim in hand, and how long it is certain that nobody else has it."""

    claim: Claim
    certain_until_s: float
    """By `time.monotonic`: `lease_s` after the last renewal was asked for. A process that was frozen for longer must
    ask again before it starts anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One look at the database."""

    held: Mapping[str, bool]
    """Jobs still owned by the tokens asked for: whether their cancel was requested."""
    waiting: frozenset[Priority]
    """Classes in which there is a job to claim."""
    batches: Mapping[str, Standing]
    """Those of the jobs that are held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ends."""

    status: JobStatus
    line: str
    error: ErrorRecord | None = None


# Built once: it is half of what a write or a look costs otherwise. The document stays where it is.
_HELD = sa.select(job.c.id, job.c.cancel_requested, job.c.batch_id).where(
    job.c.owner.in_(sa.bindparam("tokens", expanding=True)))
_LOCK = (sa.select(job.c.status).where(job.c.id == sa.bindparam("job_id"), job.c.owner == sa.bindparam("token"))
         .with_for_update())


def fence(connection: sa.Connection, claim: Claim) -> JobStatus:
    """Lock the claim's job for this transaction and return its status; raises LeaseLost when it has another owner."""
    status = connection.scalar(_LOCK, {"job_id": claim.job.id, "token": claim.token})
    if status is None:
        raise LeaseLost(job_id=claim.job.id)
    return JobStatus(status)


def _vacant(now_s: sa.ColumnElement[float], held: Collection[str]) -> sa.ColumnElement[bool]:
    over = sa.and_(job.c.lease_until < now_s, job.c.owner.not_in(held))
    return sa.and_(job.c.status.in_(OPEN_JOBS), sa.or_(job.c.owner.is_(None), over))


class Leases:
    """The leases of one database, as one Director sees them."""

    def __init__(self, database: Database, *, lease_s: float, interruption_limit: int) -> None:
        """`lease_s`: how long a silent owner keeps a job; a node interrupted `interruption_limit` times is poison."""
        self._database = database
        self._lease_s = lease_s
        self._interruption_limit = interruption_limit

    def claim(self, limit: int, priority: Priority, *, only: Collection[str] | None = None,
              held: Collection[str] = ()) -> tuple[Claim, ...]:
        """Take up to `limit` jobs of one class that nobody holds, the oldest first.

        `held` are the caller's own tokens: after a long sleep it renews its jobs, it does not take them from itself.
        Nodes that a vanished owner left running are put back in the same transaction, counted as interrupted.
        """
        token = uuid.uuid4().hex
        with self._database.write() as connection:
            # Built inside the transaction: on SQLite the clock is read here, after any wait for the write lock.
            free = self._free(connection, priority, only, held)
            rows = connection.execute(self._taking(token, limit, free)).mappings().all()
            for row in rows:
                self._recover(connection, row["id"])
        return tuple(Claim(job=JobRow.of(row), token=token) for row in rows)

    def survey(self, tokens: Collection[str], *, only: Collection[str] | None = None) -> Survey:
        """Look without writing: which jobs are still held, which of them shall end, whether there are new ones."""
        with self._database.read() as connection:
            held = connection.execute(_HELD, {"tokens": list(tokens)}).all() if tokens else []
            # Most looks find that nothing waits, which one look at both classes tells.
            found = set(connection.scalars(sa.select(job.c.priority).distinct().where(_vacant(
                self._database.now_s(), tokens), *([] if only is None else [job.c.id.in_(only)]))))
            waiting = frozenset(priority for priority in Priority if priority.value in found and connection.scalar(
                sa.select(job.c.id).where(self._free(connection, priority, only, tokens)).limit(1)) is not None)
            return Survey(held={row.id: bool(row.cancel_requested) for row in held}, waiting=waiting,
                          batches=standings(connection, tokens) if any(row.batch_id for row in held) else {})

    def renew(self, tokens: Collection[str]) -> frozenset[str]:
        """Start the lease of every job still owned by these tokens anew; return the ids of those jobs."""
        with self._database.write() as connection:
            return frozenset(connection.execute(
                sa.update(job).where(job.c.owner.in_(tokens)).values(lease_until=self._lease_end())
                .returning(job.c.id)).scalars())

    def release(self, claim: Claim) -> None:
        """Hand the job back, unfinished: its running nodes are put back and not counted. Raises LeaseLost."""
        with self._database.write() as connection:
            advance_job(fence(connection, claim), JobStatus.QUEUED)
            charge_running(connection, claim.job.id)
            stopped = connection.execute(
                sa.update(node).where(node.c.job_id == claim.job.id, node.c.status == NodeStatus.RUNNING.value)
                .values(status=NodeStatus.PENDING.value).returning(node.c.id)).scalars().all()
            connection.execute(sa.update(job).where(job.c.id == claim.job.id).values(
                status=JobStatus.QUEUED.value, owner=None, lease_until=None))
            append(connection, claim.job.id, [
                Note(type=EventType.NODE_INTERRUPTED, node_id=node_id, data={"counted": False},
                     line=f"{node_id}: put back, the Director stops") for node_id in stopped])

    def cancel(self, claim: Claim) -> None:
        """End the job as cancelled, and every open node with it. Raises LeaseLost."""
        with self._database.write() as connection:
            close_cancelled(connection, claim.job.id, fence(connection, claim))

    def finish(self, claim: Claim, ending: Ending) -> None:
        """End the job; a node that is still open is cancelled. Raises LeaseLost."""
        with self._database.write() as connection:
            advance_job(fence(connection, claim), ending.status)
            charge_running(connection, claim.job.id)
            at = time.time()
            left = connection.execute(
                sa.update(node).where(node.c.job_id == claim.job.id, node.c.status.in_(OPEN_NODES))
                .values(status=NodeStatus.CANCELLED.value, finished_at=at).returning(node.c.id)).scalars().all()
            connection.execute(sa.update(job).where(job.c.id == claim.job.id).values(
                status=ending.status.value, owner=None, lease_until=None, finished_at=at,
                error=error_json(ending.error)))
            level = Level.INFO if ending.status is JobStatus.SUCCEEDED else Level.WARNING
            append(connection, claim.job.id, [
                *(Note(type=EventType.NODE_CANCELLED, node_id=id, line=f"{id}: cancelled") for id in left),
                Note(type=EventType.JOB_FINISHED, line=ending.line, level=level, data={
                    "status": ending.status.value, "error": error_json(ending.error)}),
            ])

    def _taking(self, token: str, limit: int, free: sa.ColumnElement[bool]) -> ReturningUpdate[Any]:
        picked = (sa.select(job.c.id).where(free).order_by(job.c.created_at, job.c.id).limit(limit)
                  .with_for_update(skip_locked=True).cte("picked"))
        # A CTE with a row lock is evaluated once. The condition is asked again because SQLite knows no row locks.
        return (sa.update(job).where(job.c.id.in_(sa.select(picked.c.id)), free)
                .values(owner=token, lease_until=self._lease_end(), status=JobStatus.RUNNING.value,
                        started_at=sa.func.coalesce(job.c.started_at, time.time()))
                .returning(job))

    def _free(self, connection: sa.Connection, priority: Priority, only: Collection[str] | None,
              held: Collection[str]) -> sa.ColumnElement[bool]:
        """Open, and nobody holds it: no owner, or another one whose lease is over by the lease clock. Of a batch only
        what it has use for.
        """
        free = sa.and_(job.c.priority == priority.value, _vacant(self._database.now_s(), held))
        if priority is Priority.BATCH:
            free = sa.and_(free, may_be_taken(connection))
        return free if only is None else sa.and_(free, job.c.id.in_(only))

    def _lease_end(self) -> sa.ColumnElement[float]:
        return self._database.now_s() + self._lease_s

    def _recover(self, connection: sa.Connection, job_id: str) -> None:
        """Put back what the last owner left running; what was interrupted too often is poison."""
        left = [NodeRow.of(row) for row in connection.execute(sa.select(node).where(
            node.c.job_id == job_id, node.c.status == NodeStatus.RUNNING.value).order_by(node.c.ord)).mappings()]
        note_waited(connection, job_id)
        charge_interrupted(connection, job_id, left)
        notes = [Note(type=EventType.JOB_STARTED, line="job: taken by a Director", data={"interrupted": len(left)})]
        notes.extend(self._interrupt(connection, found) for found in left)
        append(connection, job_id, notes)

    def _interrupt(self, connection: sa.Connection, found: NodeRow) -> Note:
        count = found.interruptions + 1
        here = sa.and_(node.c.job_id == found.job_id, node.c.id == found.id)
        if count < self._interruption_limit:
            connection.execute(sa.update(node).where(here).values(
                status=NodeStatus.PENDING.value, interruptions=count))
            return Note(type=EventType.NODE_INTERRUPTED, node_id=found.id, level=Level.WARNING,
                        line=f"{found.id}: attempt {found.attempt} was interrupted, its Director is gone",
                        data={"counted": True, "interruptions": count})
        error = ErrorRecord.of(PoisonNode(node_id=found.id, reason=f"its Director died {count} times while it ran"))
        connection.execute(sa.update(node).where(here).values(
            status=NodeStatus.FAILED.value, interruptions=count, error=error_json(error), finished_at=time.time()))
        return Note(type=EventType.NODE_FAILED, node_id=found.id, level=Level.ERROR,
                    line=f"{found.id}: failed: {error.message}", data={"error": error_json(error)})
