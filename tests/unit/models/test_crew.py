"""Several processes make one call: the same pictures, steps told once, one end for all, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, SizeRule, Task
from configs.parallel import Parallel
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import pipelines
from serve_app.models.context_parallel import require_support
from serve_app.models.crew import Crew, crew_of
from serve_app.models.lifecycle import CancelToken
from serve_app.models.replica import ModelReplica
from serve_app.models.studio import Painter, open_studio
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME, STEPS, Family
from workflows.deadline import Deadline
from workflows.errors import (
    DeadlineExceeded,
    InvalidDocument,
    Overloaded,
    Problem,
    RenderCancelled,
    RenderRefused,
    ReplicaLost,
    Retry,
    StageFailed,
)
from workflows.media.decode import read_frames
from workflows.media.frames import UInt8Array
from workflows.store import Store
from workflows.types import Phase

WAN = BY_NAME["wan_t2v"]
TOLERANCE = 1
"""Of 255: what the order of sums may change in a pixel. On the CPU, with float32, none was seen to change."""


@dataclass(kw_only=True, eq=False)
class Ship:
    """A crew of two and what it renders with."""

    family: Family
    crew: Crew
    pipe: DiffusionPipeline
    painter: Painter

    def render(self, watch: Watch = UNWATCHED, callback: ProgressCallback | None = None, **changes: object,
               ) -> UInt8Array:
        return self.painter.generate(self.family.take(**changes), progress_callback=callback or quiet, watch=watch)


def quiet(step: int, total_steps_count: int, current_timestep: float) -> None:
    """Hears nothing."""


def launch(family: Family, card: ModelCard, *, stall_s: float = 60) -> Ship:
    crew = crew_of(card, "cpu", stall_s=stall_s)
    assert isinstance(crew, Crew)
    pipes: list[DiffusionPipeline] = []

    def load(card: ModelCard, task: Task, device: str, components: object = None) -> DiffusionPipeline:
        pipes.append(pipelines.load(card, task, device))
        return pipes[-1]

    studio = crew.joined(open_studio(card, "cpu", crew.keeping(load)))
    return Ship(family=family, crew=crew, pipe=pipes[0], painter=studio[family.task])


@pytest.fixture(scope="module")
def of_one(checkpoints: Path) -> UInt8Array:
    """What one process makes of Wan's take."""
    return open_studio(WAN.card(checkpoints), "cpu", pipelines.load)[WAN.task].generate(
        WAN.take(), progress_callback=quiet)


@pytest.fixture
def ship(checkpoints: Path) -> Iterator[Ship]:
    ship = launch(WAN, WAN.card(checkpoints, parallel={"ulysses": 2}))
    yield ship
    ship.crew.close()


def same(one: UInt8Array, other: UInt8Array) -> bool:
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= TOLERANCE


class Fickle:
    """A painter of rank 0 alone: the other process makes the call meanwhile."""

    def __init__(self, frames: UInt8Array, error: Exception | None = None) -> None:
        self._frames = frames
        self._error = error

    def problems(self, take: Take) -> tuple[Problem, ...]:
        return ()

    def warnings(self, take: Take) -> tuple[str, ...]:
        return ()

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        if self._error is not None:
            raise self._error
        return self._frames


# -- one call -------------------------------------------------------------------------------------------------------


def test_a_call_on_two_processes_is_that_of_one_and_stops_on_both(ship: Ship, of_one: UInt8Array) -> None:
    told: list[int] = []
    tokens: list[int] = []
    hook = ship.pipe.transformer.blocks[1].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[1]))
    shared = ship.render(callback=lambda step, *_: told.append(step))
    hook.remove()
    assert of_one.std() > 10
    assert same(shared, of_one)
    assert told == [*range(STEPS)]
    assert set(tokens) == {4}, "two latent frames of 2x2 patches are eight tokens, half of them here"

    token = CancelToken()
    told.clear()
    with pytest.raises(RenderCancelled):
        ship.render(Watch(cancel=token), lambda step, *_: (told.append(step), token.set() if step == 1 else None)[0])
    assert told == [0, 1]
    assert same(ship.render(), of_one), "both were ready for the next call"
    assert ship.crew.problem() == ""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parallel", "changes"), [
    ("wan_ti2v", {"ulysses": 2}, {}), ("wan21_i2v", {"ulysses": 2}, {}), ("wan22_t2v", {"ulysses": 2}, {}),
    ("wan22_i2v", {"ulysses": 2}, {}), ("flux", {"ulysses": 2}, {}),
    ("qwen_image", {"ulysses": 2, "uneven": True}, {"prompt": "a red ball on"}),
])
def test_every_family_that_can_gives_the_pictures_of_one(name: str, parallel: dict[str, object],
                                                         changes: dict[str, object], checkpoints: Path) -> None:
    family = BY_NAME[name]
    alone = open_studio(family.card(checkpoints), "cpu", pipelines.load)[family.task].generate(
        family.take(**changes), progress_callback=quiet)
    ship = launch(family, family.card(checkpoints, parallel=parallel))
    try:
        assert same(ship.render(**changes), alone)
    finally:
        ship.crew.close()


@pytest.mark.slow
def test_a_deadline_ends_the_call_on_both(ship: Ship, of_one: UInt8Array) -> None:
    with pytest.raises(DeadlineExceeded):
        ship.render(Watch(deadline=Deadline.after(-1)))
    assert same(ship.render(), of_one)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), [
    ("wan_t2v", {"width_px": 48, "height_px": 48, "frames": 9}),  # 27 tokens
    ("qwen_image", {"prompt": "a red ball on"}),
])
def test_tokens_that_do_not_come_out_even_are_refused(name: str, changes: dict[str, object], checkpoints: Path) -> None:
    family = BY_NAME[name]
    rule = SizeRule(multiple_px=16, min_px=32, max_px=128)
    ship = launch(family, family.card(checkpoints, size=rule, parallel={"ulysses": 2}))
    try:
        with pytest.raises(RenderRefused, match="2 GPUs cannot share evenly; nearest valid: another one, or `uneven"):
            ship.render(**changes)
        assert ship.render().std() > 1
    finally:
        ship.crew.close()


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_call_and_the_next_one_works(ship: Ship, of_one: UInt8Array) -> None:
    wrong = WAN.take(width_px=30)  # no painter was asked; the other process's pipeline refuses it
    with pytest.raises(RuntimeError, match="process 1: ValueError: `height` and `width` have to be divisible"):
        ship.crew.run(Fickle(of_one), WAN.task, wrong, quiet, UNWATCHED)
    with pytest.raises(torch.OutOfMemoryError, match="5 GiB"):
        ship.crew.run(Fickle(of_one, torch.OutOfMemoryError("5 GiB")), WAN.task, WAN.take(), quiet, UNWATCHED)
    assert same(ship.render(), of_one)


@pytest.mark.slow
def test_an_error_between_two_steps_of_rank_0_stops_both_there(ship: Ship, of_one: UInt8Array) -> None:
    def beat() -> None:
        raise torch.OutOfMemoryError("here alone")

    with pytest.raises(torch.OutOfMemoryError, match="here alone"):
        ship.render(Watch(beat=beat))
    assert same(ship.render(), of_one)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in a step", "between two calls"])
def test_a_killed_process_is_noticed_and_its_call_may_be_tried_elsewhere(when: str, ship: Ship) -> None:
    pid = ship.crew.pids()[0]
    if when == "in a step":
        with pytest.raises(ReplicaLost, match="process 1 of 2 is gone"):
            ship.render(callback=lambda step, *_: os.kill(pid, signal.SIGKILL) if step == 1 else None)
    else:
        os.kill(pid, signal.SIGKILL)
        until(ship.crew.problem)
    assert ship.crew.problem() == "process 1 of 2 is gone"
    with pytest.raises(Overloaded, match="about to be replaced"):
        ship.render()


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_call_and_the_crew(checkpoints: Path) -> None:
    ship = launch(WAN, WAN.card(checkpoints, parallel={"ulysses": 2}), stall_s=3)
    pid = ship.crew.pids()[0]
    try:
        with pytest.raises(Exception, match=r"[Tt]imed out|gone"):
            ship.render(callback=lambda step, *_: os.kill(pid, signal.SIGSTOP) if step == 1 else None)
        assert ship.crew.problem() == "the processes did not end a failed call together"
        until(lambda: not alive(pid))
    finally:
        ship.crew.close()


@pytest.mark.slow
async def test_a_replica_renders_with_its_crew_and_is_unhealthy_without_it(checkpoints: Path, tmp_path: Path) -> None:
    card, sink, store = WAN.card(checkpoints, parallel={"ulysses": 2}), RememberingSink(), Store(str(tmp_path))
    replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), store, sink, assigned_gpus=0)
    try:
        clip = await replica.clip(render_call(card, steps=STEPS))
        assert read_frames(store.fetch(clip.artifact)).shape == (5, 32, 32, 3)
        assert [record.step for record in sink.records if record.phase is Phase.DIFFUSION] == [*range(1, STEPS + 1)]
        await replica.check_health()
        os.kill(children()[0], signal.SIGKILL)
        with pytest.raises(StageFailed) as failure:
            await replica.clip(render_call(card, key="b" * 32, steps=STEPS))
        assert failure.value.retry is Retry.FREE
        with pytest.raises(RuntimeError, match="wan-t2v: process 1 of 2 is gone"):
            await replica.check_health()
    finally:
        replica.close()
    assert children() == []


# -- beginning and end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parallel", "says"), [
    ("sdxl", Parallel(ulysses=2), r"share out unet \(UNet2DConditionModel\) among GPUs: the class has no context-par"),
    ("ltx", Parallel(ulysses=2), r"share out transformer \(LTXVideoTransformer3DModel\).*a row per head"),
    ("wan_t2v", Parallel(ulysses=4), r"has 2 attention heads .*which 4 does not divide; nearest valid: ulysses: 2"),
    ("wan_t2v", Parallel(ulysses=3), r"has 2 attention heads .*which 3 does not divide; nearest valid: ulysses: 2"),
    ("wan_t2v", Parallel(ring=2), "ring attention needs a GPU.*nearest valid: ulysses: 2"),
])
def test_what_cannot_be_shared_out_is_refused_by_name(name: str, parallel: Parallel, says: str, checkpoints: Path,
                                                      pipe_of: Callable[[str], DiffusionPipeline]) -> None:
    with pytest.raises(InvalidDocument, match=says):
        require_support(pipe_of(name), BY_NAME[name].card(checkpoints), parallel, "cpu")


@pytest.mark.slow
def test_what_keeps_one_process_from_loading_is_said_and_all_end(checkpoints: Path) -> None:
    elsewhere = WAN.card(checkpoints, repo=str(checkpoints / "nowhere"), parallel={"ulysses": 2})
    crew = crew_of(elsewhere, "cpu", stall_s=60)
    assert isinstance(crew, Crew)
    pids = crew.pids()
    here = crew.keeping(lambda card, task, device, components=None: pipelines.load(WAN.card(checkpoints), task, device))
    with pytest.raises(InvalidDocument, match="nowhere"):
        crew.joined(open_studio(elsewhere, "cpu", here))
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_a_closed_crew_leaves_no_process_and_another_one_can_begin(checkpoints: Path, of_one: UInt8Array) -> None:
    for _ in range(2):
        ship = launch(WAN, WAN.card(checkpoints, parallel={"ulysses": 2}))
        pids = ship.crew.pids()
        assert same(ship.render(), of_one)
        ship.crew.close()
        assert not any(alive(pid) for pid in pids)


ABANDONED = """
import sys, time
from configs.model_card import ModelCard
from serve_app.models.crew import crew_of
crew = crew_of(ModelCard.model_validate_json(sys.argv[1]), "cpu", stall_s=60)
print(*crew.pids(), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_the_others_end_when_rank_0_is_killed(checkpoints: Path) -> None:
    card = WAN.card(checkpoints, parallel={"ulysses": 2})
    with subprocess.Popen([sys.executable, "-c", ABANDONED, card.model_dump_json()], stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}) as rank_0:
        assert rank_0.stdout is not None
        pid = int(rank_0.stdout.readline())
        assert alive(pid)
        rank_0.kill()
    until(lambda: not alive(pid))


def children() -> list[int]:
    """Crew members that this process started and that run."""
    return [child.pid for child in psutil.Process().children()
            if alive(child.pid) and "serve_app.models.crew_member" in child.cmdline()]


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(good: Callable[[], object], limit_s: float = 30) -> None:
    end_s = time.monotonic() + limit_s
    while not good():
        assert time.monotonic() < end_s
        time.sleep(0.05)
