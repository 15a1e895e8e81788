"""When a job will be over: rows of this database as the estimate's input, asked for now and then. Knows no loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
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


def work_of(node: NodeRow, record: ProgressRecord | None) -> Work:
    """A node as the estimate sees it."""
    is_live = record is not None and node.status is NodeStatus.RUNNING and record.attempt == node.attempt
    return Work(job_id=node.job_id, id=node.id, kind=node.kind, lane=node.lane, cost=node.cost, deps=node.deps,
                shape=shape_of(node.kind, node.payload), fraction=record.fraction if record and is_live else 0.0)
