"""A discrete simulation of jobs on GPUs, without overhead: what the order of calls alone is worth.

The product's own queue decides (`FairQueue`, `path_ranks`), in simulated time. Beside it two orders that people have:
first come first served, and every GPU with a list of its own, dealt out beforehand.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from workflows.dispatch import FairQueue, Ticket, path_ranks
from workflows.types import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A node that takes a GPU."""

    id: str
    """Unique in its job."""
    seconds: float
    """What it takes."""
    cost: float
    """What it is thought to take."""
    deps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Calls that come together."""

    id: str
    calls: tuple[Call, ...]
    tenant: str = ""
    priority: Priority = Priority.INTERACTIVE
    arrives_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """When everything was over; seconds since the start."""

    ends_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By job."""
    busy_s: float = 0.0

    @property
    def makespan_s(self) -> float:
        return max(self.ends_s.values())

    def mean_wait_s(self, jobs: Sequence[Job]) -> float:
        """From a job's arrival to its end."""
        return sum(self.ends_s[job.id] - job.arrives_s for job in jobs) / len(jobs)


class Order(Protocol):
    """Who goes next. GPUs are numbers."""

    def add(self, job: Job, call: Call) -> None:
        """The call can run."""

    def take(self, gpu: int) -> tuple[Job, Call] | None:
        """The call for this GPU, if it has any to do."""


class Fair:
    """The product's queue."""

    def __init__(self, jobs: Sequence[Job], clock: Callable[[], float], patience_s: float) -> None:
        self._queue = FairQueue(patience_s=patience_s, clock=clock)
        self._ranks: Mapping[str, Mapping[str, float]] = {job.id: path_ranks(job.calls) for job in jobs}
        self._calls: dict[int, tuple[Job, Call]] = {}

    def add(self, job: Job, call: Call) -> None:
        ticket = Ticket(job_id=job.id, tenant=job.tenant, priority=job.priority, cost=call.cost,
                        rank=self._ranks[job.id][call.id])
        self._calls[id(ticket)] = (job, call)
        self._queue.push(ticket)

    def take(self, gpu: int) -> tuple[Job, Call] | None:
        return self._calls.pop(id(self._queue.pop())) if self._queue else None


class Fifo:
    """First come, first served."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Job, Call]] = deque()

    def add(self, job: Job, call: Call) -> None:
        self._calls.append((job, call))

    def take(self, gpu: int) -> tuple[Job, Call] | None:
        return self._calls.popleft() if self._calls else None


class Static:
    """Each GPU has its own list; shots are dealt out in turn, all calls of a shot to one GPU."""

    def __init__(self, jobs: Sequence[Job], gpus: int) -> None:
        turns = itertools.count()
        shots: dict[tuple[str, str], int] = {}
        for job in jobs:
            for call in job.calls:
                shot = (job.id, call.id.partition(".")[0])
                if shot not in shots:
                    shots[shot] = next(turns) % gpus
        self._gpu_of = shots
        self._calls: list[deque[tuple[Job, Call]]] = [deque() for _ in range(gpus)]

    def add(self, job: Job, call: Call) -> None:
        self._calls[self._gpu_of[job.id, call.id.partition(".")[0]]].append((job, call))

    def take(self, gpu: int) -> tuple[Job, Call] | None:
        return self._calls[gpu].popleft() if self._calls[gpu] else None


class Simulation:
    """One run of some jobs on some GPUs, under one order."""

    def __init__(self, jobs: Sequence[Job], gpus: int) -> None:
        self.now_s = 0.0
        self._jobs, self._gpus = jobs, gpus
        self._number = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._idle = list(range(gpus))
        self._left = {(job.id, call.id): len(call.deps) for job in jobs for call in job.calls}
        self._users: defaultdict[tuple[str, str], list[tuple[Job, Call]]] = defaultdict(list)
        for job in jobs:
            for call in job.calls:
                for dep in call.deps:
                    self._users[job.id, dep].append((job, call))

    def run(self, order: Order) -> Outcome:
        outcome = Outcome()
        for job in self._jobs:
            self._at(job.arrives_s, self._arrival(order, job))
        while self._events:
            self.now_s = self._events[0][0]
            # All that happens in one moment, before anybody is given a GPU.
            while self._events and self._events[0][0] == self.now_s:
                heapq.heappop(self._events)[2]()
            self._give(order, outcome)
        return outcome

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._number), what))

    def _arrival(self, order: Order, job: Job) -> Callable[[], None]:
        def arrive() -> None:
            for call in job.calls:
                if not call.deps:
                    order.add(job, call)
        return arrive

    def _give(self, order: Order, outcome: Outcome) -> None:
        still_idle = []
        for gpu in self._idle:
            found = order.take(gpu)
            if found is None:
                still_idle.append(gpu)
                continue
            job, call = found
            outcome.busy_s += call.seconds
            self._at(self.now_s + call.seconds, self._end(order, outcome, job, call, gpu))
        self._idle = still_idle

    def _end(self, order: Order, outcome: Outcome, job: Job, call: Call, gpu: int) -> Callable[[], None]:
        def end() -> None:
            self._idle.append(gpu)
            outcome.ends_s[job.id] = self.now_s
            for other, user in self._users[job.id, call.id]:
                self._left[other.id, user.id] -= 1
                if not self._left[other.id, user.id]:
                    order.add(other, user)
        return end


def lower_bound_s(jobs: Sequence[Job], gpus: int) -> float:
    """No order ends sooner: all work over all GPUs, the longest path, or calls that must share a GPU.

    The last is the pairing bound: of the k * gpus + 1 longest calls, k + 1 meet on one GPU.
    """
    calls = sorted((call.seconds for job in jobs for call in job.calls), reverse=True)
    paths = max(max(path_ranks(_as_they_are(job.calls)).values()) for job in jobs)
    pairs = [sum(calls[k * gpus - k:k * gpus + 1]) for k in range(1, (len(calls) - 1) // gpus + 1)]
    return max(sum(calls) / gpus, paths, *pairs)


def _as_they_are(calls: Sequence[Call]) -> list[Call]:
    return [Call(id=call.id, seconds=call.seconds, cost=call.seconds, deps=call.deps) for call in calls]
