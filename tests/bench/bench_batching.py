"""What do keyframes that share a run of the pipeline gain on a CPU? Replicas with and without a batch, in turns.

A tiny checkpoint of SDXL's classes: a step is mostly what a call costs whatever its size, as launching kernels is for a
small picture model on a GPU. The ratio shows that the whole path shares; what a GPU gains is measured by
`python -m tests.bench gpu --section batching`.

    python -m tests.bench.bench_batching [--rounds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import pipelines
from serve_app.models.replica import ModelReplica
from tests.bench.report import write_report
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME
from workflows.store import Store

KEYFRAMES = 24
BATCHES = (1, 2, 4, 8)


class Counted:
    """`pipelines.load`, counting the calls of the network."""

    def __init__(self) -> None:
        self.forwards = 0

    def __call__(self, card: ModelCard, task: Task, device: str, components: object = None) -> DiffusionPipeline:
        pipe = pipelines.load(card, task, device)
        pipe.unet.register_forward_hook(self._forward)
        return pipe

    def _forward(self, *_: object) -> None:
        self.forwards += 1


class Bench:
    """One replica with a batch."""

    def __init__(self, directory: Path, batch: int) -> None:
        family = BY_NAME["sdxl"]
        self.card = family.card(directory, batch=batch)
        self.counted = Counted()
        self.replica = ModelReplica(
            self.card, ModelsSettings(torch_threads=1), MediaSettings(), Store(str(directory / f"store{batch}")),
            RememberingSink(), assigned_gpus=0, load=self.counted)
        self.counted.forwards = 0
        self._keys = 0

    async def film(self) -> float:
        """Seconds for all keyframes, asked at once."""
        calls = []
        for seed in range(KEYFRAMES):
            self._keys += 1
            calls.append(self.replica.image(render_call(
                self.card, key=f"{self._keys:032x}", node_id=f"s{seed}.keyframe", frames=1, seed=seed, steps=8)))
        started = time.perf_counter()
        await asyncio.gather(*calls)
        return time.perf_counter() - started


def measure(directory: Path, rounds: int, said: Callable[[str], None]) -> dict[int, tuple[float, int]]:
    """Batch -> median seconds, and calls of the network per film."""
    benches = {batch: Bench(directory, batch) for batch in BATCHES}
    times_s: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    with asyncio.Runner() as runner:
        for turn in range(rounds):
            for batch, bench in benches.items():
                times_s[batch].append(runner.run(bench.film()))
            said(f"   round {turn + 1} of {rounds}")
    for bench in benches.values():
        bench.replica.close()
    return {batch: (statistics.median(times_s[batch]), benches[batch].counted.forwards // rounds) for batch in BATCHES}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="reelray-bench-") as directory:
        found = measure(Path(directory), rounds, print)
    alone_s, _ = found[1]
    rows = [(batch, forwards, spent_s / KEYFRAMES * 1e3, f"{alone_s / spent_s:.2f}")
            for batch, (spent_s, forwards) in found.items()]
    write_report("batching_cpu_202611", "What do keyframes that share a run of the pipeline gain?",
                 ("batch", "calls of the network per film", "ms per keyframe", "times as fast"), rows,
                 f"{KEYFRAMES} keyframes of 8 steps asked of one replica at once, until they are in the store; medians "
                 f"of {rounds} rounds in turns. Tiny SDXL on one CPU thread: it shows that the whole path shares, and "
                 "foretells nothing of a GPU.")


if __name__ == "__main__":
    main()
