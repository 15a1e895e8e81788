"""Random kills by a seed, while a crowd of clients has films made; then all that must be true is checked."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import sqlalchemy as sa

from configs.load import load_settings
from tests.chaos.crowd import SAME, Crowd
from tests.chaos.invariants import COMMITS, Evidence, Violation, check
from tests.chaos.schedule import Blow, Strike, schedule
from tests.chaos.served import Component, Served, answers, freeze
from tests.postgres import PostgresServer, find_binaries
from workflows.durable.database import is_down
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.durable.tables import event
from workflows.store import Store

SETTINGS = (*SAME, "models.checkpoints.share=1", "models.checkpoints.interval_s=0", "progress.flush_s=0.05",
            # No try may be used up by a death, and no shot is to blame for a monkey.
            "engine.attempts=1", "engine.poison_limit=1000", "engine.interruption_limit=1000",
            "engine.max_backoff_s=2")
REPEAT_LIMIT = 30
"""K: steps of 40 that may be made again. A checkpoint is due at every step here, and what is made while one is packed
and written can be lost. 21 were seen once, with forty processes waiting for two cores; why is not known. A weak limit:
that no step is made again which was in a checkpoint is for `tests.chaos.matrix` to show, whatever the load."""
VICTIM_S = 180.0
"""How long a component may have no process before that is a failure."""
COMMIT_S = 240.0
END_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do."""

    seed: int
    kills: int
    jobs: int
    """Films that are open at the same time."""
    database: str
    """`sqlite` or `postgres`."""
    compare: int
    """Films that are rendered again undisturbed and compared frame by frame; the newest ones."""
    limit_s: float
    """No strike after this time."""
    repeat_limit: int = REPEAT_LIMIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A strike that was made."""

    strike: Strike
    at_s: float
    """Unix time of the signal."""
    pid: int
    http_s: float | None = None
    """Until a request was answered again; None: not until the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run and what was found."""

    order: Order
    struck: tuple[Struck, ...]
    evidence: tuple[Evidence, ...]
    violations: tuple[Violation, ...]
    troubles: tuple[str, ...]
    """What went wrong with the run itself: clients that gave up, components that did not come back."""
    resumed: int
    """Clips that were gone on with at a checkpoint."""
    seconds: float


@dataclass(slots=True)
class Databases:
    """Where the jobs are, and how to end that place."""

    url: str
    server: PostgresServer | None = None

    def strike(self) -> int:
        """kill -9 in effect: Postgres ends at once and recovers from its log when it starts again."""
        assert self.server is not None
        self.server.kill()
        time.sleep(0.5)
        self.server.start()
        return 0


@contextmanager
def database(kind: str, place: Path) -> Iterator[Databases]:
    """An empty one. Raises RuntimeError where there is no Postgres."""
    if kind == "sqlite":
        yield Databases(f"sqlite:///{place / 'state' / 'state.db'}")
        return
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("no PostgreSQL server programs (initdb) on PATH or in /usr/lib/postgresql")
    server = PostgresServer(binaries, fsync=True)
    try:
        yield Databases(server.create(), server)
    finally:
        server.remove()


class Monkey:
    """Strikes by the schedule."""

    def __init__(self, served: Served, databases: Databases, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._served = served
        self._databases = databases
        self._ledger = ledger
        self._say = say
        self._listening: list[threading.Thread] = []
        self._answered: dict[int, float] = {}
        self._struck: list[Struck] = []
        self.troubles: list[str] = []

    def strike_all(self, strikes: Sequence[Strike], limit_s: float) -> None:
        """One after the other, until the time is over."""
        end_s = time.monotonic() + limit_s
        last_s = time.time()
        for strike in strikes:
            time.sleep(strike.gap_s)
            if strike.after_commit and not self._until(lambda last=last_s: self._went_on_since(last), COMMIT_S):
                self.troubles.append(f"nothing was committed for {COMMIT_S:g} s before strike {strike.number}")
            if not self._served.is_running:
                self.troubles.append(f"the server ended by itself before strike {strike.number}:\n{self._served.log()}")
                self._served.start()
            if time.monotonic() > end_s:
                self._say(f"the time is over before strike {strike.number}")
                return
            last_s = time.time()
            self._strike(strike)

    def struck(self) -> tuple[Struck, ...]:
        """All that were made, once each was recovered from or was not in time."""
        for thread in self._listening:
            thread.join()
        return tuple(replace(one, http_s=self._answered.get(one.strike.number)) for one in self._struck)

    def _strike(self, strike: Strike) -> None:
        self._say(str(strike))
        at_s = time.time()
        if strike.component is Component.SERVER:
            pid = 0
            self._served.kill_all()
            self._served.start()
        elif strike.component is Component.DATABASE:
            pid = self._databases.strike()
        else:
            victim = self._victim(strike)
            if victim is None:
                self.troubles.append(f"no {strike.component.value} for {VICTIM_S:g} s before strike {strike.number}")
                return
            at_s, pid = time.time(), victim.pid
            # It may have died by itself just now: of an earlier strike at what it hangs on.
            with suppress(psutil.Error, ProcessLookupError):
                if strike.blow is Blow.KILL:
                    victim.kill()
                else:
                    freeze(victim, strike.freeze_s)
        self._struck.append(Struck(strike=strike, at_s=at_s, pid=pid))
        listening = threading.Thread(target=self._listen, args=(strike.number, at_s), daemon=True)
        listening.start()
        self._listening.append(listening)

    def _victim(self, strike: Strike) -> psutil.Process | None:
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = self._served.processes(strike.component)
            return bool(found)

        return found[int(strike.which * len(found))] if self._until(look, VICTIM_S) else None

    def _listen(self, number: int, at_s: float) -> None:
        # Asked through the ingress and its database; not the health of all parts.
        if self._until(lambda: answers(self._served.port, "/api/jobs?limit=1"), VICTIM_S):
            self._answered[number] = time.time() - at_s

    def _went_on_since(self, at_s: float) -> bool:
        """A node was committed, or nobody is there any more who could."""
        return self._last_commit_s() > at_s or not self._served.is_running

    def _last_commit_s(self) -> float:
        wanted = sa.select(sa.func.max(event.c.at)).where(event.c.type.in_([kind.value for kind in COMMITS]))
        try:
            with self._ledger.database.read() as connection:
                return float(connection.scalar(wanted) or 0.0)
        except Exception as error:
            if not is_down(error):
                raise
            return 0.0

    @staticmethod
    def _until(good: Callable[[], bool], limit_s: float) -> bool:
        end_s = time.monotonic() + limit_s
        while not good():
            if time.monotonic() > end_s:
                return False
            time.sleep(0.1)
        return True


def run(order: Order, say: Callable[[str], None]) -> Outcome:
    """Serve, strike, wait for every job, check. Leaves no process and no file; raises when the server cannot start."""
    started_s = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="reelray-chaos-"))
    components = [one for one in Component if one is not Component.DATABASE or order.database == "postgres"]
    strikes = schedule(order.seed, order.kills, components)
    say(f"seed {order.seed}: {len(strikes)} strikes on {order.database}, {order.jobs} films at a time")
    try:
        with ExitStack() as stack:
            databases = stack.enter_context(database(order.database, place))
            served = Served(place, [*SETTINGS, f"database_url={databases.url}"])
            stack.enter_context(served)
            ledger = Ledger(databases.url)
            stack.callback(ledger.close)
            crowd = Crowd(served.url, seed=order.seed, clients=order.jobs)
            crowd.start()
            monkey = Monkey(served, databases, ledger, say)
            monkey.strike_all(strikes, order.limit_s)
            say("all strikes are made; waiting for the films")
            if not crowd.finish(END_S):
                monkey.troubles.append(f"films were not over {END_S:g} s after the last strike")
            struck = monkey.struck()
            served.stop()
            store = Store(load_settings("ci", served.overrides).store)
            say("comparing with undisturbed films")
            evidence = gather(ledger, crowd, order, place / "calm")
            violations = [violation for one in evidence for violation in check(one, store)]
            resumed = sum(resumed_at(store, node.key) > 0 for one in evidence for node in one.nodes)
            return Outcome(order=order, struck=struck, evidence=evidence, violations=tuple(violations),
                           troubles=(*monkey.troubles, *crowd.troubles), resumed=resumed,
                           seconds=time.monotonic() - started_s)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def gather(ledger: Ledger, crowd: Crowd, order: Order, calm_place: Path) -> tuple[Evidence, ...]:
    """All that is known of every job."""
    from tests.chaos.calm import calm_frames  # torch, and only now: while things die, the machine has no room for it

    job_ids = list(crowd.heard)
    nodes = {job_id: ledger.nodes(job_id) for job_id in job_ids}
    calm_place.mkdir(parents=True, exist_ok=True)
    compared = job_ids[-order.compare:] if order.compare else []
    calm = calm_frames({job_id: nodes[job_id] for job_id in compared}, calm_place)
    return tuple(Evidence(job=ledger.job(job_id), nodes=nodes[job_id], events=ledger.events(job_id, limit=MAX_LIMIT),
                          steps=crowd.heard[job_id].seen(), repeat_limit=order.repeat_limit,
                          calm=calm.get(job_id, {})) for job_id in job_ids)


def resumed_at(store: Store, key: str) -> int:
    """The step after which the result under a key was gone on with; 0: it was made at one go, or there is none."""
    manifest = store.manifest(key) if key else None
    made = manifest["made"] if manifest else None
    step = made.get("resumed_after_step", 0) if isinstance(made, dict) else 0
    return step if isinstance(step, int) else 0
