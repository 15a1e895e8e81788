"""Around one ledger: a fake store, scripted steps, an engine that can be started, and questions a test asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from configs.settings import EngineSettings
from tests.fakes import FakeStore, ScriptedStep
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventRow, EventType, JobRow, NewJob, NodeRow
from workflows.types import NodeKind, NodeSpec, NodeStatus

T = TypeVar("T")

QUICK = EngineSettings(lease_s=1.5, heartbeat_s=0.2, poll_s=0.02, backoff_s=0.001, max_backoff_s=0.01)
"""Waits so short that tests need not wait."""


def film(job_id: str = "film", shots: int = 3, *, compose: bool = True, accepts_missing: bool = True) -> NewJob:
    """A storyboard of independent shots, each a keyframe and a clip, joined at the end."""
    nodes: list[NodeSpec] = []
    for shot in (f"s{number}" for number in range(1, shots + 1)):
        nodes.append(NodeSpec(id=f"{shot}.keyframe", kind=NodeKind.KEYFRAME, shot_id=shot, payload={"prompt": shot}))
        nodes.append(NodeSpec(id=f"{shot}.clip", kind=NodeKind.CLIP, shot_id=shot, payload={"prompt": shot},
                              deps=(f"{shot}.keyframe",), cost=4.0))
    if compose:
        nodes.append(NodeSpec(id="compose", kind=NodeKind.COMPOSE, deps=tuple(
            node.id for node in nodes if node.kind is NodeKind.CLIP), accepts_missing=accepts_missing))
    return NewJob(id=job_id, document={"title": job_id}, nodes=tuple(nodes))


@dataclass
class Studio:
    """What an engine test needs."""

    ledger: Ledger
    store: FakeStore
    step: ScriptedStep
    settings: EngineSettings = QUICK
    slots: int = 8

    def engine(self, *, only: frozenset[str] | None = None) -> Engine:
        """An engine that is not running yet."""
        return Engine(self.ledger, dict.fromkeys(NodeKind, self.step), store=self.store,
                      dispatcher=Dispatcher({"cpu": self.slots, "model": self.slots}), settings=self.settings,
                      only=only)

    @asynccontextmanager
    async def running(self, *, only: frozenset[str] | None = None) -> AsyncIterator[Engine]:
        """An engine at work, stopped in order at the end."""
        engine = self.engine(only=only)
        task = asyncio.create_task(engine.run())
        try:
            yield engine
        finally:
            await engine.stop()
            await task

    async def finish(self, job_id: str = "film") -> JobRow:
        """Wait for the job's end."""
        return await self.until(lambda: self.ledger.job(job_id), lambda job: job.status.is_terminal)

    async def render(self, job_id: str = "film") -> JobRow:
        """Run an engine until the job's end."""
        async with self.running():
            return await self.finish(job_id)

    async def until(self, look: Callable[[], T], good: Callable[[T], object]) -> T:
        """What `look` sees once it is good."""
        async with asyncio.timeout(30):
            while not good(seen := look()):  # noqa: ASYNC110 - the database sends no signal
                await asyncio.sleep(0.005)
            return seen

    def node(self, node_id: str, job_id: str = "film") -> NodeRow:
        """One node."""
        return next(node for node in self.ledger.nodes(job_id) if node.id == node_id)

    def statuses(self, job_id: str = "film") -> dict[str, NodeStatus]:
        """Every node's status by id."""
        return {node.id: node.status for node in self.ledger.nodes(job_id)}

    def events(self, type: EventType, job_id: str = "film") -> list[EventRow]:
        """The job's events of one type."""
        return [event for event in self.ledger.events(job_id, limit=5000) if event.type is type]

    def log(self, job_id: str = "film") -> str:
        """The job's whole log."""
        return "\n".join(self.ledger.log_lines(job_id, limit=5000).lines)
