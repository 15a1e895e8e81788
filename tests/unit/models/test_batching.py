"""Pictures that share a call of the pipeline: the same pictures, fewer calls, and each caller's own affairs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from configs.memory import Shape
from configs.model_card import Memory, ModelCard, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.director import calls_at_once
from serve_app.models.batching import Batcher, Item, kind_of
from serve_app.models.ladder import Ladder
from serve_app.models.lifecycle import CancelToken, GpuThread, Heartbeat
from serve_app.models.records import RunRecords
from serve_app.models.replica import ModelReplica
from serve_app.models.takes import Dialect
from serve_app.models.text_to_image import TextToImage
from tests.fakes_models import STEPS, Gate, RememberingSink, ScriptedPipeline, render_call, scripted_card
from tests.families import BY_NAME
from tests.studio import QUICK
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import NewJob
from workflows.durable.tables import usage
from workflows.errors import DeadlineExceeded, InvalidDocument, ModelFailed, RenderCancelled, RenderRefused
from workflows.media.decode import read_picture
from workflows.ports import RenderCall
from workflows.stages.render import keyframe
from workflows.store import Store
from workflows.types import Json, NodeKind, NodeSpec, Phase

PipeOf = Callable[[str], DiffusionPipeline]
TOLERANCE = 1
"""Of 255: rounding, where kernels for another batch size add up in another order."""
BATCH = 4

# -- real pipelines ----------------------------------------------------------------------------------------------


def quiet(step: int, total: int, timestep: float) -> None:
    """No bar in the output of the tests."""


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("negative", [False, True], ids=["plain", "negative"])
@pytest.mark.parametrize("name", ["sdxl", "sdxl_turbo", "flux", "z_image", "qwen_image", "wan_t2v"])
def test_a_picture_is_the_same_alone_and_with_any_mates(name: str, negative: bool, pipe_of: PipeOf, checkpoints: Path,
                                                        ) -> None:
    family = BY_NAME[name]
    model = TextToImage(pipe_of(name), family.card(
        checkpoints, pipelines={Task.TEXT_TO_IMAGE: family.pipeline}, batch=BATCH))
    mine, *others = [
        family.take(frames=1, prompt=prompt, seed=seed, negative_prompt="blurry " * seed if negative else "")
        for prompt, seed in [("a red ball", 1), ("a long story of a green dog that runs over a hill", 2), ("x", 3)]]
    alone = model.generate(mine, progress_callback=quiet)
    among_three = model.generate_many([others[0], mine, others[1]], progress_callback=quiet)
    among_two = model.generate_many([mine, others[1]], progress_callback=quiet)
    assert difference(among_three[1], alone) <= TOLERANCE
    assert difference(among_two[0], alone) <= TOLERANCE
    assert difference(among_three[0], alone) > TOLERANCE


# -- the card ----------------------------------------------------------------------------------------------------


def test_a_batch_of_one_is_no_part_of_the_digest_and_a_larger_one_is() -> None:
    card = scripted_card(Task.TEXT_TO_IMAGE)
    one, four = (ModelCard(**{**card.model_dump(exclude_unset=True), "batch": batch}) for batch in (1, 4))
    assert one.digest() == card.digest() != four.digest()
    assert [calls_at_once(each) for each in (card, one, four)] == [2, 2, 8]


@pytest.mark.parametrize("changes", [
    {"pipelines": {"text_to_image": "X", "text_to_video": "X"}}, {"pipelines": {"text_to_video": "X"}},
    {"loader": "placeholder"}], ids=["clips too", "clips", "placeholder"])
def test_a_batch_is_for_cards_that_only_draw(changes: dict[str, object]) -> None:
    card = scripted_card(Task.TEXT_TO_IMAGE)
    with pytest.raises(ValueError, match="batch 4 is for diffusers cards whose only task is text_to_image"):
        ModelCard(**{**card.model_dump(exclude_unset=True), "batch": 4, **changes})


def test_a_pipeline_that_makes_one_picture_per_call_is_refused_by_name() -> None:
    card = scripted_card(Task.TEXT_TO_IMAGE).model_copy(update={"batch": 4})
    with pytest.raises(InvalidDocument, match="batch: ScriptedPipeline makes one picture per call; nearest valid: 1"):
        Dialect(ScriptedPipeline(FlowMatchEulerDiscreteScheduler()), card, Task.TEXT_TO_IMAGE)


@pytest.mark.parametrize("changes", [
    {"width_px": 64}, {"height_px": 64}, {"steps": 3}, {"guidance": 4.0}, {"negative_prompt": "blurry"}])
def test_only_what_one_call_can_make_is_alike(changes: dict[str, object]) -> None:
    take = BY_NAME["sdxl"].take()
    assert kind_of(replace(take, prompt="another", seed=3)) == kind_of(take)
    assert kind_of(replace(take, **changes)) != kind_of(take)


def test_what_has_a_picture_of_its_own_is_made_alone() -> None:
    take = BY_NAME["sdxl"].take()
    assert kind_of(replace(take, picture_HWC=np.zeros((32, 32, 3), np.uint8))) is None


# -- a replica ---------------------------------------------------------------------------------------------------


class ListPipeline(ScriptedPipeline):
    """Takes lists too, and remembers what was asked together; a prompt "bad" breaks every call that it is in."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__(scheduler)
        self.calls: list[list[str]] = []
        self.room = 64
        """Pictures that fit the GPU."""
        self.worked_s = 0.0

    @torch.no_grad()
    def __call__(self, prompt: str | list[str], negative_prompt: str | list[str] = "", width: int = 0, height: int = 0,
                 num_inference_steps: int = 1, guidance_scale: float = 1.0,
                 generator: torch.Generator | list[torch.Generator] | None = None, output_type: str = "pt") -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        generators = generator if isinstance(generator, list) else [generator]
        self.calls.append(prompts)
        started = time.perf_counter()
        if len(prompts) > self.room:
            raise torch.OutOfMemoryError("no room")
        if "bad" in prompts:
            raise ValueError("a bad word")
        sample = torch.cat([torch.rand(1, 1, generator=one) for one in generators])
        self.scheduler.set_timesteps(num_inference_steps)
        for step, timestep in enumerate(self.scheduler.timesteps):
            self.denoise(step)
            self.scheduler.step(torch.zeros_like(sample), timestep, sample, return_dict=False)
        self.worked_s += time.perf_counter() - started
        pictures = sample[:, :, None, None].expand(-1, 3, height, width)
        return _Images(images=pictures)


class _Images(SimpleNamespace):
    def __contains__(self, name: str) -> bool:
        return name in vars(self)


@dataclass
class Bench:
    replica: ModelReplica
    pipe: ListPipeline
    card: ModelCard
    store: Store
    sink: RememberingSink

    def call(self, name: str, **changes: Any) -> RenderCall:
        """A picture call whose prompt, node, job and key go by one name; its seed too."""
        fields = {"key": name.rjust(32, "0"), "job_id": name, "node_id": f"{name}.keyframe", "prompt": name,
                  "seed": sum(name.encode()), "frames": 1}
        return render_call(self.card, **{**fields, **changes})

    def ask(self, *names: str, **changes: Any) -> list[asyncio.Task[Any]]:
        return [asyncio.create_task(self.replica.image(self.call(name, **changes))) for name in names]

    async def hold(self, at_step: int = STEPS - 1) -> tuple[Gate, asyncio.Task[Any]]:
        """A first picture that stays on the GPU until the gate is opened."""
        gate = self.pipe.denoise = Gate(at_step)
        (first,) = self.ask("first")
        await reached(gate)
        return gate, first


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, 10)


async def queued(bench: Bench, *names: str) -> None:
    """Until these jobs' pictures have been through the store and wait for the GPU."""
    while not {record.job_id for record in bench.sink.records}.issuperset(names):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


def together(bench: Bench) -> list[list[str]]:
    """Who shared a call; calls come in the order in which their first picture came, which threads decide."""
    return sorted(sorted(prompts) for prompts in bench.pipe.calls)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    pipe = ListPipeline(FlowMatchEulerDiscreteScheduler())
    card = scripted_card(Task.TEXT_TO_IMAGE).model_copy(update={"batch": BATCH})
    store, sink = Store(str(tmp_path / "store")), RememberingSink()
    replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), store, sink, assigned_gpus=0,
                           load=lambda *_: pipe)
    assert [len(prompts) for prompts in pipe.calls] == [1, BATCH], "warm with both"
    pipe.calls.clear()
    yield Bench(replica, pipe, card, store, sink)
    replica.close()


async def test_six_keyframes_are_made_in_three_calls_each_as_if_alone(bench: Bench) -> None:
    gate, first = await bench.hold()
    others = bench.ask(*"abcde")
    await queued(bench, *"abcde")
    gate.opened.set()
    results = await asyncio.gather(first, *others)
    assert [len(prompts) for prompts in bench.pipe.calls] == [1, BATCH, 1]
    for name, result in zip(("first", *"abcde"), results, strict=True):
        seed = bench.call(name).seed
        level = torch.rand(1, generator=torch.Generator().manual_seed(seed)).item() * 255
        picture_HWC = read_picture(bench.store.fetch(result.artifact))
        assert abs(int(picture_HWC[0, 0, 0]) - level) <= 1
        made = (bench.store.manifest(result.artifact.key) or {})["made"]
        assert (made["call"]["prompt"], made["call"]["seed"]) == (name, seed)


async def test_the_gpu_does_not_wait_for_mates(bench: Bench) -> None:
    await bench.ask("a")[0]
    assert bench.pipe.calls == [["a"]]


async def test_every_job_hears_all_steps_of_its_own_picture(bench: Bench) -> None:
    gate, first = await bench.hold()
    others = bench.ask("a", "b")
    await queued(bench, "a", "b")
    gate.opened.set()
    await asyncio.gather(first, *others)
    for name in "ab":
        records = bench.sink.of(name)
        assert [r.step for r in records if r.phase is Phase.DIFFUSION] == [*range(1, STEPS + 1)]
        assert {r.node_id for r in records} == {f"{name}.keyframe"}
        assert records[-1].phase is Phase.DONE


async def test_the_seconds_of_a_call_are_shared_out_and_not_counted_for_each(bench: Bench) -> None:
    gate, first = await bench.hold()
    others = bench.ask(*"abcd")
    await queued(bench, *"abcd")
    gate.opened.set()
    await first
    bench.pipe.worked_s, bench.pipe.denoise = 0.0, lambda step: time.sleep(0.01)
    results = await asyncio.gather(*others, *bench.ask(*"efgh"))
    charged = [result.seconds["diffusion"] + result.seconds["decode"] for result in results]
    assert bench.pipe.worked_s <= sum(charged) < 2 * bench.pipe.worked_s


async def test_other_shapes_are_not_in_the_same_call(bench: Bench) -> None:
    gate, first = await bench.hold()
    others = [*bench.ask("a"), *bench.ask("b", width_px=96), *bench.ask("c"), *bench.ask("d", width_px=96),
              *bench.ask("e", negative_prompt="blurry"), *bench.ask("f", steps=2)]
    await queued(bench, *"abcdef")
    gate.opened.set()
    await asyncio.gather(first, *others)
    assert together(bench) == [["a", "c"], ["b", "d"], ["e"], ["f"], ["first"]]


async def test_what_is_stored_or_refused_never_enters(bench: Bench) -> None:
    await bench.ask("a")[0]
    gate, first = await bench.hold()
    others = [*bench.ask("a", "b"), *bench.ask("c", width_px=33)]
    await queued(bench, "b", "c")
    gate.opened.set()
    *_, refused = await asyncio.gather(first, *others, return_exceptions=True)
    assert isinstance(refused, RenderRefused)
    assert bench.pipe.calls == [["a"], ["first"], ["b"]]


async def batch_on_the_gpu(bench: Bench, *names: str, **changes: Any) -> tuple[Gate, list[asyncio.Task[Any]]]:
    """These pictures in one call that is held after its second step."""
    gate, first = await bench.hold()
    tasks = bench.ask(*names, **changes)
    await queued(bench, *names)
    second = bench.pipe.denoise = Gate(at_step=2)
    gate.opened.set()
    await first
    await reached(second)
    return second, tasks


async def test_one_that_is_cancelled_leaves_at_once_and_the_others_go_on(bench: Bench) -> None:
    gate, (leaves, a, b) = await batch_on_the_gpu(bench, "leaves", "a", "b")
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(leaves, 5)
    assert ("leaves", "leaves.keyframe") in bench.sink.ended
    gate.opened.set()
    assert {(await task).artifact.key for task in (a, b)} == {name.rjust(32, "0") for name in "ab"}
    assert gate.seen == [*range(STEPS)]
    assert bench.store.find("leaves".rjust(32, "0")) is None


async def test_the_call_stops_within_a_step_when_all_have_left_and_the_last_holds_on_until_then(bench: Bench) -> None:
    gate, (a, b) = await batch_on_the_gpu(bench, "a", "b")
    await asyncio.to_thread(bench.replica.cancel_job, "a")
    with pytest.raises(RenderCancelled):
        await asyncio.wait_for(a, 5)
    b.cancel()
    await asyncio.sleep(0.02)
    assert not b.done(), "the GPU is not free yet"
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await b
    assert gate.seen == [0, 1, 2]
    assert together(bench) == [["a", "b"], ["first"]], "nobody is left for whom to try again"


async def test_one_that_waits_is_taken_out_at_once(bench: Bench) -> None:
    gate, first = await bench.hold()
    a, b = bench.ask("a", "b")
    await queued(bench, "a", "b")
    a.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(a, 5)
    gate.opened.set()
    await asyncio.gather(first, b)
    assert bench.pipe.calls == [["first"], ["b"]]


async def test_a_deadline_is_ones_own(bench: Bench) -> None:
    gate, first = await bench.hold()
    late, in_time = [*bench.ask("late", left_s=-1.0), *bench.ask("b")]
    await queued(bench, "late", "b")
    gate.opened.set()
    with pytest.raises(DeadlineExceeded) as passed:
        await late
    assert passed.value.node_id == "late.keyframe"
    await asyncio.gather(first, in_time)
    assert bench.pipe.calls == [["first"], ["b"]]


async def test_a_bad_prompt_fails_alone(bench: Bench) -> None:
    gate, first = await bench.hold()
    a, bad, b = bench.ask("a", "bad", "b")
    await queued(bench, "a", "bad", "b")
    gate.opened.set()
    results = await asyncio.gather(first, a, bad, b, return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, Exception)] == [ModelFailed]
    assert isinstance(bad.exception(), ModelFailed)
    assert together(bench) == [["a"], ["a", "b", "bad"], ["b"], ["bad"], ["first"]]


async def test_what_does_not_fit_at_once_is_made_in_smaller_parts_from_then_on(bench: Bench) -> None:
    bench.pipe.room = 2
    gate, first = await bench.hold()
    others = bench.ask(*"abcdefgh")
    await queued(bench, *"abcdefgh")
    gate.opened.set()
    await asyncio.gather(first, *others)
    assert [len(prompts) for prompts in bench.pipe.calls] == [1, 4, 1, 1, 1, 1, 2, 2]


class _BrokenLadder(Ladder):
    def stand(self, task: Task, shape: Shape) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


async def test_an_error_beside_the_model_is_told_to_all_that_wait_for_the_call() -> None:
    card, heartbeat, sink = scripted_card(Task.TEXT_TO_IMAGE), Heartbeat(stall_s=60.0), RememberingSink()
    gpu, held = GpuThread(heartbeat), threading.Event()
    batcher = Batcher(_BrokenLadder(card, "cpu", None), gpu, heartbeat, TextToImage.generate_many, largest=BATCH)
    take = BY_NAME["sdxl"].take(frames=1)
    blocked = gpu.submit(held.wait)
    calls = [asyncio.create_task(batcher.run(Item(
        take, render_call(card), CancelToken(), RunRecords(sink, list, steps=1), alone=pytest.fail))) for _ in "ab"]
    await asyncio.sleep(0.05)
    held.set()
    for call in calls:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            await asyncio.wait_for(call, 5)
    assert "GPU context is broken" in heartbeat.problem()
    assert blocked.result()
    gpu.close()


class _TilingVae:
    def __init__(self) -> None:
        self.use_tiling = False

    def enable_tiling(self) -> None:
        self.use_tiling = True

    def disable_tiling(self) -> None:
        self.use_tiling = False


class _Tiled(ListPipeline):
    components = {"vae": _TilingVae()}  # noqa: RUF012 - stands in for diffusers' property


async def test_pictures_that_fit_only_in_tiles_are_made_one_by_one(tmp_path: Path) -> None:
    pipe = _Tiled(FlowMatchEulerDiscreteScheduler())
    known = Memory.model_validate({"weights_gb": {"transformer": 1.0}, "source": "test", "peaks": [
        {"gb": 9.0, "shape": "64x32", "how": "measured", "source": "test"}]})
    card = scripted_card(Task.TEXT_TO_IMAGE).model_copy(update={"batch": BATCH, "memory": known})
    replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), Store(str(tmp_path / "store")),
                           RememberingSink(), assigned_gpus=0, load=lambda *_: pipe, room_gb=lambda *_: 8.0)
    bench = Bench(replica, pipe, card, Store(str(tmp_path / "store")), RememberingSink())
    pipe.calls.clear()
    results = await asyncio.gather(*bench.ask(*"abc"))
    assert together(bench) == [["a"], ["b"], ["c"]]
    assert all("decoding in tiles" in " ".join(result.warnings) for result in results)
    replica.close()


async def test_a_replica_that_closes_lets_go_of_those_that_wait(bench: Bench) -> None:
    gate, first = await bench.hold()
    waits = bench.ask("a")
    await queued(bench, "a")
    closing = asyncio.create_task(asyncio.to_thread(bench.replica.close))
    await asyncio.sleep(0.05)
    gate.opened.set()
    await asyncio.wait_for(asyncio.wait([first, *waits]), 5)
    await closing
    assert waits[0].cancelled() or waits[0].exception() is not None


# -- a whole job -------------------------------------------------------------------------------------------------


async def test_a_jobs_keyframes_share_runs_and_its_key_is_charged_the_time_of_the_gpu(bench: Bench, tmp_path: Path,
                                                                                     ) -> None:
    """The engine sends as many as the lane holds; what the rows charge is what the pipeline worked, not four times."""
    bench.pipe.worked_s, bench.pipe.denoise = 0.0, lambda step: time.sleep(0.01)
    ledger = Ledger(f"sqlite:///{tmp_path / 'state.db'}")
    payload: dict[str, Json] = {
        "card": bench.card.name, "card_digest": bench.card.digest(), "negative_prompt": "", "width_px": 64,
        "height_px": 32, "frames": 1, "fps": 1, "steps": STEPS, "guidance": 3, "batch": BATCH}
    nodes = tuple(NodeSpec(id=f"s{n}.keyframe", kind=NodeKind.KEYFRAME, shot_id=f"s{n}", lane=bench.card.name,
                           payload={**payload, "prompt": f"picture {n}", "seed": n}) for n in range(16))
    ledger.submit(NewJob(id="film", document={}, nodes=nodes))
    engine = Engine(ledger, {NodeKind.KEYFRAME: partial(keyframe, models={bench.card.name: bench.replica})},
                    store=bench.store, dispatcher=Dispatcher({bench.card.name: calls_at_once(bench.card)}),
                    settings=QUICK)
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(20):
        while not ledger.job("film").status.is_terminal:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the database sends no signal
    await engine.stop()
    await running
    with ledger.database.read() as connection:
        charged_s = connection.scalar(sa.select(sa.func.sum(usage.c.gpu_s)))
    ledger.close()
    assert sum(len(prompts) for prompts in bench.pipe.calls) == 16
    assert len(bench.pipe.calls) <= 8
    assert bench.pipe.worked_s <= charged_s < 1.5 * bench.pipe.worked_s
