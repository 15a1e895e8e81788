"""How much work waits for each model, counted from the rows of active jobs. Reads only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from statistics import median

import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.overview import OPEN_JOBS, OPEN_LIMIT, OPEN_NODES
from workflows.durable.tables import batch, job, node
from workflows.scaling import Backlog
from workflows.types import ONLY_BELOW, TERMINAL_NODES, NodeStatus, Priority

NEWEST = 50
"""Finished nodes of a lane that tell how long one takes."""
SETTLED = frozenset(status.value for status in TERMINAL_NODES)


class Backlogs:
    """The open work of one database."""

    def __init__(self, database: Database) -> None:
        """Read this database."""
        self._database = database

    def of(self, lanes: Collection[str]) -> dict[str, Backlog]:
        """What is open in each of these lanes, and may be started now: a paused batch needs no replica. Blocking."""
        wanted = (sa.select(node.c.job_id, node.c.lane, node.c.status, node.c.deps, node.c.parent_id, node.c.payload,
                            node.c.cost, job.c.priority, batch.c.id.label("batch_id"), batch.c.held,
                            batch.c.concurrency)
                  .join(job, job.c.id == node.c.job_id).outerjoin(batch, batch.c.id == job.c.batch_id)
                  .where(job.c.status.in_(OPEN_JOBS), node.c.status.in_(OPEN_NODES), node.c.lane.in_(lanes))
                  .limit(OPEN_LIMIT))
        unsettled = (sa.select(node.c.job_id, node.c.id).join(job, job.c.id == node.c.job_id)
                     .where(job.c.status.in_(OPEN_JOBS), node.c.status.not_in(SETTLED)))
        with self._database.read() as connection:
            rows = connection.execute(wanted).mappings().all()
            waited_for = {(job_id, node_id) for job_id, node_id in connection.execute(unsettled)} if rows else set()
            took = {lane: self._took(connection, lane) for lane in {row["lane"] for row in rows}}
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        costs: dict[str, list[float]] = defaultdict(list)
        states = [(row, _state(row, waited_for)) for row in rows]
        for row, state in _allowed(states):
            counts[row["lane"]][state] += 1
            counts[row["lane"]]["urgent"] += state != "coming" and row["priority"] == Priority.INTERACTIVE.value
            costs[row["lane"]].append(row["cost"])
        return {lane: Backlog(ready=counts[lane]["ready"], running=counts[lane]["running"],
                              coming=counts[lane]["coming"], interactive=counts[lane]["urgent"],
                              seconds=median(took.get(lane) or costs[lane] or [0.0])) for lane in lanes}

    @staticmethod
    def _took(connection: sa.Connection, lane: str) -> list[float]:
        """Seconds of the newest nodes of this lane that were really run."""
        wanted = (sa.select(node.c.finished_at - node.c.started_at)
                  .where(node.c.status == NodeStatus.SUCCEEDED.value, node.c.lane == lane,
                         node.c.started_at.is_not(None), sa.not_(node.c.cached))
                  .order_by(node.c.finished_at.desc()).limit(NEWEST))
        return [max(float(seconds), 0.0) for (seconds,) in connection.execute(wanted)]


def _state(row: sa.RowMapping, unsettled: Collection[tuple[str, str]]) -> str:
    if row["status"] == NodeStatus.RUNNING.value:
        return "running"
    return "coming" if any((row["job_id"], other) in unsettled for other in _others(row)) else "ready"


def _allowed(states: Iterable[tuple[sa.RowMapping, str]]) -> Iterable[tuple[sa.RowMapping, str]]:
    """Without what a batch keeps from starting: all of one that is held, and what is ready beyond a limit."""
    places: Counter[str | None] = Counter()
    for row, state in sorted(states, key=lambda one: one[1] != "running"):
        name, limit = row["batch_id"], row["concurrency"]
        is_full = limit is not None and places[name] >= limit
        if name is not None and state != "running" and (row["held"] or (state == "ready" and is_full)):
            continue
        places[name] += state != "coming"
        yield row, state


def _others(row: sa.RowMapping) -> Iterable[str]:
    """What the node waits for, as `graph.waits_for` says."""
    condition = row["payload"].get(ONLY_BELOW)
    score: Mapping[str, str] = condition if isinstance(condition, dict) else {}
    return (*row["deps"], row["parent_id"], str(score.get("score", "")))
