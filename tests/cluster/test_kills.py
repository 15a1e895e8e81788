"""kill -9 of each part while a film renders: it completes, and nothing that was committed is started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest
import ray

from actors.progress import ACTOR_NAME
from tests.cluster.conftest import Deploy, Running
from tests.cluster.test_director import storyboard
from workflows.durable.rows import EventType
from workflows.types import JobStatus

pytestmark = pytest.mark.cluster

FILM = storyboard(*(f"sleep=0.6 n={n}" for n in range(10)), defaults="frames: 9, steps: 6")


def no_start_after_commit(running: Running, job_id: str = "film") -> None:
    """From the event log: once a node has succeeded it is never started again, and succeeds once."""
    done: set[str] = set()
    for event in running.events(job_id, EventType.NODE_STARTED, EventType.NODE_SUCCEEDED, EventType.NODE_CACHED):
        assert event.node_id not in done, f"{event.type} of {event.node_id} after its commit"
        if event.type is not EventType.NODE_STARTED:
            done.add(event.node_id)
    # And from the replicas themselves: no computation of a key began after that key's computation had ended.
    ended: set[str] = set()
    for line in (running.settings.data_dir / "starts.txt").read_text().splitlines():
        what, key, *_ = line.split()
        assert not (what == "start" and key in ended), f"{key} was computed again"
        if what == "end":
            ended.add(key)


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)


def half_done(running: Running) -> Callable[[], bool]:
    return lambda: len(running.events("film", EventType.NODE_SUCCEEDED)) >= 4


def test_kill_9_of_the_director(deploy: Deploy) -> None:
    running = deploy()
    running.submit(FILM)
    running.until(half_done(running))
    [director] = running.processes(":director")
    kill(director)
    view = running.wait(timeout_s=90)
    assert view.status is JobStatus.SUCCEEDED
    assert not director.is_running()
    no_start_after_commit(running)


@pytest.mark.postgres
def test_kill_9_of_the_director_on_postgres(deploy: Deploy, postgres_url: str) -> None:
    running = deploy(database_url=postgres_url)
    running.submit(FILM)
    running.until(half_done(running))
    [director] = running.processes(":director")
    kill(director)
    assert running.wait(timeout_s=90).status is JobStatus.SUCCEEDED
    no_start_after_commit(running)


def test_kill_9_of_a_model_replica_costs_no_try(deploy: Deploy) -> None:
    running = deploy(["engine.attempts=1"])
    running.submit(FILM)
    running.until(half_done(running))
    kill(running.processes(":model-placeholder")[0])
    assert running.wait(timeout_s=90).status is JobStatus.SUCCEEDED
    assert max(node.crashes for node in running.ledger.nodes("film")) >= 1
    assert max(node.failures for node in running.ledger.nodes("film")) == 0
    no_start_after_commit(running)


def test_kill_9_of_the_progress_actor_loses_no_shot_and_steps_come_back(deploy: Deploy) -> None:
    running = deploy()
    running.submit(FILM)
    running.until(half_done(running))
    actor = ray.get_actor(ACTOR_NAME, namespace="reelray")
    epoch = ray.get(actor.ping.remote())
    [process] = running.processes("ray::ProgressBoard")
    kill(process)

    def steps_again() -> bool:
        try:
            poll = ray.get(actor.poll.remote("film", "", 0, 0), timeout=5)
        except ray.exceptions.RayError:
            return False
        return poll.epoch != epoch and bool(poll.events)

    running.until(steps_again)
    assert running.wait(timeout_s=90).status is JobStatus.SUCCEEDED
    no_start_after_commit(running)


def test_a_shot_that_kills_its_replica_is_failed_as_poison_and_the_others_are_rendered(deploy: Deploy) -> None:
    running = deploy(["engine.poison_limit=2"])
    running.submit(storyboard("sleep=0.2", "die", "sleep=0.3"))
    view = running.wait(timeout_s=120)
    assert view.status is JobStatus.PARTIAL
    assert "s2" in view.errors
    assert "killed" in view.errors["s2"] or "died" in view.errors["s2"]
