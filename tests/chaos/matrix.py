"""Each component is killed at each moment of a clip's life: a film per cell, on a server that holds its clip there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from configs.load import load_settings
from serve_app.client import Client
from tests.bench.report import write_report
from tests.chaos.calm import calm_frames
from tests.chaos.crowd import Heard, body_of, film_of
from tests.chaos.gated import Gate, Moment, gate_of
from tests.chaos.invariants import COMMITS, Evidence, Rule, Violation, check, repeated_steps
from tests.chaos.monkey import REPEAT_LIMIT, SETTINGS, Databases, database, resumed_at
from tests.chaos.served import START_S, Component, Served, answers, until
from workflows.checkpoints import DIRECTORY, SUFFIX, Kept
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.durable.rows import EventRow, EventType
from workflows.store import Store

GATED = ("-m", "tests.chaos.gated_server")
COMPONENTS = (Component.DIRECTOR, Component.MODEL, Component.INGRESS, Component.BOARD, Component.SERVER)
HEADER = ("killed", "moment", "film", "lost", "re-rendered after commit", "steps repeated", "steps kept",
          "went on after step", "attempts", "violations", "work goes on, s", "film over, s")
CELL_S = 300.0
QUIET_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One kill and what came of it."""

    component: Component
    moment: Moment
    node_id: str
    """The clip that was held, or committed first."""
    evidence: Evidence
    violations: tuple[Violation, ...]
    kept: int
    """Steps of the struck clip that were in a checkpoint when the kill came; 0: none were."""
    resumed_after: int
    """Step after which the struck clip was gone on with; 0: it was made at one go."""
    attempts: int
    """At the clip that was in the making."""
    work_s: float | None
    """From the kill to the next claim of the job, or the next commit."""
    over_s: float
    """From the kill to the end of the film."""

    @property
    def repeated(self) -> int:
        """Steps that were made again, of all clips of the film."""
        return max(repeated_steps(self.evidence.steps).values(), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What was killed, when, and what was being made then."""

    component: Component
    moment: Moment
    job_id: str
    node_id: str
    at_s: float
    kept: int

    @property
    def ends_its_clip(self) -> bool:
        """The clip's own run died half made, so that another one must go on at its checkpoint."""
        return (self.component in (Component.MODEL, Component.SERVER)
                and self.moment in (Moment.DENOISING, Moment.ENCODING))


class Floor:
    """A gated server, its database and its store: where cells are played."""

    def __init__(self, served: Served, databases: Databases) -> None:
        self._served = served
        settings = load_settings("ci", served.overrides)
        self._gate: Gate = gate_of(settings)
        self.ledger = Ledger(databases.url)
        self.store = Store(settings.store)
        self._calm_place = served.place
        self._number = 0

    def play(self, component: Component, moment: Moment, *, compare: bool = True) -> Cell:
        """One film, one kill. Raises TimeoutError when the moment does not come or the film does not end."""
        until(self._is_quiet, QUIET_S, "all components have a process")
        self._number += 1
        if moment is not Moment.AFTER_COMMIT:
            self._gate.arm(moment)
        client = Client(self._served.url, patience_s=START_S)
        job_id = str(client.submit(body_of(film_of(0, self._number)))["id"])
        heard = Heard()
        listening = threading.Thread(target=listen, args=(client, job_id, heard), daemon=True)
        listening.start()
        pid, node_id = self._reach(moment, job_id)
        kept = kept_steps(self.store.url, next(node.key for node in self.ledger.nodes(job_id) if node.id == node_id))
        struck = Hit(component=component, moment=moment, job_id=job_id, node_id=node_id, at_s=time.time(), kept=kept)
        self._kill(component, pid)
        self._gate.open(moment)
        until(lambda: self.ledger.job(job_id).status.is_terminal, CELL_S, f"{job_id} is over")
        listening.join(CELL_S)
        client.close()
        return self._judge(struck, heard, compare=compare)

    def _reach(self, moment: Moment, job_id: str) -> tuple[int, str]:
        """Wait for the moment; the process that is held there (0: none is) and the clip it is about."""
        if moment is Moment.AFTER_COMMIT:
            until(lambda: self._done_clips(job_id), CELL_S, "a clip is committed")
            return 0, self._done_clips(job_id)[0].node_id
        until(lambda: self._gate.held(moment), CELL_S, f"a clip is held {moment.value}")
        pid, whose = self._gate.held(moment) or (0, "")
        return pid, next(node.id for node in self.ledger.nodes(job_id) if whose in (node.id, node.key))

    def _kill(self, component: Component, pid: int) -> None:
        if component is Component.SERVER:
            self._served.kill_all()
            self._served.start()
            return
        found = {process.pid: process for process in self._served.processes(component)}
        victim = found[pid] if component is Component.MODEL and pid else next(iter(found.values()))
        os.kill(victim.pid, signal.SIGKILL)

    def _judge(self, hit: Hit, heard: Heard, *, compare: bool) -> Cell:
        job, nodes = self.ledger.job(hit.job_id), self.ledger.nodes(hit.job_id)
        calm = {}
        if compare:
            with tempfile.TemporaryDirectory(dir=self._calm_place) as place:
                calm = calm_frames({hit.job_id: nodes}, Path(place))[hit.job_id]
        evidence = Evidence(job=job, nodes=nodes, events=self.ledger.events(hit.job_id, limit=MAX_LIMIT),
                            steps=heard.seen(), repeat_limit=REPEAT_LIMIT, calm=calm)
        clip = next(node for node in nodes if node.id == hit.node_id)
        resumed_after = resumed_at(self.store, clip.key)
        violations = check(evidence, self.store)
        if hit.ends_its_clip and resumed_after < hit.kept:
            violations.append(Violation(rule=Rule.REPEATED, job_id=hit.job_id, node_id=hit.node_id, words=(
                f"begun again after step {resumed_after}, though {hit.kept} were in a checkpoint")))
        wanted = {EventType.JOB_STARTED} if hit.component in (Component.DIRECTOR, Component.SERVER) else COMMITS
        later = [event.at_s - hit.at_s for event in evidence.events
                 if event.type in wanted and event.at_s > hit.at_s]
        return Cell(component=hit.component, moment=hit.moment, node_id=hit.node_id, evidence=evidence,
                    violations=tuple(violations), kept=hit.kept, resumed_after=resumed_after, attempts=clip.attempt,
                    work_s=min(later, default=None), over_s=(job.finished_at_s or hit.at_s) - hit.at_s)

    def _done_clips(self, job_id: str) -> list[EventRow]:
        return [event for event in self.ledger.events(job_id, limit=MAX_LIMIT)
                if event.type in COMMITS and event.node_id.endswith(".clip")]

    def _is_quiet(self) -> bool:
        singles = (Component.DIRECTOR, Component.INGRESS, Component.BOARD, Component.MEDIA)
        return (all(self._served.processes(one) for one in singles)
                and len(self._served.processes(Component.MODEL)) >= 2 and answers(self._served.port))


def kept_steps(store_url: str, key: str) -> int:
    """Of the furthest checkpoint under a key; 0: there is none. For a store that is a directory."""
    found = [0]
    for path in (Path(store_url) / DIRECTORY / key).glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # replaced or removed meanwhile
            found.append(Kept.from_bytes(path.read_bytes()).step)
    return max(found)


def listen(client: Client, job_id: str, heard: Heard) -> None:
    """Hear a job's steps to its end; what cannot be heard is not counted, the rows are the witness."""
    with suppress(Exception):
        for event in client.events(job_id, all_steps=True):
            heard.note(event.name, event.data)


@contextmanager
def floor(kind: str) -> Iterator[Floor]:
    """A gated server on `sqlite` or `postgres`, with all that it leaves, until the end of the block."""
    place = Path(tempfile.mkdtemp(prefix="reelray-matrix-"))
    try:
        with ExitStack() as stack:
            databases = stack.enter_context(database(kind, place))
            served = Served(place, [*SETTINGS, f"database_url={databases.url}"], program=GATED)
            stack.enter_context(served)
            found = Floor(served, databases)
            stack.callback(found.ledger.close)
            yield found
    finally:
        shutil.rmtree(place, ignore_errors=True)


def play_all(kind: str, say: Callable[[str], None]) -> tuple[list[Cell], list[str]]:
    """Every component at every moment; the cells, and what became of those that could not be played to their end."""
    cells: list[Cell] = []
    troubles: list[str] = []
    with floor(kind) as found:
        for component, moment in itertools.product(COMPONENTS, Moment):
            name = f"{component.value} killed at {moment.value}"
            try:
                cells.append(found.play(component, moment))
            except TimeoutError as error:
                troubles.append(f"{name}: {error}")
                say(troubles[-1])
                continue
            say(f"{kind}: {name}: {cells[-1].evidence.job.status.value}, {len(cells[-1].violations)} violations")
    return cells, troubles


def write(kind: str, cells: Sequence[Cell], troubles: Sequence[str], directory: Path) -> Path:
    """The table."""
    rows = [[cell.component.value, cell.moment.value, cell.evidence.job.status.value, _count(cell, Rule.LOST),
             _count(cell, Rule.RESTARTED), cell.repeated, cell.kept or "-", cell.resumed_after or "-", cell.attempts,
             len(cell.violations), "-" if cell.work_s is None else f"{cell.work_s:.1f}", f"{cell.over_s:.1f}"]
            for cell in cells]
    broken = [f"- {violation}" for cell in cells for violation in cell.violations]
    broken += [f"- not played to its end: {text}" for text in troubles]
    compared = sum(bool(cell.evidence.calm) for cell in cells)
    conclusion = "\n".join([
        f"One film of three clips per line. One of its clips is held at the moment, the component gets SIGKILL, the "
        f"clip is let go on if its replica lives. `steps kept` (in a checkpoint when the kill came), `went on "
        f"after step` and `attempts` are of that clip. No step that was kept may be made again where the clip's own "
        f"replica dies half way. {compared} films were compared frame by frame with undisturbed ones.",
        "",
        "Violations:" if broken else "Violations: none.", *broken, "", "Again: `python -m tests.chaos matrix`."])
    return write_report(f"matrix_{kind}", f"Each component killed at each moment, on {kind}", HEADER, rows, conclusion,
                        directory=directory)


def _count(cell: Cell, rule: Rule) -> int:
    return sum(violation.rule is rule for violation in cell.violations)
