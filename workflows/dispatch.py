"""Which waiting call gets the next free slot of a lane, and which seat. For one asyncio event loop.

Every lane has a queue of its own (`fair_queue`) and seats, one for each replica. Several calls are at a seat: what the
replica works on, and one that waits beside it so that its GPU never waits for an RPC. Calls are seated in advance only
while there are more waiting than seats: on the last lap a shot that waits behind a long one could have started at
whichever replica was free first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType

from workflows.elastic import RECONSIDER_S, Tail
from workflows.errors import InvalidSettings
from workflows.fair_queue import FairQueue, Ticket
from workflows.placement import Candidate, Placement, Wanted


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


class _Lane:
    """One pool of slots and its queue."""

    def __init__(self, capacity: int, depth: Depth, patience_s: float, tail: Tail | None) -> None:
        self.capacity = capacity
        self.busy = 0
        self.queue = FairQueue(patience_s=patience_s)
        self.grants: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self.apart = asyncio.Lock()
        self._depth = depth
        self._placement = Placement()
        self._held: dict[int, tuple[int, ...]] = {}
        """Seats of those that have a slot, by ticket."""
        self._tail = tail
        self._again: asyncio.TimerHandle | None = None

    @property
    def seats(self) -> list[Candidate]:
        return [Candidate(name=str(seat), room=self._depth.calls)
                for seat in range(-(-self.capacity // self._depth.calls))]

    async def acquire(self, ticket: Ticket) -> tuple[int, ...]:
        granted: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()
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
        seats = self._held.pop(id(ticket))
        for place, seat in enumerate(seats):
            self._placement.over(_name(ticket, place), str(seat))
        self.busy -= len(seats)
        if self._tail is not None:
            self._tail.ended(id(ticket))
        self.pump()

    def pump(self) -> None:
        while self.busy < self.capacity and self.queue and (seats := self._seats_for_next()):
            ticket = self.queue.pop()
            granted, taken = self.grants[id(ticket)], self._take(ticket, seats if ticket.elastic else 1)
            self.busy += len(taken)
            self._held[id(ticket)] = taken
            if self._tail is not None:
                self._tail.began(id(ticket), ticket.cost, len(taken), self.capacity)
            if not granted.done():
                granted.set_result(taken)
        if not self.busy and not self.queue:
            self.queue.rest()

    def _seats_for_next(self) -> int:
        """One, or as many as there are idle ones for it; 0: it waits for a seat, or for more of them.

        A seat is free when its replica would begin the call, or, while much waits, when there is room beside it. (A
        twin may join its run at a full seat, but only when some seat is free: it takes a slot like any other.)
        """
        calls, seats = self._placement.calls(), self.seats
        plenty = len(self.queue) > len(seats) * self._depth.at_once
        most = self._depth.calls if plenty else self._depth.at_once
        if all(calls[seat.name] >= most for seat in seats):
            return 0
        if self._tail is None or len(self.queue) > self.capacity:
            return 1  # in the second case the end is not in sight, and looking ahead would cost more than it could tell
        wanted = self._tail.gpus_for_next(self.queue.ahead(), self.capacity)
        if not wanted and self._again is None:
            self._again = asyncio.get_running_loop().call_later(RECONSIDER_S, self._reconsider)
        return wanted

    def _take(self, ticket: Ticket, count: int) -> tuple[int, ...]:
        seats, taken = self.seats, []
        for place in range(count):
            wanted = Wanted(id=_name(ticket, place), key="" if place else ticket.key, kin=ticket.kin)
            seat = self._placement.choose(wanted, seats)
            assert seat is not None, "nothing is avoided here"
            self._placement.sent(wanted, seat)
            taken.append(int(seat.name))
        return tuple(taken)

    def _reconsider(self) -> None:
        self._again = None
        self.pump()


def _name(ticket: Ticket, place: int) -> str:
    return f"{id(ticket)} {place}"


class Dispatcher:
    """Slots of named lanes, given out fairly. For one event loop; not thread-safe."""

    def __init__(self, capacity: Mapping[str, int], *, depths: Mapping[str, Depth] = MappingProxyType({}),
                 patience_s: float = math.inf, tails: Mapping[str, Tail] = MappingProxyType({})) -> None:
        """`capacity`: calls at the same time, by lane; a lane with 0 waits until it is resized.

        `depths`: how many of them are at one seat, one unless said.
        `tails`: of lanes where a call may get several seats at once.
        `patience_s`: a lane that gave batch work nothing for so long, while some waited, gives it the next slot.
        """
        self._lanes = {lane: _Lane(_checked(lane, slots), depths.get(lane, Depth()), patience_s, tails.get(lane))
                       for lane, slots in capacity.items()}

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes' names."""
        return tuple(self._lanes)

    @asynccontextmanager
    async def slot(self, lane: str, ticket: Ticket) -> AsyncIterator[tuple[int, ...]]:
        """Wait for a slot and hold it: the number of its seat, from 0, and of those that are kept free to help with it.

        A waiter that is cancelled leaves no trace.

        Raises InvalidSettings when there is no such lane.
        """
        pool = self._lane(lane)
        seats = await pool.acquire(ticket)
        try:
            yield seats
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
