"""On a real GPU: steps are told while the loop is far ahead, none before its time, and the split is the GPU's.

    python -m pytest -m gpu tests/gpu
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from serve_app.models.records import StepClock
from serve_app.models.tap import SchedulerTap, Watch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

STEPS = 6
CYCLES = 200_000_000
"""Some 0.1 s of a GPU's time per step."""


class Busy(DiffusionPipeline):
    """Queues a wait on the GPU per step and returns before any of it is over."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.queued_s = 0.0

    def __call__(self) -> torch.Tensor:
        sample = torch.ones(1, 1, 8, 8, device="cuda")
        self.scheduler.set_timesteps(STEPS, device="cuda")
        started = time.perf_counter()
        for t in self.scheduler.timesteps:
            torch.cuda._sleep(CYCLES)
            sample = self.scheduler.step(sample, t, sample, return_dict=False)[0]
        self.queued_s = time.perf_counter() - started
        torch.cuda._sleep(CYCLES)  # as decoding does
        return sample


def test_steps_are_told_as_the_gpu_makes_them() -> None:
    pipe, told = Busy(FlowMatchEulerDiscreteScheduler()), []
    with SchedulerTap(pipe, callback=None, watch=Watch(), generator=torch.Generator()):
        pipe()  # kernels are loaded
    torch.cuda.synchronize()
    clock = StepClock(lambda step, *_: told.append((step, time.perf_counter())))
    with SchedulerTap(pipe, callback=clock, watch=Watch(), generator=torch.Generator()):
        pipe()
    torch.cuda.synchronize()
    seconds = clock.seconds()
    assert [step for step, _ in told] == [*range(STEPS)]
    gaps_s = [later - earlier for (_, earlier), (_, later) in itertools.pairwise(told)]
    a_step_s = seconds["diffusion"] / STEPS
    assert min(gaps_s) > a_step_s / 2, "told one by one, not in a heap"
    assert seconds["decode"] == pytest.approx(a_step_s, rel=0.5)
    assert pipe.queued_s < seconds["diffusion"] / 2, "nothing in the loop waited for the GPU"
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu-steps"]
