"""Which waiting call gets the next free slot of a lane. Knows tenants and jobs by id and share, not what a call does.

`FairQueue` is pure. Interactive work goes before batch work; but where batch work has got nothing for a set time, it
gets the next slot, so that it is slow beside a busy day and never stands still. Inside a class it is start-time fair
queueing (Goyal, Vin, Cheng, SIGCOMM 1996) at two levels: tenants share the lane, and the jobs of a tenant its share.
Who is served gets a start tag that grows by cost (a job's by cost / weight), the smallest tag goes next, and the tag
last served is the virtual time, at which newcomers start. So one shot behind a film of forty gets the next free slot, a
tenant with fifty films gets no more than one with a single film, and none is starved by an equal. Inside a job the call
with the longest remaining path goes first, because the film waits for it longest.

`Dispatcher` puts one queue in front of every lane, for one asyncio event loop. A lane has seats, one for each replica,
and several calls at a seat: what the replica works on, and one that waits beside it so that its GPU never waits for an
RPC. Calls are seated in advance only while there are more waiting than seats: on the last lap a shot that waits behind
a long one could have started at whichever replica was free first.
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

from workflows.errors import InvalidSettings
from workflows.placement import Candidate, Placement, Wanted
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
    key: str = ""
    """Of the result; calls of one key share a seat. Empty: none."""
    kin: str = ""
    """See `workflows.placement`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """Calls at one seat of a lane."""

    at_once: int = 1
    """That its replica works on, >= 1."""
    ahead: int = 0
    """That wait there while there is plenty of work, >= 0."""

    @property
    def calls(self) -> int:
        """At a seat at most."""
        return self.at_once + self.ahead


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

    def rest(self) -> None:
        """Nothing waits and nothing is served: what jobs used before counts no more."""
        for group in self._classes.values():
            group.rest()


class _Lane:
    """One pool of slots and its queue."""

    def __init__(self, capacity: int, depth: Depth, patience_s: float) -> None:
        self.capacity = capacity
        self.busy = 0
        self.queue = FairQueue(patience_s=patience_s)
        self.grants: dict[int, asyncio.Future[int]] = {}
        self.apart = asyncio.Lock()
        self._depth = depth
        self._placement = Placement()
        self._seats: dict[int, int] = {}
        """Of those that have a slot."""

    @property
    def seats(self) -> int:
        return -(-self.capacity // self._depth.calls)

    async def acquire(self, ticket: Ticket) -> int:
        granted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.push(ticket)
        self.grants[id(ticket)] = granted
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
        self._placement.over(_name(ticket), str(self._seats.pop(id(ticket))))
        self.busy -= 1
        self.pump()

    def pump(self) -> None:
        while self.busy < self.capacity and self.queue and (seats := self._free()):
            ticket = self.queue.pop()
            granted = self.grants[id(ticket)]
            self.busy += 1
            wanted = Wanted(id=_name(ticket), key=ticket.key, kin=ticket.kin)
            seat = self._placement.choose(wanted, seats)
            assert seat is not None, "nothing is avoided here"
            self._placement.sent(wanted, seat)
            self._seats[id(ticket)] = int(seat.name)
            if not granted.done():
                granted.set_result(int(seat.name))
        if not self.busy and not self.queue:
            self.queue.rest()

    def _free(self) -> list[Candidate]:
        """Seats that take a call now: those whose replica would begin it, or all with room when many calls wait."""
        calls, plenty = self._placement.calls(), len(self.queue) > self.seats * self._depth.at_once
        most = self._depth.calls if plenty else self._depth.at_once
        seats = [Candidate(name=str(seat), room=self._depth.calls) for seat in range(self.seats)]
        # A twin may join its run at a full seat, but only when some seat is free: it takes a slot like any other.
        return seats if any(calls[seat.name] < most for seat in seats) else []


def _name(ticket: Ticket) -> str:
    return str(id(ticket))


class Dispatcher:
    """Slots of named lanes, given out fairly. For one event loop; not thread-safe."""

    def __init__(self, capacity: Mapping[str, int], *, depths: Mapping[str, Depth] = MappingProxyType({}),
                 patience_s: float = math.inf) -> None:
        """`capacity`: calls at the same time, by lane; a lane with 0 waits until it is resized.

        `depths`: how many of them are at one seat, one unless said.
        `patience_s`: a lane that gave batch work nothing for so long, while some waited, gives it the next slot.
        """
        self._lanes = {lane: _Lane(_checked(lane, slots), depths.get(lane, Depth()), patience_s)
                       for lane, slots in capacity.items()}

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes' names."""
        return tuple(self._lanes)

    @asynccontextmanager
    async def slot(self, lane: str, ticket: Ticket) -> AsyncIterator[int]:
        """Wait for a slot and hold it: the number of its seat, from 0. A waiter that is cancelled leaves no trace.

        Raises InvalidSettings when there is no such lane.
        """
        pool = self._lane(lane)
        seat = await pool.acquire(ticket)
        try:
            yield seat
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
