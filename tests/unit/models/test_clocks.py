"""Machines whose clocks differ: a call says how many seconds are left, and its receiver counts them by its own."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.settings import MediaSettings, ModelsSettings
from serve_app.media_worker import MediaWorker
from serve_app.models.replica import ModelReplica
from tests.fakes_models import Gate, RememberingSink, ScriptedLoad, render_call, scripted_card
from workflows.deadline import Clock, Deadline
from workflows.errors import DeadlineExceeded
from workflows.media.encode import EncodeOptions, encode
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeCall, NodeKind

CARD = scripted_card()
AN_HOUR_OFF = pytest.mark.parametrize("off_s", [3600.0, -3600.0], ids=["ahead", "behind"])
LIMIT_S = 60.0


class Hand:
    """A clock so far from the Director's; stands still until it is moved."""

    def __init__(self, off_s: float) -> None:
        self.at_s = time.monotonic() + off_s

    def __call__(self) -> float:
        return self.at_s


class Machine:
    """A replica on a machine with such a clock."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        load = ScriptedLoad()
        self.store = Store(str(directory / "store"))
        self.replica = ModelReplica(CARD, ModelsSettings(torch_threads=1), MediaSettings(preset="ultrafast"),
                                    self.store, RememberingSink(), assigned_gpus=0, load=load, clock=clock)
        self.pipe = load.pipe
        self.pipe.takes.clear()


@pytest.fixture
def machine_of(tmp_path: Path) -> Iterator[Callable[[Clock], Machine]]:
    machines: list[Machine] = []

    def make(clock: Clock) -> Machine:
        machines.append(Machine(tmp_path, clock))
        return machines[-1]

    yield make
    for machine in machines:
        machine.replica.close()


@AN_HOUR_OFF
async def test_a_replica_whose_clock_is_an_hour_off_renders_as_always_and_a_calls_limit_ends_it(
        off_s: float, machine_of: Callable[[Clock], Machine]) -> None:
    clock = Hand(off_s)
    machine = machine_of(clock)
    assert (await machine.replica.clip(render_call(CARD, left_s=LIMIT_S))).artifact.key == "a" * 32

    gate = machine.pipe.denoise = Gate(at_step=1)
    rendered, queued = (asyncio.create_task(machine.replica.clip(render_call(CARD, key=key * 32, left_s=LIMIT_S)))
                        for key in "bc")
    assert await asyncio.to_thread(gate.reached.wait, 10)
    clock.at_s += LIMIT_S + 1
    gate.opened.set()
    for late in (rendered, queued):
        with pytest.raises(DeadlineExceeded):
            await late
    assert gate.seen == [0, 1], "waiting for the GPU counts too: the second was not begun"


@AN_HOUR_OFF
async def test_the_cpus_worker_counts_by_its_own_clock_too(off_s: float, tmp_path: Path) -> None:
    clock, store = Hand(off_s), Store(str(tmp_path / "store"))
    worker = MediaWorker(MediaSettings(preset="ultrafast"), store, RememberingSink(), slots=1, clock=clock)
    film = compose(clip_in(store, tmp_path))
    assert (await worker.run(film)).artifact.media_type is MediaType.MP4

    late = MediaWorker(MediaSettings(), store, Hurrying(clock), slots=1, clock=clock)
    with pytest.raises(DeadlineExceeded, match="not finished at frame"):
        await late.run(compose(clip_in(store, tmp_path), key="e" * 32))


def test_a_deadline_is_not_sent_anywhere() -> None:
    with pytest.raises(TypeError, match="one process's clock"):
        pickle.dumps(Deadline.after(1.0))


class Hurrying(RememberingSink):
    """Moves the clock past the limit at the first sign of the work."""

    def __init__(self, clock: Hand) -> None:
        super().__init__()
        self.clock = clock

    def update(self, *_: object, urgent: bool = False) -> None:
        self.clock.at_s += LIMIT_S + 1


def clip_in(store: Store, directory: Path) -> Artifact:
    path = directory / "clip.mp4"
    encode(np.full((5, 32, 64, 3), 90, np.uint8), fps=8, to=path, options=EncodeOptions())
    return store.put("f" * 32, path, media_type=MediaType.MP4, manifest={})


def compose(clip: Artifact, key: str = "d" * 32) -> NodeCall:
    return NodeCall(job_id="film", node_id="compose", shot_id="", kind=NodeKind.COMPOSE, key=key, attempt=1,
                    generation=0, left_s=LIMIT_S, inputs={"s1.clip": clip}, payload={
                        "width_px": 64, "height_px": 32, "fps": 8, "missing": "cut", "parts": [{
                            "shot": "s1", "node": "s1.clip", "frames": 5, "fade_in_frames": 0, "text": "x"}]})
