"""What a failed attempt means: another one after a while, or the end of the node. Pure: knows no clock, no database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from configs.settings import EngineSettings
from workflows.durable.rows import NodeRow
from workflows.durable.shortage import tries
from workflows.errors import ErrorRecord, PoisonNode, ReplicaLost, Retry

JITTER = 0.2
"""Share by which waits differ, so that shots that failed together do not come back together."""
MAX_DOUBLINGS = 30
"""Far beyond every cap; keeps the power finite when a deployment refuses calls for days."""

Draw = Callable[[], float]
"""A random number in [0, 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """An attempt that ended without a result, and the node's counts after it."""

    error: ErrorRecord
    failures: int
    crashes: int
    final: bool
    """No further attempt."""
    wait_s: float = 0.0
    """Until the next attempt."""
    tries_left: int = 0
    trace: str = ""
    """Of an exception that nobody expected."""


def judge(error: Exception, node: NodeRow, *, refusals: int, settings: EngineSettings, draw: Draw) -> Setback:
    """Decide by the error's own `retry`: never, counted, or free.

    Free ones use up no try: the death of a replica counts towards `poison_limit`, a refusal for lack of room
    (`refusals` in a row, with this one) only waits.
    """
    record = ErrorRecord.of(error)
    failures, crashes = node.failures, node.crashes
    times, floor_s, final = refusals, settings.poll_s, False
    if isinstance(error, ReplicaLost):
        times = crashes = crashes + 1
        final = crashes >= settings.poison_limit
        if final:
            record = ErrorRecord.of(PoisonNode(
                node_id=node.id, reason=f"its replica died {crashes} times while it ran; last: {error.reason}"))
    elif record.retry is not Retry.FREE:
        times = failures = failures + 1
        floor_s = 0.0
        final = record.retry is Retry.NEVER or failures >= tries(error, node, settings)
    wait_s = 0.0 if final else max(floor_s, backoff_s(times, settings=settings, draw=draw))
    return Setback(error=record, failures=failures, crashes=crashes, final=final, wait_s=wait_s,
                   tries_left=max(tries(error, node, settings) - failures, 0))


def backoff_s(times: int, *, settings: EngineSettings, draw: Draw) -> float:
    """Wait after the `times`-th setback in a row (from 1): doubles each time, jittered, never above `max_backoff_s`."""
    doubled = settings.backoff_s * 2.0 ** min(times - 1, MAX_DOUBLINGS)
    return min(doubled, settings.max_backoff_s / (1 + JITTER)) * (1 - JITTER + 2 * JITTER * draw())
