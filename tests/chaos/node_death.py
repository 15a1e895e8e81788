"""A machine is lost while it renders: how long until another one goes on with its shot. `python -m tests.chaos nodes`.

One machine plays three: nodes of Ray that are processes, each with one logical GPU, and a head without. All else is
real: `reelray serve --address`, Postgres, checkpoints. A node is lost by a signal to its raylet and to all that it had
started, in one moment: kill -9; a stop, as of a machine that is frozen; or by a cut of its link (`partition.py`), where
it runs on. Connections stay open in both, and nobody answers. It comes back once the shot runs elsewhere.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from configs.load import load_settings
from configs.settings import EngineSettings
from serve_app.client import Client
from tests.bench.report import write_report
from tests.chaos.calm import calm_frames
from tests.chaos.crowd import SAME, body_of
from tests.chaos.invariants import Evidence, Violation, check
from tests.chaos.matrix import kept_steps
from tests.chaos.monkey import database, resumed_at
from tests.chaos.partition import PartedCluster
from tests.chaos.served import TITLES, Component, Served, until
from tests.fake_cluster import FakeCluster
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.durable.rows import EventRow, EventType, NodeRow
from workflows.store import Store
from workflows.types import JobStatus, NodeKind, NodeStatus

MACHINES, STEPS = 2, 1000
"""One shot on two machines: where it goes on is a question of time only, not of room."""
HEADER = ("death", "noticed, s", "shot started elsewhere, s", "went on after step", "came back and ended after, s",
          "film")
BUSY_S = 0.5
LIMIT_S = 300.0
GONE_S = 60.0
"""So long may a machine that comes back live on."""
GOAL_S = 10.0
LAUNCHED = (Path(__file__).resolve().parents[2] / "cluster.yaml").read_text(encoding="utf-8")
WATCH = dict(re.findall(r"\b(RAY_health_check_\w+)=(\d+)", LAUNCHED))
"""How the head of `cluster.yaml` watches its machines."""
TIMINGS = frozenset({"lease_s", "heartbeat_s", "poll_s", "backoff_s", "max_backoff_s"})
DEFAULTS = tuple(f"engine.{name}={value:g}" for name, value in EngineSettings().model_dump(include=TIMINGS).items())
"""The timings of a studio, not those of the tests."""


class How(StrEnum):
    """What happens to the machine."""

    KILLED = "killed"
    STOPPED = "stopped"
    CUT_OFF = "cut-off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One machine's, and what came of it."""

    noticed_s: float
    """From the signal to the row that says so."""
    elsewhere_s: float
    """From the signal to the start of the next attempt, on a replica of another machine."""
    resumed_after: int
    """The step after which the shot went on; 0: it began anew."""
    gone_s: float | None
    """From the return of the machine to the end of all its processes; None: killed, or not within `GONE_S`."""
    crashes: int
    """Attempts of the shot that were lost; more than one: the return of the machine has cost another."""
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

    def lose_one(self, number: int, how: How = How.KILLED) -> Death:
        """Have a film made, lose the machine that renders its shot, and wait for the film."""
        with closing(Client(self._url)) as client:
            job_id = str(client.submit(body_of(film(number)))["id"])
        until(lambda: any(map(self._is_kept, self._at_work(job_id))), LIMIT_S, "the shot is at work, with a checkpoint")
        replica = self._busiest()
        machine = _machine_of(replica)
        at_s, back = self._lose(replica, machine, how)
        try:
            until(lambda: self._is_elsewhere(job_id, at_s), LIMIT_S, "the shot runs elsewhere")
        finally:
            back()
        gone_s = None if how is How.KILLED else _gone_s(machine)
        until(lambda: self._ledger.job(job_id).status.is_terminal, LIMIT_S, "the film")
        nodes, events = self._ledger.nodes(job_id), self._ledger.events(job_id, limit=MAX_LIMIT)
        lost = next(node for node in nodes if node.crashes)
        after = [event for event in events if event.node_id == lost.id and event.at_s > at_s]
        with tempfile.TemporaryDirectory(prefix="reelray-calm-") as place:
            calm = calm_frames({job_id: nodes}, Path(place))[job_id]
        evidence = Evidence(job=self._ledger.job(job_id), nodes=nodes, events=events, calm=calm)
        return Death(
            noticed_s=_first(after, EventType.NODE_RETRY) - at_s,
            elsewhere_s=_first(after, EventType.NODE_STARTED) - at_s, gone_s=gone_s,
            resumed_after=resumed_at(self._store, lost.key), crashes=lost.crashes, status=evidence.job.status,
            violations=tuple(check(evidence, self._store)))

    def _lose(self, replica: psutil.Process, machine: Sequence[psutil.Process],
              how: How) -> tuple[float, Callable[[], None]]:
        """Lose the machine: when, and what brings it back."""
        at_s = time.time()
        if how is How.CUT_OFF:
            assert isinstance(self._cluster, PartedCluster)
            return at_s, partial(self._cluster.mend, self._cluster.cut(replica))
        _each(machine, psutil.Process.kill if how is How.KILLED else psutil.Process.suspend)
        return at_s, partial(_each, () if how is How.KILLED else machine, psutil.Process.resume)

    def _is_elsewhere(self, job_id: str, at_s: float) -> bool:
        return any(event.at_s > at_s and event.type is EventType.NODE_STARTED and event.node_id == node.id
                   for node in self._ledger.nodes(job_id) if node.crashes
                   for event in self._ledger.events(job_id, limit=MAX_LIMIT))

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


def _machine_of(replica: psutil.Process) -> list[psutil.Process]:
    """Its raylet, and all that the raylet has started."""
    raylet = next(parent for parent in replica.parents() if parent.name() == "raylet")
    return [raylet, *raylet.children(recursive=True)]


def _each(machine: Sequence[psutil.Process], signalled: Callable[[psutil.Process], None]) -> None:
    for process in machine:
        with suppress(psutil.Error):
            signalled(process)


def _gone_s(machine: Sequence[psutil.Process]) -> float | None:
    start_s = time.monotonic()
    _, alive = psutil.wait_procs(list(machine), timeout=GONE_S)
    return None if alive else time.monotonic() - start_s


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _first(events: Sequence[EventRow], kind: EventType) -> float:
    return min(event.at_s for event in events if event.type is kind)


def _cluster(parted: bool, watch: Mapping[str, str]) -> FakeCluster:
    head = {"resources": {"CPU": 4}, "labels": {"pool": "head"}}
    if parted:
        return PartedCluster(MACHINES, head=head, labels="pool=gpu", environment=watch)
    return FakeCluster(
        {"gpu": {"resources": {"CPU": 1, "GPU": 1}, "labels": {"pool": "gpu"}, "node_config": {},
                 "min_workers": MACHINES, "max_workers": MACHINES}}, head=head, idle_s=600, environment=watch)


@contextmanager
def machines(*more: str, watch: Mapping[str, str] = WATCH, parted: bool = False) -> Iterator[Machines]:
    """A head, two machines with a GPU each, and reelray on them.

    `more`: further settings; `watch`: how Ray's head watches its machines, `{}` as Ray does by itself; `parted`: each
    has a link that can be cut, which needs `partition.in_own_net`.
    """
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reelray-nodes-")))
        databases = stack.enter_context(database("postgres", place))
        cluster = _cluster(parted, watch)
        stack.callback(cluster.close)
        served = Served(place, [
            *DEFAULTS, *SAME, f"database_url={databases.url}", f"store_url={place / 'films'}", "store_is_shared=true",
            "ray.several_machines=true", f"ray.max_gpus={MACHINES}", "models.device=auto",
            "ray.service_labels={pool: head}", f"ray.address={cluster.address}", "engine.attempts=1",
            f"models.default_replicas={{replicas: {MACHINES}, num_gpus: 1, num_cpus: 0.5}}", *more])
        stack.enter_context(served)
        ledger = Ledger(databases.url)
        stack.callback(ledger.close)
        yield Machines(cluster, served, ledger)


def measure(times: int, directory: Path, say: Callable[[str], None], *, how: How = How.KILLED,
            watch: Mapping[str, str] = WATCH) -> tuple[Path, bool]:
    """So many machines are lost, each in a cluster of its own; the table, and whether all was as it should be."""
    rows: list[list[object]] = []
    deaths: list[Death] = []
    for number in range(1, times + 1):
        with machines("models.checkpoints.share=1", "models.checkpoints.interval_s=0", watch=watch,
                      parted=how is How.CUT_OFF) as found:
            death = found.lose_one(number, how)
        deaths.append(death)
        say(f"death {number}: noticed after {death.noticed_s:.2f} s, started elsewhere after {death.elsewhere_s:.2f} s")
        rows.append([number, death.noticed_s, death.elsewhere_s, death.resumed_after or "-",
                     "-" if death.gone_s is None else death.gone_s, death.status.value])
    told = [f"- {violation}" for death in deaths for violation in death.violations]
    name = {How.KILLED: "node_death", How.STOPPED: "node_stop", How.CUT_OFF: "node_cut_off"}[how]
    path = write_report(
        name, f"How soon does the shot of a machine go on elsewhere that is {how.value}?", HEADER, rows,
        _conclusion(deaths, how, watch) + "\n".join(["", *told]), directory=directory)
    return path, not told and all(
        death.status is JobStatus.SUCCEEDED and death.crashes == 1 for death in deaths)


def _conclusion(deaths: Sequence[Death], how: How, watch: Mapping[str, str]) -> str:
    slowest = max(death.elsewhere_s for death in deaths)
    signalled = {
        How.KILLED: "kill -9 of the raylet and of all that it had started. A dead machine closes its connections; one "
                    "that is frozen or cut off does not (`--how`).",
        How.STOPPED: "SIGSTOP of the raylet and of all that it had started; SIGCONT when the shot had started "
                     "elsewhere.",
        How.CUT_OFF: "Each has a network namespace; the link of the one at work is cut, and mended when the shot had "
                     "started elsewhere. Until then it computes on, and still reaches the store (a directory)."}[how]
    rays = ", ".join(f"{name}={value}" for name, value in watch.items()) or "its defaults"
    return (
        f"{MACHINES} machines with one logical GPU each beside a head, processes of one machine; one shot at work, "
        f"the other machine free. {signalled} Timings: {', '.join(DEFAULTS)}; Ray's own: {rays}. "
        f"Slowest {slowest:.1f} s, goal {GOAL_S:g} s ({'met' if slowest < GOAL_S else 'NOT met'}). "
        f"Attempts lost per shot: at most {max(death.crashes for death in deaths)}. "
        "All frames are compared with those of an undisturbed film.\n\n"
        f"Violations: {'none.' if not any(death.violations for death in deaths) else ''}")
