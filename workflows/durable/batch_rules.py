"""What a batch lets a Director do: which of its jobs may be taken, whether a further node may start. Pure SQL, inside
the Director's own transactions; who made the batch is in `batches`.

A node's start is the moment that counts, for every Director of the database alike: the batch's row is locked there,
after the job's. So a batch starts nothing once its pause is committed, and its limit holds over all Directors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from workflows.durable.rows import NodeRow
from workflows.durable.tables import batch, job, node, usage
from workflows.durable.usage import FREE, takes_gpu
from workflows.errors import BatchHeld
from workflows.types import JobStatus, NodeStatus

OPEN_JOBS = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)


class Held(StrEnum):
    """Why a batch starts no node."""

    NO = ""
    """It does."""
    PAUSED = "paused"
    """Somebody asked for that."""
    BUDGET = "budget"
    """Its GPU-seconds are used up."""


class BatchStatus(StrEnum):
    """Where a whole batch stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    """It starts nothing: somebody paused it, or its GPU-seconds are used up. What runs finishes."""
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    """Over; some films, or shots of them, are missing."""
    FAILED = "failed"
    """Over; there is no film."""
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Nothing will change until somebody asks for it."""
        return self not in (BatchStatus.QUEUED, BatchStatus.RUNNING, BatchStatus.PAUSED)


def status_of(jobs: Mapping[JobStatus, int], held: Held) -> BatchStatus:
    """The status of a batch with so many jobs in each status."""
    there = {status for status, count in jobs.items() if count}
    if there & {JobStatus.QUEUED, JobStatus.RUNNING}:
        is_new = there == {JobStatus.QUEUED}
        return BatchStatus.PAUSED if held else BatchStatus.QUEUED if is_new else BatchStatus.RUNNING
    if there & {JobStatus.SUCCEEDED, JobStatus.PARTIAL}:
        return BatchStatus.SUCCEEDED if there == {JobStatus.SUCCEEDED} else BatchStatus.PARTIAL
    return BatchStatus.FAILED if JobStatus.FAILED in there else BatchStatus.CANCELLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a Director needs to know of the batch of a job in its hands."""

    is_held: bool
    concurrency: int | None
    """Nodes at the same time; None: no limit."""


def standings(connection: sa.Connection, tokens: Collection[str]) -> Mapping[str, Standing]:
    """The batches of the jobs that these claims hold, by id."""
    wanted = (sa.select(batch.c.id, batch.c.held, batch.c.concurrency).distinct()
              .join(job, job.c.batch_id == batch.c.id).where(job.c.owner.in_(tokens)))
    return {row.id: Standing(is_held=row.held != Held.NO, concurrency=row.concurrency)
            for row in connection.execute(wanted)}


def may_be_taken(connection: sa.Connection) -> sa.ColumnElement[bool]:
    """Of a job: it is in no batch, or its batch has use for it now.

    Of a batch that runs so many nodes at a time only as many jobs are taken, the oldest that are open: others would
    keep the places of jobs that could run.
    """
    held = sa.select(batch.c.id).where(batch.c.held != Held.NO.value)
    conditions = [sa.or_(job.c.batch_id.is_(None), job.c.batch_id.not_in(held))]
    limited = (sa.select(batch.c.id, batch.c.concurrency).distinct().join(job, job.c.batch_id == batch.c.id)
               .where(job.c.status.in_(OPEN_JOBS), batch.c.concurrency.is_not(None), batch.c.held == Held.NO.value))
    for batch_id, concurrency in connection.execute(limited).all():
        last = connection.execute(
            sa.select(job.c.created_at, job.c.id).where(job.c.batch_id == batch_id, job.c.status.in_(OPEN_JOBS))
            .order_by(job.c.created_at, job.c.id).offset(concurrency - 1).limit(1)).first()
        if last is not None:
            edge = sa.tuple_(sa.literal(last.created_at, sa.Double), sa.literal(last.id, sa.String))
            conditions.append(sa.or_(job.c.batch_id.is_(None), job.c.batch_id != batch_id,
                                     sa.tuple_(job.c.created_at, job.c.id) <= edge))
    return sa.and_(*conditions)


def check_batch(connection: sa.Connection, batch_id: str, new: NodeRow, *, now_s: sa.ColumnElement[float]) -> None:
    """Raise BatchHeld when the batch lets this node, just written as running, not start; `now_s` is the lease clock.

    Nodes of jobs whose Director is gone do not count: nobody runs them.
    """
    found = None if not batch_id else connection.execute(
        sa.select(batch.c.held, batch.c.concurrency, batch.c.gpu_budget_s).where(batch.c.id == batch_id)
        .with_for_update()).first()
    if found is None:
        return
    if found.held != Held.NO:
        raise BatchHeld(batch_id=batch_id, reason=found.held)
    if found.concurrency is not None:
        running = (sa.select(sa.func.count()).select_from(node).join(job, job.c.id == node.c.job_id).where(
            job.c.batch_id == batch_id, node.c.status == NodeStatus.RUNNING.value, job.c.lease_until >= now_s))
        if (connection.scalar(running) or 0) > found.concurrency:
            raise BatchHeld(batch_id=batch_id, reason=f"{found.concurrency} nodes run")
    if found.gpu_budget_s is not None and takes_gpu(new) and spent_s(connection, batch_id) >= found.gpu_budget_s:
        raise BatchHeld(batch_id=batch_id, reason=Held.BUDGET.value)


def hold_if_spent(connection: sa.Connection, batch_id: str) -> None:
    """Pause a batch that has used up its budget, unless it was given more meanwhile."""
    found = connection.execute(sa.select(batch.c.held, batch.c.gpu_budget_s).where(batch.c.id == batch_id)
                               .with_for_update()).first()
    if (found is not None and found.held == Held.NO and found.gpu_budget_s is not None
            and spent_s(connection, batch_id) >= found.gpu_budget_s):
        connection.execute(sa.update(batch).where(batch.c.id == batch_id).values(held=Held.BUDGET.value))


def spent_s(connection: sa.Connection, batch_id: str) -> float:
    """GPU-seconds that were charged to a batch, also for jobs of it that are forgotten."""
    return float(connection.scalar(sa.select(sa.func.sum(usage.c.gpu_s)).where(
        usage.c.batch_id == batch_id, usage.c.outcome.not_in(FREE))) or 0.0)
