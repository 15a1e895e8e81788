"""What does step progress cost? A denoising step with and without it, interleaved on one thread.

Steps of 20 ms, as a small picture model has on a GPU, and of 140 ms, as the smallest of the large video models has.
`bare` is the loop alone, `tap` adds the tap (cancel, deadline), `reelray` also the progress records and a running
Reporter; `file` is a status file written and synced in diffusers' own callback.

Two measures. The ratio of median step times sees everything, and the noise of the machine. The other one times inside
the loop what comes on top of the scheduler's own step, with caches as cold as such a step leaves them.

    python -m tests.bench.bench_tap [--rounds 30]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler

from actors.progress import Receipt
from actors.reporter import Reporter
from serve_app.models.records import RunRecords
from serve_app.models.tap import SchedulerTap, Watch
from tests.bench.report import write_report
from workflows.deadline import Deadline
from workflows.ports import RenderCall
from workflows.types import ProgressRecord

STEPS = 20
LENGTHS_S = (0.020, 0.140)
GOAL = 1.001
CALL = RenderCall(
    job_id="job", node_id="s1.clip", shot_id="s1", attempt=1, key="0" * 32, left_s=2e9, card="wan-t2v",
    card_digest="", prompt="", negative_prompt="", width_px=32, height_px=32, frames=5, fps=8, steps=STEPS, guidance=1,
    seed=0)
Arguments = dict[str, object]
OnStepEnd = Callable[[object, int, torch.Tensor, Arguments], Arguments]


class Nowhere:
    """A transport whose far end takes everything."""

    def send(self, records: list[ProgressRecord]) -> Receipt:
        return Receipt(epoch="bench", cancelled=())


class TimedScheduler(UniPCMultistepScheduler):
    """Knows how long its own step took."""

    own_s = 0.0

    @functools.wraps(UniPCMultistepScheduler.step)
    def step(self, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
        started = time.perf_counter()
        output = super().step(*args, **kwargs)
        self.own_s = time.perf_counter() - started
        return output


class Loop(DiffusionPipeline):
    """A denoising loop with a real multistep scheduler, whose denoiser waits busily."""

    def __init__(self, scheduler: TimedScheduler) -> None:
        super().__init__()
        self.step_s = 0.0
        self.register_modules(scheduler=scheduler)
        self.steps_s: list[float] = []
        self.extra_s: list[float] = []

    @torch.no_grad()
    def __call__(self, *, generator: torch.Generator, callback_on_step_end: OnStepEnd | None = None) -> None:
        sample = torch.randn(1, 16, 2, 4, 4, generator=generator)
        self.scheduler.set_timesteps(STEPS)
        for index, timestep in enumerate(self.scheduler.timesteps):
            started = time.perf_counter()
            while (computed := time.perf_counter()) < started + self.step_s:
                pass
            sample = self.scheduler.step(sample, timestep, sample, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_on_step_end(self, index, timestep, {})
            ended = time.perf_counter()
            self.steps_s.append(ended - started)
            self.extra_s.append(ended - computed - self.scheduler.own_s)


def variants(pipe: Loop, reporter: Reporter, status: Path) -> dict[str, Callable[[], None]]:
    def bare() -> None:
        pipe(generator=torch.Generator().manual_seed(0))

    def reelray() -> None:
        generator = torch.Generator().manual_seed(0)
        records = RunRecords(reporter, lambda: (CALL,), steps=STEPS)
        with SchedulerTap(pipe, callback=records.step, watch=Watch(deadline=Deadline.after(2e9)), generator=generator):
            pipe(generator=generator)

    def tap() -> None:
        generator = torch.Generator().manual_seed(0)
        with SchedulerTap(pipe, callback=None, watch=Watch(deadline=Deadline.after(2e9)), generator=generator):
            pipe(generator=generator)

    def write(_: object, step: int, timestep: torch.Tensor, tensors: Arguments) -> Arguments:
        with status.open("w") as file:
            json.dump({"step": step, "timestep": float(timestep)}, file)
            file.flush()
            os.fsync(file.fileno())
        return {}

    def file() -> None:
        pipe(generator=torch.Generator().manual_seed(0), callback_on_step_end=write)

    return {"bare": bare, "tap": tap, "reelray": reelray, "file": file}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians over all steps of a variant."""

    steps: int
    step_s: float
    extra_s: float
    """On top of the scheduler's own step."""


def measure(rounds: int, status: Path, *, step_s: float) -> dict[str, Cost]:
    """Each variant `rounds` times, in random order; one more round warms up and is not counted."""
    pipe = Loop(TimedScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
    pipe.step_s = step_s
    reporter = Reporter(Nowhere(), flush_s=0.25, on_cancelled=lambda _: None)
    runs = variants(pipe, reporter, status)
    steps_s: dict[str, list[float]] = {name: [] for name in runs}
    extra_s: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(sorted(runs), len(runs)):
            pipe.steps_s, pipe.extra_s = [], []
            runs[name]()
            if turn:
                steps_s[name] += pipe.steps_s
                extra_s[name] += pipe.extra_s
    reporter.close()
    return {name: Cost(steps=len(steps_s[name]), step_s=statistics.median(steps_s[name]),
                       extra_s=statistics.median(extra_s[name])) for name in runs}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = []
    verdicts: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        status = Path(directory) / "status.json"
        warm = measure(rounds, status, step_s=0)
        for length_s in LENGTHS_S:
            # The same time for each length.
            costs = measure(max(1, round(rounds * LENGTHS_S[0] / length_s)), status, step_s=length_s)
            on_top_s = {name: cost.extra_s - costs["bare"].extra_s for name, cost in costs.items()}
            rows += [(f"{length_s * 1e3:.0f} ms", name, cost.steps, f"{cost.step_s / costs['bare'].step_s:.4f}",
                      on_top_s[name] * 1e6, f"{1 + on_top_s[name] / length_s:.5f}",
                      (warm[name].extra_s - warm["bare"].extra_s) * 1e6) for name, cost in costs.items()]
            ratio = 1 + on_top_s["reelray"] / length_s
            verdicts.append(f"{ratio:.5f} at {length_s * 1e3:.0f} ms ({'met' if ratio <= GOAL else 'NOT met'})")
    write_report(
        "tap_cpu_202611", "What does step progress cost?",
        ("step", "progress", "steps", "ratio of medians", "on top, median us", "ratio from that",
         "on top without the wait, us"), rows,
        f"A step with progress takes this much of one without, timed inside the loop, with the goal of {GOAL}: "
        f"{', '.join(verdicts)}. The last column is the same code with warm caches; the difference is what a step of "
        "waiting on this machine evicts. The ratio of medians carries the machine's noise.")


if __name__ == "__main__":
    main()
