"""Which waiting call gets the next free slot of a lane. Knows jobs by id and share, nothing of what a call does.

`FairQueue` is pure. Between priority classes it is strict: interactive work first. Between the jobs of a class it is
start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): a job's next call carries a start tag that grows by
cost / weight with each call served, the smallest tag goes next, and the tag of the call last served is the class's
virtual time. A job that arrives starts at the virtual time, so one shot behind a film of forty gets the next free slot,
and none is starved by an equal. Inside a job the call with the longest remaining path goes first, because the film
waits for it longest.

`Dispatcher` puts one queue in front of every lane, for one asyncio event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import insort
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Protocol

from workflows.errors import InvalidSettings
from workflows.types import Priority

CLASSES = (Priority.INTERACTIVE, Priority.BATCH)
"""Strictly in this order."""


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
    priority: Priority = Priority.INTERACTIVE
    weight: float = 1.0
    """Share among the jobs of its class, > 0."""
    cost: float = 1.0
    """What it will use of the lane, > 0; any unit, the same for all."""
    rank: float = 0.0
    """Remaining path; the highest of a job goes first."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A job's tickets, best first."""

    start: float
    """Virtual start tag of its next ticket."""
    arrival: int
    tickets: list[tuple[float, int, Ticket]] = field(default_factory=list)


class _Class:
    """The jobs of one priority, in virtual time."""

    def __init__(self) -> None:
        self.virtual = 0.0
        self.waiting: dict[str, _Waiting] = {}
        # Where jobs with nothing waiting left off; a job must not win by leaving the queue for a moment.
        self.left_at: dict[str, float] = {}

    def next_job(self) -> str:
        return min(self.waiting, key=lambda job_id: (self.waiting[job_id].start, self.waiting[job_id].arrival))

    def serve(self, job_id: str) -> Ticket:
        job = self.waiting[job_id]
        ticket = job.tickets.pop(0)[2]
        self.virtual = max(self.virtual, job.start)
        job.start += ticket.cost / ticket.weight
        if not job.tickets:
            self.leave(job_id)
        return ticket

    def leave(self, job_id: str) -> None:
        self.left_at[job_id] = self.waiting.pop(job_id).start
        self.left_at = {other: at for other, at in self.left_at.items() if at > self.virtual}


class FairQueue:
    """Tickets in the order in which they shall be served."""

    def __init__(self) -> None:
        """Start empty."""
        self._classes = {priority: _Class() for priority in CLASSES}
        self._arrivals = itertools.count()
        self._places: dict[int, tuple[float, int, Ticket]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def push(self, ticket: Ticket) -> None:
        """Add a ticket; each object once. Raises ValueError unless weight and cost are above 0."""
        if not (ticket.weight > 0 and ticket.cost > 0):
            raise ValueError(f"weight {ticket.weight:g} and cost {ticket.cost:g} must be above 0")
        group, arrival = self._classes[ticket.priority], next(self._arrivals)
        if ticket.job_id not in group.waiting:
            start = max(group.virtual, group.left_at.pop(ticket.job_id, 0.0))
            group.waiting[ticket.job_id] = _Waiting(start, arrival)
        place = (-ticket.rank, arrival, ticket)
        insort(group.waiting[ticket.job_id].tickets, place, key=lambda entry: entry[:2])
        self._places[id(ticket)] = place

    def pop(self) -> Ticket:
        """Take the ticket that goes next; raises IndexError when none waits."""
        for group in self._classes.values():
            if group.waiting:
                ticket = group.serve(group.next_job())
                del self._places[id(ticket)]
                return ticket
        raise IndexError("no ticket waits")

    def discard(self, ticket: Ticket) -> bool:
        """Take a ticket out as if it had never come; False when it does not wait."""
        place = self._places.pop(id(ticket), None)
        if place is None:
            return False
        group = self._classes[ticket.priority]
        group.waiting[ticket.job_id].tickets.remove(place)
        if not group.waiting[ticket.job_id].tickets:
            group.leave(ticket.job_id)
        return True

    def rest(self) -> None:
        """Nothing waits and nothing is served: what jobs used before counts no more."""
        for group in self._classes.values():
            group.virtual = 0.0
            group.left_at.clear()

    def position(self, job_id: str) -> int | None:
        """How many tickets will be served before the job's first one; None when it has none waiting."""
        ahead = 0
        for group in self._classes.values():
            if job_id not in group.waiting:
                ahead += sum(len(job.tickets) for job in group.waiting.values())
                continue
            mine = group.waiting[job_id]
            for other in group.waiting.values():
                tag = other.start
                for _, _, ticket in other.tickets if other is not mine else ():
                    if (tag, other.arrival) > (mine.start, mine.arrival):
                        break
                    ahead += 1
                    tag += ticket.cost / ticket.weight
            return ahead
        return None


class _Lane:
    """One pool of slots and its queue."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.busy = 0
        self.queue = FairQueue()
        self.grants: dict[int, asyncio.Future[None]] = {}
        self.apart = asyncio.Lock()

    async def acquire(self, ticket: Ticket) -> None:
        granted = asyncio.get_running_loop().create_future()
        self.queue.push(ticket)
        self.grants[id(ticket)] = granted
        self.pump()
        try:
            await granted
        except asyncio.CancelledError:
            if not self.queue.discard(ticket):
                # The slot and the cancel came in the same moment.
                self.release()
            raise
        finally:
            self.grants.pop(id(ticket), None)

    def release(self) -> None:
        self.busy -= 1
        self.pump()

    def pump(self) -> None:
        while self.busy < self.capacity and self.queue:
            ticket = self.queue.pop()
            granted = self.grants[id(ticket)]
            self.busy += 1
            if not granted.done():
                granted.set_result(None)
        if not self.busy and not self.queue:
            self.queue.rest()


class Dispatcher:
    """Slots of named lanes, given out fairly. For one event loop; not thread-safe."""

    def __init__(self, capacity: Mapping[str, int]) -> None:
        """`capacity`: calls at the same time, by lane; a lane with 0 waits until it is resized."""
        self._lanes = {lane: _Lane(_checked(lane, slots)) for lane, slots in capacity.items()}

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes' names."""
        return tuple(self._lanes)

    @asynccontextmanager
    async def slot(self, *, lane: str, job_id: str, priority: Priority = Priority.INTERACTIVE, weight: float = 1.0,
                   cost: float = 1.0, rank: float = 0.0) -> AsyncIterator[None]:
        """Wait for a slot and hold it; a waiter that is cancelled leaves no trace.

        Raises InvalidSettings when there is no such lane.
        """
        pool = self._lane(lane)
        await pool.acquire(Ticket(job_id=job_id, priority=priority, weight=weight, cost=cost, rank=rank))
        try:
            yield
        finally:
            pool.release()

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

    def position(self, lane: str, job_id: str) -> int | None:
        """How many waiting calls go before the job's next one on a lane; None when it has none waiting there."""
        return self._lane(lane).queue.position(job_id)

    def _lane(self, lane: str) -> _Lane:
        if lane not in self._lanes:
            raise InvalidSettings(problem=f"no lane {lane!r}; lanes: {', '.join(self._lanes)}")
        return self._lanes[lane]


def _checked(lane: str, slots: int) -> int:
    if slots < 0:
        raise InvalidSettings(problem=f"lane {lane} cannot have {slots} slots; nearest valid: 0")
    return slots
