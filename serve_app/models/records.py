"""One run's progress records: numbered, each with its share of the bar, one to every job that waits for the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from workflows.ports import ProgressSink
from workflows.progress import clip_fraction
from workflows.types import Phase, ProgressRecord

DECODED_SHARE = 0.5
ENCODED_SHARE = 0.9
"""Of the saving phase: frames out of the VAE, file written; the rest is the store."""


class Listener(Protocol):
    """A call that wants to hear of its run."""

    @property
    def job_id(self) -> str:
        """Whose it is."""

    @property
    def node_id(self) -> str:
        """Which node of the job."""

    @property
    def shot_id(self) -> str:
        """Of which shot."""

    @property
    def attempt(self) -> int:
        """Which try at it."""


class StepClock:
    """The progress callback of one call of a pipeline: passes steps on and keeps the time.

    On a GPU it is called when the GPU has made the step, so the time until the last one is the GPU's.
    """

    def __init__(self, heard: Callable[[int, int, float], None]) -> None:
        self._heard = heard
        self._started = self._stepped = time.perf_counter()

    def __call__(self, step: int, total_steps_count: int, current_timestep: float) -> None:
        """A step was made."""
        self._stepped = time.perf_counter()
        self._heard(step, total_steps_count, current_timestep)

    def seconds(self) -> dict[str, float]:
        """Since the call began: until the last step, and after it."""
        return {"diffusion": self._stepped - self._started, "decode": time.perf_counter() - self._stepped}


class RunRecords:
    """Called by one thread at a time: the event loop, the GPU thread or the one beside it, the saving thread."""

    def __init__(self, sink: ProgressSink, waiting: Callable[[], Iterable[Listener]], *, steps: int,
                 first_step: int = 0) -> None:
        """`waiting` names the calls that want to hear; `steps` is what the call asks for, until the first step.

        `first_step`: those that an earlier attempt had made; the bar begins there.
        """
        self._sink = sink
        self._waiting = waiting
        self._n = 0
        self.first_step = self._step = first_step
        self._total = steps
        self._timestep = 0.0
        self._fraction = clip_fraction(Phase.DIFFUSION, step=first_step, total_steps=steps) if first_step else 0.0

    def initialise(self) -> None:
        """The call was taken in."""
        self._send(Phase.INITIALISE, urgent=True)

    def step(self, step: int, total_steps_count: int, current_timestep: float) -> None:
        """The tap's progress callback."""
        self._step, self._total, self._timestep = step + 1, total_steps_count, current_timestep
        self._send(Phase.DIFFUSION)
        if self._step == total_steps_count:
            self.saving(0.0, urgent=True)

    def saving(self, saved: float, *, urgent: bool = False) -> None:
        """Share 0..1 of decode, encode and store."""
        self._send(Phase.SAVING, saved=saved, urgent=urgent)

    def encoded(self, done: int, total: int) -> None:
        """The encoder's progress callback, in frames."""
        self.saving(DECODED_SHARE + (ENCODED_SHARE - DECODED_SHARE) * done / total)

    def done(self) -> None:
        """The artifact is in the store."""
        self._send(Phase.DONE, urgent=True)

    def _send(self, phase: Phase, *, saved: float = 0.0, urgent: bool = False) -> None:
        self._n += 1
        # 0.02 + 0.88 is not exactly 0.9, and a bar must not move back, not even by a bit.
        fraction = clip_fraction(phase, step=self._step, total_steps=self._total, saved=saved)
        self._fraction = max(self._fraction, fraction)
        for call in self._waiting():
            self._sink.update(ProgressRecord(
                job_id=call.job_id, node_id=call.node_id, shot_id=call.shot_id, attempt=call.attempt, n=self._n,
                phase=phase, step=self._step, total_steps=self._total, timestep=self._timestep, fraction=self._fraction,
                at_s=time.time()), urgent=urgent)
