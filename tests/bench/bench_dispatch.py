"""How busy are the GPUs? Lower bound / makespan with sleep kernels on logical GPUs.

The Director against a bare Serve handle, `ray.remote` tasks and RQ with Redis, in one run with the same durations.

    python -m tests.bench.bench_dispatch [--gpus 1 2 4 8 16 32] [--shots-per-gpu 16] [--shot-s 1.0]

Lower bound: max(work / GPUs, longest shot). Idle gap: between two shots on one GPU. Above `EVENLY` GPUs shots are
longer in proportion: two cores that play 32 GPUs cannot also serve 32 shots a second, and no GPU renders that fast.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from configs.load import load_settings
from configs.model_card import ModelCard
from configs.settings import EngineSettings, Settings
from serve_app.app import build
from tests.bench import rq_baseline
from tests.bench.report import write_report
from tests.bench.rq_baseline import Span
from workflows.durable.ledger import Ledger
from workflows.durable.rows import NewJob
from workflows.ports import RenderCall
from workflows.store import Store
from workflows.types import JobStatus, MediaType, NodeKind, NodeResult, NodeSpec

IDLE_S = 5.0
"""For how long an idle system is looked at."""
EVENLY = 8
"""GPUs up to which shots are of the asked length."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One system's run."""

    began: float
    spans: list[Span]
    orchestration_s: float
    """CPU-seconds of whatever gives out the work: the Director; the driver with its handle; Redis and RQ's workers."""
    idle: float
    """CPU-seconds per second of the same processes when there is no work: polls, heartbeats, Ray's own threads."""


class SleepModel:
    """A model replica whose computation is a sleep of `steps` milliseconds; artifact and span are written for real."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        self._store = Store(settings.store)
        self._spans = settings.data_dir / f"spans-{os.getpid()}.txt"
        self._gpu = ThreadPoolExecutor(1)
        self._io = ThreadPoolExecutor(1)
        self._source = settings.data_dir / f"result-{os.getpid()}.json"
        self._source.write_text("{}")

    async def check_health(self) -> None:
        return None

    async def clip(self, call: RenderCall) -> NodeResult:
        loop = asyncio.get_running_loop()
        start, end = await loop.run_in_executor(self._gpu, sleep_span, call.steps / 1000)
        artifact = await loop.run_in_executor(self._io, self._save, call.key, start, end)
        return NodeResult(artifact=artifact)

    def _save(self, key: str, start: float, end: float):
        with self._spans.open("a") as file:
            file.write(f"{start} {end}\n")
        return self._store.put(key, self._source, media_type=MediaType.JSON, manifest={})


def pool(gpus: int) -> str:
    """Name of the custom resource of a row."""
    return f"row-of-{gpus}"


def sleep_span(seconds: float) -> tuple[float, float]:
    start = time.time()
    time.sleep(seconds)
    return start, time.time()


class BareModel:
    """The same sleep behind a plain deployment."""

    def __init__(self) -> None:
        self._gpu = ThreadPoolExecutor(1)

    async def __call__(self, seconds: float) -> Span:
        start, end = await asyncio.get_running_loop().run_in_executor(self._gpu, sleep_span, seconds)
        return str(os.getpid()), start, end


def lower_bound(durations: Sequence[float], gpus: int) -> float:
    return max(sum(durations) / gpus, *durations)


def simulated(durations: Sequence[float], gpus: int) -> float:
    """Makespan of longest-first list scheduling without any overhead."""
    ends = [0.0] * gpus
    for duration in sorted(durations, reverse=True):
        heapq.heappush(ends, heapq.heappop(ends) + duration)
    return max(ends)


def clip(job: str, number: int, seconds: float) -> NodeSpec:
    payload = {"card": "placeholder", "card_digest": "", "prompt": f"{job} {number}", "negative_prompt": "",
               "width_px": 8, "height_px": 8, "frames": 1, "fps": 8, "steps": round(seconds * 1000), "guidance": 0,
               "seed": number}
    return NodeSpec(id=f"s{number}.clip", kind=NodeKind.CLIP, shot_id=f"s{number}", lane="placeholder", cost=seconds,
                    payload=payload)


def cpu_s(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def idle_rate(pids: Sequence[int]) -> float:
    """CPU-seconds per second while nothing is asked of them."""
    before_s = cpu_s(pids)
    time.sleep(IDLE_S)
    return (cpu_s(pids) - before_s) / IDLE_S


def pids_of(text: str) -> list[int]:
    """Processes of this session with these words in their title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if text in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def run_director(durations: Sequence[float], gpus: int, directory: Path) -> Run:
    settings = load_settings("ci", [
        f"data_dir={directory}", "models.text_to_image=placeholder", "models.text_to_video=placeholder",
        "models.image_to_video=placeholder",
        f"models.by_card.placeholder={{replicas: {gpus}, num_gpus: 1, num_cpus: 0.1}}",
        *(f"engine.{name}={EngineSettings.model_fields[name].default}" for name in ("lease_s", "heartbeat_s", "poll_s"))
    ], {})
    app = build(settings, cluster=ray.cluster_resources(), model=SleepModel)
    director = serve.run(app, name="director", route_prefix=None)
    ledger = Ledger(settings.database)

    def job(name: str, seconds: Sequence[float]) -> NewJob:
        return NewJob(id=name, document={}, nodes=tuple(clip(name, n, length) for n, length in enumerate(seconds)))

    def finish(name: str) -> None:
        director.wake.remote().result()
        while not ledger.job(name).status.is_terminal:
            time.sleep(0.05)
        assert ledger.job(name).status is JobStatus.SUCCEEDED, ledger.log_lines(name, 0, 50).lines

    ledger.submit(job("warm", [0.01] * gpus * 2))
    finish("warm")
    for path in directory.glob("spans-*.txt"):
        path.unlink()
    orchestrators = pids_of("ServeReplica:director:director")
    assert orchestrators, "the Director has a process"
    idle, began, before_s = idle_rate(orchestrators), time.time(), cpu_s(orchestrators)
    ledger.submit(job("film", durations))
    finish("film")
    used_s = cpu_s(orchestrators) - before_s
    director.stop.remote().result()
    serve.delete("director")
    spans = [(path.stem, *map(float, line.split())) for path in directory.glob("spans-*.txt")
             for line in path.read_text().splitlines()]
    return Run(began=began, spans=spans, orchestration_s=used_s, idle=idle)  # type: ignore[arg-type]


def run_handle(durations: Sequence[float], gpus: int, directory: Path) -> Run:
    app = serve.deployment(BareModel, num_replicas=gpus, max_ongoing_requests=1, graceful_shutdown_timeout_s=1,
                           ray_actor_options={"num_gpus": 1, "num_cpus": 0.1}).bind()
    handle = serve.run(app, name="bare", route_prefix=None)

    async def all_of(lengths: Sequence[float]) -> list[Span]:
        return list(await asyncio.gather(*[handle.remote(length) for length in lengths]))

    asyncio.run(all_of([0.01] * gpus * 2))
    idle, began, before_s = idle_rate([os.getpid()]), time.time(), cpu_s([os.getpid()])
    spans = asyncio.run(all_of(sorted(durations, reverse=True)))
    used_s = cpu_s([os.getpid()]) - before_s
    serve.delete("bare")
    return Run(began=began, spans=spans, orchestration_s=used_s, idle=idle)


def run_tasks(durations: Sequence[float], gpus: int, directory: Path) -> Run:
    def work(seconds: float) -> Span:
        return str(os.getpid()), *sleep_span(seconds)

    # max_calls=0: by default a task with a GPU gets a new process each time, which no one would use for a model.
    # The cluster has GPUs for the largest row; the pool holds the tasks of a smaller one to theirs.
    task = ray.remote(num_gpus=1, num_cpus=0.1, max_calls=0, resources={pool(gpus): 1})(work)
    ray.get([task.remote(0.3) for _ in range(gpus)])
    idle, began, before_s = idle_rate([os.getpid()]), time.time(), cpu_s([os.getpid()])
    spans = ray.get([task.remote(duration) for duration in sorted(durations, reverse=True)])
    return Run(began=began, spans=spans, orchestration_s=cpu_s([os.getpid()]) - before_s, idle=idle)


def run_rq(durations: Sequence[float], gpus: int, directory: Path) -> Run:
    with rq_baseline.workers(gpus, directory) as (url, pids):
        rq_baseline.run(url, [0.5] * gpus * 2)
        idle, began, before_s = idle_rate(pids), time.time(), cpu_s(pids)
        spans = rq_baseline.run(url, durations)
        return Run(began=began, spans=spans, orchestration_s=cpu_s(pids) - before_s, idle=idle)


SYSTEMS: dict[str, Callable[[Sequence[float], int, Path], Run]] = {
    "reelray Director (durable)": run_director, "bare Serve handle": run_handle, "ray.remote tasks": run_tasks,
    **({"RQ and Redis": run_rq} if rq_baseline.is_here() else {})}


def gaps_ms(spans: list[Span]) -> list[float]:
    by_gpu: dict[str, list[tuple[float, float]]] = {}
    for gpu, start, end in spans:
        by_gpu.setdefault(gpu, []).append((start, end))
    gaps = [(after[0] - before[1]) * 1000 for rows in by_gpu.values()
            for before, after in zip(sorted(rows), sorted(rows)[1:], strict=False)]
    return sorted(gaps) or [0.0]


def measure(gpus: int, shots: int, shot_s: float) -> list[list[object]]:
    rng, shot_s = random.Random(gpus), shot_s * max(1.0, gpus / EVENLY)
    durations = [round(rng.lognormvariate(0, 0.3) * shot_s, 3) for _ in range(shots)]
    bound = lower_bound(durations, gpus)
    rows: list[list[object]] = []
    for name, system in SYSTEMS.items():
        with tempfile.TemporaryDirectory() as directory:
            run = system(durations, gpus, Path(directory))
        makespan = max(end for _, _, end in run.spans) - run.began
        gaps = gaps_ms(run.spans)
        rows.append([gpus, len(durations), round(shot_s, 2), name, bound / makespan,
                     simulated(durations, gpus) / makespan, sum(gaps) / len(gaps), gaps[int(0.99 * (len(gaps) - 1))],
                     run.orchestration_s / len(durations) * 1000, run.idle * makespan / len(durations) * 1000])
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--shots-per-gpu", type=int, default=16)
    parser.add_argument("--largest-shots", type=int, default=1000, help="shots on the most GPUs")
    parser.add_argument("--shot-s", type=float, default=1.0)
    options = parser.parse_args()
    most = max(options.gpus)
    ray.init(address="local", num_cpus=most + 16, num_gpus=most, include_dashboard=False, log_to_driver=False,
             resources={pool(gpus): gpus for gpus in options.gpus}, object_store_memory=200_000_000,
             namespace="reelray", logging_level="ERROR")
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False))
    rows = [row for gpus in options.gpus for row in
            measure(gpus, options.largest_shots if gpus == most else gpus * options.shots_per_gpu, options.shot_s)]
    ours = [float(str(row[4])) for row in rows if "Director" in str(row[3])]
    write_report("dispatch_cpu_202611", "How busy are the GPUs?",
                 ["GPUs", "shots", "seconds each", "system", "LB/makespan", "simulated/makespan",
                  "gap mean ms", "gap p99 ms", "orchestration CPU ms per shot", "of that, idling"],
                 rows, f"Director: LB/makespan {min(ours):.3f} to {max(ours):.3f}; goal 0.98. `simulated` is "
                 f"longest-first scheduling without overhead. Shots are sleeps; real clips are ten times "
                 "longer and more, and gaps weigh that much less. Idling: what the same processes use in as "
                 "many seconds without work, spread over the shots.")


if __name__ == "__main__":
    main()
