"""Which waiting call goes next. Pure; knows tenants and jobs by id and share, not what a call does.

Interactive work goes before batch work; but where batch work has got nothing for a set time, it gets the next slot, so
that it is slow beside a busy day and never stands still. Inside a class it is start-time fair
queueing (Goyal, Vin, Cheng, SIGCOMM 1996) at two levels: tenants share the lane, and the jobs of a tenant its share.
Who is served gets a start tag that grows by cost (a job's by cost / weight), the smallest tag goes next, and the tag
last served is the virtual time, at which newcomers start. So one shot behind a film of forty gets the next free slot, a
tenant with fifty films gets no more than one with a single film, and none is starved by an equal. Inside a job the call
with the longest remaining path goes first, because the film waits for it longest. A batch has the share of one job,
and its films are done one after the other: shared out among them all would be done only at the end.
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Protocol

from workflows.elastic import costs_ahead
from workflows.types import Priority

CLASSES = (Priority.INTERACTIVE, Priority.BATCH)
"""In this order."""


_Place = tuple[float, float, int, "Ticket"]
"""The oldest film of a batch first, in it the highest rank, then who came first."""


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
    batch_id: str = ""
    """The jobs of a batch share as one and are done one after the other; empty: it is in none."""
    since_s: float = 0.0
    """When its job was submitted; in a batch the oldest goes first."""
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
    elastic: bool = False
    """It may get several seats, where its lane has idle ones."""
    coming: Callable[[], int] = no_more
    """How many calls of its job will wait for this lane too, once what they need is there."""

    @property
    def sharer(self) -> str:
        """What shares the tenant's part with others: a job, or a batch of them."""
        return f"batch {self.batch_id}" if self.batch_id else self.job_id


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
        """By tenant: its jobs and batches."""
        self.tickets: defaultdict[tuple[str, str], list[_Place]] = defaultdict(list)
        """By tenant and job or batch, best first."""
        self.waits_since_s = math.inf
        """When it was served last, or else began to wait; infinity: nothing waits."""

    def push(self, place: _Place, now_s: float) -> None:
        arrival, ticket = place[2:]
        if not self.tenants.sharers:
            self.waits_since_s = now_s
        self.tenants.enter(ticket.tenant, arrival)
        self.jobs[ticket.tenant].enter(ticket.sharer, arrival)
        insort(self.tickets[ticket.tenant, ticket.sharer], place, key=lambda entry: entry[:3])

    def pop(self, now_s: float) -> Ticket:
        tenant = self.tenants.first()
        sharer = self.jobs[tenant].first()
        ticket = self._take((tenant, sharer), 0)
        self.tenants.charge(tenant, ticket.cost)
        self.jobs[tenant].charge(sharer, ticket.cost / ticket.weight)
        self.waits_since_s = now_s if self.tenants.sharers else math.inf
        return ticket

    def discard(self, place: _Place) -> None:
        owner = (place[3].tenant, place[3].sharer)
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
        ticket = line.pop(index)[3]
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
        place = (ticket.since_s if ticket.batch_id else 0.0, -ticket.rank, next(self._arrivals), ticket)
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
        waiting = [ticket for *_, ticket in self._places.values()]
        jobs = {ticket.job_id: ticket for ticket in waiting}
        return costs_ahead([ticket.cost for ticket in waiting], sum(ticket.coming() for ticket in jobs.values()))

    def rest(self) -> None:
        """Nothing waits and nothing is served: what jobs used before counts no more."""
        for group in self._classes.values():
            group.rest()
