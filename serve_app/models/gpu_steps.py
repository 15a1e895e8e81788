"""Steps told when the GPU has made them, not when it was asked to. Knows no pipeline, no job.

A denoising loop only queues kernels and runs ahead of the GPU. Waiting for the GPU in the loop would cost more than all
of the progress; so the loop leaves a mark behind each step's kernels, and a thread beside it looks which have been
reached.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import torch

log = logging.getLogger(__name__)

POLL_S = 0.005
"""Between two looks at a mark: how late a step may be told, and how exact the time of the last one is."""


class Mark(Protocol):
    """A point in what the GPU has to do; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether the GPU is past it. Does not wait."""


MakeMark = Callable[[], Mark]
"""Marks what has been queued so far by the calling thread."""


def marks_for(device: torch.device) -> MakeMark | None:
    """How steps on this device are marked; None where a step is over when its call returns, as on a CPU."""
    if device.type != "cuda":
        return None

    def mark() -> Mark:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return event

    return mark


class StepRelay:
    """Between a denoising loop and its progress callback, for one call of a pipeline.

    Every step is passed on once, in order, not before its mark was reached, on a thread that ends with `close`.
    """

    def __init__(self, heard: Callable[[int, int, float], None], make_mark: MakeMark) -> None:
        """`heard` must not raise."""
        self._heard = heard
        self._make_mark = make_mark
        self._made: queue.SimpleQueue[tuple[Mark, int, int, float] | None] = queue.SimpleQueue()
        self._broken_off = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-steps", daemon=True)
        self._thread.start()

    def step(self, step: int, total_steps_count: int, current_timestep: float) -> None:
        """The loop has queued a step. Waits for nothing."""
        self._made.put((self._make_mark(), step, total_steps_count, current_timestep))

    def close(self, *, broken_off: bool) -> None:
        """Pass on what is left once the GPU has made it; of a call that was broken off, what it has made by now."""
        if broken_off:
            self._broken_off.set()
        self._made.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (made := self._made.get()) is not None:
                mark, step, total, timestep = made
                while not mark.query():
                    if self._broken_off.wait(POLL_S):
                        return  # and later ones are not reached either
                self._heard(step, total, timestep)
        except Exception:  # the rendering thread meets the same broken GPU, and fails with it
            log.warning("the GPU cannot say how far it is", exc_info=True)
