"""How many nodes of a batch one Director has at work. For one event loop; knows neither database nor Ray.

The database decides whether a node may start (`batch_rules.check_batch`). The gate keeps nodes from asking that could
only be refused, and from holding a model's slot while they wait.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from workflows.durable.batch_rules import Standing


@dataclass(slots=True)
class _Gate:
    """One batch. Shut until something is known of it."""

    is_open: bool = False
    limit: int | None = None
    inside: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    async def enter(self) -> None:
        granted = asyncio.get_running_loop().create_future()
        self.waiting.append(granted)
        self.pump()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                # The place and the cancel came in the same moment.
                self.leave()
            elif granted in self.waiting:  # who gave out places meanwhile has passed over it
                self.waiting.remove(granted)
            raise

    def leave(self) -> None:
        self.inside -= 1
        self.pump()

    def pump(self) -> None:
        while self.waiting and self.is_open and (self.limit is None or self.inside < self.limit):
            granted = self.waiting.popleft()
            if not granted.done():
                self.inside += 1
                granted.set_result(None)


class Gates:
    """The gates of all batches that this Director has jobs of."""

    def __init__(self) -> None:
        """Know no batch."""
        self._gates: dict[str, _Gate] = {}
        self._at_work: Counter[str] = Counter()

    @asynccontextmanager
    async def place(self, batch_id: str, job_id: str) -> AsyncIterator[None]:
        """Wait for a place and hold it; first come, first served. A job without a batch has one at once."""
        if not batch_id:
            yield
            return
        gate = self._gates.setdefault(batch_id, _Gate())
        await gate.enter()
        self._at_work[job_id] += 1
        try:
            yield
        finally:
            self._at_work[job_id] -= 1
            gate.leave()

    def is_idle(self, job_id: str) -> bool:
        """Whether no node of the job has a place."""
        return not self._at_work[job_id]

    def learn(self, standings: Mapping[str, Standing]) -> None:
        """What the database says of the batches in hand; others are forgotten when nobody is at their gate."""
        for batch_id, standing in standings.items():
            gate = self._gates.setdefault(batch_id, _Gate())
            gate.is_open, gate.limit = not standing.is_held, standing.concurrency
            gate.pump()
        for batch_id in [name for name, gate in self._gates.items()
                         if name not in standings and not gate.inside and not gate.waiting]:
            del self._gates[batch_id]
        self._at_work = +self._at_work

    def shut(self, batch_id: str) -> None:
        """The database refused a node: nobody else tries until more is learned."""
        if batch_id in self._gates:
            self._gates[batch_id].is_open = False
