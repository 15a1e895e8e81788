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

from workflows.elastic import RECONSIDER_S, costs_ahead, speedup
from workflows.fair_queue import FairQueue, Ticket, path_ranks
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
    batch: str = ""
    place: int = 0
    """In the batch."""


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
                        batch_id=job.batch, since_s=job.place, rank=self._ranks[job.id][call.id])
        self._calls[id(ticket)] = (job, call)
        self._queue.push(ticket)

    def take(self, gpu: int) -> tuple[Job, Call] | None:
        return self._calls.pop(id(self._queue.pop())) if self._queue else None


    def waiting(self) -> list[float]:
        """What the calls that wait are thought to take."""
        return [call.cost for _, call in self._calls.values()]


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
        self._arrives_s = {job.id: job.arrives_s for job in jobs}
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


Rule = Callable[[Sequence[float], Sequence[float], Sequence[int]], int]
"""As `workflows.elastic.gpus_for_next`."""


def greedy(waiting_s: Sequence[float], free_in_s: Sequence[float], sizes: Sequence[int]) -> int:
    """What looks no further than this moment: a call that nothing waits behind gets all that is idle."""
    idle = sum(in_s <= 0 for in_s in free_in_s)
    return 0 if not idle else 1 if len(waiting_s) > 1 else max(size for size in sizes if size <= idle)


class ElasticSimulation(Simulation):
    """The same, where a call may get several GPUs; it is done sooner by the figures of `workflows.elastic`."""

    def __init__(self, jobs: Sequence[Job], gpus: int, rule: Rule, sizes: Sequence[int]) -> None:
        super().__init__(jobs, gpus)
        self._rule, self._sizes = rule, sizes
        self._expected_s = [0.0] * gpus
        """By GPU: when it is thought to be free."""
        self._coming = {(job.id, call.id) for job in jobs for call in job.calls if call.deps}

    def _give(self, order: Order, outcome: Outcome) -> None:
        assert isinstance(order, Fair)
        while self._idle and (waiting := order.waiting()):
            here = [job_id for job_id, _ in self._coming if self.now_s >= self._arrives_s[job_id]]
            gpus = self._rule(costs_ahead(waiting, len(here)), self._free_in_s(), self._sizes)
            if not gpus:
                self._at(self.now_s + RECONSIDER_S, lambda: None)
                break
            found = order.take(0)
            assert found is not None
            job, call = found
            team = [self._idle.pop() for _ in range(gpus)]
            took_s = call.seconds / speedup(gpus)
            outcome.busy_s += took_s * gpus
            for gpu in team:
                self._expected_s[gpu] = self.now_s + call.cost / speedup(gpus)
            self._at(self.now_s + took_s, self._ends(order, outcome, job, call, team))

    def _free_in_s(self) -> list[float]:
        return [0.0 if gpu in self._idle else max(self._expected_s[gpu] - self.now_s, 1e-3)
                for gpu in range(self._gpus)]

    def _ends(self, order: Order, outcome: Outcome, job: Job, call: Call, team: list[int]) -> Callable[[], None]:
        first, *others = team
        end = self._end(order, outcome, job, call, first)

        def ends() -> None:
            self._idle.extend(others)
            end()
            self._coming -= {key for key in self._coming if not self._left[key]}
        return ends


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
