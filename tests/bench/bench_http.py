"""What does the HTTP service add? The application against bare routes behind the same Serve proxy, in one run.

    python -m tests.bench http            all of it, a few minutes
    python -m tests.bench http --quick    seconds of each, no report: does it still run?

Models are sleeps (`tests/kernels.py`), so what is measured is the service. The bare application is one Starlette route
that answers bytes of the same length, and one that streams a single event.

- first event: a film is submitted, then its events are followed; bare: a POST that answers, then its stream. The first
  step is made 100 ms after a model began, and waits for the models' batch, 250 ms at most.
- status: `GET /api/jobs/{id}` of a running film, open loop; latency counts from when a request was due.
- watchers: 200 event streams of one running film against one, on the same film, in turns. Latency is from when the
  progress board had the step until the client had it; the models' batching before that is the same for both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from actors.progress import ACTOR_NAME, Poll, ProgressBoard, Receipt
from configs.load import load_settings
from serve_app.app import build
from tests.bench.load import Answers, Listener, ask, offer, percentile
from tests.bench.report import write_report
from tests.cluster.test_http import free_port
from tests.kernels import KernelModel
from workflows.types import ProgressRecord

GOAL = 1.5
"""Status reply: p99 against the bare route's."""
SUSTAINED = 0.95
"""A rate is sustained when so much of what was offered was answered in time."""
NAMESPACE = "reelray"
PARTS = {"proxy": "ProxyActor", "ingress": "ServeReplica:reelray:ingress", "board": "CountingBoard",
         "bare": "ServeReplica:bare:bare"}
WATCHED_PARTS = ("proxy", "ingress", "board")
REPLICA_OF = {"bare": "bare", "status": "ingress"}
FILM_SHOTS, SHOT_S, STEPS_PER_S = 40, 20, 5
PAD = 12
"""Bytes that a bare reply has at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything."""

    trials: int = 30
    rates_per_s: tuple[int, ...] = (50, 100, 200, 400, 1000)
    rate_s: float = 4.0
    rounds: int = 3
    watchers: int = 200
    watch_s: float = 8.0


QUICK = Scale(trials=2, rates_per_s=(20,), rate_s=1.0, rounds=1, watchers=5, watch_s=2.0)


class CountingBoard(ProgressBoard):
    """The progress board, which counts its long polls and remembers when it had each step."""

    def __init__(self, ring: int) -> None:
        super().__init__(ring)
        self._polls, self._open, self._most_open = Counter[str](), Counter[str](), Counter[str]()
        self._had: dict[tuple[str, str, int], float] = {}

    async def report(self, records: Sequence[ProgressRecord]) -> Receipt:
        for record in records:
            self._had.setdefault((record.job_id, record.shot_id, record.step), time.time())
        return await super().report(records)

    async def poll(self, job_id: str, epoch: str = "", after: int = 0, timeout_s: float = 10.0) -> Poll:
        self._polls[job_id] += 1
        self._open[job_id] += 1
        self._most_open[job_id] = max(self._most_open[job_id], self._open[job_id])
        try:
            return await super().poll(job_id, epoch, after, timeout_s)
        finally:
            self._open[job_id] -= 1

    async def polls(self, job_id: str) -> tuple[int, int]:
        """Of a job, since the last question: how many, and how many at once."""
        polls, most_open = self._polls[job_id], self._most_open[job_id]
        self._polls[job_id], self._most_open[job_id] = 0, self._open[job_id]
        return polls, most_open

    async def had(self, job_id: str) -> dict[tuple[str, int], float]:
        """(shot, step) -> unix seconds."""
        return {(shot, step): at_s for (job, shot, step), at_s in self._had.items() if job == job_id}


class BareDeployment:
    """Starlette and nothing else."""

    def __serve_build_asgi_app__(self) -> Starlette:
        return Starlette(routes=[Route("/status/{length:int}", bare_status), Route("/events", bare_events),
                                 Route("/films", bare_post, methods=["POST"])])


async def bare_status(request: Request) -> Response:
    return Response(b'{"status":"' + b"x" * (request.path_params["length"] - PAD - 1) + b'"}',
                    media_type="application/json")


async def bare_post(request: Request) -> Response:
    return Response(await request.body(), 202, media_type="application/json")


async def bare_events(request: Request) -> Response:
    async def one():
        yield b'event: info\ndata: {"type":"info"}\n\n'

    return StreamingResponse(one(), media_type="text/event-stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Both applications, up."""

    port: int
    board: ray.actor.ActorHandle

    async def submit(self, title: str, shots: Sequence[dict[str, object]]) -> str:
        status, reply = await ask(self.port, "POST", "/api/films", {"title": title, "shots": list(shots)})
        assert status == 202, reply
        return str(json.loads(reply)["id"])

    async def end(self, job_id: str) -> None:
        """Cancel, and wait until it is over."""
        await ask(self.port, "POST", f"/api/jobs/{job_id}/cancel")
        await Listener(port=self.port, path=f"/api/jobs/{job_id}/events").listen()

    async def long_film(self) -> str:
        """A film that runs for minutes; returns when its steps are heard."""
        job_id = await self.submit("Long", [
            {"prompt": f"sleep={SHOT_S} shot {number}", "steps": SHOT_S * STEPS_PER_S} for number in range(FILM_SHOTS)])
        async with asyncio.timeout(60):
            while not await self.board.had.remote(job_id):  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # another process sends no signal
        return job_id


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """One Ray, one proxy, two applications."""
    port = free_port()
    # Not below TMPDIR: ray's socket paths must stay below 107 characters.
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as ray_dir, \
            tempfile.TemporaryDirectory() as data_dir:
        ray.init(address="local", num_cpus=16, num_gpus=2, include_dashboard=False, log_to_driver=False,
                 object_store_memory=100_000_000, namespace=NAMESPACE, logging_level="ERROR", _temp_dir=ray_dir)
        try:
            serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port),
                        logging_config=LoggingConfig(log_level="ERROR", enable_access_log=False))
            yield deploy(port, Path(data_dir))
        finally:
            ray.shutdown()


def deploy(port: int, data_dir: Path) -> Site:
    models = [f"models.{task}=placeholder" for task in ("text_to_image", "text_to_video", "image_to_video")]
    settings = load_settings("ci", [f"data_dir={data_dir}", f"http.port={port}", "engine.lease_s=30",
                                    "engine.heartbeat_s=5", *models], {})
    # Found by its name, so the application uses this one.
    board = ray.remote(CountingBoard).options(name=ACTOR_NAME, namespace=NAMESPACE, lifetime="detached", num_cpus=0,
                                              max_concurrency=2000).remote(settings.progress.ring)
    app = build(settings, cluster=ray.cluster_resources(), model=KernelModel, http=True)
    serve.run(app, name="reelray", route_prefix="/")
    bare = serve.deployment(serve.ingress()(BareDeployment), name="bare", max_ongoing_requests=1000,
                            ray_actor_options={"num_cpus": 0.1}).bind()
    serve.run(bare, name="bare", route_prefix="/bare")
    return Site(port=port, board=board)


async def first_events(where: Site, trials: int) -> list[list[object]]:
    """Rows: from the request until the first event, until the first step, and the bare pair."""
    found: dict[str, list[float]] = {name: [] for name in ("bare POST, then its one event", "film, first event",
                                                            "film, first step")}
    bare, first, step = found.values()
    for number in range(-1, trials):  # the first one warms up
        began_s = time.time()
        await ask(where.port, "POST", "/bare/films", {"title": "x"})
        listener = Listener(port=where.port, path="/bare/events")
        await listener.listen()
        bare_s = listener.heard[0][0] - began_s
        began_s = time.time()
        job_id = await where.submit(f"First {number}", [{"prompt": f"sleep=0.6 {number}", "frames": 9,
                                                         "steps": 6}])
        listener = Listener(port=where.port, path=f"/api/jobs/{job_id}/events")
        await listener.listen()
        steps_s = [at_s for at_s, event in listener.events()
                   if event["type"] == "shot_update" and event["shot"]["step"]]
        if number >= 0:
            bare.append(bare_s)
            first.append(listener.heard[0][0] - began_s)
            step.append(steps_s[0] - began_s)
    rows: list[list[object]] = []
    for name, values_s in found.items():
        values = sorted(values_s)
        rows.append(["submit to event", name, trials, percentile(values, 0.5) * 1e3, percentile(values, 0.99) * 1e3,
                     statistics.median(values) / statistics.median(bare), ""])
    return rows


def status_row(rate: int, which: str, answers: Sequence[Answers], used_s: float) -> list[object]:
    """The median of the rounds: one hiccup of a shared machine does not decide."""
    p50_s, p99_s = (statistics.median(percentile(one.latencies_s, share) for one in answers) for share in (0.5, 0.99))
    answered, count = statistics.median(one.answered_per_s for one in answers), sum(len(a.latencies_s) for a in answers)
    return [f"status, {rate}/s offered", which, count, p50_s * 1e3, p99_s * 1e3, 1.0,
            f"{answered:.0f}/s answered, {sum(one.failures for one in answers)} failed; "
            f"{used_s / max(count, 1) * 1e3:.2f} CPU ms each (proxy and replica)"]


def is_sustained(answers: Sequence[Answers], rate: float) -> bool:
    """As much was answered as was offered, or nearly."""
    return statistics.median(one.answered_per_s for one in answers) >= SUSTAINED * rate


async def status_rates(where: Site, scale: Scale, job_id: str) -> tuple[list[list[object]], str]:
    """Rows per rate, and the verdict."""
    url = f"/api/jobs/{job_id}"
    length = len((await ask(where.port, "GET", url))[1])
    paths = {"bare": f"/bare/status/{length}", "status": url}
    rows: list[list[object]] = []
    verdicts: list[str] = []
    for rate in scale.rates_per_s:
        runs: dict[str, list[Answers]] = {name: [] for name in paths}
        used_s = dict.fromkeys(paths, 0.0)
        for turn in range(scale.rounds):
            for name in sorted(paths, reverse=bool(turn % 2)):
                before = cpu_s()
                runs[name].append(await offer(where.port, paths[name], per_s=rate, seconds=scale.rate_s))
                after = cpu_s()
                used_s[name] += sum(after[part] - before[part] for part in ("proxy", REPLICA_OF[name]))
            if not is_sustained(runs["bare"], rate):
                break  # what piles up says little, and takes long
        found = {name: status_row(rate, f"{name}, {length} bytes", answers, used_s[name])
                 for name, answers in runs.items()}
        for row in found.values():
            row[5] = float(str(row[4])) / float(str(found["bare"][4]))
            print(row, flush=True)
        rows += found.values()
        p50, p99 = (float(str(found["status"][column])) / float(str(found["bare"][column])) for column in (3, 4))
        beyond = "" if is_sustained(runs["bare"], rate) else "; the bare route does not sustain this rate here"
        verdicts.append(f"{p99:.2f} at {rate}/s ({'met' if p99 <= GOAL else 'NOT met'}; p50 {p50:.2f}{beyond})")
    return rows, f"Status p99 against the bare route's, goal {GOAL}: {', '.join(verdicts)}."


def cpu_s() -> dict[str, float]:
    """CPU seconds so far of each part of the service."""
    used = dict.fromkeys(PARTS, 0.0)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            for part, name in PARTS.items():
                if name in title:
                    used[part] += sum(process.cpu_times()[:2])
    return used


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What some watchers met in a while."""

    latencies_s: list[float]
    cpu_s: dict[str, float]
    """Per part of the service."""
    polls: int
    most_open: int
    """Long polls of the film at the board, at the same time."""


async def watched(where: Site, job_id: str, watchers: int, seconds: float) -> Watched:
    listeners = [Listener(port=where.port, path=f"/api/jobs/{job_id}/events") for _ in range(watchers)]
    tasks = [asyncio.create_task(listener.listen()) for listener in listeners]
    await asyncio.sleep(4.0)  # all are connected, and have the film's past
    await where.board.polls.remote(job_id)
    before, began_s = cpu_s(), time.time()
    await asyncio.sleep(seconds)
    after, ended_s = cpu_s(), time.time()
    polls, most_open = await where.board.polls.remote(job_id)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    had = await where.board.had.remote(job_id)
    latencies_s = [at_s - had[key] for listener in listeners for at_s, event in listener.events()
                   if event["type"] == "shot_update" and (key := (event["shot"]["id"], event["shot"]["step"])) in had
                   and began_s <= had[key] and at_s <= ended_s]
    return Watched(latencies_s=latencies_s, cpu_s={part: after[part] - before[part] for part in PARTS}, polls=polls,
                   most_open=most_open)


async def watchers(where: Site, scale: Scale, job_id: str) -> tuple[list[list[object]], str]:
    """Rows for one watcher and for many, in turns."""
    runs: dict[int, list[Watched]] = {1: [], scale.watchers: []}
    for _ in range(scale.rounds):
        for count, found in runs.items():
            found.append(await watched(where, job_id, count, scale.watch_s))
    rows: list[list[object]] = []
    base_p50 = 0.0
    for count, found in runs.items():
        latencies_s = sorted(latency for run in found for latency in run.latencies_s)
        seconds = scale.watch_s * len(found)
        shares = ", ".join(f"{part} {sum(run.cpu_s[part] for run in found) / seconds:.2f}"
                           for part in WATCHED_PARTS)
        p50 = percentile(latencies_s, 0.5)
        base_p50 = base_p50 or p50
        rows.append([f"watchers, {count}", "board has a step to client has it", len(latencies_s), p50 * 1e3,
                     percentile(latencies_s, 0.99) * 1e3, p50 / base_p50,
                     f"CPU s per s: {shares}; {sum(run.polls for run in found) / seconds:.1f} long polls/s, at most "
                     f"{max(run.most_open for run in found)} open"])
    most = max(run.most_open for run in runs[scale.watchers])
    return rows, f"{scale.watchers} watchers held {most} long poll{'s' if most > 1 else ''} open at the board."


async def measure(where: Site, scale: Scale) -> tuple[list[list[object]], list[str]]:
    rows = await first_events(where, scale.trials)
    verdicts: list[str] = []
    for part in (status_rates, watchers):
        job_id = await where.long_film()
        told, verdict = await part(where, scale, job_id)
        assert json.loads((await ask(where.port, "GET", f"/api/jobs/{job_id}"))[1])["status"] == "running"
        await where.end(job_id)
        rows += told
        verdicts.append(verdict)
    return rows, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a little of everything, and no report")
    quick = parser.parse_args().quick
    with site() as where:
        rows, verdicts = asyncio.run(measure(where, QUICK if quick else Scale()))
    if quick:
        print(*rows, *verdicts, sep="\n")
        return
    write_report("http_cpu_202611", "What does the HTTP service add?",
                 ("what", "which", "samples", "p50 ms", "p99 ms", "ratio to the first", "more"), rows,
                 " ".join([*verdicts, "Ratios: of medians for submit to event (bare: a POST and a stream that ends at "
                                      "once), of p99 for status (bare route with the same bytes), of p50 for watchers "
                                      "(one watcher). The load generator shares the two cores with everything else."]))


if __name__ == "__main__":
    main()
