"""Which waiting call gets the next free slot of a lane. Knows tenants and jobs by id and share, not what a call does.

`FairQueue` is pure. Interactive work goes before batch work; but where batch work has got nothing for a set time, it
gets the next slot, so that it is slow beside a busy day and never stands still. Inside a class it is start-time fair
queueing (Goyal, Vin, Cheng, SIGCOMM 1996) at two levels: tenants share the lane, and the jobs of a tenant its share.
Who is served gets a start tag that grows by cost (a job's by cost / weight), the smallest tag goes next, and the tag
last served is the virtual time, at which newcomers start. So one shot behind a film of forty gets the next free slot, a
tenant with fifty films gets no more than one with a single film, and none is starved by an equal. Inside a job the call
with the longest remaining path goes first, because the film waits for it longest.

`Dispatcher` puts one queue in front of every lane, for one asyncio event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from bisect import insort
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import Protocol

from workflows.elastic import RECONSIDER_S, Tail, costs_ahead
from workflows.errors import InvalidSettings
from workflows.types import Priority

CLASSES = (Priority.INTERACTIVE, Priority.BATCH)
"""In this order."""


_Place = tuple[float, int, "Ticket"]
"""Highest rank first, then who came first."""


class Costed(Protocol):
    """What ranking needs of a node."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def deps(self) -> tuple[str, ...]:
        """What it waits for."""

    @property
    def cost(self) -> float:
        """What it takes."""


def path_ranks(nodes: Iterable[Costed]) -> Mapping[str, float]:
    """The cost of the longest path from each node (with itself) to the end of the job, by id."""
    by_id = {node.id: node for node in nodes}
    ranks = {node_id: 0.0 for node_id in by_id}
    order = tuple(TopologicalSorter({node.id: node.deps for node in by_id.values()}).static_order())
    # `ranks` holds the longest path behind a node until the node itself is reached, from the sink backwards.
    for node_id in reversed(order):
        node = by_id[node_id]
        ranks[node_id] += node.cost
        for dep in node.deps:
            ranks[dep] = max(ranks[dep], ranks[node_id])
    return ranks


def no_more() -> int:
    """Nothing else is to come."""
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One call that waits for a slot."""

    job_id: str
    tenant: str = ""
    """Whose job it is; empty: all who name none are one."""
    priority: Priority = Priority.INTERACTIVE
    weight: float = 1.0
    """Share among the jobs of its tenant and class, > 0."""
    cost: float = 1.0
    """What it will use of the lane, > 0; any unit, the same for all."""
    rank: float = 0.0
    """Remaining path; the highest of a job goes first."""
    elastic: bool = False
    """It may get several GPUs, where its lane has idle ones."""
    coming: Callable[[], int] = no_more
    """How many calls of its job will wait for this lane too, once what they need is there."""


@dataclass(slots=True, eq=False)
class _Sharer:
    """A tenant or a job that has tickets waiting."""

    start: float
    """Virtual start tag of its next ticket."""
    arrival: int
    waiting: int = 0


class _Shares:
    """Those who share a lane, or a tenant's part of it, in virtual time."""

    def __init__(self) -> None:
        self.virtual = 0.0
        self.sharers: dict[str, _Sharer] = {}
        # Where those left off who have nothing waiting; nobody must win by leaving the queue for a moment.
        self.left_at: dict[str, float] = {}

    def enter(self, name: str, arrival: int) -> None:
        """One more ticket of theirs waits."""
        if name not in self.sharers:
            self.sharers[name] = _Sharer(max(self.virtual, self.left_at.pop(name, 0.0)), arrival)
        self.sharers[name].waiting += 1

    def first(self) -> str:
        return min(self.sharers, key=lambda name: (self.sharers[name].start, self.sharers[name].arrival))

    def charge(self, name: str, share: float) -> None:
        """A ticket of theirs is served."""
        sharer = self.sharers[name]
        self.virtual = max(self.virtual, sharer.start)
        sharer.start += share
        self.leave(name)

    def leave(self, name: str) -> None:
        """One ticket of theirs less waits."""
        sharer = self.sharers[name]
        sharer.waiting -= 1
        if not sharer.waiting:
            self.left_at[name] = self.sharers.pop(name).start
            self.left_at = {other: at for other, at in self.left_at.items() if at > self.virtual}


class _Class:
    """The tickets of one priority."""

    def __init__(self) -> None:
        self.tenants = _Shares()
        self.jobs: defaultdict[str, _Shares] = defaultdict(_Shares)
        """By tenant."""
        self.tickets: defaultdict[tuple[str, str], list[_Place]] = defaultdict(list)
        """By tenant and job, best first."""
        self.waits_since_s = math.inf
        """When it was served last, or else began to wait; infinity: nothing waits."""

    def push(self, place: _Place, now_s: float) -> None:
        _, arrival, ticket = place
        if not self.tenants.sharers:
            self.waits_since_s = now_s
        self.tenants.enter(ticket.tenant, arrival)
        self.jobs[ticket.tenant].enter(ticket.job_id, arrival)
        insort(self.tickets[ticket.tenant, ticket.job_id], place, key=lambda entry: entry[:2])

    def pop(self, now_s: float) -> Ticket:
        tenant = self.tenants.first()
        job_id = self.jobs[tenant].first()
        ticket = self._take((tenant, job_id), 0)
        self.tenants.charge(tenant, ticket.cost)
        self.jobs[tenant].charge(job_id, ticket.cost / ticket.weight)
        self.waits_since_s = now_s if self.tenants.sharers else math.inf
        return ticket

    def discard(self, place: _Place) -> None:
        owner = (place[2].tenant, place[2].job_id)
        self._take(owner, self.tickets[owner].index(place))
        self.tenants.leave(owner[0])
        self.jobs[owner[0]].leave(owner[1])
        if not self.tenants.sharers:
            self.waits_since_s = math.inf

    def rest(self) -> None:
        self.tenants = _Shares()
        self.jobs.clear()

    def _take(self, owner: tuple[str, str], index: int) -> Ticket:
        line = self.tickets[owner]
        ticket = line.pop(index)[2]
        if not line:
            del self.tickets[owner]
        return ticket


class FairQueue:
    """Tickets in the order in which they shall be served."""

    def __init__(self, *, patience_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty. A class that waited for `patience_s` since it was served last is served next, once."""
        self._classes = {priority: _Class() for priority in CLASSES}
        self._arrivals = itertools.count()
        self._places: dict[int, _Place] = {}
        self._patience_s = patience_s
        self._clock = clock

    def __len__(self) -> int:
        return len(self._places)

    def push(self, ticket: Ticket) -> None:
        """Add a ticket; each object once. Raises ValueError unless weight and cost are above 0."""
        if not (ticket.weight > 0 and ticket.cost > 0):
            raise ValueError(f"weight {ticket.weight:g} and cost {ticket.cost:g} must be above 0")
        place = (-ticket.rank, next(self._arrivals), ticket)
        self._classes[ticket.priority].push(place, self._clock())
        self._places[id(ticket)] = place

    def pop(self) -> Ticket:
        """Take the ticket that goes next; raises IndexError when none waits."""
        waiting = [group for group in self._classes.values() if group.tenants.sharers]
        if not waiting:
            raise IndexError("no ticket waits")
        now_s = self._clock()
        starved = [group for group in waiting[1:] if now_s - group.waits_since_s >= self._patience_s]
        ticket = (starved or waiting)[0].pop(now_s)
        del self._places[id(ticket)]
        return ticket

    def discard(self, ticket: Ticket) -> bool:
        """Take a ticket out as if it had never come; False when it does not wait."""
        place = self._places.pop(id(ticket), None)
        if place is None:
            return False
        self._classes[ticket.priority].discard(place)
        return True

    def ahead(self) -> tuple[float, ...]:
        """What the calls cost that wait, and those that are about to; the dearest first."""
        waiting = [ticket for _, _, ticket in self._places.values()]
        jobs = {ticket.job_id: ticket for ticket in waiting}
        return costs_ahead([ticket.cost for ticket in waiting], sum(ticket.coming() for ticket in jobs.values()))

    def rest(self) -> None:
        """Nothing waits and nothing is served: what jobs used before counts no more."""
        for group in self._classes.values():
            group.rest()


class _Lane:
    """One pool of slots and its queue."""

    def __init__(self, capacity: int, patience_s: float, tail: Tail | None) -> None:
        self.capacity = capacity
        self.busy = 0
        self.queue = FairQueue(patience_s=patience_s)
        self.grants: dict[int, asyncio.Future[int]] = {}
        self.held: dict[int, int] = {}
        """Slots by ticket."""
        self.apart = asyncio.Lock()
        self._tail = tail
        self._again: asyncio.TimerHandle | None = None

    async def acquire(self, ticket: Ticket) -> int:
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.push(ticket)
        self.grants[id(ticket)] = granted
        if self._tail is not None:
            self._tail.came()
        self.pump()
        try:
            return await granted
        except asyncio.CancelledError:
            if not self.queue.discard(ticket):
                # The slot and the cancel came in the same moment.
                self.release(ticket)
            raise
        finally:
            self.grants.pop(id(ticket), None)

    def release(self, ticket: Ticket) -> None:
        self.busy -= self.held.pop(id(ticket))
        if self._tail is not None:
            self._tail.ended(id(ticket))
        self.pump()

    def pump(self) -> None:
        while self.busy < self.capacity and self.queue and (slots := self._slots_for_next()):
            ticket = self.queue.pop()
            granted, slots = self.grants[id(ticket)], slots if ticket.elastic else 1
            self.busy += slots
            self.held[id(ticket)] = slots
            if self._tail is not None:
                self._tail.began(id(ticket), ticket.cost, slots, self.capacity)
            if not granted.done():
                granted.set_result(slots)
        if not self.busy and not self.queue:
            self.queue.rest()

    def _slots_for_next(self) -> int:
        """One, or as many as there are GPUs for it; 0: it waits for more of them to be idle."""
        if self._tail is None or len(self.queue) > self.capacity:
            return 1  # in the second case the end is not in sight, and looking ahead would cost more than it could tell
        slots = self._tail.gpus_for_next(self.queue.ahead(), self.capacity)
        if not slots and self._again is None:
            self._again = asyncio.get_running_loop().call_later(RECONSIDER_S, self._reconsider)
        return slots

    def _reconsider(self) -> None:
        self._again = None
        self.pump()


class Dispatcher:
    """Slots of named lanes, given out fairly. For one event loop; not thread-safe."""

    def __init__(self, capacity: Mapping[str, int], *, patience_s: float = math.inf,
                 tails: Mapping[str, Tail] = MappingProxyType({})) -> None:
        """`capacity`: calls at the same time, by lane; a lane with 0 waits until it is resized. `tails`: of lanes where
        calls may get several slots at once, one for each GPU.

        `patience_s`: a lane that gave batch work nothing for so long, while some waited, gives it the next slot.
        """
        self._lanes = {lane: _Lane(_checked(lane, slots), patience_s, tails.get(lane))
                       for lane, slots in capacity.items()}

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes' names."""
        return tuple(self._lanes)

    @asynccontextmanager
    async def slot(self, lane: str, ticket: Ticket) -> AsyncIterator[int]:
        """Wait for a slot and hold it, or as many as are given, which it yields; a waiter that is cancelled leaves no
        trace.

        Raises InvalidSettings when there is no such lane.
        """
        pool = self._lane(lane)
        slots = await pool.acquire(ticket)
        try:
            yield slots
        finally:
            pool.release(ticket)

    def apart(self, lane: str) -> asyncio.Lock:
        """Entered before a slot, keeps a call from running beside any other that entered it."""
        return self._lane(lane).apart

    def resize(self, lane: str, slots: int) -> None:
        """Change a lane's capacity. Running calls go on; a smaller lane takes none until enough have ended."""
        pool = self._lane(lane)
        pool.capacity = _checked(lane, slots)
        pool.pump()

    def capacity(self, lane: str) -> int:
        """Slots of a lane."""
        return self._lane(lane).capacity

    def running(self, lane: str) -> int:
        """Slots of a lane that are held."""
        return self._lane(lane).busy

    def waiting(self, lane: str) -> int:
        """Calls that wait for a slot of a lane."""
        return len(self._lane(lane).queue)

    def _lane(self, lane: str) -> _Lane:
        if lane not in self._lanes:
            raise InvalidSettings(problem=f"no lane {lane!r}; lanes: {', '.join(self._lanes)}")
        return self._lanes[lane]


def _checked(lane: str, slots: int) -> int:
    if slots < 0:
        raise InvalidSettings(problem=f"lane {lane} cannot have {slots} slots; nearest valid: 0")
    return slots
