"""Watcher: follows one job, rows from the database and live steps from the ProgressActor, as a stream of JobViews."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Protocol

from actors.progress import Poll
from workflows.durable.ledger import Ledger
from workflows.status import JobView, job_view
from workflows.types import ProgressRecord

RETRY_S = 0.5
"""Pause before asking a board again that did not answer."""

FIRST_ANSWER_S = 5.0
"""How long entering a Watcher waits for the board; a silent board does not keep a film from being made."""


class Observer(Protocol):
    """How the watcher reaches the board."""

    def poll(self, job_id: str, epoch: str, after: int) -> Awaitable[Poll]:
        """Long-poll the job's events. May raise anything: progress is soft state."""


class Watcher:
    """Async context manager; `views()` yields the job as it is, at least once per change, until it is over.

    Once entered, no step is missed while the board lives: a job submitted after that is seen from its first step.
    """

    def __init__(self, ledger: Ledger, job_id: str, observer: Observer | None, *, interval_s: float = 0.2,
                 on_record: Callable[[ProgressRecord], None] | None = None) -> None:
        """Without an observer only what the database knows is shown.

        `on_record` gets every record in the board's order, where views show only the newest of each node.
        """
        self._ledger = ledger
        self._job_id = job_id
        self._observer = observer
        self._interval_s = interval_s
        self._on_record = on_record
        self._live: dict[str, ProgressRecord] = {}
        self._floor = 0.0
        self._changed = asyncio.Event()
        self._answered = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watcher:
        if self._observer is not None:
            self._poller = asyncio.create_task(self._follow(self._observer), name="watch")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_ANSWER_S):
                    await self._answered.wait()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    async def views(self) -> AsyncIterator[JobView]:
        """The job now, and again at every step or every interval; the last view is the finished job."""
        while True:
            view = await asyncio.to_thread(self._view)
            yield view
            if view.status.is_terminal:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._changed.wait()

    def _view(self) -> JobView:
        view = job_view(self._ledger.job(self._job_id), self._ledger.nodes(self._job_id), self._live, self._floor)
        self._floor = view.progress
        return view

    async def _follow(self, observer: Observer) -> None:
        epoch, after = "", 0
        while True:
            try:
                poll = await observer.poll(self._job_id, epoch, after)
            except Exception:  # noqa: BLE001 - the board restarts by itself; until then the database's view must do
                await asyncio.sleep(RETRY_S)
                continue
            epoch, after = poll.epoch, poll.seq
            self._answered.set()
            for event in poll.events:
                self._live[event.record.node_id] = event.record
                if self._on_record is not None:
                    self._on_record(event.record)
            if poll.events:
                self._changed.set()
