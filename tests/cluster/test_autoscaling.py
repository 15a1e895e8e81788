"""Machines with GPUs come for a batch of films and go after it; nothing is lost on the way up or down.

One machine: the nodes are processes, their GPUs logical, the model is the embedded one. All else is real: `reelray
serve --address`, Ray's autoscaler, Postgres, checkpoints. With TIMELINE_FILE=FILE the looks are written there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from configs.load import casting, load_cards, load_settings
from configs.settings import Settings
from tests.fake_cluster import FakeCluster, free_ports
from workflows.durable.backlog import Backlogs
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType, NewJob
from workflows.plan import plan_film
from workflows.store import Store
from workflows.storyboard import parse_storyboard
from workflows.types import JobStatus, NodeStatus, Priority

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.postgres]

NODES, FILMS, STEPS = 3, 3, 100
ONE_MORE = "title: One more\nsize: 128x128\nfps: 8\ndefaults: {frames: 9, steps: 4}\nshots: [{prompt: a red ball}]\n"
COLOURS = ["red", "blue", "green", "yellow"]
SCALES = ["models.default_replicas={min_replicas: 0, replicas: 3, num_gpus: 1, num_cpus: 0.5}",
          "models.scaling.finish_within_s=4", "models.scaling.idle_s=4", "models.scaling.look_s=0.5"]


def film(number: int) -> str:
    """Four shots that nobody has rendered; in one film one of them takes ten times as long as the others."""
    shots = "".join(f"  - prompt: a {colour} ball moves right over a white background\n" for colour in COLOURS)
    if number == 0:
        shots += f"    steps: {10 * STEPS}\n"
    return (f"title: Film {number}\nsize: 128x128\nfps: 8\nseed: {number}\n"
            f"defaults: {{frames: 9, steps: {STEPS}}}\nshots:\n{shots}")


@dataclass
class Place:
    """A cluster, and the settings of the reelray on it."""

    cluster: FakeCluster
    settings: Settings
    words: list[str]
    """Options of a command there."""
    directory: Path


@pytest.fixture
def place(tmp_path: Path, postgres_url: str) -> Iterator[Place]:
    cluster = FakeCluster(
        {"gpu": {"resources": {"CPU": 1, "GPU": 1}, "labels": {"pool": "gpu"}, "node_config": {}, "min_workers": 0,
                 "max_workers": NODES}},
        head={"resources": {"CPU": 4}, "labels": {"pool": "head"}}, idle_s=5)
    overrides = [
        f"data_dir={tmp_path / 'state'}", f"database_url={postgres_url}", f"store_url={tmp_path / 'films'}",
        "store_is_shared=true", "ray.several_machines=true", f"ray.max_gpus={NODES}", "models.device=auto",
        "ray.service_labels={pool: head}", "models.checkpoints.share=1", "models.checkpoints.interval_s=0",
        "models.drain_s=60", "models.torch_threads=1", "engine.attempts=1", f"http.port={free_ports(1)[0]}",
        f"ray.address={cluster.address}",
        *SCALES]
    words = [word for override in overrides for word in ("--set", override)]
    try:
        yield Place(cluster=cluster, settings=load_settings("ci", overrides, {}), words=words, directory=tmp_path)
    finally:
        cluster.close()


def process(*words: str, log: Path) -> subprocess.Popen[str]:
    """A Python of its own, whose output goes to a file."""
    with log.open("w") as file:
        return subprocess.Popen([sys.executable, *words], stdout=file, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)


def reelray(place: Place, *command: str, log: str) -> subprocess.Popen[str]:
    """A command of the command line, with the place's settings."""
    return process("-c", "from serve_app.cli import main; main()", command[0], "--profile", "ci", *place.words,
                   *command[1:], log=place.directory / log)


def see_refused(place: Place, looks: Looks) -> None:
    """What a second command on this cluster is told, while the first goes on."""
    (place.directory / "film.yaml").write_text(ONE_MORE)
    at_all, beside = (
        reelray(place, "serve", "--address", place.cluster.address, "--set", "database_url=", "--set",
                "ray.several_machines=false", "--set", f"http.port={free_ports(1)[0]}", log="at_all.log"),
        reelray(place, "render", str(place.directory / "film.yaml"), "--set", f"ray.address={place.cluster.address}",
                log="beside.log"))
    looks.until(lambda line: None not in (at_all.poll(), beside.poll()), 240)
    assert at_all.returncode
    assert beside.returncode
    told = [" ".join((place.directory / name).read_text().split()) for name in ("at_all.log", "beside.log")]
    assert f"the cluster has {NODES + 1} machines, and the database is a SQLite file" in told[0]
    assert "reelray serves on this cluster already" in told[1]


class Looks:
    """What was seen of the cluster, with the work of the database beside it."""

    def __init__(self, log: Path, settings: Settings) -> None:
        self._log = log
        self.ledger = Ledger(settings.database)
        self._backlogs = Backlogs(self.ledger.database)
        self.lines: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        lines = [line for line in self._log.read_text().splitlines() if line.startswith("{")]
        newest: dict[str, Any] = json.loads(lines[-1]) if lines else {"nodes": -1, "replicas": {}}
        work = self._backlogs.of(["sketch"])["sketch"]
        newest |= {"at_s": time.time(), "ready": work.ready + work.coming, "running": work.running}
        self.lines.append(newest)
        return newest

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition(self.look()):
            assert time.monotonic() < end, f"{timeout_s} s passed; last seen: {self.lines[-1]}"
            time.sleep(0.5)

    def first(self, replicas: int) -> int:
        """Number of the first look that saw so many."""
        return next(number for number, line in enumerate(self.lines) if running(line) == replicas)

    def most(self, what: Callable[[dict[str, Any]], int]) -> int:
        return max(what(line) for line in self.lines)


def running(line: dict[str, Any]) -> int:
    return int(line["replicas"].get("RUNNING", 0))


def resumed_after_steps(place: Place, looks: Looks) -> list[int]:
    """Of the clips that went on at a checkpoint; whether Serve stops the replica at work is its own choice."""
    store = Store(place.settings.store)
    found = []
    for number in range(FILMS):
        for node in looks.ledger.nodes(f"film-{number}"):
            made = (store.manifest(node.key) or {}).get("made")
            step = made.get("resumed_after_step") if isinstance(made, dict) else None
            found += [int(str(step))] if step else []
    return found


def submit(looks: Looks, settings: Settings) -> None:
    for number in range(FILMS):
        board = parse_storyboard(film(number))
        plan = plan_film(board, cards=casting(settings, load_cards(settings)), assets={})
        looks.ledger.submit(NewJob(id=f"film-{number}", title=board.title, document={"title": board.title},
                                   nodes=plan.nodes, priority=Priority.BATCH))


def test_gpu_nodes_come_for_a_batch_of_films_and_go_after_it(place: Place) -> None:
    serving = reelray(place, "serve", "--address", place.cluster.address, log="serve.log")
    seeing = process("-m", "tests.cluster.look_at_cluster", place.cluster.address, "model-sketch",
                     log=place.directory / "looks.log")
    looks = Looks(place.directory / "looks.log", place.settings)
    try:
        looks.until(lambda line: serving.poll() is not None
                    or "ready; Ctrl-C" in (place.directory / "serve.log").read_text(), 300)
        assert serving.poll() is None
        looks.until(lambda line: line["nodes"] == 0, 60)
        submit(looks, place.settings)
        looks.until(lambda line: running(line) == NODES, 300)
        see_refused(place, looks)
        looks.until(lambda line: not line["ready"] + line["running"], 600)
        looks.until(lambda line: all(looks.ledger.job(f"film-{number}").status.is_terminal
                                     for number in range(FILMS)), 60)
        looks.until(lambda line: line["nodes"] == 0 and running(line) == 0, 180)
        assert looks.lines[-1]["serves"]
        serving.terminate()
        assert serving.wait(timeout=60) == 0
        looks.until(lambda line: not line["serves"], 60)
    finally:
        for one in (serving, seeing):
            one.terminate()
            one.wait(timeout=60)
        if file := os.environ.get("TIMELINE_FILE"):
            looks.lines[-1]["resumed_after_steps"] = resumed_after_steps(place, looks)
            Path(file).write_text(json.dumps(looks.lines))
    assert looks.most(running) == NODES == looks.most(lambda line: line["nodes"])
    # The long shot was still rendered when there were fewer again.
    assert any(running(line) < NODES and line["running"] for line in looks.lines[looks.first(NODES):])
    for number in range(FILMS):
        job = looks.ledger.job(f"film-{number}")
        nodes = looks.ledger.nodes(job.id)
        assert (job.status, {node.status for node in nodes}) == (JobStatus.SUCCEEDED, {NodeStatus.SUCCEEDED})
        # A clip may be started again where it was handed over; none failed, and each has one result.
        assert {node.failures for node in nodes} == {0}
        events = looks.ledger.events(job.id, 0, 5000)
        done = [event.node_id for event in events if event.type is EventType.NODE_SUCCEEDED]
        assert sorted(done) == sorted(node.id for node in nodes)
