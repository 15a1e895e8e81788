"""A step is told when the GPU has made it: not before, in order, none lost, and no thread is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from serve_app.models.gpu_steps import marks_for
from serve_app.models.lifecycle import CancelToken
from serve_app.models.records import StepClock
from serve_app.models.tap import SchedulerTap, Watch
from workflows.deadline import Deadline
from workflows.errors import DeadlineExceeded, RenderCancelled

STEPS = 5


class LateGpu:
    """A GPU that has made as many steps as the test says."""

    def __init__(self) -> None:
        self.made = 0
        self.queued = 0
        self.broken = False
        self.asked = threading.Event()

    def __call__(self) -> _Mark:
        self.queued += 1
        return _Mark(self, self.queued)


class _Mark:
    def __init__(self, gpu: LateGpu, place: int) -> None:
        self._gpu, self._place = gpu, place

    def query(self) -> bool:
        self._gpu.asked.set()
        if self._gpu.broken:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return self._place <= self._gpu.made


class Loop(DiffusionPipeline):
    """A denoising loop that runs ahead of the GPU; `between` is called after each step was queued."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.between: Callable[[int], None] = lambda step: None

    def __call__(self) -> None:
        sample = torch.ones(1, 1, 2, 2)
        self.scheduler.set_timesteps(STEPS)
        for step, t in enumerate(self.scheduler.timesteps):
            sample = self.scheduler.step(sample, t, sample, return_dict=False)[0]
            self.between(step)


@pytest.fixture
def gpu() -> LateGpu:
    return LateGpu()


@pytest.fixture
def loop() -> Loop:
    return Loop(FlowMatchEulerDiscreteScheduler())


def tap(loop: Loop, heard: Callable[..., None], gpu: LateGpu | None, watch: Watch | None = None) -> SchedulerTap:
    return SchedulerTap(loop, callback=heard, watch=watch or Watch(), generator=torch.Generator(), make_mark=gpu)


def pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "gpu-steps"]


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_step_is_told_once_its_mark_is_reached_and_not_before(gpu: LateGpu, loop: Loop) -> None:
    heard: list[tuple[int, int, float]] = []

    def between(step: int) -> None:
        gpu.asked.clear()
        assert gpu.asked.wait(5)
        assert len(heard) <= gpu.made
        if step == 3:
            gpu.made = 2
            eventually(lambda: len(heard) == 2)

    loop.between = between
    with tap(loop, lambda *step: heard.append(step), gpu):
        loop()
        assert gpu.queued == STEPS
        assert [step for step, *_ in heard] == [0, 1]
        gpu.made = STEPS
    assert heard == [(step, STEPS, float(t)) for step, t in enumerate(loop.scheduler.timesteps)]
    assert pollers() == []


def test_the_end_waits_for_steps_that_the_gpu_has_still_to_make(gpu: LateGpu, loop: Loop) -> None:
    heard: list[int] = []
    finishing = threading.Timer(0.05, setattr, (gpu, "made", STEPS))
    clock = StepClock(lambda step, *_: heard.append(step))
    with tap(loop, clock, gpu):
        loop()
        assert heard == []
        finishing.start()
    assert heard == [*range(STEPS)]
    assert clock.seconds()["diffusion"] >= 0.05, "the time of the GPU, not of the loop that ran ahead"
    assert pollers() == []


@pytest.mark.parametrize(("watch", "error"), [
    (Watch(cancel=CancelToken()), RenderCancelled), (Watch(deadline=Deadline.after(3600)), DeadlineExceeded)])
def test_a_stop_does_not_wait_for_the_gpu(watch: Watch, error: type[Exception], gpu: LateGpu, loop: Loop) -> None:
    heard: list[int] = []

    def between(step: int) -> None:
        if step == 1:
            gpu.made = 1
            eventually(lambda: heard == [0])
            if isinstance(watch.cancel, CancelToken):
                watch.cancel.set()
            else:
                object.__setattr__(watch, "deadline", Deadline.after(-1))

    loop.between = between
    with pytest.raises(error), tap(loop, lambda step, *_: heard.append(step), gpu, watch):
        loop()
    assert gpu.queued == 3
    assert heard == [0], "what the GPU has not made is not told"
    assert pollers() == []


def test_a_gpu_that_cannot_be_asked_fails_nothing_here(gpu: LateGpu, loop: Loop) -> None:
    gpu.broken = True
    with tap(loop, lambda *_: None, gpu):
        loop()
    assert pollers() == []


def test_a_callback_that_raises_is_not_called_again(gpu: LateGpu, loop: Loop) -> None:
    calls: list[int] = []

    def broken(step: int, *_: object) -> None:
        calls.append(step)
        raise ValueError

    gpu.made = STEPS
    with tap(loop, broken, gpu):
        loop()
    assert calls == [0]
    assert pollers() == []


def test_on_a_cpu_steps_are_told_by_the_rendering_thread_itself(loop: Loop) -> None:
    assert marks_for(torch.device("cpu")) is None
    threads: list[int] = []
    loop.between = lambda step: threads.append(step) if len(threads) != step + 1 or pollers() else None
    with tap(loop, lambda *_: threads.append(threading.get_ident()), None):
        loop()
    assert threads == [threading.get_ident()] * STEPS
