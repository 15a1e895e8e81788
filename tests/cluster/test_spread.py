"""Where calls go, through Serve: no shot waits beside an idle replica, and none is rendered twice at a time."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from configs.model_card import ModelCard
from configs.settings import Settings
from tests.cluster.conftest import Deploy, Running
from workflows.durable.rows import NewJob
from workflows.ports import RenderCall
from workflows.store import Store
from workflows.types import JobStatus, MediaType, NodeKind, NodeResult, NodeSpec

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

REPLICAS = 4
SHOT_S = 1.0


class Stamping:
    """Takes a while, and writes down which process made what."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        self._store = Store(settings.store)
        self._book = settings.data_dir / f"made-{os.getpid()}.txt"
        self._source = settings.data_dir / f"result-{os.getpid()}.json"
        self._source.write_text("{}")
        self._runs: dict[str, asyncio.Task[NodeResult]] = {}

    async def check_health(self) -> None:
        return None

    async def clip(self, call: RenderCall) -> NodeResult:
        if call.key not in self._runs:  # as the product's replicas share a run
            self._runs[call.key] = asyncio.create_task(self._make(call))
        return await self._runs[call.key]

    async def _make(self, call: RenderCall) -> NodeResult:
        with self._book.open("a") as file:
            file.write(f"{call.key}\n")
        await asyncio.sleep(SHOT_S)
        return NodeResult(artifact=self._store.put(call.key, self._source, media_type=MediaType.JSON, manifest={}))


def film(name: str, *, of: str) -> NewJob:
    """A clip for every replica."""
    return NewJob(id=name, document={}, nodes=tuple(clip(of, number) for number in range(REPLICAS)))


def clip(prompt: str, seed: int) -> NodeSpec:
    payload = {"card": "placeholder", "card_digest": "", "prompt": prompt, "negative_prompt": "", "width_px": 8,
               "height_px": 8, "frames": 1, "fps": 8, "steps": 1, "guidance": 0, "seed": seed}
    return NodeSpec(id=f"s{seed}.clip", kind=NodeKind.CLIP, shot_id=f"s{seed}", lane="placeholder", payload=payload)


def made(running: Running) -> list[tuple[str, str]]:
    """Process and key of everything that was made."""
    return [(path.stem, key) for path in Path(running.settings.data_dir).glob("made-*.txt")
            for key in path.read_text().split()]


@pytest.fixture
def running(deploy: Deploy) -> Running:
    return deploy([f"models.by_card.placeholder={{replicas: {REPLICAS}, num_gpus: 0.1, num_cpus: 0.1}}"],
                  model=Stamping)


def test_as_many_shots_as_replicas_are_one_each(running: Running) -> None:
    for number in range(5):
        running.ledger.submit(film(f"film-{number}", of=f"film {number}"))
        running.director.wake.remote().result(timeout_s=20)
        assert running.wait(f"film-{number}").status is JobStatus.SUCCEEDED
        processes = Counter(process for process, _ in made(running))
        assert set(processes.values()) == {number + 1}, f"film {number}: {processes}"


def test_two_jobs_with_the_same_shots_make_them_once(running: Running) -> None:
    for name in ("one", "two"):
        running.ledger.submit(film(name, of="the same"))
    running.director.wake.remote().result(timeout_s=20)
    assert all(running.wait(name).status is JobStatus.SUCCEEDED for name in ("one", "two"))
    times = Counter(key for _, key in made(running))
    assert [times[node.key] for node in running.ledger.nodes("two")] == [1] * REPLICAS
