"""Real CUDA: capped shares, the ladder's placements, and a neighbour on the same GPU. Tiny checkpoints, any GPU."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from configs.memory import Placement, Remedies, room_gb
from configs.model_card import ModelCard, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import pipelines
from serve_app.models.ladder import Ladder
from serve_app.models.lifecycle import choose_device, gpu_room_gb
from serve_app.models.replica import ModelReplica
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME, FAMILIES, Family
from tests.scarce import placement_of
from workflows.errors import GpuOutOfMemory
from workflows.store import Store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHARE = 0.25
PICTURES = 20


class HungryLoad:
    """`pipelines.load`, but the denoiser really takes more than the process's share above a size of picture."""

    def __init__(self, share: float, most: int) -> None:
        self._share = share
        self._most = most

    def __call__(self, card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                 ) -> DiffusionPipeline:
        pipe = pipelines.load(card, task, device, components)
        pipe.unet.register_forward_pre_hook(lambda _, args: self._eat(args[0]))
        return pipe

    def _eat(self, latents: torch.Tensor) -> None:
        if latents.numel() > self._most:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.empty(int(total * self._share), dtype=torch.uint8, device="cuda")


def draw(card: ModelCard, directory: str, share: float, sides_px: list[int], hungry: bool) -> list[str]:
    """In a process of its own: one picture per side; its SHA-256, or the name of the error."""
    load = HungryLoad(share, 2 * 4 * 16 * 16) if hungry else pipelines.load
    replica = ModelReplica(card, ModelsSettings(device="cuda", torch_threads=1), MediaSettings(), Store(directory),
                           RememberingSink(), assigned_gpus=share, load=load)

    async def all_of_them() -> list[str]:
        found = []
        for number, side_px in enumerate(sides_px):
            key = hashlib.sha256(f"{number}".encode()).hexdigest()[:32]
            try:
                result = await replica.image(render_call(card, key=key, width_px=side_px, height_px=side_px, frames=1,
                                                         steps=4, seed=number))
                found.append(result.artifact.sha256)
            except GpuOutOfMemory:
                found.append("GpuOutOfMemory")
        return found

    try:
        return asyncio.run(all_of_them())
    finally:
        replica.close()


def test_a_neighbour_that_runs_out_of_memory_changes_nothing(tmp_path: Path) -> None:
    card = BY_NAME["sdxl"].card(tmp_path)
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    sides = [64] * PICTURES
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        alone = pool.submit(draw, card, str(tmp_path / "alone"), SHARE, sides, False).result()
        calm = pool.submit(draw, card, str(tmp_path / "calm"), SHARE, sides, False)
        greedy = pool.submit(draw, card, str(tmp_path / "greedy"), SHARE, [32, 64, 32, 64, 32], True).result()
        assert calm.result() == alone
    assert [found == "GpuOutOfMemory" for found in greedy] == [False, True, False, True, False]
    assert greedy[0] != greedy[2]  # other seeds


def test_the_allocator_refuses_what_exceeds_the_share() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_overdrawn, SHARE).result()


def _overdrawn(share: float) -> bool:
    choice = choose_device("cuda", share, torch_sees_gpu=True)
    choice.claim()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.empty(int(total * share * 0.5), dtype=torch.uint8, device="cuda")
    room = gpu_room_gb(choice.name, share)
    assert room is not None
    assert room == pytest.approx(room_gb(total / 1e9, share))
    try:
        torch.empty(int(total * share), dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        return True
    return False


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_every_placement_gives_the_same_frames_and_leaves_the_gpu(family: Family, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.getbasetemp() / "checkpoints"
    card = family.card(root)
    before = torch.cuda.memory_allocated()
    ladder = Ladder(card, "cuda:0", None)
    pipe = ladder.keeping(pipelines.load)(card, family.task, "cuda:0")
    resident = torch.cuda.memory_allocated() - before
    shape, frames, footing = family.take().shape, {}, Remedies()
    for placement in Placement:
        for attempt in ladder.attempts(family.task, shape):
            with attempt:
                frames[placement] = family.render(pipe, root, callback=lambda *_: None).cpu()
        assert placement_of(pipe) is placement
        if placement is not Placement.RESIDENT:
            assert torch.cuda.memory_allocated() - before < resident / 2
        footing = ladder.higher(family.task, shape, footing, vae=False) or footing
    assert all(torch.equal(found, frames[Placement.RESIDENT]) for found in frames.values())
