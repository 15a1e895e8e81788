"""What do step checkpoints cost? A denoising loop with and without them, interleaved on one thread.

Latents of the size of an 832x480 clip of 81 frames (8.4 MB in float32) under a real multistep scheduler, which keeps
some more of them; the denoiser waits busily, so that the loop wants a core for itself. `none` has the tap alone.
`beside` is what a replica does, but at every step at which the last checkpoint is written: recorded on the loop's
thread, packed and written with fsync on another one. `in the loop` writes each step before it goes on.

From that follows what one checkpoint costs the loop, and from the interval that a replica would keep the ratio of a run
with checkpoints to one without.

    python -m tests.bench checkpoints [--rounds 8]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler

from configs.model_card import CallDefaults, ModelCard, Task
from configs.settings import CheckpointSettings
from serve_app.models.keeping import Keeper
from serve_app.models.lifecycle import CancelToken
from serve_app.models.resume import StepCheckpoint
from serve_app.models.tap import SchedulerTap, Watch
from tests.bench.report import write_report
from workflows.checkpoints import CheckpointShelf
from workflows.ports import RenderCall

STEPS = 40
STEP_S = 0.05
LATENTS = (1, 16, 21, 60, 104)
GOAL = 1.01
CARD = ModelCard(name="loop", title="loop", repo="nowhere", pipelines={Task.TEXT_TO_VIDEO: "Loop"},
                 defaults=CallDefaults(width_px=832, height_px=480, frames=81))
CALL = RenderCall(
    job_id="job", node_id="s1.clip", shot_id="s1", attempt=1, key="0" * 32, left_s=4e9, card="loop",
    card_digest=CARD.digest(), prompt="", negative_prompt="", width_px=832, height_px=480, frames=81, fps=16,
    steps=STEPS, guidance=1, seed=0)


class Loop(DiffusionPipeline):
    """A denoising loop with a real multistep scheduler, whose denoiser waits busily."""

    def __init__(self, scheduler: UniPCMultistepScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, *, generator: torch.Generator) -> None:
        sample = torch.randn(LATENTS, generator=generator)
        self.scheduler.set_timesteps(STEPS)
        for timestep in self.scheduler.timesteps:
            until = time.perf_counter() + STEP_S
            while time.perf_counter() < until:
                pass
            sample = self.scheduler.step(sample, timestep, sample, return_dict=False)[0]


class Runs:
    """The variants, and how many checkpoints the last run had."""

    def __init__(self, directory: Path) -> None:
        self._pipe = Loop(UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
        always = CheckpointSettings(share=1.0, interval_s=0.0)
        self.keeper = Keeper(CheckpointShelf(str(directory)), always, CARD, made_on="cpu", used={})
        self.taken = 0
        self.held_s: list[float] = []
        self.packed_s: list[float] = []

    def variants(self) -> dict[str, Callable[[], None]]:
        return {"none": lambda: self._render(Watch()), "beside": lambda: self.kept(wait=False),
                "in the loop": lambda: self.kept(wait=True)}

    def kept(self, *, wait: bool) -> None:
        keeper = self.keeper
        watch = keeper.run(CALL, CancelToken(), lambda: False).watched(Watch())
        keep, ask = watch.on_checkpoint, watch.checkpoint_due
        assert keep is not None
        assert ask is not None

        def due(done: int, total: int) -> bool:
            keeper.held_s = keeper.packed_s = 0.0  # whatever the last one cost
            return ask(done, total)

        def counted(checkpoint: StepCheckpoint) -> None:
            keep(checkpoint)
            self.taken += 1
            self.held_s.append(keeper.held_s)
            if wait:
                keeper.thread.run_now(lambda: None)
                self.packed_s.append(keeper.packed_s)

        self._render(Watch(checkpoint_due=due, on_checkpoint=counted))

    def _render(self, watch: Watch) -> None:
        generator = torch.Generator().manual_seed(0)
        with SchedulerTap(self._pipe, callback=None, watch=watch, generator=generator):
            self._pipe(generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(Path(directory))
        variants = runs.variants()
        took_s: dict[str, list[float]] = {name: [] for name in variants}
        taken = dict.fromkeys(variants, 0)
        for turn in range(rounds + 1):  # the first one warms up
            for name in order.sample(sorted(variants), len(variants)):
                runs.taken = 0
                started = time.perf_counter()
                variants[name]()
                if turn:
                    took_s[name].append(time.perf_counter() - started)
                    taken[name] += runs.taken
        runs.keeper.close()
        size_mb = max((path.stat().st_size for path in Path(directory).rglob("*.ckpt")), default=0) / 1e6
    median_s = {name: statistics.median(times) for name, times in took_s.items()}
    each_s = {name: (median_s[name] - median_s["none"]) * rounds / max(count, 1) for name, count in taken.items()}
    held_s, packed_s = statistics.median(runs.held_s), statistics.median(runs.packed_s)
    policy = CheckpointSettings()
    wait_s = max(policy.interval_s, (held_s + packed_s) / policy.share)
    ratios = {name: 1 + cost_s / wait_s for name, cost_s in each_s.items()}
    write_report(
        "checkpoints_cpu_202611", "What do step checkpoints cost?",
        ("checkpoints", "runs", "per run", "median run, s", "ratio of runs", "one costs the loop, ms",
         f"ratio at one per {wait_s:.0f} s"),
        [(name, rounds, f"{taken[name] / rounds:.1f}", f"{median_s[name]:.3f}",
          f"{median_s[name] / median_s['none']:.4f}", each_s[name] * 1e3, f"{ratios[name]:.4f}") for name in variants],
        f"Runs of {STEPS} steps of {STEP_S * 1e3:.0f} ms and a scheduler's step; a checkpoint is a file of "
        f"{size_mb:.1f} MB. It holds the loop's thread up for {held_s * 1e3:.1f} ms (median) and takes "
        f"{packed_s * 1e3:.0f} ms of CPU beside it, so that a replica makes one in {wait_s:.0f} s: a run then takes "
        f"{ratios['beside']:.4f} of one without, with the goal of {GOAL} "
        f"({'met' if ratios['beside'] <= GOAL else 'NOT met'}). Packing and writing take their share of the cores from "
        "the loop, which here waits busily on one of two.")


if __name__ == "__main__":
    main()
