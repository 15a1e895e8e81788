"""A run that ends early is gone on with elsewhere, bit for bit; windows of failure, hand-over, and when to write.

Two replicas on one store stand for two processes. One that "died" is held at a step, as a process that was taken over
while it still lives: it sees nothing of what the other does, and what it writes afterwards must hurt nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.model_card import Task
from configs.parallel import Parallel
from configs.settings import CheckpointSettings, MediaSettings, ModelsSettings
from serve_app.leaving import when_stopping
from serve_app.models.keeping import Keeper, KeptRun
from serve_app.models.lifecycle import CancelToken
from serve_app.models.replica import ModelReplica
from serve_app.models.resume import StepCheckpoint
from serve_app.models.tap import Watch
from tests.fakes_models import STEPS, Gate, RememberingSink, ScriptedLoad, render_call, scripted_card
from workflows.checkpoints import CheckpointShelf, Kept
from workflows.errors import HandedOver, ModelFailed, RenderCancelled
from workflows.ports import Party
from workflows.progress import clip_fraction
from workflows.store import Store
from workflows.types import Phase

ALWAYS = CheckpointSettings(share=1.0, interval_s=0.0)
CALL = render_call(scripted_card(Task.TEXT_TO_VIDEO), attempt=1)
AGAIN = replace(CALL, attempt=2)


class Bench:
    """A replica on a store that others use too."""

    def __init__(self, store: Path, checkpoints: CheckpointSettings = ALWAYS) -> None:
        self.load, self.sink, self.store = ScriptedLoad(), RememberingSink(), Store(str(store))
        self.shelf = CheckpointShelf(str(store))
        self.replica = ModelReplica(
            scripted_card(Task.TEXT_TO_VIDEO), ModelsSettings(torch_threads=1, checkpoints=checkpoints),
            MediaSettings(preset="ultrafast"), self.store, self.sink, assigned_gpus=0, load=self.load,
            checkpoints=self.shelf)
        self.files = store / "checkpoints"

    def steps(self) -> list[int]:
        """Denoising steps that were told."""
        return [record.step for record in self.sink.records if record.phase is Phase.DIFFUSION]

    def kept(self) -> list[int]:
        """Steps of the checkpoints on the shelf."""
        found = []
        for path in self.files.glob("*/*.ckpt"):
            with contextlib.suppress(FileNotFoundError):  # it was just removed
                found.append(Kept.from_bytes(path.read_bytes()).step)
        return sorted(found)

    async def until_kept(self, *steps: int) -> None:
        for _ in range(500):
            if self.kept() == list(steps):
                return
            await asyncio.sleep(0.01)
        assert self.kept() == list(steps)


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(store: str = "store", checkpoints: CheckpointSettings = ALWAYS) -> Bench:
        benches.append(Bench(tmp_path / store, checkpoints))
        return benches[-1]

    yield make
    for bench in benches:
        bench.replica.close()


class WrittenGate(Gate):
    """A gate in front of which each step waits until the checkpoint of the one before is on the shelf."""

    def __init__(self, bench: Bench, at_step: int) -> None:
        super().__init__(at_step)
        self._bench = bench

    def __call__(self, step: int) -> None:
        self._bench.replica._keeper.thread.run_now(lambda: None)
        super().__call__(step)


@contextmanager
def held(bench: Bench, at_step: int, *, written: bool = True) -> Iterator[Gate]:
    """The replica's denoiser stands still before step `at_step` (from 0), each step before it is `written`."""
    gate = bench.load.pipe.denoise = WrittenGate(bench, at_step) if written else Gate(at_step)
    try:
        yield gate
    finally:
        gate.opened.set()


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, 10)


async def whole(bench_of: Callable[..., Bench]) -> str:
    """SHA-256 of the clip that was never interrupted, made somewhere else."""
    return (await bench_of("elsewhere").replica.clip(CALL)).artifact.sha256


# -- windows of failure ------------------------------------------------------------------------------------------


async def test_an_attempt_that_vanished_is_gone_on_with_and_its_zombie_hurts_nobody(bench_of: Callable[..., Bench],
                                                                                    ) -> None:
    first, second = bench_of(), bench_of()
    with held(first, 3) as gate:
        lost = asyncio.create_task(first.replica.clip(CALL))
        await reached(gate)
        await first.until_kept(3)
        result = await second.replica.clip(AGAIN)
        assert second.steps() == [4, 5]
        assert result.artifact.sha256 == await whole(bench_of)
        await second.until_kept()
    # The zombie goes on: it writes a checkpoint after the commit, then the same result once more.
    assert (await lost).artifact == result.artifact
    await first.until_kept()


async def test_death_after_the_result_and_before_the_commit_costs_no_step(bench_of: Callable[..., Bench]) -> None:
    """The artifact is there, its checkpoint too, and nobody was told of either."""
    first, second = bench_of(), bench_of()
    with held(first, 3) as gate:
        lost = asyncio.create_task(first.replica.clip(CALL))
        await reached(gate)
        await first.until_kept(3)
        made = (await bench_of("elsewhere").replica.clip(CALL)).artifact
        first.store.put(CALL.key, Path(made.uri), media_type=made.media_type, manifest={})
        found = await second.replica.clip(AGAIN)
        assert found.artifact.sha256 == made.sha256
        assert second.load.pipe.takes[1:] == [], "nothing but the warm-up was run"
        await first.until_kept()
    await lost


@pytest.mark.parametrize("spoil", ["damaged", "other card", "other versions"])
async def test_what_is_damaged_or_of_other_settings_is_not_used(spoil: str, bench_of: Callable[..., Bench]) -> None:
    first, second = bench_of(), bench_of()
    with held(first, 3) as gate:
        lost = asyncio.create_task(first.replica.clip(CALL))
        await reached(gate)
        await first.until_kept(3)
        (path,) = first.files.glob("*/*.ckpt")
        kept = Kept.from_bytes(path.read_bytes())
        if spoil == "damaged":
            path.write_bytes(path.read_bytes()[:-10])
        else:
            name, value = {"other card": ("card_digest", "0" * 16), "other versions": ("versions", {})}[spoil]
            first.shelf.put(CALL.key, path.stem.split("-")[1], replace(kept, label={**kept.label, name: value}))
        result = await second.replica.clip(AGAIN)
    assert second.steps() == [1, 2, 3, 4, 5]
    assert "carried" not in result.seconds
    await lost


async def test_whole_numbers_that_are_no_checkpoint_of_ours_are_not_used(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of()
    token = CancelToken()
    label = keeper_of(bench.shelf).label(CALL)
    bench.shelf.put(CALL.key, "run", Kept(label=label, step=3, attempt=1, spent_s=1.0, body=b"not from torch"))
    async with keeper_of(bench.shelf).run(CALL, token, lambda: False) as kept:
        assert kept.first_step == 0


async def test_after_an_error_of_the_model_the_next_try_begins_anew(bench_of: Callable[..., Bench]) -> None:
    """Numbers that went wrong are in the checkpoint, too."""

    def fail(step: int) -> None:
        if step == 3:
            raise ArithmeticError("wrong")

    bench = bench_of()
    bench.load.pipe.denoise = fail
    with pytest.raises(ModelFailed):
        await bench.replica.clip(CALL)
    await bench.until_kept()
    bench.load.pipe.denoise = lambda step: None
    bench.sink.records.clear()
    await bench.replica.clip(AGAIN)
    assert bench.steps() == [1, 2, 3, 4, 5]


# -- what is told ------------------------------------------------------------------------------------------------


async def test_progress_manifest_and_seconds_tell_where_it_went_on(bench_of: Callable[..., Bench]) -> None:
    first, second = bench_of(), bench_of()
    with held(first, 3) as gate:
        lost = asyncio.create_task(first.replica.clip(CALL))
        await reached(gate)
        await first.until_kept(3)
        result = await second.replica.clip(AGAIN)
    records = second.sink.records
    assert (records[0].phase, records[0].step, records[0].total_steps) == (Phase.INITIALISE, 3, STEPS)
    assert records[0].fraction == clip_fraction(Phase.DIFFUSION, step=3, total_steps=STEPS)
    assert [record.fraction for record in records] == sorted(record.fraction for record in records)
    manifest = second.store.manifest(CALL.key)
    assert manifest is not None
    assert manifest["made"]["resumed_after_step"] == 3
    assert result.seconds["carried"] > 0
    assert result.warnings == ()
    assert "carried" not in (await lost).seconds


# -- hand over ---------------------------------------------------------------------------------------------------


async def test_a_replica_that_is_to_end_hands_over_at_the_next_step(bench_of: Callable[..., Bench]) -> None:
    first, second = bench_of(checkpoints=CheckpointSettings(share=1e-9, interval_s=0.0)), bench_of()
    with held(first, 2, written=False) as gate:
        running = asyncio.create_task(first.replica.clip(CALL))
        await reached(gate)  # of two that come at once either may be first
        waiting = asyncio.create_task(first.replica.clip(replace(CALL, key="b" * 32, node_id="s2.clip")))
        await asyncio.sleep(0.1)  # into the queue
        first.replica.leave()
        with pytest.raises(HandedOver, match="nothing was begun"):
            await waiting
        with pytest.raises(HandedOver, match="nothing was begun"):
            await first.replica.clip(replace(CALL, key="c" * 32, node_id="s3.clip"))
    with pytest.raises(HandedOver, match="handed over after step 3 of 5"):
        await running
    assert first.kept() == [3], "written before the caller was told: the process may end now"
    result = await second.replica.clip(AGAIN)
    assert second.steps() == [4, 5]
    assert result.artifact.sha256 == await whole(bench_of)


async def test_what_is_nearly_done_is_finished_there(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(checkpoints=CheckpointSettings(interval_s=20.0))
    with held(bench, 2, written=False) as gate:
        running = asyncio.create_task(bench.replica.clip(CALL))
        await reached(gate)
        bench.replica.leave()
    assert (await running).artifact == bench.store.find(CALL.key)


def test_serve_s_flag_is_told_once() -> None:
    told: list[float] = []
    answers = iter([False, False, True])
    when_stopping(lambda: told.append(time.monotonic()), lambda: next(answers), look_s=0.001).join(5)
    assert len(told) == 1


def test_a_ray_without_the_flag_only_costs_the_hand_over(caplog: pytest.LogCaptureFixture) -> None:
    def moved() -> bool:
        raise AttributeError("_shutting_down")

    thread = when_stopping(lambda: pytest.fail("told"), moved, look_s=0.001)
    thread.join(5)
    assert "finished, not handed over" in caplog.text


# -- callers that leave ------------------------------------------------------------------------------------------


async def test_a_cancelled_job_leaves_no_checkpoint(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of()
    with held(bench, 3) as gate:
        running = asyncio.create_task(bench.replica.clip(CALL))
        await reached(gate)
        await bench.until_kept(3)
        bench.replica.cancel_job(CALL.job_id)
        await asyncio.sleep(0.05)
    with pytest.raises(RenderCancelled):
        await running
    await bench.until_kept()


async def test_a_caller_that_is_gone_may_be_a_director_that_comes_back(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(checkpoints=CheckpointSettings(share=1e-9, interval_s=0.0))
    with held(bench, 2, written=False) as gate:
        running = asyncio.create_task(bench.replica.clip(CALL))
        await reached(gate)
        running.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert bench.kept() == [3]
    bench.sink.records.clear()
    await bench.replica.clip(AGAIN)
    assert bench.steps() == [4, 5]


# -- when ---------------------------------------------------------------------------------------------------------


def keeper_of(shelf: CheckpointShelf | None, settings: CheckpointSettings = ALWAYS, *, clock: Any = time.perf_counter,
              **card: Any) -> Keeper:
    scripted = scripted_card(Task.TEXT_TO_VIDEO).model_copy(update=card)
    return Keeper(shelf, settings, scripted, made_on="cpu", used={}, clock=clock)


def run_of(keeper: Keeper) -> tuple[KeptRun, Watch]:
    run = keeper.run(CALL, CancelToken(), lambda: False)
    return run, run.watched(Watch())


def checkpoint(step: int, *, value: float = 0.0) -> StepCheckpoint:
    return StepCheckpoint(step=step, total=50, samples=(torch.full((2, 2), value),), schedulers=({},), outputs={},
                          generator=torch.Generator().get_state(), global_cpu=torch.get_rng_state(), global_cuda=None)


def test_the_interval_follows_from_what_a_checkpoint_costs(tmp_path: Path) -> None:
    now = [0.0]
    keeper = keeper_of(CheckpointShelf(str(tmp_path)), CheckpointSettings(), clock=lambda: now[0])
    _, watch = run_of(keeper)
    due, take = watch.checkpoint_due, watch.on_checkpoint
    assert due is not None
    assert take is not None
    now[0] = 19.9
    assert not due(4, 50), "a run shorter than 20 s has none"
    now[0] = 20.1
    assert due(5, 50)
    now[0] = 20.6  # half a second for the copy, a tenth for packing: 1 % of 60 s
    take(checkpoint(5))
    keeper.thread.submit(lambda: None).result()
    assert keeper.packed_s > 0
    keeper.packed_s = 0.1
    now[0] = 80.5
    assert not due(15, 50)
    now[0] = 80.7
    assert due(16, 50)
    keeper.close()


def test_while_one_is_being_written_none_is_taken(tmp_path: Path) -> None:
    now = [0.0]
    keeper = keeper_of(CheckpointShelf(str(tmp_path)), CheckpointSettings(), clock=lambda: now[0])
    _, watch = run_of(keeper)
    assert watch.checkpoint_due is not None
    assert watch.on_checkpoint is not None
    gate = Gate(0)
    keeper.thread.submit(lambda: gate(0))  # a slow disk
    now[0] = 21.0
    assert watch.checkpoint_due(5, 50)
    watch.on_checkpoint(checkpoint(5))
    now[0] = 1000.0
    assert not watch.checkpoint_due(6, 50)
    gate.opened.set()
    keeper.thread.submit(lambda: None).result()
    assert watch.checkpoint_due(7, 50)
    keeper.close()


def test_numbers_that_went_wrong_are_not_written(tmp_path: Path) -> None:
    keeper = keeper_of(CheckpointShelf(str(tmp_path)))
    _, watch = run_of(keeper)
    assert watch.on_checkpoint is not None
    watch.on_checkpoint(checkpoint(5, value=float("nan")))
    keeper.close()
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_costs_checkpoints_and_no_shot(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    keeper = keeper_of(CheckpointShelf(str(tmp_path)))
    _, watch = run_of(keeper)
    assert watch.on_checkpoint is not None
    watch.on_checkpoint(checkpoint(5))
    keeper.close()
    assert "one could not be written" in caplog.text


@pytest.mark.parametrize("card", [{"loader": "placeholder"}, {"batch": 4}, {"parallel": Parallel(ulysses=2)}],
                         ids=["placeholder", "shared runs", "several GPUs"])
def test_where_going_on_means_nothing_there_are_none(card: dict[str, Any], tmp_path: Path) -> None:
    shelf = CheckpointShelf(str(tmp_path))
    assert run_of(keeper_of(shelf))[1].checkpoint_due is not None
    assert run_of(keeper_of(shelf, **card))[1] == Watch()


def test_drafts_with_a_step_cache_have_none_and_neither_has_a_share_of_nothing(tmp_path: Path) -> None:
    """The cache lives in the denoiser's hooks, which a checkpoint does not hold."""
    shelf = CheckpointShelf(str(tmp_path))
    draft = keeper_of(shelf).run(replace(CALL, cache_threshold=0.1), CancelToken(), lambda: False)
    assert draft.watched(Watch()) == Watch()
    assert run_of(keeper_of(shelf, CheckpointSettings(share=0.0)))[1] == Watch()
    assert run_of(keeper_of(None))[1] == Watch()


def test_only_who_asks_may_differ_between_two_attempts(tmp_path: Path) -> None:
    keeper = keeper_of(CheckpointShelf(str(tmp_path)))
    label = keeper.label(CALL)
    assert keeper.label(replace(CALL, job_id="other", node_id="s9", shot_id="s9", attempt=7, left_s=1.0)) == label
    assert keeper.label(replace(CALL, seat=3, avoid=("a replica",), party=Party(id="p", size=2, rank=0))) == label
    for change in ({"seed": 12}, {"steps": 6}, {"key": "b" * 32}, {"prompt": "a blue ball"}):
        assert keeper.label(replace(CALL, **change)) != label
    other_gpu = Keeper(None, ALWAYS, scripted_card(Task.TEXT_TO_VIDEO), made_on="cuda:0 (other)", used={})
    assert other_gpu.label(CALL) != label
