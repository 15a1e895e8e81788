"""Opening a finished job again, inside a verb's transaction. Knows the tables, not which verb it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

from workflows.durable import graph
from workflows.durable.events import Note, append
from workflows.durable.rows import EventType, NodeRow
from workflows.durable.tables import job, node
from workflows.errors import JobConflict, UnknownJob
from workflows.types import JobStatus, Json, NodeStatus, advance_job, advance_node


def lock_job(connection: sa.Connection, job_id: str) -> sa.RowMapping:
    """The job's row, locked until the transaction ends. Raises UnknownJob."""
    row = connection.execute(sa.select(job).where(job.c.id == job_id).with_for_update()).mappings().first()
    if row is None:
        raise UnknownJob(job_id=job_id)
    return row


def lock_finished(connection: sa.Connection, job_id: str) -> sa.RowMapping:
    """The row of a job that is over, locked. Raises UnknownJob, and JobConflict while it is active."""
    row = lock_job(connection, job_id)
    status = JobStatus(row["status"])
    if not status.is_terminal:
        raise JobConflict(job_id=job_id, problem=f"is {status.value}; cancel it, or wait until it is over")
    return row


def nodes_of(connection: sa.Connection, job_id: str) -> tuple[NodeRow, ...]:
    """The job's nodes, in order."""
    wanted = sa.select(node).where(node.c.job_id == job_id).order_by(node.c.ord)
    return tuple(NodeRow.of(row) for row in connection.execute(wanted).mappings())


def check_inputs(job_id: str, nodes: Collection[NodeRow], reached: frozenset[str]) -> None:
    """A chosen node that must be skipped again at once is a mistake in the selection, not work."""
    by_id = {found.id: found for found in nodes}
    for found in nodes:
        if found.id not in reached:
            continue
        for dep in graph.needs(found):
            if dep not in reached and by_id[dep].status is not NodeStatus.SUCCEEDED:
                raise JobConflict(job_id=job_id, problem=f"{found.id} needs {dep}, which is {by_id[dep].status.value}; "
                                                         f"select {by_id[dep].shot_id or dep} too")


def reopen(connection: sa.Connection, row: sa.RowMapping, nodes: Collection[NodeRow],
           generations: Mapping[str, int]) -> None:
    """Make these nodes pending, and their job queued; `generations` are those that change."""
    for found in nodes:
        if found.status is not NodeStatus.PENDING:
            advance_node(found.status, NodeStatus.PENDING)
        connection.execute(sa.update(node).where(node.c.job_id == found.job_id, node.c.id == found.id).values(
            status=NodeStatus.PENDING.value, failures=0, crashes=0, interruptions=0, key="", artifact=None, error=None,
            cached=False, seconds={}, started_at=None, finished_at=None,
            generation=generations.get(found.id, found.generation)))
    ids: list[Json] = [found.id for found in nodes]
    advance_job(JobStatus(row["status"]), JobStatus.QUEUED)
    connection.execute(sa.update(job).where(job.c.id == row["id"]).values(
        status=JobStatus.QUEUED.value, cancel_requested=False, owner=None, lease_until=None, started_at=None,
        finished_at=None, error=None,
        warnings=[warning for warning in row["warnings"] if warning["node_id"] not in ids]))
    line = f"job: queued again for {', '.join(found.id for found in nodes)}"
    append(connection, row["id"], [
        Note(type=EventType.JOB_RERUN, line=line, data={"nodes": ids, "force": bool(generations)})])
