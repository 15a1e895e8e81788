"""Out of GPU memory: which rung helps, what stays as it was, what is remembered and refused. Real tiny pipelines."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from configs.memory import PLACEMENTS, Placement, Remedies, Shape
from configs.model_card import Memory, ModelCard, Peak, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models.ladder import Ladder, lift
from serve_app.models.lifecycle import is_out_of_memory
from serve_app.models.replica import ModelReplica
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME, Family, every_family
from tests.scarce import ScarceLoad, placement_of
from workflows.errors import GpuOutOfMemory, RenderRefused
from workflows.store import Store
from workflows.types import NodeResult, substitute_key

RESIDENT, PARTS, LAYERS = Placement
SMALL_LATENTS = 2 * 4 * 16 * 16
"""Numbers of the latents of a 32x32 picture, for prompt and negative prompt at once."""
BIG_PX = 96
BIG_LATENTS = SMALL_LATENTS * 9
NOTED = "96x96 did not fit the GPU as it was: rendered with "


class Bench:
    """A replica of a tiny SDXL on a scarce GPU."""

    def __init__(self, card: ModelCard, store: Path, load: ScarceLoad, room: float | None = None) -> None:
        self.card = card
        self.load = load
        self.store = Store(str(store))
        self.replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(preset="ultrafast"),
                                    self.store, RememberingSink(), assigned_gpus=0, load=load,
                                    room_gb=lambda device, gpus: room)
        load.calls.clear()

    async def draw(self, side_px: int = BIG_PX, key: str = "a") -> NodeResult:
        return await self.replica.image(render_call(self.card, key=key * 32, width_px=side_px, height_px=side_px,
                                                    frames=1, steps=1))

    def tries(self) -> list[Placement]:
        """Where the denoiser lay in each try since the last question."""
        found = [placement for placement, _ in self.load.calls]
        self.load.calls.clear()
        return found


MakeBench = Callable[..., Bench]


@pytest.fixture
def card(checkpoints: Path) -> ModelCard:
    return BY_NAME["sdxl"].card(checkpoints)


@pytest.fixture
def bench_of(tmp_path: Path, card: ModelCard) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(load: ScarceLoad | None = None, *, room: float | None = None, memory: Memory | None = None) -> Bench:
        made.append(Bench(card.model_copy(update={"memory": memory}), tmp_path / f"store{len(made)}",
                          load or ScarceLoad(), room))
        return made[-1]

    yield make
    for bench in made:
        bench.replica.close()


def memory_of(*, weights_gb: float = 6.0, peak_gb: float = 10.0) -> Memory:
    """Half of the weights in the largest component; the peak is of the small picture."""
    half = weights_gb / 2
    return Memory(weights_gb={"unet": half, "text_encoder": half}, source="x", peaks=(
        Peak(shape="32x32", gb=peak_gb, how="measured", source="x"),))


# -- rungs -------------------------------------------------------------------------------------------------------


async def test_where_memory_suffices_nothing_is_touched(bench_of: MakeBench) -> None:
    bench = bench_of()
    device_map = bench.load.pipes[0].hf_device_map
    result = await bench.draw()
    assert result.warnings == ()
    assert (bench.load.pipes[0].hf_device_map, bench.load.pipes[0].vae.use_tiling) == (device_map, False)
    assert result.artifact.key == "a" * 32


async def test_a_decoder_that_runs_out_decodes_in_tiles_and_its_picture_is_kept_apart(bench_of: MakeBench) -> None:
    plenty, scarce = bench_of(), bench_of(ScarceLoad(decoder=SMALL_LATENTS * 4))
    whole, tiled = await plenty.draw(), await scarce.draw()
    assert tiled.warnings == (NOTED + "decoding in tiles; seams are blended, so the result is kept apart from those "
                              "of other GPUs",)
    assert tiled.artifact.key == substitute_key("a" * 32)
    assert scarce.store.find("a" * 32) is None
    assert tiled.artifact.sha256 != whole.artifact.sha256
    manifest = scarce.store.manifest(tiled.artifact.key)
    assert manifest is not None
    assert manifest["made"]["warnings"] == list(tiled.warnings)
    assert scarce.load.failures == 1
    again = await scarce.draw()
    assert (again.artifact, scarce.load.failures) == (tiled.artifact, 1)
    assert again.warnings == ("found as it was made before, in tiles: it does not fit this GPU otherwise",)
    assert scarce.load.pipes[0].vae.use_tiling is False


@pytest.mark.parametrize(("enough", "words"), [(PARTS, "components"), (LAYERS, "layers")])
async def test_a_denoiser_that_runs_out_has_weights_come_and_go_and_the_same_pixels(
        bench_of: MakeBench, enough: Placement, words: str) -> None:
    plenty = bench_of()
    scarce = bench_of(ScarceLoad({place: BIG_LATENTS - 1 for place in PLACEMENTS[:PLACEMENTS.index(enough)]}))
    whole, moved = await plenty.draw(), await scarce.draw()
    assert moved.warnings == (f"{NOTED}moving {words} in and out of the GPU",)
    assert (moved.artifact.key, moved.artifact.sha256) == (whole.artifact.key, whole.artifact.sha256)


async def test_what_a_shape_needed_is_remembered_and_smaller_ones_begin_at_the_bottom(
        bench_of: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = bench_of(ScarceLoad({RESIDENT: SMALL_LATENTS * 4 - 1}))
    with caplog.at_level(logging.WARNING):
        await bench.draw(64, key="a")
    assert bench.tries() == [RESIDENT, PARTS]
    assert "64x64: out of GPU memory with nothing" in caplog.text
    assert "trying again with moving components in and out of the GPU" in caplog.text
    await bench.draw(64, key="b")
    await bench.draw(96, key="c")
    assert bench.tries() == [PARTS, PARTS]
    small = await bench.draw(32, key="d")
    assert (bench.tries(), small.warnings) == ([RESIDENT], ())
    assert placement_of(bench.load.pipes[0]) is RESIDENT


async def test_after_giving_up_the_replica_is_healthy_and_draws_the_next_smaller_picture_as_ever(bench_of: MakeBench,
                                                                                                 ) -> None:
    plenty = bench_of()
    scarce = bench_of(ScarceLoad(dict.fromkeys(Placement, BIG_LATENTS - 1)))
    with pytest.raises(GpuOutOfMemory, match="96x96, 1 frames do not fit the GPU: OutOfMemoryError: even with moving "
                                             "layers in and out of the GPU: CUDA out of memory") as raised:
        await scarce.draw()
    assert raised.value.__context__ is None
    assert scarce.tries() == [RESIDENT, PARTS, LAYERS]
    await scarce.replica.check_health()
    small, same = await scarce.draw(64, key="b"), await plenty.draw(64, key="b")
    assert (small.warnings, small.artifact.sha256) == ((), same.artifact.sha256)
    assert scarce.tries() == [RESIDENT]
    with pytest.raises(GpuOutOfMemory):
        await scarce.draw(key="c")
    assert scarce.tries() == [LAYERS]  # what is hopeless is not tried from the bottom again


async def test_a_closed_replica_keeps_no_pipeline(bench_of: MakeBench) -> None:
    bench = bench_of()
    pipe = weakref.ref(bench.load.pipes.pop())
    bench.replica.close()
    gc.collect()
    assert pipe() is None


# -- what is known before ----------------------------------------------------------------------------------------


async def test_a_shape_that_is_expected_to_need_a_remedy_begins_with_it(bench_of: MakeBench) -> None:
    # 96x96 needs 6 + 9 GB; with tiles 6 + 4.5, with parts 3 + 9, with both 3 + 4.5, with layers .3 + 9.
    memory = memory_of(peak_gb=7)
    seen = {}
    for room in (15.5, 11.5, 8.5, 5.5):
        bench = bench_of(room=room, memory=memory)
        seen[room] = (await bench.draw()).warnings
        assert len(bench.tries()) == 1
    told = [" ".join(seen[room]).removeprefix(NOTED).partition(";")[0] for room in seen]
    assert told == ["", "decoding in tiles", "decoding in tiles and moving components in and out of the GPU",
                    "decoding in tiles and moving layers in and out of the GPU"]


async def test_a_gpu_that_is_a_little_smaller_than_its_name_needs_no_remedy(bench_of: MakeBench) -> None:
    bench = bench_of(room=14.7, memory=memory_of(peak_gb=7))
    assert (await bench.draw()).warnings == ()
    assert bench.tries() == [RESIDENT]


def test_what_reference_pictures_needed_is_not_asked_of_calls_without(card: ModelCard) -> None:
    ladder, task = Ladder(card, "cpu", None), Task.TEXT_TO_IMAGE
    ladder.keeping(ScarceLoad())(card, task, "cpu")
    pair = Shape(width_px=32, height_px=32, pictures=2)
    found = ladder.higher(task, pair, Remedies(), vae=False)
    assert ladder.foothold(task, pair) == found == Remedies(placement=PARTS)
    assert ladder.foothold(task, Shape(width_px=64, height_px=64, pictures=3)) == found
    assert ladder.foothold(task, Shape(width_px=64, height_px=64, pictures=1)) == Remedies()


async def test_what_no_remedy_can_make_fit_is_refused_before_anything_runs(bench_of: MakeBench) -> None:
    bench = bench_of(room=4.0, memory=memory_of(peak_gb=7))
    with pytest.raises(RenderRefused, match=r"96x96 of sdxl need 15 GB of GPU memory \(estimated\), 4\.8 GB with "
                       r"decoding in tiles and moving layers in and out of the GPU, and a replica has 4 GB; nearest "
                       r"valid: 64x64"):
        await bench.draw()
    assert bench.tries() == []
    assert (await bench.draw(64, key="b")).warnings


async def test_a_card_that_knows_no_memory_is_tried(bench_of: MakeBench) -> None:
    bench = bench_of(room=0.001)
    assert (await bench.draw()).warnings == ()


async def test_weights_that_do_not_fit_are_never_put_on_the_gpu_as_a_whole(bench_of: MakeBench) -> None:
    bench = bench_of(room=10.0, memory=memory_of(weights_gb=12.0, peak_gb=13.0))
    assert bench.load.devices == ["cpu"]
    assert placement_of(bench.load.pipes[0]) is PARTS
    assert (await bench.draw(32)).warnings == (
        "32x32 did not fit the GPU as it was: rendered with moving components in and out of the GPU",)


async def test_a_pipeline_that_moves_its_weights_already_is_left_to_it(card: ModelCard) -> None:
    pipe = ScarceLoad()(card, Task.TEXT_TO_IMAGE, "cpu")
    pipe.enable_model_cpu_offload(device="cpu")
    ladder, shape = Ladder(card, "cpu", None), Shape(width_px=64, height_px=64)
    ladder.keeping(lambda card, task, device, components=None: pipe)(card, Task.TEXT_TO_IMAGE, "cpu")
    assert ladder.higher(Task.TEXT_TO_IMAGE, shape, Remedies(), vae=False) is None
    assert ladder.higher(Task.TEXT_TO_IMAGE, shape, Remedies(), vae=True) == Remedies(tiles=True)
    for attempt in ladder.attempts(Task.TEXT_TO_IMAGE, shape):
        with attempt:
            assert (placement_of(pipe), pipe.vae.use_tiling) == (PARTS, True)


# -- several pipelines of one card -------------------------------------------------------------------------------


def test_pipelines_that_share_weights_take_turns(checkpoints: Path) -> None:
    card = BY_NAME["wan_ti2v"].card(checkpoints, pipelines={
        Task.TEXT_TO_VIDEO: "WanPipeline", Task.IMAGE_TO_VIDEO: "WanImageToVideoPipeline"})
    load = ScarceLoad()
    ladder = Ladder(card, "cpu", None)
    keep, components = ladder.keeping(load), {}
    for task in card.tasks:
        components |= keep(card, task, "cpu", components).components
    text, image = load.pipes
    shape = Shape(width_px=32, height_px=32, frames=5)

    def stand(task: Task) -> None:
        for attempt in ladder.attempts(task, shape):
            with attempt:
                pass

    for task in card.tasks:
        ladder.higher(task, shape, Remedies(), vae=False)
    stand(Task.TEXT_TO_VIDEO)
    assert (placement_of(text), placement_of(image)) == (PARTS, RESIDENT)
    stand(Task.IMAGE_TO_VIDEO)
    assert (placement_of(text), placement_of(image)) == (RESIDENT, PARTS)


# -- every family ------------------------------------------------------------------------------------------------


@every_family
def test_every_placement_gives_the_same_frames_and_can_be_taken_back(family: Family, checkpoints: Path) -> None:
    pipe = family.load(checkpoints)
    ladder = Ladder(family.card(checkpoints), "cpu", None)
    ladder.keeping(lambda card, task, device, components=None: pipe)(family.card(checkpoints), family.task, "cpu")
    lift(pipe)
    pipe.to("cpu:0")  # a copy: weights straight from a file lie at other addresses, where sums round otherwise
    shape, frames = family.take().shape, {}
    footing = Remedies()
    for name in ("resident", "parts", "layers"):
        for attempt in ladder.attempts(family.task, shape):
            with attempt:
                frames[name] = family.render(pipe, checkpoints, callback=lambda *_: None)
        assert placement_of(pipe) == name
        footing = ladder.higher(family.task, shape, footing, vae=False) or footing
    lift(pipe)
    frames["back"] = family.render(pipe, checkpoints, callback=lambda *_: None)
    assert all(torch.equal(found, frames["resident"]) for found in frames.values())


@pytest.mark.parametrize(("error", "memory"), [
    (torch.OutOfMemoryError("CUDA out of memory"), True), (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False), (MemoryError(), False)])
def test_which_errors_are_a_lack_of_gpu_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory
