"""When a job will be over: rows of this database as the estimate's input, asked for now and then. Knows no loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from workflows.durable.graph import FAN_OUT
from workflows.durable.overview import Overview
from workflows.durable.rows import JobRow, NodeRow
from workflows.estimate import Eta, Pace, Work, estimate, shape_of
from workflows.types import NodeStatus, Priority, ProgressRecord

PACE_AGE_S = 10.0
"""What is learned may be this old."""
BACKLOG_AGE_S = 2.0
"""So may the work of other jobs."""

T = TypeVar("T")


class Remembered(Generic[T]):
    """A value that is asked for again when it is too old. Safe to use from several threads."""

    def __init__(self, ask: Callable[[], T], age_s: float) -> None:
        """`ask` is called by whoever finds the value older than `age_s`; the others wait."""
        self._ask = ask
        self._age_s = age_s
        self._lock = threading.Lock()
        self._value: T | None = None
        self._asked_s = -age_s

    def get(self) -> T:
        """The value."""
        with self._lock:
            if self._value is None or time.monotonic() - self._asked_s >= self._age_s:
                self._value = self._ask()
                self._asked_s = time.monotonic()
            return self._value


class Forecast:
    """Estimates for the jobs of one database."""

    def __init__(self, overview: Overview, slots: Mapping[str, int]) -> None:
        """`slots`: calls in flight that each lane has room for."""
        self._slots = slots
        self._pace = Remembered(lambda: Pace(overview.finished()), PACE_AGE_S)
        self._backlog: Remembered[tuple[tuple[Work, Priority], ...]] = Remembered(overview.open_work, BACKLOG_AGE_S)

    @property
    def pace(self) -> Pace:
        """What was learned so far."""
        return self._pace.get()

    def eta(self, job: JobRow, nodes: Sequence[NodeRow], live: Mapping[str, ProgressRecord]) -> Eta | None:
        """Seconds until an active job is over; None when it is over, or nothing is known of one of its nodes."""
        open_nodes = [node for node in nodes if not node.status.is_terminal]
        # A script that was not told yet has nodes that nobody knows.
        if job.status.is_terminal or any(node.kind in FAN_OUT for node in open_nodes):
            return None
        others = [(work, rank) for work, rank in self._backlog.get() if work.job_id != job.id]
        return estimate([work_of(node, live.get(node.id)) for node in open_nodes], others, priority=job.priority,
                        pace=self.pace, slots=self._slots)

    def eta_of_batch(self, nodes: Sequence[NodeRow], concurrency: int | None) -> Eta | None:
        """Seconds until these open nodes of several batch jobs are done, no more than so many at a time; None when
        nothing is known of one of them.
        """
        if any(node.kind in FAN_OUT for node in nodes):
            return None
        mine = [_renamed(work_of(node, None)) for node in nodes]
        jobs = {node.job_id for node in nodes}
        others = [(work, rank) for work, rank in self._backlog.get() if work.job_id not in jobs]
        found = estimate(mine, others, priority=Priority.BATCH, pace=self.pace, slots=self._slots)
        if found is None or concurrency is None:
            return found
        in_turn_s = sum(map(self.pace.expected_s, mine)) / concurrency
        return Eta(p50_s=max(found.p50_s, in_turn_s), p90_s=max(found.p90_s, in_turn_s))


def _renamed(work: Work) -> Work:
    """Under an id that no node of another job has."""
    return replace(work, id=f"{work.job_id}/{work.id}", deps=tuple(f"{work.job_id}/{dep}" for dep in work.deps))


def work_of(node: NodeRow, record: ProgressRecord | None) -> Work:
    """A node as the estimate sees it."""
    is_live = record is not None and node.status is NodeStatus.RUNNING and record.attempt == node.attempt
    return Work(job_id=node.job_id, id=node.id, kind=node.kind, lane=node.lane, cost=node.cost, deps=node.deps,
                shape=shape_of(node.kind, node.payload), fraction=record.fraction if record and is_live else 0.0)
