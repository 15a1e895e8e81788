"""One replica: progress, cache, twins, cancel, refusals, failures, health. Scripted pipeline, real store."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.model_card import FILM_TASKS, ModelCard, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models.records import DECODED_SHARE, ENCODED_SHARE
from serve_app.models.replica import ModelReplica
from tests.fakes_models import STEPS, Gate, RememberingSink, ScriptedLoad, render_call, scripted_card
from workflows.errors import (
    ArtifactMissing,
    DeadlineExceeded,
    GpuOutOfMemory,
    ModelFailed,
    RenderCancelled,
    RenderRefused,
    StageFailed,
)
from workflows.media.decode import read_frames, read_picture, write_png
from workflows.media.encode import EncodeOptions, encode
from workflows.progress import clip_fraction
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeResult, Phase, ProgressRecord

WARM_UPS = len(FILM_TASKS)


class Bench:
    """A replica with everything around it."""

    def __init__(self, tmp_path: Path, card: ModelCard, store: type[Store], sink: type[RememberingSink],
                 **settings: float) -> None:
        self.card = card
        self.load = ScriptedLoad()
        self.pipe = self.load.pipe
        self.sink = sink()
        self.store = store(str(tmp_path / "store"))
        self.replica = ModelReplica(card, ModelsSettings(torch_threads=1, **settings),
                                    MediaSettings(preset="ultrafast"), self.store, self.sink, assigned_gpus=0,
                                    load=self.load)
        self.pipe.takes.clear()

    def put(self, path: Path, media_type: MediaType) -> Artifact:
        return self.store.put("f" * 32, path, media_type=media_type, manifest={})


@pytest.fixture
def bench_of(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(*tasks: Task, store: type[Store] = Store, **settings: float) -> Bench:
        benches.append(Bench(tmp_path, scripted_card(*tasks), store, RememberingSink, **settings))
        return benches[-1]

    yield make
    for bench in benches:
        bench.replica.close()


@pytest.fixture
def bench(bench_of: Callable[..., Bench]) -> Bench:
    return bench_of()


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, 10)


# -- results -----------------------------------------------------------------------------------------------------


async def test_a_clip_is_a_stored_mp4_with_the_frames_asked_for(bench: Bench) -> None:
    result = await bench.replica.clip(render_call(bench.card))
    assert result.artifact == bench.store.find("a" * 32)
    assert result.artifact.media_type is MediaType.MP4
    assert read_frames(bench.store.fetch(result.artifact)).shape == (5, 32, 64, 3)
    assert result.warnings == ()


async def test_an_image_is_a_stored_png(bench: Bench) -> None:
    result = await bench.replica.image(render_call(bench.card, frames=1))
    assert result.artifact.media_type is MediaType.PNG
    assert read_picture(bench.store.fetch(result.artifact)).shape == (32, 64, 3)


async def test_the_manifest_says_how_it_was_made(bench: Bench) -> None:
    call = render_call(bench.card)
    await bench.replica.clip(call)
    manifest = bench.store.manifest(call.key)
    assert manifest is not None
    made = manifest["made"]
    assert made["exactness"] == {"class": "bit", "used": {}, "why": []}
    assert made["card"] == {"name": "scripted", "digest": bench.card.digest()}
    assert (made["call"]["seed"], made["call"]["attempt"], made["call"]["prompt"]) == (11, 2, "a red ball")
    assert {"reelray", "torch", "diffusers", "python"} <= made["versions"].keys()
    assert made["device"] == "cpu"
    assert made["seconds"].keys() == {"wait", "diffusion", "decode", "encode"}


async def test_the_seconds_name_every_part(bench: Bench) -> None:
    result = await bench.replica.clip(render_call(bench.card))
    assert result.seconds.keys() == {"wait", "diffusion", "decode", "encode", "store"}
    assert all(value >= 0 for value in result.seconds.values())


async def test_a_black_clip_is_delivered_with_a_warning(bench: Bench) -> None:
    bench.pipe.paint = 0.0
    result = await bench.replica.clip(render_call(bench.card))
    assert "every pixel is black" in result.warnings[0]


async def test_the_pipeline_is_asked_for_what_the_call_says(bench: Bench) -> None:
    await bench.replica.clip(render_call(bench.card, negative_prompt="blurry"))
    assert bench.pipe.takes == [{
        "prompt": "a red ball", "negative_prompt": "blurry", "image": None, "width": 64, "height": 32,
        "num_frames": 5, "steps": STEPS, "guidance": 3.0}]


# -- progress ----------------------------------------------------------------------------------------------------


async def test_progress_covers_every_step_with_the_shares_2_88_10(bench: Bench) -> None:
    await bench.replica.clip(render_call(bench.card))
    records = bench.sink.records
    assert [record.n for record in records] == list(range(1, len(records) + 1))
    diffusion = [record for record in records if record.phase is Phase.DIFFUSION]
    assert [record.step for record in diffusion] == [1, 2, 3, 4, 5]
    assert [record.total_steps for record in diffusion] == [STEPS] * STEPS
    assert [record.fraction for record in diffusion] == pytest.approx([0.02 + 0.88 * step / 5 for step in range(1, 6)])
    assert diffusion[0].text() == "diffusion step 1/5 (timestep 1000.00)"
    fractions = [record.fraction for record in records]
    assert fractions == sorted(fractions)
    assert {(record.node_id, record.attempt) for record in records} == {("s1.clip", 2)}


async def test_progress_begins_with_initialise_and_ends_with_done(bench: Bench) -> None:
    await bench.replica.clip(render_call(bench.card))
    phases = list(dict.fromkeys(record.phase for record in bench.sink.records))
    assert phases == [Phase.INITIALISE, Phase.DIFFUSION, Phase.SAVING, Phase.DONE]
    assert bench.sink.urgent == [Phase.INITIALISE, Phase.SAVING, Phase.DONE]
    assert bench.sink.records[-1].fraction == 1.0


async def test_saving_starts_at_90_percent_as_soon_as_the_last_step_is_done(bench: Bench) -> None:
    await bench.replica.clip(render_call(bench.card))
    saving = [record.fraction for record in bench.sink.records if record.phase is Phase.SAVING]
    assert saving[0] == pytest.approx(0.90)
    assert saving[-1] == pytest.approx(0.99)


@pytest.mark.parametrize("denoise", [None, ZeroDivisionError], ids=["done", "failed"])
async def test_the_sink_hears_when_the_node_is_over(denoise: type[Exception] | None, bench: Bench) -> None:
    def fail(step: int) -> None:
        if denoise is not None:
            raise denoise

    bench.pipe.denoise = fail
    await asyncio.gather(bench.replica.clip(render_call(bench.card)), return_exceptions=True)
    assert bench.sink.ended == [("job", "s1.clip")]


# -- cache and twins ---------------------------------------------------------------------------------------------


async def test_what_is_stored_already_is_returned_without_the_model(bench: Bench) -> None:
    first = await bench.replica.clip(render_call(bench.card))
    bench.sink.records.clear()
    again = await bench.replica.clip(render_call(bench.card, job_id="other", node_id="s9.clip"))
    assert again == NodeResult(artifact=first.artifact)
    assert len(bench.pipe.takes) == 1
    assert bench.sink.records == []


async def test_calls_with_one_key_share_one_run_and_all_hear_of_it(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate()
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="one")))
    await reached(gate)
    second = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="two")))
    await asyncio.sleep(0)
    gate.opened.set()
    assert (await first).artifact == (await second).artifact
    assert len(bench.pipe.takes) == 1
    assert bench.sink.of("two")[-1].phase is Phase.DONE
    assert [record.step for record in bench.sink.of("two") if record.phase is Phase.DIFFUSION] == [2, 3, 4, 5]


async def test_one_of_two_callers_may_leave_without_stopping_the_run(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate()
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="one")))
    await reached(gate)
    second = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="two")))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.opened.set()
    assert (await second).artifact.key == "a" * 32
    assert len(bench.pipe.takes) == 1


async def test_a_failed_run_fails_all_who_wait_for_it(bench: Bench) -> None:
    gate = Gate()

    def fail(step: int) -> None:
        gate(step)
        if step == 1:
            raise ValueError("no")

    bench.pipe.denoise = fail
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="one")))
    await reached(gate)
    second = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="two")))
    await asyncio.sleep(0)
    gate.opened.set()
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [ModelFailed, ModelFailed]


async def test_the_next_call_denoises_while_the_last_one_is_saved(bench_of: Callable[..., Bench]) -> None:
    gate = Gate(at_step=0)

    class SlowStore(Store):
        def put(self, key: str, *args, **kwargs) -> Artifact:
            if key == "a" * 32:
                gate(0)
            return super().put(key, *args, **kwargs)

    bench = bench_of(store=SlowStore)
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card, key="a" * 32)))
    await reached(gate)
    denoised = threading.Event()
    bench.pipe.denoise = lambda step: denoised.set()
    second = asyncio.create_task(bench.replica.clip(render_call(bench.card, key="b" * 32)))
    assert await asyncio.to_thread(denoised.wait, 10)
    assert not first.done()
    gate.opened.set()
    await asyncio.gather(first, second)


async def test_the_next_call_denoises_while_the_last_ones_frames_are_being_encoded(tmp_path: Path) -> None:
    """Between two frames the encoder says how far it is; there it is held until the other call has made a step."""
    gate = Gate(at_step=0)

    class HoldingSink(RememberingSink):
        def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
            super().update(record, urgent=urgent)
            encoding = clip_fraction(Phase.SAVING, step=STEPS, total_steps=STEPS, saved=DECODED_SHARE)
            done = clip_fraction(Phase.SAVING, step=STEPS, total_steps=STEPS, saved=ENCODED_SHARE)
            if record.job_id == "first" and encoding < record.fraction < done and not gate.reached.is_set():
                gate(0)

    bench = Bench(tmp_path, scripted_card(), Store, HoldingSink)
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card, key="a" * 32, job_id="first")))
    await reached(gate)
    denoised = threading.Event()
    bench.pipe.denoise = lambda step: denoised.set()
    second = asyncio.create_task(bench.replica.clip(render_call(bench.card, key="b" * 32, job_id="second")))
    assert await asyncio.to_thread(denoised.wait, 10)
    assert not first.done()
    gate.opened.set()
    await asyncio.gather(first, second)
    bench.replica.close()


# -- cancel ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_stops_the_gpu_within_a_step_and_holds_on_until_then(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate(at_step=1)
    call = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    call.cancel()
    await asyncio.sleep(0.02)
    assert not call.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert gate.seen == [0, 1]
    assert bench.store.find("a" * 32) is None
    assert bench.sink.ended == [("job", "s1.clip")]


async def test_cancel_by_key_ends_the_call_as_cancelled(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate(at_step=1)
    call = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    assert await bench.replica.cancel("a" * 32) is True
    gate.opened.set()
    with pytest.raises(RenderCancelled):
        await call
    assert gate.seen == [0, 1]


async def test_cancel_of_an_unknown_key_says_so(bench: Bench) -> None:
    assert await bench.replica.cancel("0" * 32) is False


async def test_cancel_of_a_job_from_another_thread_spares_the_jobs_that_share_its_run(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate(at_step=1)
    mine = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="mine")))
    await reached(gate)
    other = asyncio.create_task(bench.replica.clip(render_call(bench.card, job_id="other")))
    await asyncio.sleep(0)
    await asyncio.to_thread(bench.replica.cancel_job, "mine")
    with pytest.raises(RenderCancelled):
        await mine
    gate.opened.set()
    assert (await other).artifact.key == "a" * 32


async def test_cancelling_a_job_before_any_call_is_harmless(bench: Bench) -> None:
    bench.replica.cancel_job("job")


async def test_a_cancelled_key_renders_when_asked_again(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate(at_step=1)
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    first.cancel()
    await asyncio.sleep(0)
    again = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await asyncio.sleep(0.02)
    bench.pipe.denoise = lambda step: None
    gate.opened.set()
    assert (await again).artifact.key == "a" * 32
    assert first.cancelled()


async def test_a_call_cancelled_before_it_began_leaves_its_key_free(bench: Bench) -> None:
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await bench.replica.clip(render_call(bench.card))).artifact.key == "a" * 32


async def test_a_call_that_waits_for_the_gpu_is_cancelled_at_once(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate(at_step=1)
    first = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    second = asyncio.create_task(bench.replica.clip(render_call(bench.card, key="b" * 32)))
    await asyncio.sleep(0.05)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(second, timeout=5)
    gate.opened.set()
    await first
    assert len(bench.pipe.takes) == 1


async def test_a_call_past_its_deadline_is_not_started(bench: Bench) -> None:
    with pytest.raises(DeadlineExceeded):
        await bench.replica.clip(render_call(bench.card, left_s=-1.0))
    assert bench.pipe.takes == []


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"card_digest": "0" * 16}, {"card_name": "other"}], ids=["digest", "name"])
async def test_a_film_planned_with_another_card_is_refused(changes: dict[str, str], bench: Bench) -> None:
    with pytest.raises(RenderRefused, match="planned with model card"):
        await bench.replica.clip(render_call(bench.card, **changes))
    assert bench.pipe.takes == []


async def test_a_task_the_card_does_not_have_is_refused_with_a_hint(bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(Task.IMAGE_TO_VIDEO)
    with pytest.raises(RenderRefused, match="cannot do text_to_video, only image_to_video; it needs a first frame"):
        await bench.replica.clip(render_call(bench.card))


async def test_a_shape_the_model_cannot_do_is_refused_with_the_nearest(bench: Bench) -> None:
    with pytest.raises(RenderRefused, match=r"frames: 6 frames does not fit 4n\+1; nearest valid: 5 or 9"):
        await bench.replica.clip(render_call(bench.card, frames=6))
    assert bench.pipe.takes == []


# -- first frames ------------------------------------------------------------------------------------------------


@pytest.fixture
def halves_HWC() -> np.ndarray:
    """Twice as wide as the clip needs: black, white, white, black quarters."""
    picture_HWC = np.zeros((32, 128, 3), np.uint8)
    picture_HWC[:, 32:96] = 255
    return picture_HWC


async def test_a_picture_of_another_size_is_cropped_around_its_centre_with_a_warning(
        bench: Bench, tmp_path: Path, halves_HWC: np.ndarray) -> None:
    write_png(halves_HWC, tmp_path / "user.png")
    first = bench.put(tmp_path / "user.png", MediaType.PNG)
    result = await bench.replica.clip(render_call(bench.card, first_frame=first))
    given = np.asarray(bench.pipe.takes[0]["image"])
    assert given.shape == (32, 64, 3)
    assert given.min() == 255
    assert result.warnings == ("the first frame is 128x32, the clip 64x32: scaled, and cropped around its centre",)


async def test_a_clip_is_continued_from_its_last_frame(bench: Bench, tmp_path: Path) -> None:
    frames_THWC = np.zeros((5, 32, 64, 3), np.uint8)
    frames_THWC[-1] = 200
    encode(frames_THWC, fps=8, to=tmp_path / "before.mp4", options=EncodeOptions(crf=1))
    first = bench.put(tmp_path / "before.mp4", MediaType.MP4)
    await bench.replica.clip(render_call(bench.card, first_frame=first))
    given = np.asarray(bench.pipe.takes[0]["image"]).astype(int)
    assert abs(given - 200).max() <= 4


async def test_a_clip_of_another_size_cannot_be_continued(bench: Bench, tmp_path: Path) -> None:
    encode(np.zeros((5, 64, 64, 3), np.uint8), fps=8, to=tmp_path / "before.mp4", options=EncodeOptions())
    first = bench.put(tmp_path / "before.mp4", MediaType.MP4)
    with pytest.raises(RenderRefused, match="the clip to continue is 64x64, the clip 64x32"):
        await bench.replica.clip(render_call(bench.card, first_frame=first))


async def test_a_first_frame_that_is_gone_is_named(bench: Bench, tmp_path: Path) -> None:
    gone = Artifact(key="f" * 32, uri=str(tmp_path / "gone.png"), sha256="0" * 64, size_bytes=1,
                    media_type=MediaType.PNG)
    with pytest.raises(ArtifactMissing, match=r"gone\.png"):
        await bench.replica.clip(render_call(bench.card, first_frame=gone))


# -- failures and health -----------------------------------------------------------------------------------------


def failing(error: Exception) -> Callable[[int], None]:
    def denoise(step: int) -> None:
        raise error

    return denoise


async def test_running_out_of_gpu_memory_is_told_with_the_shape(bench: Bench) -> None:
    bench.pipe.denoise = failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))
    with pytest.raises(GpuOutOfMemory, match=r"s1\.clip: 64x32, 5 frames do not fit the GPU.*9 GiB"):
        await bench.replica.clip(render_call(bench.card))
    await bench.replica.check_health()


async def test_an_out_of_memory_error_keeps_no_tensor_alive(bench: Bench) -> None:
    bench.pipe.denoise = failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(GpuOutOfMemory) as raised:
        await bench.replica.clip(render_call(bench.card))
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None


async def test_what_the_model_raises_becomes_a_short_reason_and_a_logged_traceback(
        bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.pipe.denoise = failing(ValueError("shapes do not match\nsecond line"))
    with caplog.at_level(logging.ERROR), pytest.raises(ModelFailed) as raised:
        await bench.replica.clip(render_call(bench.card))
    assert raised.value.reason == "ValueError: shapes do not match"
    assert "Traceback" in caplog.text
    assert "second line" in caplog.text


async def test_the_replica_renders_on_after_a_failure(bench: Bench) -> None:
    bench.pipe.denoise = failing(ValueError("once"))
    with pytest.raises(ModelFailed):
        await bench.replica.clip(render_call(bench.card))
    bench.pipe.denoise = lambda step: None
    assert (await bench.replica.clip(render_call(bench.card))).artifact.key == "a" * 32


async def test_a_broken_gpu_context_makes_the_replica_unhealthy(bench: Bench) -> None:
    await bench.replica.check_health()
    bench.pipe.denoise = failing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(ModelFailed):
        await bench.replica.clip(render_call(bench.card))
    with pytest.raises(RuntimeError, match="scripted: the GPU context is broken"):
        await bench.replica.check_health()


async def test_a_call_without_steps_makes_the_replica_unhealthy_and_an_idle_replica_is_well(
        bench_of: Callable[..., Bench]) -> None:
    bench = bench_of(stall_s=0.01)
    gate = bench.pipe.denoise = Gate(at_step=1)
    call = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    await asyncio.sleep(0.03)
    with pytest.raises(RuntimeError, match="no denoising step for"):
        await bench.replica.check_health()
    gate.opened.set()
    await call
    await bench.replica.check_health()


async def test_a_long_call_that_makes_steps_keeps_the_replica_well(bench_of: Callable[..., Bench]) -> None:
    """Five steps of 0.25 s against a limit of 1 s per step."""
    bench = bench_of(stall_s=1.0)
    gate = Gate(at_step=4)

    def step_slowly(step: int) -> None:
        time.sleep(0.25)
        gate(step)

    bench.pipe.denoise = step_slowly
    call = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    await bench.replica.check_health()
    gate.opened.set()
    await call


async def test_a_store_that_cannot_write_fails_the_stage_not_the_replica(bench_of: Callable[..., Bench]) -> None:
    class FullStore(Store):
        def put(self, *args, **kwargs) -> Artifact:
            raise OSError(28, "No space left on device")

    bench = bench_of(store=FullStore)
    with pytest.raises(StageFailed, match="No space left on device") as raised:
        await bench.replica.clip(render_call(bench.card))
    assert type(raised.value) is StageFailed
    await bench.replica.check_health()


def test_a_warm_up_that_fails_leaves_no_replica(tmp_path: Path) -> None:
    load = ScriptedLoad()
    load.pipe.denoise = failing(ValueError("no kernel for this GPU"))
    with pytest.raises(ValueError, match="no kernel for this GPU"):
        ModelReplica(scripted_card(), ModelsSettings(torch_threads=1), MediaSettings(), Store(str(tmp_path)),
                     RememberingSink(), assigned_gpus=0, load=load)


def test_the_warm_up_is_one_short_call_per_task_and_reports_nothing(tmp_path: Path) -> None:
    load, sink = ScriptedLoad(), RememberingSink()
    replica = ModelReplica(scripted_card(), ModelsSettings(torch_threads=1), MediaSettings(), Store(str(tmp_path)),
                           sink, assigned_gpus=0, load=load)
    replica.close()
    assert load.loaded == list(FILM_TASKS)
    assert [(take["num_frames"], take["steps"]) for take in load.pipe.takes] == [(1, 1)] * WARM_UPS
    assert sink.records == []


async def test_a_closed_replica_stops_what_runs(bench: Bench) -> None:
    gate = bench.pipe.denoise = Gate(at_step=1)
    call = asyncio.create_task(bench.replica.clip(render_call(bench.card)))
    await reached(gate)
    closing = asyncio.create_task(asyncio.to_thread(bench.replica.close))
    await asyncio.sleep(0.02)
    gate.opened.set()
    await closing
    with pytest.raises(RenderCancelled):
        await call
    assert gate.seen == [0, 1]
