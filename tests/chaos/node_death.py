"""A machine dies while it renders: how long until another one goes on with its shot. `python -m tests.chaos nodes`.

One machine plays three: nodes of Ray that are processes, each with one logical GPU, and a head without. All else is
real: `reelray serve --address`, Postgres, checkpoints. A death is kill -9 of a node's raylet and of all that it had
started, in one moment.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from configs.load import load_settings
from configs.settings import EngineSettings
from serve_app.client import Client
from tests.bench.report import write_report
from tests.chaos.crowd import body_of
from tests.chaos.invariants import Evidence, Violation, check
from tests.chaos.matrix import kept_steps
from tests.chaos.monkey import database, resumed_at
from tests.chaos.served import TITLES, Component, Served, until
from tests.fake_cluster import FakeCluster
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.durable.rows import EventRow, EventType, NodeRow
from workflows.store import Store
from workflows.types import JobStatus, NodeKind, NodeStatus

MACHINES, STEPS = 2, 1000
"""One shot on two machines: where it goes on is a question of time only, not of room."""
HEADER = ("death", "noticed, s", "shot started elsewhere, s", "went on after step", "film")
BUSY_S = 0.5
LIMIT_S = 300.0
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


def film(number: int) -> dict[str, Any]:
    """One shot, which no other number has."""
    return {"title": f"Death {number}", "size": "128x128", "fps": 8, "seed": 1000 + number,
            "defaults": {"frames": 9, "steps": STEPS},
            "shots": [{"prompt": "a red ball moves right over a white background"}]}


class Machines:
    """The cluster, with reelray served on it."""

    def __init__(self, cluster: FakeCluster, served: Served, ledger: Ledger) -> None:
        self._cluster = cluster
        self._url = served.url
        self._ledger = ledger
        self._store = Store(load_settings("ci", served.overrides).store)

    def lose_one(self, number: int) -> Death:
        """Have a film made, kill the machine that renders its shot, and wait for the film."""
        with closing(Client(self._url)) as client:
            job_id = str(client.submit(body_of(film(number)))["id"])
        until(lambda: any(map(self._is_kept, self._at_work(job_id))), LIMIT_S, "the shot is at work, with a checkpoint")
        at_s = self._kill(self._busiest())
        until(lambda: any(node.crashes for node in self._ledger.nodes(job_id)), LIMIT_S, "the death is noticed")
        until(lambda: self._ledger.job(job_id).status.is_terminal, LIMIT_S, "the film")
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
        return kept_steps(self._store.url, node.key) > 0

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
        served = Served(place, [
            *DEFAULTS, f"database_url={databases.url}", f"store_url={place / 'films'}", "store_is_shared=true",
            "ray.several_machines=true", f"ray.max_gpus={MACHINES}", "models.device=auto", "models.torch_threads=1",
            "ray.service_labels={pool: head}", f"ray.address={cluster.address}", "engine.attempts=1",
            f"models.default_replicas={{replicas: {MACHINES}, num_gpus: 1, num_cpus: 0.5}}", *more])
        stack.enter_context(served)
        ledger = Ledger(databases.url)
        stack.callback(ledger.close)
        yield Machines(cluster, served, ledger)


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
