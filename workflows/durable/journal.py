"""What a Director writes about the nodes of a job it holds. Knows the tables and the fence, not why a node moved.

Every write is one transaction: fence, move, event. A write says the node's whole state, so doing it a second time (the
answer to the first was lost on the way) changes nothing and tells nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from workflows.durable import graph
from workflows.durable.batch_rules import check_batch, hold_if_spent
from workflows.durable.database import Database
from workflows.durable.events import Note, append, log_notes
from workflows.durable.leases import Claim, fence
from workflows.durable.rows import EventType, Level, NodeRow, error_json
from workflows.durable.tables import job, node
from workflows.durable.usage import Outcome, charge, charge_result, check_budget
from workflows.durable.verdict import Setback
from workflows.errors import IllegalMove, InvalidDocument, Problem
from workflows.types import Done, Json, NodeSpec, NodeStatus, Skipped, advance_node

MAX_TRACE_LINES = 60
"""Of an unexpected exception, in the job's log; the newest calls are the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a committed result changed."""

    node: NodeRow
    children: tuple[NodeRow, ...] = ()
    """The nodes it inserted, replaced or kept: all that it has now."""


class Journal:
    """Fenced writes; each raises LeaseLost when another Director owns the job now."""

    def __init__(self, database: Database) -> None:
        """Write to this database."""
        self._database = database

    def start(self, claim: Claim, old: NodeRow, *, key: str) -> NodeRow:
        """An attempt begins: written before anything is spent on it.

        Raises BudgetSpent when the job's API key may not spend more, and BatchHeld when its batch lets nothing start
        for now; nothing is written then.
        """
        new = replace(old, status=NodeStatus.RUNNING, attempt=old.attempt + 1, key=key, started_at_s=time.time(),
                      finished_at_s=None)
        note = Note(type=EventType.NODE_STARTED, node_id=new.id, line=f"{new.id}: attempt {new.attempt} starts",
                    data={"attempt": new.attempt, "shot_id": new.shot_id, "kind": new.kind.value})
        with self._database.write() as connection:
            fence(connection, claim)
            if _move(connection, old, new):
                # After the move: one that was written before is not asked again. What is raised here undoes it.
                check_budget(connection, claim.job.key_id, new)
                check_batch(connection, claim.job.batch_id, new, now_s=self._database.now_s())
                append(connection, new.job_id, [note])
        return new

    def hold_batch(self, batch_id: str) -> None:
        """Pause a batch that has used up its GPU-seconds; where it was refused for another reason nothing changes."""
        with self._database.write() as connection:
            hold_if_spent(connection, batch_id)

    def succeed(self, claim: Claim, old: NodeRow, done: Done, *, key: str) -> Settled:
        """A result: the node, the nodes it inserts and its warnings, in one commit.

        Raises InvalidDocument when the new nodes do not fit the job.
        """
        result, at = done.result, time.time()
        new = replace(old, status=NodeStatus.SUCCEEDED, key=key, artifact=result.artifact, error=None,
                      cached=done.cached, seconds=dict(result.seconds), finished_at_s=at,
                      started_at_s=None if done.cached else old.started_at_s)
        with self._database.write() as connection:
            fence(connection, claim)
            if not _move(connection, old, new):
                return _settled(connection, new)
            charge_result(connection, new, payer=claim.payer)
            if new.kind in graph.FAN_OUT:
                _adopt(connection, new, result.new_nodes)
            elif result.new_nodes:
                raise InvalidDocument(problems=(Problem(
                    problem=f"{new.id} is a {new.kind.value} node and cannot insert nodes", shot_id=new.shot_id),))
            if result.warnings:
                _warn(connection, new, result.warnings)
            append(connection, new.job_id, [_done_note(new, result.gpus), *(
                note for text in result.warnings
                for note in log_notes(f"{new.id}: {text}", level=Level.WARNING, node_id=new.id))])
            return _settled(connection, new)

    def retry(self, claim: Claim, old: NodeRow, setback: Setback) -> NodeRow:
        """The attempt failed and there will be another one."""
        new = replace(old, status=NodeStatus.PENDING, failures=setback.failures, crashes=setback.crashes,
                      error=setback.error)
        line = (f"{new.id}: attempt {new.attempt} failed: {setback.error.message}; next in {setback.wait_s:.1f} s, "
                f"{setback.tries_left} tries left")
        note = Note(type=EventType.NODE_RETRY, node_id=new.id, level=Level.WARNING, line=line,
                    data={"attempt": new.attempt, "wait_s": setback.wait_s, "error": error_json(setback.error)})
        return self._commit(claim, old, new, [note, *_trace_notes(new, setback)])

    def fail(self, claim: Claim, old: NodeRow, setback: Setback) -> NodeRow:
        """The node failed for good."""
        new = replace(old, status=NodeStatus.FAILED, failures=setback.failures, crashes=setback.crashes,
                      error=setback.error, finished_at_s=time.time())
        note = Note(type=EventType.NODE_FAILED, node_id=new.id, level=Level.ERROR,
                    line=f"{new.id}: failed: {setback.error.message}",
                    data={"attempt": new.attempt, "error": error_json(setback.error)})
        return self._commit(claim, old, new, [note, *_trace_notes(new, setback)])

    def skip(self, claim: Claim, old: NodeRow, skipped: Skipped) -> NodeRow:
        """The node will not run: what it needs has no result."""
        new = replace(old, status=NodeStatus.SKIPPED, finished_at_s=time.time())
        note = Note(type=EventType.NODE_SKIPPED, node_id=new.id, level=Level.WARNING,
                    line=f"{new.id}: skipped, no result of {', '.join(skipped.missing)}",
                    data={"missing": list(skipped.missing)})
        return self._commit(claim, old, new, [note])

    def spare(self, claim: Claim, old: NodeRow, *, why: str) -> NodeRow:
        """The node is done without a result: nobody needs one."""
        new = replace(old, status=NodeStatus.SUCCEEDED, key="", artifact=None, error=None, cached=False, seconds={},
                      started_at_s=None, finished_at_s=time.time())
        note = Note(type=EventType.NODE_SUCCEEDED, node_id=new.id, line=f"{new.id}: not needed: {why}",
                    data={"attempt": new.attempt, "shot_id": new.shot_id, "kind": new.kind.value})
        return self._commit(claim, old, new, [note])

    def reopen(self, claim: Claim, old: NodeRow) -> NodeRow:
        """The node's stored result is gone and something needs it."""
        new = replace(old, status=NodeStatus.PENDING, key="", artifact=None, cached=False, seconds={},
                      started_at_s=None, finished_at_s=None)
        note = Note(type=EventType.NODE_RETRY, node_id=new.id, level=Level.WARNING,
                    line=f"{new.id}: its result is no longer in the store; it will be made again")
        return self._commit(claim, old, new, [note])

    def log(self, claim: Claim, text: str, level: Level) -> None:
        """Lines for the job's log."""
        with self._database.write() as connection:
            fence(connection, claim)
            append(connection, claim.job.id, log_notes(text, level=level))

    def _commit(self, claim: Claim, old: NodeRow, new: NodeRow, notes: list[Note]) -> NodeRow:
        with self._database.write() as connection:
            fence(connection, claim)
            if _move(connection, old, new):
                if old.status is NodeStatus.RUNNING:
                    charge(connection, [old], Outcome.WASTED, payer=claim.payer)
                append(connection, new.job_id, notes)
        return new


# Built once: it is half of what a write costs otherwise.
_MOVE = sa.update(node).where(
    node.c.job_id == sa.bindparam("of_job"), node.c.id == sa.bindparam("of_node"),
    node.c.status == sa.bindparam("old_status"), node.c.attempt == sa.bindparam("old_attempt"))


def _move(connection: sa.Connection, old: NodeRow, new: NodeRow) -> bool:
    """Write the new state over the old one; False when it was written before. Raises IllegalMove on anything else."""
    advance_node(old.status, new.status)
    moved = connection.execute(_MOVE, {
        **new.state_columns(), "of_job": old.job_id, "of_node": old.id, "old_status": old.status.value,
        "old_attempt": old.attempt})
    if moved.rowcount:
        return True
    found = connection.execute(sa.select(node.c.status, node.c.attempt).where(
        node.c.job_id == old.job_id, node.c.id == old.id)).first()
    if found is None or (found.status, found.attempt) != (new.status.value, new.attempt):
        raise IllegalMove(what=f"node {new.id} of job {new.job_id}", old=str(found.status if found else "deleted"),
                          new=new.status.value)
    return False


def _adopt(connection: sa.Connection, parent: NodeRow, specs: Sequence[NodeSpec]) -> None:
    """Make `specs` the parent's children: insert new ones, keep equal ones, replace changed ones, drop the others."""
    rows = [NodeRow.of(row) for row in connection.execute(
        sa.select(node).where(node.c.job_id == parent.job_id)).mappings()]
    others = [row for row in rows if row.parent_id != parent.id]
    before = {row.id: row for row in rows if row.parent_id == parent.id}
    graph.check_graph(specs, known=[row.id for row in others])
    for row in others:
        lost = [dep for dep in row.deps if dep in before and dep not in {spec.id for spec in specs}]
        if lost:
            raise InvalidDocument(problems=(Problem(
                problem=f"node {row.id!r} needs {lost[0]!r}, which {parent.id!r} no longer makes"),))
    first = max((row.ord for row in others), default=-1) + 1
    for ord, spec in enumerate(specs, first):
        child = NodeRow.planned(parent.job_id, spec, ord=ord, parent_id=parent.id)
        known = before.pop(spec.id, None)
        if known is None:
            connection.execute(sa.insert(node).values(**child.plan_columns(), **child.state_columns()))
        else:
            # The plan may differ from the last one; counts and generation are the node's own.
            connection.execute(sa.update(node).where(node.c.job_id == child.job_id, node.c.id == child.id)
                               .values(**child.plan_columns()))
    if before:
        connection.execute(sa.delete(node).where(node.c.job_id == parent.job_id, node.c.id.in_(list(before))))


def _warn(connection: sa.Connection, new: NodeRow, texts: Sequence[str]) -> None:
    known = connection.scalar(sa.select(job.c.warnings).where(job.c.id == new.job_id)) or []
    told = [*known, *({"node_id": new.id, "text": text} for text in texts)]
    connection.execute(sa.update(job).where(job.c.id == new.job_id).values(warnings=told))


def _settled(connection: sa.Connection, new: NodeRow) -> Settled:
    if new.kind not in graph.FAN_OUT:
        return Settled(node=new)
    wanted = sa.select(node).where(node.c.job_id == new.job_id, node.c.parent_id == new.id).order_by(node.c.ord)
    return Settled(node=new, children=tuple(NodeRow.of(row) for row in connection.execute(wanted).mappings()))


def _done_note(new: NodeRow, gpus: int) -> Note:
    data: dict[str, Json] = {"attempt": new.attempt, "shot_id": new.shot_id, "kind": new.kind.value, "key": new.key}
    if new.cached:
        return Note(type=EventType.NODE_CACHED, node_id=new.id, line=f"{new.id}: reused from the store", data=data)
    took_s = (new.finished_at_s or 0.0) - (new.started_at_s or 0.0)
    helped, shared = (f" on {gpus} GPUs", {"gpus": gpus}) if gpus > 1 else ("", {})
    return Note(type=EventType.NODE_SUCCEEDED, node_id=new.id, line=f"{new.id}: done in {took_s:.1f} s{helped}",
                data={**data, "seconds": dict(new.seconds), **shared})


def _trace_notes(new: NodeRow, setback: Setback) -> list[Note]:
    lines = setback.trace.splitlines()[-MAX_TRACE_LINES:]
    return log_notes("\n".join(lines), level=Level.ERROR, node_id=new.id)
