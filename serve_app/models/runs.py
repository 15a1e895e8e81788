"""Who waits for which run of a replica: callers of one key share it, and leave it one by one. Knows no model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from serve_app.models.lifecycle import CancelToken, finish
from workflows.deadline import Clock, Deadline
from workflows.errors import HandedOver, RenderCancelled, StageFailed
from workflows.ports import ProgressSink
from workflows.types import NodeResult


class Asked(Protocol):
    """What is known of every call of a replica."""

    @property
    def job_id(self) -> str:
        """Whose it is."""

    @property
    def node_id(self) -> str:
        """Which node of the job."""

    @property
    def key(self) -> str:
        """What the result is kept under."""

    @property
    def left_s(self) -> float:
        """Seconds until it is stopped, from its arrival."""


CallT = TypeVar("CallT", bound=Asked)


@dataclass(slots=True, eq=False)
class _Waiter(Generic[CallT]):
    """One caller of a run."""

    call: CallT
    left: asyncio.Future[StageFailed]
    """Resolved when the caller is told to go without the result, and why."""


@dataclass(slots=True, eq=False)
class Run(Generic[CallT]):
    """One key in the making, whoever waits for it."""

    deadline: Deadline
    """That of the call that began it."""
    task: asyncio.Task[NodeResult] = field(init=False)
    token: CancelToken = field(default_factory=CancelToken)
    waiters: list[_Waiter[CallT]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the model had to say of its result."""
    differs: bool = False
    """Pixels may not be those that the key stands for."""
    gpus: int = 1
    """That made it."""
    begun: bool = False
    """It has had its turn on the GPU."""
    jobs: set[str] = field(default_factory=set)
    """That asked for it and were not cancelled."""

    def calls(self) -> tuple[CallT, ...]:
        """Who wants to hear of its progress."""
        return tuple(waiter.call for waiter in self.waiters)

    def is_unwanted(self) -> bool:
        """Nobody will ask for it again; callers may be gone because their Director is, and it comes back."""
        return not self.jobs

    def differ(self) -> None:
        """The result must not stand in for that of another GPU, which would have had the memory."""
        self.differs = True

    def share(self, gpus: int) -> None:
        """So many GPUs made it together."""
        self.gpus = gpus

    def let_go(self, waiters: list[_Waiter[CallT]], why: type[StageFailed] = RenderCancelled,
               reason: str = "cancelled") -> None:
        """Send callers away; when nobody is left, the GPU hears of it now rather than when they have gone."""
        for waiter in waiters:
            if not waiter.left.done():
                waiter.left.set_result(why(node_id=waiter.call.node_id, reason=reason))
        if all(waiter.left.done() for waiter in self.waiters):
            self.token.set()


Produce = Callable[[Run[CallT]], Coroutine[Any, Any, NodeResult]]
"""Makes a run's result."""


class Runs(Generic[CallT]):
    """All runs of one replica, by key.

    A caller that is cancelled leaves; when the last one has left, the run is stopped and `answer` only then lets go, so
    that a slot counted outside is never free while the GPU is not.
    """

    def __init__(self, sink: ProgressSink, *, clock: Clock = time.monotonic) -> None:
        """`clock`: what the seconds that a call has left are counted by."""
        self._sink = sink
        self._clock = clock
        self._runs: dict[str, Run[CallT]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def answer(self, call: CallT, produce: Produce[CallT]) -> NodeResult:
        """The result of the key's run, which begins when there is none. Raises RenderCancelled, its errors."""
        self._loop, deadline = asyncio.get_running_loop(), Deadline.after(call.left_s, self._clock)
        while (run := self._runs.get(call.key)) is not None and run.token.is_set:
            await asyncio.wait([run.task])  # being stopped: its key is free after that
        if run is None:
            run = self._begin(call, deadline, produce)
        waiter = _Waiter(call, self._loop.create_future())
        run.waiters.append(waiter)
        run.jobs.add(call.job_id)
        try:
            either: set[asyncio.Future[Any]] = {run.task, waiter.left}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            run.waiters.remove(waiter)
            try:
                if not run.waiters and not run.task.done():
                    run.token.set()
                    run.task.cancel()
                    await finish(run.task)
            finally:
                self._sink.end(call.job_id, call.node_id)
        if waiter.left.done():
            raise waiter.left.result()
        if run.task.cancelled():
            raise RenderCancelled(node_id=call.node_id, reason="cancelled")
        return run.task.result()

    def cancel(self, key: str) -> bool:
        """Stop the run of a key, for all who wait for it; they get RenderCancelled. Returns whether it was running."""
        run = self._runs.get(key)
        if run is None:
            return False
        run.jobs.clear()
        run.let_go(run.waiters)
        return True

    def cancel_job(self, job_id: str) -> None:
        """Let go of every call of a job; a run that nobody else waits for is stopped. Callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._leave_job, job_id)

    def hand_back(self, reason: str) -> None:
        """Give back every call that has not had its turn: HandedOver. Callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_back, reason)

    def stop(self) -> None:
        """Ask every run to stop."""
        for run in self._runs.values():
            run.token.set()

    def _begin(self, call: CallT, deadline: Deadline, produce: Produce[CallT]) -> Run[CallT]:
        run: Run[CallT] = Run(deadline)
        self._runs[call.key] = run
        run.task = asyncio.create_task(produce(run), name=f"run {call.node_id}")
        # Not in a `finally` of the coroutine: a task that is cancelled before it begins never enters it.
        run.task.add_done_callback(lambda _: self._runs.pop(call.key))
        return run

    def _hand_back(self, reason: str) -> None:
        for run in self._runs.values():
            if not run.begun:
                run.let_go(run.waiters, HandedOver, reason)

    def _leave_job(self, job_id: str) -> None:
        for run in self._runs.values():
            run.jobs.discard(job_id)
            run.let_go([waiter for waiter in run.waiters if waiter.call.job_id == job_id])
