"""One replica of a tracker and one of an editor in a real edit: chunks worked on and kept, shared, counted, stopped.

Tiny checkpoints of the real classes, real store, real threads; the nodes are those of a planned edit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.model_card import ModelCard
from configs.settings import ModelsSettings
from serve_app.models.edit_replica import EditReplica
from serve_app.models.tap import Watch
from serve_app.models.workbench import Workbench
from tests.fakes_edits import planned, request_for
from tests.fakes_models import RememberingSink
from tests.tiny_track import build_points
from tests.workbench import editor_card, moving_square, tracker_card
from workflows.edit_plan import Hand
from workflows.edit_ports import EditTake, ProgressCallback
from workflows.errors import GpuOutOfMemory, ModelFailed, Problem, RenderCancelled, RenderRefused
from workflows.media.encode import EncodeOptions, encode
from workflows.media.frames import UInt8Array
from workflows.media.lossless import read_lossless
from workflows.media.masks import overlap
from workflows.progress import clip_fraction
from workflows.stages.edit_finish import EditFinisher
from workflows.store import Store
from workflows.types import NodeCall, NodeKind, NodeResult, NodeSpec, Phase, ProgressRecord, content_key

INSTRUCT = "StableDiffusionInstructPix2PixPipeline"
FRAMES, CHUNK, OVERLAP = 12, 8, 2
STEPS = 2
CALLS = 2
"""Of the pipeline for a chunk of 8 frames, 4 at once."""


class Starting(RememberingSink):
    """Says when the model has made its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        super().update(record, urgent=urgent)
        if record.phase is Phase.DIFFUSION:
            self.began.set()

    def clear(self) -> None:
        self.records.clear()
        self.began.clear()

    def steps(self) -> list[ProgressRecord]:
        return [record for record in self.records if record.phase is Phase.DIFFUSION]


class Shop:
    """An edit of a small clip by points, planned; two replicas, and a finisher for what needs no model."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(str(directory / "store"))
        self.sink = Starting()
        self.tracking = tracker_card(build_points(directory))
        self.editing = editor_card("instruct_pix2pix", directory, INSTRUCT, frames_at_once=4, image_guidance=1.5)
        self.tracker, self.editor = self.replica(self.tracking), self.replica(self.editing)
        self._finisher = EditFinisher(self.store, EncodeOptions(preset="ultrafast"))
        clip = directory / "clip.mp4"
        encode(moving_square(FRAMES), fps=Fraction(8), to=clip, options=EncodeOptions(preset="ultrafast"))
        request = request_for(clip, mask_prompt=None, points=[{"frame": 0, "x": 20, "y": 30}], chunk_frames=CHUNK,
                              edit_prompt="make it red", steps=STEPS, guidance_scale=4.0)
        nodes = planned(request, self.store, tracker=hand_of(self.tracking), editor=hand_of(self.editing))
        self.nodes: dict[str, NodeSpec] = {node.id: node for node in nodes}
        self.results: dict[str, NodeResult] = {}

    def replica(self, card: ModelCard) -> EditReplica:
        return EditReplica(card, ModelsSettings(torch_threads=1), self.store, self.sink, 0.0)

    async def run(self, node_id: str) -> NodeResult:
        """The node's result, and before it those of all that it depends on; each is made once."""
        if node_id not in self.results:
            for other in self.nodes[node_id].deps:
                await self.run(other)
            call = self.call(node_id)
            if call.kind is NodeKind.MASK:
                self.results[node_id] = await self.tracker.run(call)
            elif call.kind is NodeKind.EDIT:
                self.results[node_id] = await self.editor.run(call)
            else:
                self.results[node_id] = self._finisher.run(call, lambda done, total: None)
        return self.results[node_id]

    def call(self, node_id: str, *, generation: int = 0, **payload: Any) -> NodeCall:
        """The node's call, whose dependencies have been run; with other content it has another key."""
        node = self.nodes[node_id]
        inputs = {other: self.results[other].artifact for other in node.deps}
        content = {**node.payload, **payload}
        key = content_key(node.kind, content, tuple(artifact.key for artifact in inputs.values()), generation)
        return NodeCall(job_id="job", node_id=node_id, shot_id=node.shot_id, kind=node.kind, key=key, attempt=1,
                        generation=generation, payload=content, inputs=inputs, left_s=4e9)

    async def edit_call(self, **changes: Any) -> NodeCall:
        """A call for the first chunk that has not been made."""
        await self.run("propagate")
        return self.call("c1.edit", **changes)

    def read(self, result: NodeResult, frames: int) -> UInt8Array:
        return np.stack(list(read_lossless(self.store.fetch(result.artifact), first=0, frames=frames)))


def hand_of(card: ModelCard) -> Hand:
    return Hand(card=card.name, digest=card.digest(), lane=card.name)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("shop"))
    yield made
    made.tracker.close()
    made.editor.close()


async def test_chunks_are_found_one_after_the_other_and_edited(shop: Shop) -> None:
    assert [node for node in shop.nodes if node.endswith((".mask", ".edit"))] == [
        "c1.mask", "c2.mask", "c1.edit", "c2.edit"]
    first, second = await shop.run("c1.mask"), await shop.run("c2.mask")
    assert first.artifact == shop.store.find(first.artifact.key)
    assert first.artifact.score == pytest.approx(0.98, abs=0.02)
    shared = CHUNK - OVERLAP
    one, other = shop.read(first, CHUNK)[shared], shop.read(second, FRAMES - shared)[0]
    assert one.any()
    assert overlap(one, other) > 0.8  # the mask that was carried over
    edited = shop.read(await shop.run("c1.edit"), CHUNK)
    assert edited.shape == (CHUNK, 64, 64, 3)
    finished = await shop.run("save")
    assert finished.artifact.size_bytes > 0


async def test_a_manifest_says_which_model_made_it(shop: Shop) -> None:
    result = await shop.run("c1.edit")
    manifest = shop.store.manifest(result.artifact.key)
    assert manifest is not None
    made = manifest["made"]
    assert (made["card"]["digest"], made["parameters"]["prompt"]) == (shop.editing.digest(), "make it red")
    assert made["exactness"]["class"] == "tolerance"
    assert {"torch", "diffusers", "transformers"} <= made["versions"].keys()
    assert made["device"] == "cpu"


async def test_progress_has_the_shares_2_88_10_and_every_step(shop: Shop) -> None:
    call = await shop.edit_call(generation=1)
    shop.sink.clear()
    await shop.editor.run(call)
    steps, total = shop.sink.steps(), CALLS * STEPS
    assert [(record.step, record.total_steps) for record in steps] == [(step, total) for step in range(1, total + 1)]
    assert [record.fraction for record in steps] == pytest.approx(
        [clip_fraction(Phase.DIFFUSION, step=step, total_steps=total) for step in range(1, total + 1)])
    records = shop.sink.records
    assert list(dict.fromkeys(record.phase for record in records)) == [
        Phase.INITIALISE, Phase.DIFFUSION, Phase.SAVING, Phase.DONE]
    fractions = [record.fraction for record in records]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert shop.sink.ended[-1] == ("job", "c1.edit")


async def test_a_tracker_counts_frames(shop: Shop) -> None:
    await shop.run("extract")
    shop.sink.clear()
    await shop.tracker.run(shop.call("c1.mask", instances="best"))
    assert [(record.step, record.total_steps) for record in shop.sink.steps()] == [
        (frame, CHUNK) for frame in range(1, CHUNK + 1)]


async def test_what_is_in_the_store_is_not_made_again_and_twins_share_a_run(shop: Shop) -> None:
    call = await shop.edit_call(generation=2)
    shop.sink.clear()
    one, other = await asyncio.gather(shop.editor.run(call), shop.editor.run(replace(call, job_id="job2", attempt=4)))
    assert one == other
    heard = [(record.job_id, record.attempt) for record in shop.sink.steps()]
    assert sorted(heard) == [("job", 1)] * CALLS * STEPS + [("job2", 4)] * CALLS * STEPS
    shop.sink.clear()
    again = await shop.editor.run(call)
    assert (again.artifact, shop.sink.records) == (one.artifact, [])


async def test_a_cancelled_edit_stops_within_a_step_and_leaves_nothing(shop: Shop) -> None:
    call = await shop.edit_call(steps=100)
    shop.sink.clear()
    running = asyncio.create_task(shop.editor.run(call))
    assert await asyncio.to_thread(shop.sink.began.wait, 10)
    assert await shop.editor.cancel(call.key)
    with pytest.raises(RenderCancelled):
        await running
    assert len(shop.sink.steps()) < 100
    assert shop.store.find(call.key) is None


async def test_other_cards_and_other_work_are_refused(shop: Shop) -> None:
    call = await shop.edit_call(card_digest="0000")
    with pytest.raises(RenderRefused, match=r"planned with model card tiny \(0000\), this replica runs tiny"):
        await shop.editor.run(call)
    with pytest.raises(RenderRefused, match="makes mask nodes, and this is a node of kind edit"):
        await shop.tracker.run(shop.call("c1.edit", card_digest=shop.tracking.digest()))
    with pytest.raises(RenderRefused, match="knows no words"):
        await shop.tracker.run(shop.call("c1.mask", prompt="hair"))
    with pytest.raises(RenderRefused, match=r"image_guidance_scale: 0\.5"):
        await shop.editor.run(shop.call("c1.edit", image_guidance=0.5))


class Breaking:
    """An editor that raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def problems(self, take: EditTake) -> tuple[Problem, ...]:
        return ()

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None, watch: Watch) -> UInt8Array:
        watch.note("a note")
        if self.error is not None:
            raise self.error
        return take.frames_THWC


async def test_a_model_that_breaks_fails_the_call_and_only_a_broken_gpu_the_replica(shop: Shop) -> None:
    editor = Breaking()
    replica = EditReplica(shop.editing, ModelsSettings(torch_threads=1), shop.store, shop.sink, 0.0,
                          open_=lambda card, device: Workbench(editor=editor))
    noted = await replica.run(await shop.edit_call(generation=3))
    assert noted.warnings == ("a note",)
    call = await shop.edit_call(generation=4)
    editor.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(GpuOutOfMemory, match="a chunk of 8 frames does not fit the GPU beside tiny; a smaller"):
        await replica.run(call)
    editor.error = ValueError("shapes differ")
    with pytest.raises(ModelFailed, match="ValueError: shapes differ"):
        await replica.run(call)
    await replica.check_health()
    editor.error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(ModelFailed, match="device-side assert"):
        await replica.run(call)
    with pytest.raises(RuntimeError, match="the GPU context is broken"):
        await replica.check_health()
    replica.close()
