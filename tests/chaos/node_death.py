"""A machine dies while it renders: how long until another one goes on with its shot. `python -m tests.chaos nodes`.

One machine plays three: nodes of Ray that are processes, each with one logical GPU, and a head without. All else is
real: `reelray serve --address`, Postgres, checkpoints. A death is kill -9 of a node's raylet and of all that it had
started, in one moment.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from configs.load import casting, load_cards, load_settings
from configs.settings import EngineSettings, Settings
from tests.bench.report import write_report
from tests.chaos.invariants import Evidence, Violation, check
from tests.chaos.monkey import database, resumed_at
from tests.chaos.served import START_S, TITLES, Component, answers
from tests.fake_cluster import FakeCluster, free_ports
from workflows.checkpoints import DIRECTORY
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.durable.rows import EventRow, EventType, NewJob, NodeRow
from workflows.plan import plan_film
from workflows.store import Store
from workflows.storyboard import parse_storyboard
from workflows.types import JobStatus, NodeKind, NodeStatus

MACHINES, STEPS = 2, 1000
"""One shot on two machines: where it goes on is a question of time only, not of room."""
HEADER = ("death", "noticed, s", "shot started elsewhere, s", "went on after step", "film")
BUSY_S = 0.5
GOAL_S = 10.0
TIMINGS = frozenset({"lease_s", "heartbeat_s", "poll_s", "backoff_s", "max_backoff_s"})
DEFAULTS = tuple(f"engine.{name}={value:g}" for name, value in EngineSettings().model_dump(include=TIMINGS).items())
"""The timings of a studio, not those of the tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One machine's, and what came of it."""

    noticed_s: float
    """From the signal to the row that says so."""
    elsewhere_s: float
    """From the signal to the start of the next attempt, on a replica of another machine."""
    resumed_after: int
    """The step after which the shot went on; 0: it began anew."""
    status: JobStatus
    violations: tuple[Violation, ...]


def film(number: int) -> str:
    return (f"title: Death {number}\nsize: 128x128\nfps: 8\nseed: {1000 + number}\n"
            f"defaults: {{frames: 9, steps: {STEPS}}}\n"
            "shots:\n  - prompt: a red ball moves right over a white background\n")


class Machines:
    """The cluster, with reelray served on it."""

    def __init__(self, place: Path, cluster: FakeCluster, settings: Settings, ledger: Ledger) -> None:
        self._place = place
        self._cluster = cluster
        self._settings = settings
        self._ledger = ledger
        self._store = Store(settings.store)

    def lose_one(self, number: int) -> Death:
        """Have a film made, kill the machine that renders its shot, and wait for the film."""
        job_id = f"death-{number}"
        board = parse_storyboard(film(number))
        plan = plan_film(board, cards=casting(self._settings, load_cards(self._settings)), assets={})
        self._ledger.submit(NewJob(id=job_id, title=board.title, document={"title": board.title}, nodes=plan.nodes))
        _until(lambda: any(map(self._is_kept, self._at_work(job_id))), "the shot is at work, with a checkpoint")
        at_s = self._kill(self._busiest())
        _until(lambda: any(node.crashes for node in self._ledger.nodes(job_id)), "the death is noticed")
        _until(lambda: self._ledger.job(job_id).status.is_terminal, "the film")
        nodes, events = self._ledger.nodes(job_id), self._ledger.events(job_id, limit=MAX_LIMIT)
        lost = next(node for node in nodes if node.crashes)
        after = [event for event in events if event.node_id == lost.id and event.at_s > at_s]
        evidence = Evidence(job=self._ledger.job(job_id), nodes=nodes, events=events)
        return Death(
            noticed_s=_first(after, EventType.NODE_RETRY) - at_s,
            elsewhere_s=_first(after, EventType.NODE_STARTED) - at_s,
            resumed_after=resumed_at(self._store, lost.key), status=evidence.job.status,
            violations=tuple(check(evidence, self._store)))

    def _at_work(self, job_id: str) -> list[NodeRow]:
        return [node for node in self._ledger.nodes(job_id)
                if node.kind is NodeKind.CLIP and node.status is NodeStatus.RUNNING]

    def _is_kept(self, node: NodeRow) -> bool:
        return any((Path(self._settings.store) / DIRECTORY / node.key).glob("*.ckpt"))

    def _busiest(self) -> psutil.Process:
        """The replica that computes the most just now."""
        replicas = [process for process in self._cluster.processes()
                    if any(TITLES[Component.MODEL] in word for word in process.cmdline())]
        before = {process.pid: _cpu_s(process) for process in replicas}
        time.sleep(BUSY_S)
        return max(replicas, key=lambda process: _cpu_s(process) - before[process.pid])

    @staticmethod
    def _kill(replica: psutil.Process) -> float:
        raylet = next(parent for parent in replica.parents() if parent.name() == "raylet")
        machine = [raylet, *raylet.children(recursive=True)]
        at_s = time.time()
        for process in machine:
            with suppress(psutil.Error):
                process.kill()
        return at_s


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _first(events: Sequence[EventRow], kind: EventType) -> float:
    return min(event.at_s for event in events if event.type is kind)


def _until(good: Callable[[], bool], what: str, limit_s: float = 300.0) -> None:
    end_s = time.monotonic() + limit_s
    while not good():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{what}: not in {limit_s:g} s")
        time.sleep(0.02)


@contextmanager
def machines(*more: str) -> Iterator[Machines]:
    """A head, two machines with a GPU each, and reelray on them. `more`: further settings."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reelray-nodes-")))
        databases = stack.enter_context(database("postgres", place))
        cluster = FakeCluster(
            {"gpu": {"resources": {"CPU": 1, "GPU": 1}, "labels": {"pool": "gpu"}, "node_config": {},
                     "min_workers": MACHINES, "max_workers": MACHINES}},
            head={"resources": {"CPU": 4}, "labels": {"pool": "head"}}, idle_s=600)
        stack.callback(cluster.close)
        port = free_ports(1)[0]
        overrides = [
            *DEFAULTS, f"data_dir={place / 'state'}", f"database_url={databases.url}", f"store_url={place / 'films'}",
            "store_is_shared=true", "ray.several_machines=true", f"ray.max_gpus={MACHINES}", "models.device=auto",
            "models.torch_threads=1", "ray.service_labels={pool: head}", f"http.port={port}",
            f"ray.address={cluster.address}",
            f"models.default_replicas={{replicas: {MACHINES}, num_gpus: 1, num_cpus: 0.5}}", "engine.attempts=1", *more]
        words = [word for override in overrides for word in ("--set", override)]
        with (place / "serve.log").open("w") as log:
            serving = subprocess.Popen(
                [sys.executable, "-c", "from serve_app.cli import main; main()", "serve", "--profile", "ci", *words],
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        stack.callback(_end, serving)
        _until(lambda: serving.poll() is not None or answers(port), "the server is ready", START_S)
        if serving.poll() is not None:
            raise RuntimeError((place / "serve.log").read_text())
        settings = load_settings("ci", overrides, {})
        ledger = Ledger(databases.url)
        stack.callback(ledger.close)
        yield Machines(place, cluster, settings, ledger)


def _end(serving: subprocess.Popen[bytes]) -> None:
    serving.terminate()
    with suppress(subprocess.TimeoutExpired):
        serving.wait(timeout=60)
        return
    serving.kill()
    serving.wait()


def measure(times: int, directory: Path, say: Callable[[str], None]) -> tuple[Path, bool]:
    """So many machines die, each in a cluster of its own; the table, and whether all was as it should be."""
    rows: list[list[object]] = []
    deaths: list[Death] = []
    for number in range(1, times + 1):
        with machines("models.checkpoints.share=1", "models.checkpoints.interval_s=0") as found:
            death = found.lose_one(number)
        deaths.append(death)
        say(f"death {number}: noticed after {death.noticed_s:.2f} s, started elsewhere after {death.elsewhere_s:.2f} s")
        rows.append([number, death.noticed_s, death.elsewhere_s,
                     death.resumed_after or "-", death.status.value])
    slowest = max(death.elsewhere_s for death in deaths)
    told = [f"- {violation}" for death in deaths for violation in death.violations]
    conclusion = (
        f"{MACHINES} machines with one logical GPU each beside a head, processes of one machine; one shot at work, "
        "the other machine free. kill -9 of the raylet and of all that it had started. Timings: "
        f"{', '.join(DEFAULTS)}; Ray's own are its defaults. Slowest {slowest:.1f} s, goal {GOAL_S:g} s "
        f"({'met' if slowest < GOAL_S else 'NOT met'}). A dead machine closes its connections; one that is cut off "
        "from the net does not, and is known by Ray's health checks only (not measured here).\n\n"
        f"Violations: {'none.' if not told else ''}" + "\n".join(["", *told]))
    path = write_report("node_death", "How soon does a dead machine's shot go on elsewhere?", HEADER, rows, conclusion,
                        directory=directory)
    return path, not told and all(death.status is JobStatus.SUCCEEDED for death in deaths)
