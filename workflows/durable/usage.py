"""What work has cost and how long things waited: rows that outlive their jobs, written in the commits they speak of.

A GPU-second here is a second that a model worked on a node (text, steps, decoding), as its replica measured it; of an
attempt that ended without a result, the time since it started. Pictures that shared a run of the model are charged a
share of it each, and those without a result their time divided by the card's batch. A replica counts as one GPU,
whatever its share of one, and also where it has none; one whose calls several GPUs share, as that many. Captions,
interpolations and joins cost no GPU-seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from workflows.durable.rows import EventType, NodeRow
from workflows.durable.tables import api_key, event, job, node, usage
from workflows.errors import BudgetSpent
from workflows.types import LENT, NO_MODEL_LANES, NodeStatus

JOB = "job"
"""Kind of the rows that speak of a whole job."""


CARRIED = "carried"
"""Among a result's seconds: of earlier attempts, whose checkpoint it was made from."""


class Outcome(StrEnum):
    """What a row of the usage table tells."""

    USEFUL = "useful"
    """An attempt that made the result."""
    WASTED = "wasted"
    """One that failed, was cancelled, or was handed back."""
    INTERRUPTED = "interrupted"
    """One whose Director vanished; charged until the job's last sign of life, since nobody saw the end."""
    SAVED = "saved"
    """A result was found in the store; what making it had cost is what was saved."""
    CARRIED = "carried"
    """A result was made from an earlier attempt's checkpoint; what that attempt had spent on it. That was charged when
    the attempt ended, as wasted or interrupted, and is not charged again: so much less was lost."""
    WAITED = "waited"
    """A job was taken by a Director; `wall_s` after it was queued."""
    CANCELLED = "cancelled"
    """A job ended as cancelled; `wall_s` after that was asked for."""


_INSERT = sa.insert(usage)
FREE = (Outcome.SAVED.value, Outcome.CARRIED.value)
"""What is told and not charged."""


def check_budget(connection: sa.Connection, key_id: str, new: NodeRow) -> None:
    """Raise BudgetSpent when the key may not start another node on a model."""
    if not key_id or not takes_gpu(new):
        return
    found = connection.execute(sa.select(api_key.c.name, api_key.c.gpu_budget_s).where(
        api_key.c.id == key_id, api_key.c.gpu_budget_s.is_not(None))).first()
    if found is None:
        return
    spent_s = spent(connection, key_id).get(key_id, 0.0)
    if spent_s >= found.gpu_budget_s:
        raise BudgetSpent(key_id=key_id, job_id=new.job_id, problem=(
            f"key {found.name} has used {spent_s:.1f} of its {found.gpu_budget_s:g} GPU-seconds"))


def spent(connection: sa.Connection, key_id: str = "") -> Mapping[str, float]:
    """GPU-seconds that each key was charged, or this one."""
    wanted = (sa.select(usage.c.key_id, sa.func.sum(usage.c.gpu_s)).where(
        usage.c.outcome.not_in(FREE), usage.c.key_id.is_not(None)).group_by(usage.c.key_id))
    if key_id:
        wanted = wanted.where(usage.c.key_id == key_id)
    return {str(found): float(seconds) for found, seconds in connection.execute(wanted)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Whom the work for a job is charged to."""

    key_id: str = ""
    batch_id: str = ""

    def columns(self) -> dict[str, str | None]:
        """Of a row of the usage table."""
        return {"key_id": self.key_id or None, "batch_id": self.batch_id or None}


def charge(connection: sa.Connection, nodes: Sequence[NodeRow], outcome: Outcome, *, payer: Payer,
           until_s: float | None = None) -> None:
    """Write what an attempt at each node (of one job) has cost until its end, or until now."""
    at = time.time() if until_s is None else until_s
    rows = [{**_row(connection, found, outcome, at), **payer.columns()} for found in nodes]
    if rows:
        connection.execute(_INSERT, rows)


def charge_result(connection: sa.Connection, made: NodeRow, *, payer: Payer) -> None:
    """Write what a result has cost, or what finding it has saved, and what of it earlier attempts had done."""
    charge(connection, [made], Outcome.SAVED if made.cached else Outcome.USEFUL, payer=payer)
    if made.seconds.get(CARRIED):
        charge(connection, [made], Outcome.CARRIED, payer=payer)


def charge_running(connection: sa.Connection, job_id: str) -> None:
    """What the job has running is about to be stopped: charge it as wasted."""
    running = [NodeRow.of(row) for row in connection.execute(sa.select(node).where(
        node.c.job_id == job_id, node.c.status == NodeStatus.RUNNING.value)).mappings()]
    charge(connection, running, Outcome.WASTED, payer=payer_of(connection, job_id))


def charge_interrupted(connection: sa.Connection, job_id: str, nodes: Sequence[NodeRow]) -> None:
    """What a vanished Director left running."""
    if nodes:
        seen_s = connection.scalar(sa.select(sa.func.max(event.c.at)).where(event.c.job_id == job_id))
        charge(connection, nodes, Outcome.INTERRUPTED, payer=payer_of(connection, job_id), until_s=seen_s or 0.0)


def note_waited(connection: sa.Connection, job_id: str) -> None:
    """A Director took the job: say how long it waited, unless it only changed hands."""
    told = (EventType.JOB_QUEUED.value, EventType.JOB_RERUN.value, EventType.JOB_STARTED.value)
    last = connection.execute(sa.select(event.c.type, event.c.at).where(
        event.c.job_id == job_id, event.c.type.in_(told)).order_by(event.c.seq.desc()).limit(1)).first()
    if last is not None and last.type != EventType.JOB_STARTED.value:
        _note_job(connection, job_id, Outcome.WAITED, since_s=last.at)


def note_cancelled(connection: sa.Connection, job_id: str) -> None:
    """The job ends as cancelled: say how long that took."""
    asked_s = connection.scalar(sa.select(sa.func.max(event.c.at)).where(
        event.c.job_id == job_id, event.c.type == EventType.JOB_CANCEL_REQUESTED.value))
    if asked_s is not None:
        _note_job(connection, job_id, Outcome.CANCELLED, since_s=asked_s)


def _note_job(connection: sa.Connection, job_id: str, outcome: Outcome, *, since_s: float) -> None:
    at = time.time()
    connection.execute(_INSERT, {
        "at": at, "outcome": outcome.value, "kind": JOB, "lane": "", "node_key": "", "wall_s": max(at - since_s, 0.0),
        "gpu_s": 0.0, "steps": 0, "diffusion_s": 0.0, "job_id": job_id, **payer_of(connection, job_id).columns()})


def takes_gpu(node: NodeRow) -> bool:
    """A model, or a script whose writer runs here as one."""
    writer = node.payload.get("writer")
    return node.lane not in NO_MODEL_LANES or (isinstance(writer, Mapping) and "card" in writer)


def payer_of(connection: sa.Connection, job_id: str) -> Payer:
    """Who pays for a job."""
    row = connection.execute(sa.select(job.c.key_id, job.c.batch_id).where(job.c.id == job_id)).first()
    return Payer() if row is None else Payer(key_id=row.key_id or "", batch_id=row.batch_id or "")


def _row(connection: sa.Connection, found: NodeRow, outcome: Outcome, at: float) -> dict[str, object]:
    wall_s = max((found.finished_at_s or at) - (found.started_at_s or at), 0.0)
    diffusion_s = found.seconds.get("diffusion", 0.0)
    gpu_s, steps = 0.0, 0
    if outcome is Outcome.SAVED:
        gpu_s = connection.scalar(sa.select(sa.func.max(usage.c.gpu_s)).where(
            usage.c.node_key == found.key, usage.c.outcome == Outcome.USEFUL.value)) or 0.0
    elif outcome is Outcome.CARRIED:
        gpu_s = found.seconds[CARRIED]
    elif takes_gpu(found):
        batch = found.payload.get("batch")
        unmeasured_s = wall_s / batch if isinstance(batch, int) else wall_s
        gpus = found.payload.get("gpus")
        gpu_s = diffusion_s + found.seconds.get("decode", 0.0) if diffusion_s else unmeasured_s
        gpu_s = gpu_s * (gpus if isinstance(gpus, int) else 1) + found.seconds.get(LENT, 0.0)
        asked = found.payload.get("steps")
        # A result that began in the middle has made fewer steps than were asked for.
        whole = diffusion_s and not found.seconds.get(CARRIED)
        steps = asked if whole and isinstance(asked, int) else 0
    return {"at": at, "outcome": outcome.value, "kind": found.kind.value, "lane": found.lane,
            "job_id": found.job_id, "shot_id": found.shot_id, "node_key": found.key, "wall_s": wall_s,
            "gpu_s": gpu_s, "steps": steps, "diffusion_s": diffusion_s if steps else 0.0}
