"""kill -9 of each part while a film renders: it completes, and nothing that was committed is started again."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
import ray

from actors.progress import ACTOR_NAME
from tests.cluster.conftest import Deploy, Running
from tests.cluster.test_director import storyboard
from workflows.durable.rows import EventType
from workflows.types import JobStatus

pytestmark = pytest.mark.cluster

STRICT = ["engine.attempts=1", "engine.poison_limit=2"]


def film(seed: int) -> str:
    return storyboard(*(f"sleep=0.6 n={n}" for n in range(10)), defaults="frames: 9, steps: 6", seed=seed)


def no_start_after_commit(running: Running, job_id: str) -> None:
    """From the event log: once a node has succeeded it is never started again, and succeeds once."""
    done: set[str] = set()
    for event in running.events(job_id, EventType.NODE_STARTED, EventType.NODE_SUCCEEDED, EventType.NODE_CACHED):
        assert event.node_id not in done, f"{event.type} of {event.node_id} after its commit"
        if event.type is not EventType.NODE_STARTED:
            done.add(event.node_id)
    # And from the replicas themselves: no computation of a key began after one of that key had ended.
    ended: set[str] = set()
    for what, key, *_ in running.kernel_lines(job_id):
        assert not (what == "start" and key in ended), f"{key} was computed again"
        if what == "end":
            ended.add(key)


def half_way(running: Running, job_id: str, seed: int) -> None:
    running.submit(film(seed), job_id)
    running.until(lambda: len(running.events(job_id, EventType.NODE_SUCCEEDED)) >= 4)


def kill(processes: list[psutil.Process]) -> psutil.Process:
    victim = processes[0]
    os.kill(victim.pid, signal.SIGKILL)
    return victim


def completes(running: Running, job_id: str) -> None:
    assert running.wait(job_id, timeout_s=180).status is JobStatus.SUCCEEDED
    no_start_after_commit(running, job_id)


def test_kill_9_of_the_director(deploy: Deploy) -> None:
    running = deploy(STRICT)
    half_way(running, "director", seed=1)
    director = kill(running.processes(":director"))
    completes(running, "director")
    assert not director.is_running()
    assert len(running.events("director", EventType.JOB_STARTED)) == 2


def test_kill_9_of_a_model_replica_costs_no_try(deploy: Deploy) -> None:
    running = deploy(STRICT)
    half_way(running, "replica", seed=2)
    kill(running.processes(":model-placeholder"))
    completes(running, "replica")
    nodes = running.ledger.nodes("replica")
    assert max(node.crashes for node in nodes) >= 1
    assert max(node.failures for node in nodes) == 0


@pytest.mark.slow
def test_kill_9_of_the_progress_actor_loses_no_shot_and_steps_come_back(deploy: Deploy) -> None:
    running = deploy(STRICT)
    half_way(running, "board", seed=3)
    actor = ray.get_actor(ACTOR_NAME, namespace="reelray")
    epoch = ray.get(actor.ping.remote())
    kill(running.processes("ray::ProgressBoard"))

    def steps_again() -> bool:
        try:
            poll = ray.get(actor.poll.remote("board", "", 0, 0), timeout=5)
        except ray.exceptions.RayError:
            return False
        return poll.epoch != epoch and bool(poll.events)

    running.until(steps_again)
    completes(running, "board")


@pytest.mark.slow
def test_a_shot_that_kills_its_replica_is_failed_as_poison_and_the_others_are_rendered(deploy: Deploy) -> None:
    running = deploy(STRICT)
    running.submit(storyboard("sleep=0.2", "die", "sleep=0.3", seed=4), "poison")
    view = running.wait("poison", timeout_s=240)
    assert view.status is JobStatus.PARTIAL
    assert "its replica died 2 times" in view.errors["s2"]
    # A neighbour that waited on the dying replica is not blamed.
    assert set(view.errors) == {"s2"}


@pytest.mark.slow
@pytest.mark.postgres
def test_kill_9_of_the_director_on_postgres(deploy: Deploy, postgres_url: str) -> None:
    running = deploy(STRICT, database_url=postgres_url)
    half_way(running, "director", seed=5)
    kill(running.processes(":director"))
    completes(running, "director")
