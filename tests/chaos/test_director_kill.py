"""Directors are killed, frozen and thawed, their database falls over: no node runs again after its result was kept."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.chaos import director as chaos_director
from tests.postgres import PostgresServer
from tests.studio import film
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType
from workflows.types import JobStatus, NodeStatus

# Processes forked from one that has imported everything: real ones, but there in a moment.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([chaos_director.__name__])
COMMITS = (EventType.NODE_SUCCEEDED, EventType.NODE_CACHED)
QUICK = {"lease_s": 1.5, "heartbeat_s": 0.3, "poll_s": 0.1, "backoff_s": 0.05, "max_backoff_s": 0.2}


@dataclass
class Stage:
    """A database, a directory, and the Directors that work on them."""

    url: str
    directory: Path
    ledger: Ledger
    directors: list[ForkServerProcess] = field(default_factory=list)

    def director(self, **options: float) -> ForkServerProcess:
        """Start one; returns once it works."""
        log = self.directory / f"log-{len(self.directors)}"
        log.touch()
        director = FORKS.Process(target=chaos_director.main, args=(
            self.url, self.directory, log, {**QUICK, "step_s": 0.1, **options}))
        director.start()
        self.directors.append(director)
        self.until(lambda: "ready" in log.read_text() or not director.is_alive())
        assert director.is_alive(), log.read_text()
        return director

    def log_of(self, director: ForkServerProcess) -> str:
        return (self.directory / f"log-{self.directors.index(director)}").read_text()

    def until(self, good: Callable[[], object], *, limit_s: float = 30.0) -> None:
        end_s = time.monotonic() + limit_s
        while not good():
            assert time.monotonic() < end_s, "\n".join(line for job in self.ledger.jobs().jobs
                                                       for line in self.ledger.log_lines(job.id).lines[-20:])
            time.sleep(0.02)

    def is_over(self) -> bool:
        return all(job.status.is_terminal for job in self.ledger.jobs(limit=100).jobs)

    def succeeded(self) -> int:
        return sum(node.status is NodeStatus.SUCCEEDED for node in self.ledger.nodes("film"))

    def started(self) -> list[int]:
        """Per start of the film by a Director: how many attempts the one before had left open."""
        return [int(event.data["interrupted"]) for event in self.ledger.events("film", limit=5000)
                if event.type is EventType.JOB_STARTED]

    def check(self, *, frozen_pid: int = 0) -> None:
        """One commit per node, no start after it, nothing left open, every job done.

        A process that was frozen may have stood between its last look at the lease and the first line of a step: when
        it thaws, that one step begins late. What it makes is not committed, which is all that can be promised.
        """
        lines = [line.split() for line in (self.directory / "starts").read_text().splitlines()]
        starts = [start for start in lines if int(start[3]) != frozen_pid]
        for job in self.ledger.jobs(limit=100).jobs:
            nodes = self.ledger.nodes(job.id)
            assert (job.status, {node.status for node in nodes}) == (JobStatus.SUCCEEDED, {NodeStatus.SUCCEEDED})
            commits = [event for event in self.ledger.events(job.id, limit=5000) if event.type in COMMITS]
            assert Counter(event.node_id for event in commits) == Counter(node.id for node in nodes)
            committed_s = {event.node_id: event.at_s for event in commits}
            late = [start for start in starts if start[0] == job.id and float(start[4]) > committed_s[start[1]]]
            assert late == []


@pytest.fixture
def stage(database_url: str, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(url=database_url, directory=tmp_path, ledger=Ledger(database_url))
    yield stage
    for director in stage.directors:
        director.kill()
        director.join()
    stage.ledger.close()


def test_a_director_killed_in_mid_job_is_continued_where_it_stood(stage: Stage) -> None:
    stage.ledger.submit(film(shots=5))
    for done in (2, 5):
        director = stage.director()
        stage.until(lambda done=done: stage.succeeded() >= done)
        director.kill()
        director.join()
    stage.director()
    stage.until(stage.is_over)
    stage.check()
    nodes = stage.ledger.nodes("film")
    # Two slots: each takeover cut off at most two attempts, counted as that and as nothing else. There is one takeover
    # per kill, and one more whenever this machine let a Director starve past its lease of 1.5 s.
    first, *takeovers = stage.started()
    assert first == 0
    assert len(takeovers) >= 2
    assert max(takeovers) <= 2
    assert sum(node.interruptions for node in nodes) == sum(takeovers) >= 1
    assert sum(node.failures + node.crashes for node in nodes) == 0


def test_a_director_told_to_stop_hands_over_at_once(stage: Stage) -> None:
    stage.ledger.submit(film(shots=5))
    first = stage.director(lease_s=60.0)
    second = stage.director(lease_s=60.0)
    stage.until(lambda: stage.succeeded() >= 3)
    for director in (first, second):
        director.terminate()
        director.join(10)
        assert director.exitcode == 0
    stage.director(lease_s=60.0)
    stage.until(stage.is_over, limit_s=20.0)
    stage.check()
    assert sum(node.interruptions for node in stage.ledger.nodes("film")) == 0


def test_a_director_that_was_frozen_past_its_lease_commits_nothing_when_it_thaws(stage: Stage) -> None:
    stage.ledger.submit(film(shots=2))
    # Only the freeze may cost a lease: a machine that is busy with other things must not.
    zombie = stage.director(step_s=0.4, lease_s=4.0)
    stage.until(lambda: stage.succeeded() >= 1)
    freeze(zombie, stage)
    running = {node.id for node in stage.ledger.nodes("film") if node.status is NodeStatus.RUNNING}
    stage.director(lease_s=20.0)
    stage.until(stage.is_over)
    before = (stage.ledger.job("film"), stage.ledger.nodes("film"), stage.ledger.events("film", limit=5000))
    os.kill(zombie.pid, signal.SIGCONT)
    stage.until(lambda: "lease on job film was lost" in stage.log_of(zombie))
    zombie.terminate()
    zombie.join(10)
    assert zombie.exitcode == 0
    assert (stage.ledger.job("film"), stage.ledger.nodes("film"), stage.ledger.events("film", limit=5000)) == before
    stage.check(frozen_pid=zombie.pid)
    assert {node.id for node in stage.ledger.nodes("film") if node.interruptions} == running


def freeze(director: ForkServerProcess, stage: Stage) -> None:
    """SIGSTOP it outside of a transaction: nothing can take SQLite's write lock from a process that stands still."""
    while True:
        os.kill(director.pid, signal.SIGSTOP)
        if not stage.url.startswith("sqlite"):
            # What it had sent is carried out all the same.
            time.sleep(0.2)
            return
        probe = sqlite3.connect(stage.url.removeprefix("sqlite:///"), timeout=0.2, isolation_level=None)
        try:
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            os.kill(director.pid, signal.SIGCONT)
        finally:
            probe.close()


@pytest.mark.postgres
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_postgres_that_dies_and_comes_back_costs_time_and_nothing_else(
        stage: Stage, postgres_server: PostgresServer) -> None:
    stage.ledger.submit(film(shots=5))
    director = stage.director(lease_s=20.0)
    stage.until(lambda: stage.succeeded() >= 2)
    postgres_server.kill()
    time.sleep(0.5)
    postgres_server.start()
    stage.until(stage.is_over)
    stage.check()
    assert "database is away" in stage.log_of(director)
    assert {node.attempt for node in stage.ledger.nodes("film")} == {1}


@pytest.mark.chaos
def test_three_directors_killed_at_random_finish_every_film(stage: Stage) -> None:
    """About twenty kills in as many seconds, one step in ten fails by chance; seeded."""
    chance = random.Random(11)
    options = {"step_s": 0.3, "flaky": 0.1, "attempts": 8, "interruption_limit": 100}
    for number in range(6):
        stage.ledger.submit(film(f"film-{number}", shots=5))
    alive = [stage.director(**options) for _ in range(3)]
    end_s = time.monotonic() + 20.0
    while time.monotonic() < end_s and not stage.is_over():
        victim = alive.pop(chance.randrange(len(alive)))
        victim.kill()
        victim.join()
        alive.append(stage.director(**options))
        time.sleep(chance.random())
    stage.until(stage.is_over, limit_s=90.0)
    stage.check()
