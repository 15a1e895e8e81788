"""A real model's replica is killed, or ended by Serve, while it denoises: the clip is gone on with, bit for bit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
import ray
from ray import serve

from serve_app.app import build
from serve_app.deployments import ModelDeployment
from serve_app.leaving import when_stopping
from tests.cluster.conftest import APP, Deploy, Running
from workflows.checkpoints import Kept
from workflows.durable.meters import Meters
from workflows.durable.rows import NodeRow
from workflows.durable.usage import Outcome
from workflows.types import JobStatus

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 150
SKETCH = ["models.text_to_image=sketch", "models.text_to_video=sketch", "models.image_to_video=sketch",
          "engine.attempts=1", "models.drain_s=60", "models.torch_threads=1"]
EVERY_STEP = [*SKETCH, "models.checkpoints.share=1", "models.checkpoints.interval_s=0"]
NEVER = [*SKETCH, "models.checkpoints.share=0"]


def film(seed: int) -> str:
    return (f"title: Test\nsize: 128x128\nfps: 8\nseed: {seed}\ndefaults: {{frames: 9, steps: {STEPS}}}\n"
            "shots:\n  - prompt: a red ball moves right over a blue background\n")


def kept_steps(running: Running) -> int:
    """Of the furthest checkpoint in the store; 0 when there is none."""
    found = [0]
    for path in (Path(running.settings.store) / "checkpoints").glob("*/*.ckpt"):
        with contextlib.suppress(FileNotFoundError):
            found.append(Kept.from_bytes(path.read_bytes()).step)
    return max(found)


def clip_of(running: Running, job_id: str) -> NodeRow:
    view = running.wait(job_id, timeout_s=300)
    assert view.status is JobStatus.SUCCEEDED, view.errors
    return next(node for node in running.ledger.nodes(job_id) if node.id == "s1.clip")


def resumed_after(running: Running, clip: NodeRow) -> int:
    manifest = running.store.manifest(clip.key)
    assert manifest is not None
    made = manifest["made"]
    assert isinstance(made, dict)
    return int(str(made["resumed_after_step"]))


def uninterrupted(deploy: Deploy, seed: int) -> str:
    """SHA-256 of the same clip, made at one go in another store."""
    running = deploy(NEVER, model=ModelDeployment)
    running.submit(film(seed), "whole")
    clip = clip_of(running, "whole")
    assert clip.attempt == 1
    assert clip.artifact is not None
    return clip.artifact.sha256


def test_kill_9_in_the_middle_of_a_clip_loses_one_step_and_changes_no_bit(deploy: Deploy) -> None:
    running = deploy(EVERY_STEP, model=ModelDeployment)
    running.submit(film(1), "killed")
    running.until(lambda: kept_steps(running) >= STEPS // 5)
    for replica in running.processes(":model-sketch"):  # one of them renders
        os.kill(replica.pid, signal.SIGKILL)
    reached = kept_steps(running)
    clip = clip_of(running, "killed")
    assert (clip.attempt, clip.crashes, clip.failures) == (2, 1, 0)
    assert resumed_after(running, clip) == reached
    assert clip.seconds["carried"] > 0
    assert clip.artifact is not None
    assert clip.artifact.sha256 == uninterrupted(deploy, 1)


def test_a_redeploy_moves_a_clip_in_the_making(deploy: Deploy) -> None:
    """New settings under the same name: Serve ends the Director and every replica, and starts others."""
    running = deploy(EVERY_STEP, model=ModelDeployment)
    running.submit(film(2), "moved")
    running.until(lambda: kept_steps(running) >= STEPS // 5)
    reached = kept_steps(running)
    changed = running.settings.model_copy(update={"models": running.settings.models.model_copy(
        update={"stall_s": 299.0})})
    serve.run(build(changed, cluster=ray.cluster_resources(), model=ModelDeployment), name=APP, route_prefix=None)
    clip = clip_of(running, "moved")
    assert clip.attempt >= 2
    assert (clip.crashes, clip.failures) == (0, 0)
    assert resumed_after(running, clip) >= reached
    assert clip.artifact is not None
    assert kept_steps(running) == 0
    assert Outcome.CARRIED in {spell.outcome for spell in Meters(running.ledger.database).read().spells}
    assert clip.artifact.sha256 == uninterrupted(deploy, 2)


class Busy:
    """A replica with a call that goes on until the replica hears that it is to end."""

    def __init__(self) -> None:
        self._told = threading.Event()
        when_stopping(self._told.set)

    async def work(self) -> str:
        while not self._told.is_set():  # noqa: ASYNC110 - it is set on another thread
            await asyncio.sleep(0.05)
        return "handed over"


def test_a_replica_hears_that_it_is_to_end_while_its_call_runs(cluster: str) -> None:
    """Serve itself tells nothing before all calls are over; its flag is where this version of Ray is known to have it.
    """
    deployment = serve.deployment(Busy, name="busy", graceful_shutdown_timeout_s=30, graceful_shutdown_wait_loop_s=0.2)
    handle = serve.run(deployment.bind(), name="busy", route_prefix=None)
    working = handle.work.remote()
    with pytest.raises(TimeoutError):
        working.result(timeout_s=1)
    serve.delete("busy", _blocking=False)
    assert working.result(timeout_s=20) == "handed over"
