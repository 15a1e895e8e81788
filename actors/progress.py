"""ProgressBoard: the newest step of every running node, for whoever wants to watch. Soft state; knows no database.

Reporters send batches, observers long-poll. Every event has a sequence number inside an `epoch`; a board that was
restarted has a new epoch and starts empty, so reporters send what is live again and observers take a snapshot. Calls
from one reporter can arrive out of order and more than once: the newest (attempt, n) wins, older ones are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from configs.settings import ProgressSettings
from workflows.types import ProgressRecord

log = logging.getLogger(__name__)

ACTOR_NAME = "reelray-progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """One record with its place in the job's sequence."""

    seq: int
    record: ProgressRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """Answer to an observer."""

    epoch: str
    seq: int
    """Give this (and `epoch`) back with the next poll."""
    events: tuple[ProgressEvent, ...]
    is_snapshot: bool = False
    """The observer had missed something: `events` holds the newest record of each node instead of every step."""
    since: int = 0
    """Of a history: every event after this number is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Answer to a reporter."""

    epoch: str
    cancelled: tuple[str, ...] = ()
    """Ids of the jobs, among those reported, that were cancelled: stop their calls."""


class ProgressBoard:
    """The plain class behind the actor; one event loop, no threads."""

    def __init__(self, ring: int) -> None:
        """Keep the newest `ring` events per job."""
        self.epoch = uuid.uuid4().hex[:8]
        self._ring_size = ring
        self._seq = 0
        self._newest: dict[str, dict[str, ProgressEvent]] = {}
        self._rings: dict[str, deque[ProgressEvent]] = {}
        self._dropped: dict[str, int] = {}
        """Per job: the newest sequence number that fell out of the ring."""
        self._cancelled: set[str] = set()
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._backlogs: dict[str, tuple[float, Mapping[str, float]]] = {}
        """Per model card: when it was told, and the numbers."""

    async def report(self, records: Sequence[ProgressRecord]) -> Receipt:
        """Take a batch of records."""
        touched = {record.job_id for record in records if self._accept(record)}
        self._wake(touched)
        reported = {record.job_id for record in records}
        return Receipt(epoch=self.epoch, cancelled=tuple(sorted(reported & self._cancelled)))

    async def poll(self, job_id: str, epoch: str = "", after: int = 0, timeout_s: float = 10.0) -> Poll:
        """Events of a job after sequence number `after`; waits up to `timeout_s` for one (0: does not wait)."""
        if epoch != self.epoch or after < self._dropped.get(job_id, 0):
            return self._snapshot(job_id)
        events = self._after(job_id, after)
        if not events and timeout_s > 0:
            await self._wait(job_id, timeout_s)
            events = self._after(job_id, after)
        return Poll(epoch=self.epoch, seq=events[-1].seq if events else after, events=events)

    async def history(self, job_id: str) -> Poll:
        """Every event of a job that is still kept, for an observer who begins."""
        return Poll(epoch=self.epoch, seq=self._seq, events=tuple(self._rings.get(job_id, ())),
                    since=self._dropped.get(job_id, 0))

    async def cancel(self, job_id: str) -> None:
        """Tell reporters of this job to stop, also those whose caller is gone."""
        self._cancelled.add(job_id)

    async def forget(self, job_id: str) -> None:
        """Drop a finished or reopened job's records."""
        self._newest.pop(job_id, None)
        self._rings.pop(job_id, None)
        self._dropped.pop(job_id, None)
        self._cancelled.discard(job_id)
        self._wake({job_id})

    async def tell_backlogs(self, backlogs: Mapping[str, Mapping[str, float]]) -> None:
        """How much work waits for each model card, by whoever counts it."""
        for card, numbers in backlogs.items():
            self._backlogs[card] = (time.monotonic(), numbers)

    async def backlog(self, card: str) -> tuple[float, Mapping[str, float]]:
        """How many seconds ago it was counted, and the numbers; empty when it never was."""
        told_s, numbers = self._backlogs.get(card, (0.0, {}))
        return time.monotonic() - told_s, numbers

    async def ping(self) -> str:
        """The epoch."""
        return self.epoch

    def _accept(self, record: ProgressRecord) -> bool:
        nodes = self._newest.setdefault(record.job_id, {})
        known = nodes.get(record.node_id)
        if known and (record.attempt, record.n) <= (known.record.attempt, known.record.n):
            return False
        self._seq += 1
        event = ProgressEvent(seq=self._seq, record=record)
        nodes[record.node_id] = event
        ring = self._rings.setdefault(record.job_id, deque(maxlen=self._ring_size))
        if len(ring) == self._ring_size:
            self._dropped[record.job_id] = ring[0].seq
        ring.append(event)
        return True

    def _after(self, job_id: str, after: int) -> tuple[ProgressEvent, ...]:
        return tuple(event for event in self._rings.get(job_id, ()) if event.seq > after)

    def _snapshot(self, job_id: str) -> Poll:
        events = tuple(sorted(self._newest.get(job_id, {}).values(), key=lambda event: event.seq))
        return Poll(epoch=self.epoch, seq=self._seq, events=events, is_snapshot=True)

    async def _wait(self, job_id: str, timeout_s: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(job_id, [])
        waiters.append(waiter)
        await asyncio.wait([waiter], timeout=timeout_s)
        if waiter in waiters:
            waiters.remove(waiter)

    def _wake(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            for waiter in self._waiters.pop(job_id, ()):
                if not waiter.done():
                    waiter.set_result(None)


class ActorTransport:
    """Carries batches and hints to the actor; finds or creates it again after any failure."""

    def __init__(self, settings: ProgressSettings, namespace: str, *, timeout_s: float = 5.0) -> None:
        """Connects at the first send, so that a replica never waits for the board when it starts."""
        self._settings = settings
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._actor: ray.actor.ActorHandle | None = None

    def send(self, records: list[ProgressRecord]) -> Receipt:
        """Deliver a batch; raises Ray's own errors."""
        if self._actor is None:
            self._actor = progress_actor(self._settings, self._namespace)
        try:
            receipt: Receipt = ray.get(self._actor.report.remote(records), timeout=self._timeout_s)
        except Exception:
            self._actor = None
            raise
        return receipt

    def cancel(self, job_id: str) -> None:
        """Hint: calls of this job should stop, also those whose caller is gone. Does not wait for an answer."""
        self._hint(lambda actor: actor.cancel.remote(job_id))

    def forget(self, job_id: str) -> None:
        """Hint: the job starts anew; drop its records. Does not wait for an answer."""
        self._hint(lambda actor: actor.forget.remote(job_id))

    def tell_backlogs(self, backlogs: Mapping[str, Mapping[str, float]]) -> None:
        """Hint: how much work waits for each model card. Does not wait for an answer."""
        self._hint(lambda actor: actor.tell_backlogs.remote(backlogs))

    def _hint(self, call: Callable[[ray.actor.ActorHandle], object]) -> None:
        try:
            self._actor = self._actor or progress_actor(self._settings, self._namespace)
            call(self._actor)
        except Exception as error:  # noqa: BLE001 - a lost hint costs seconds of GPU time, a raised one the job
            log.warning("progress actor not reached: %s: %s", type(error).__name__, error)
            self._actor = None


def progress_actor(settings: ProgressSettings, namespace: str) -> ray.actor.ActorHandle:
    """The cluster's one ProgressActor, created if nobody did yet.

    Detached and restarted without end, but with an empty board each time; calls are not retried, reporters send again.
    """
    head = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(_head_node_id(), soft=True)
    return ray.remote(ProgressBoard).options(
        name=ACTOR_NAME, namespace=namespace, lifetime="detached", get_if_exists=True, max_restarts=-1,
        max_task_retries=0, num_cpus=0, max_concurrency=2000, scheduling_strategy=head,
    ).remote(settings.ring)


def _head_node_id() -> str:
    # On the head node, so that scaling a worker away does not take the board with it.
    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeID"])
    return str(ray.get_runtime_context().get_node_id())
