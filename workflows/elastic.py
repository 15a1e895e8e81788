"""How many GPUs the next call gets when some stand idle and little waits. Pure; knows replicas by number alone.

Many calls for few GPUs are done soonest one on each: a call on two GPUs takes more than half its time. Few calls for
many GPUs are not. Between the two, at the end of a film, it can be worth to let a GPU stand for a moment until its
neighbour is free too. So the rule looks ahead: for each number of GPUs that the next call may get, it lays out all that
waits over when GPUs are expected to be free, and takes what is over first. It is asked again at every start and end.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

SPEEDUPS = {1: 1.0, 2: 1.85, 4: 3.4, 8: 4.4}
"""How much sooner a call is done on so many GPUs; between them along straight lines, beyond them no more. Published
figures for diffusion transformers (docs/models.md), until calls have shown what it is here."""
OVERDUE = 0.1
"""A call that takes longer than expected is expected to take this share of its time so far again."""
RECONSIDER_S = 0.5
"""While a GPU stands for its neighbour: how often that is thought over, since expectations may not come true."""
SETTLE_S = 0.5
"""For how long no call must have come before one gets several GPUs: those of a film come within moments."""
PACES = 5
"""Ended calls that expectations are corrected by: those on one GPU say how long calls take, those on several how much
sooner they are done, which depends on how the GPUs are connected."""


def speedup(gpus: int) -> float:
    """Of one call on so many GPUs, against one."""
    below = max(known for known in SPEEDUPS if known <= gpus)
    above = min((known for known in SPEEDUPS if known >= gpus), default=below)
    if above == below:
        return SPEEDUPS[below]
    share = (gpus - below) / (above - below)
    return SPEEDUPS[below] + share * (SPEEDUPS[above] - SPEEDUPS[below])


def gpus_for_next(waiting_s: Sequence[float], free_in_s: Sequence[float], sizes: Sequence[int], *,
                  gain: Callable[[int], float] = speedup) -> int:
    """GPUs that the next call should begin on now; 0: on none, it is done sooner if it waits for more of them.

    `waiting_s`: what each call that waits, or is about to, takes on one GPU; the next one first. `free_in_s`: for each
    replica, seconds until it is expected to be idle; 0: it is. `sizes`: allowed numbers, 1 among them. `gain`: how much
    sooner a call is done on so many.
    """
    idle = sum(in_s <= 0 for in_s in free_in_s)
    if not idle or not waiting_s:
        return 0
    if len(waiting_s) > len(free_in_s) or len(free_in_s) == 1:
        return 1  # no GPU would be idle for want of calls
    best = min((size for size in sizes if size <= len(free_in_s)),
               key=lambda size: (*_over(waiting_s, free_in_s, size, sizes, gain), size))
    return best if best <= idle else 0


def _over(waiting_s: Sequence[float], free_in_s: Sequence[float], size: int, sizes: Sequence[int],
          gain: Callable[[int], float]) -> tuple[float, float]:
    """When all is over and, of all calls, the sum of their ends, if the first gets so many and the rest one number."""
    free = sorted(free_in_s)
    end_s = _place(free, waiting_s[0] / gain(size), size)
    if len(waiting_s) == 1:
        return round(end_s, 6), end_s
    return min(_lay_out([seconds / gain(other) for seconds in waiting_s[1:]], list(free), other, end_s)
               for other in sizes if other <= len(free))


def _lay_out(rest_s: Sequence[float], free: list[float], size: int, end_s: float) -> tuple[float, float]:
    ends = [end_s, *(_place(free, seconds, size) for seconds in rest_s)]
    return round(max(ends), 6), sum(ends)


def _place(free: list[float], seconds: float, size: int) -> float:
    """Begin a call as soon as `size` of the heap's GPUs are free; returns its end, when they are free again."""
    heapq.heapify(free)
    start_s = [heapq.heappop(free) for _ in range(size)][-1]
    end_s = max(start_s, 0.0) + seconds
    for _ in range(size):
        heapq.heappush(free, end_s)
    return end_s


@dataclass(slots=True, eq=False)
class _Running:
    """A call that was given its GPUs."""

    cost: float
    gpus: int
    since_s: float | None
    """When it began; None: it waits at a replica behind another one."""


@dataclass(slots=True, kw_only=True, eq=False)
class Tail:
    """What is known of one card's replicas, for the end of its work."""

    sizes: tuple[int, ...]
    """GPUs that a call may get."""
    calls_per_replica: int
    """In flight; all but one of them wait there."""
    clock: Callable[[], float] = time.monotonic
    _came_s: float = -math.inf
    """When the last call came."""
    _running: dict[Hashable, _Running] = field(default_factory=dict)
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=PACES))
    """Seconds per unit of cost, on one GPU."""
    _gains: dict[int, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=PACES)))
    """How much sooner calls were done, by number of GPUs."""

    def gpus_for_next(self, costs: Sequence[float], capacity: int) -> int:
        """As the function; `costs` of all that waits or is about to, `capacity`: calls in flight in all.

        A call behind another one is begun only while so much waits that this is not the end: once it is with a replica,
        nobody else can take it.
        """
        replicas = capacity // self.calls_per_replica
        free_in_s = self._free_in_s(replicas)
        if free_in_s and min(free_in_s) > 0:
            in_flight = sum(call.gpus for call in self._running.values())
            return 1 if len(costs) > replicas and in_flight < capacity else 0
        pace = self._pace()
        gpus = gpus_for_next([cost * pace for cost in costs], free_in_s, self.sizes, gain=self._gain)
        return gpus if gpus < 2 or self.clock() - self._came_s >= SETTLE_S else 0

    def came(self) -> None:
        """A call waits now."""
        self._came_s = self.clock()

    def began(self, call: Hashable, cost: float, gpus: int, capacity: int) -> None:
        """A call was given its GPUs."""
        begins = self._begun() + gpus <= capacity // self.calls_per_replica
        self._running[call] = _Running(cost, gpus, self.clock() if begins else None)

    def ended(self, call: Hashable) -> None:
        """A call has given them back."""
        gone, now_s = self._running.pop(call), self.clock()
        if gone.since_s is not None and gone.cost > 0:
            took_s = max(now_s - gone.since_s, 1e-6)
            if gone.gpus == 1:
                self._paces.append(took_s / gone.cost)
            elif self._paces:
                self._gains[gone.gpus].append(gone.cost * self._pace() / took_s)
            behind = next((other for other in self._running.values() if other.since_s is None), None)
            if behind is not None:
                behind.since_s = now_s

    def _begun(self) -> int:
        return sum(call.gpus for call in self._running.values() if call.since_s is not None)

    def _gain(self, gpus: int) -> float:
        return statistics.median(self._gains[gpus]) if gpus in self._gains else speedup(gpus)

    def _pace(self) -> float:
        return statistics.median(self._paces) if self._paces else 1.0

    def _free_in_s(self, replicas: int) -> list[float]:
        free, now_s, pace = [0.0] * replicas, self.clock(), self._pace()
        for call in sorted(self._running.values(), key=lambda call: call.since_s is None):
            whole_s = call.cost * pace / self._gain(call.gpus)
            left_s = whole_s
            if call.since_s is not None:
                gone_s = now_s - call.since_s
                left_s = max(whole_s - gone_s, gone_s * OVERDUE, 1e-3)
            taken = [heapq.heappop(free) for _ in range(min(call.gpus, len(free)))]
            for _ in taken:
                heapq.heappush(free, max(taken) + left_s)
        return free


def costs_ahead(waiting: Sequence[float], coming: int) -> tuple[float, ...]:
    """Of calls that wait, the dearest first, and of those that are not ready yet, which are like the mean of them."""
    mean = sum(waiting) / len(waiting) if waiting else 0.0
    return (*sorted(waiting, reverse=True), *itertools.repeat(mean, coming))
