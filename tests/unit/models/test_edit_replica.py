"""One replica of a tracker and one of an editor: chunks out of the store and back, shared, counted, cancelled, refused.

Tiny checkpoints of the real classes, real store, real threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.model_card import ModelCard, Task
from configs.settings import ModelsSettings
from serve_app.models.edit_replica import EditReplica
from serve_app.models.tap import Watch
from serve_app.models.workbench import Workbench
from tests.fakes_models import RememberingSink
from tests.tiny_track import build_points
from tests.workbench import FRAMES, STEPS, edit_take, editor_card, moving_square, tracker_card
from workflows.edit_calls import CARRIED, MASKS, EditCall, TrackCall
from workflows.edit_calls import FRAMES as PICTURES
from workflows.edit_ports import EditTake, Find, Point, ProgressCallback
from workflows.errors import GpuOutOfMemory, ModelFailed, Problem, RenderCancelled, RenderRefused
from workflows.media.frames import UInt8Array
from workflows.media.lossless import read_lossless, write_lossless
from workflows.media.masks import overlap
from workflows.progress import clip_fraction
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeResult, Phase, ProgressRecord

CLIP = moving_square()
TAKE = edit_take()
INSTRUCT = "StableDiffusionInstructPix2PixPipeline"


class Starting(RememberingSink):
    """Says when the model has made its first step."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        super().update(record, urgent=urgent)
        if record.phase is Phase.DIFFUSION:
            self.began.set()


class Shelf:
    """A store with a replica beside it."""

    def __init__(self, directory: Path, card: ModelCard) -> None:
        self.card = card
        self.store = Store(str(directory / "store"))
        self.sink = Starting()
        self.replica = EditReplica(card, ModelsSettings(torch_threads=1), self.store, self.sink, 0.0)
        self._keys = 0

    def key(self) -> str:
        self._keys += 1
        return f"{self._keys:032x}"

    def put(self, pictures: UInt8Array, directory: Path) -> Artifact:
        path = directory / "pictures.mkv"
        with write_lossless(path) as writer:
            for picture in pictures:
                writer.write(picture)
        return self.store.put(self.key(), path, media_type=MediaType.MKV, manifest={})

    def read(self, result: NodeResult, frames: int) -> UInt8Array:
        return np.stack(list(read_lossless(self.store.fetch(result.artifact), first=0, frames=frames)))

    def call(self, **fields: Any) -> dict[str, Any]:
        return {"job_id": "job", "node_id": "c0", "shot_id": "", "attempt": 1, "key": self.key(), "deadline_s": 4e9,
                "card": self.card.name, "card_digest": self.card.digest(), "first": 0, "fps": 8.0, **fields}


@pytest.fixture(scope="module")
def finding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    directory = tmp_path_factory.mktemp("finding")
    shelf = Shelf(directory, tracker_card(build_points(directory)))
    yield shelf
    shelf.replica.close()


@pytest.fixture(scope="module")
def editing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    directory = tmp_path_factory.mktemp("editing")
    shelf = Shelf(directory, editor_card("instruct_pix2pix", directory, INSTRUCT, frames_at_once=2, image_guidance=1.5))
    yield shelf
    shelf.replica.close()


def track_call(shelf: Shelf, tmp_path: Path, **changes: Any) -> TrackCall:
    fields = shelf.call(frames=FRAMES, inputs={PICTURES: shelf.put(CLIP, tmp_path)},
                        find=Find(points=(Point(frame=0, x=20, y=30),)))
    return TrackCall(**{**fields, **changes})


def edit_call(shelf: Shelf, tmp_path: Path, **changes: Any) -> EditCall:
    fields = shelf.call(
        frames=4, task="edit_frames", prompt="make it red", negative_prompt="", steps=STEPS, guidance=4.0,
        image_guidance=1.5, seed=3,
        inputs={PICTURES: shelf.put(TAKE.frames_THWC, tmp_path), MASKS: shelf.put(TAKE.masks_THW, tmp_path)})
    return EditCall(**{**fields, **changes})


async def test_a_chunk_is_found_and_the_next_goes_on_from_its_masks(finding: Shelf, tmp_path: Path) -> None:
    whole = track_call(finding, tmp_path)
    result = await finding.replica.track(whole)
    masks_THW = finding.read(result, FRAMES)
    assert result.artifact == finding.store.find(whole.key)
    assert result.artifact.score == pytest.approx(0.98, abs=0.02)
    assert all(mask_HW.any() for mask_HW in masks_THW)
    assert result.warnings == ()
    after = await finding.replica.track(track_call(
        finding, tmp_path, first=3, frames=5, find=Find(), carried_frame=3,
        inputs={**whole.inputs, CARRIED: result.artifact}))
    assert overlap(finding.read(after, 5)[0], masks_THW[3]) > 0.8


async def test_nothing_found_is_a_result_that_says_so(finding: Shelf, tmp_path: Path) -> None:
    black = finding.put(np.zeros((1, *CLIP.shape[1:3]), np.uint8), tmp_path)
    call = track_call(finding, tmp_path, find=Find())
    result = await finding.replica.track(replace(call, inputs={**call.inputs, CARRIED: black}))
    assert not finding.read(result, FRAMES).any()
    assert result.artifact.score == 0.0
    assert result.warnings == (f"nothing was found where the points and boxes are in {FRAMES} frames from 0 on; the "
                               "best score was 0.00",)
    manifest = finding.store.manifest(result.artifact.key)
    assert manifest is not None
    assert manifest["made"]["found"] == {"score": 0.0, "instances": 0}


async def test_an_edit_is_stored_without_loss_with_what_made_it(editing: Shelf, tmp_path: Path) -> None:
    call = edit_call(editing, tmp_path)
    result = await editing.replica.edit(call)
    edited = editing.read(result, 4)
    assert np.array_equal(edited[3], TAKE.frames_THWC[3])
    assert (edited[:3] != TAKE.frames_THWC[:3]).any()
    manifest = editing.store.manifest(call.key)
    assert manifest is not None
    made = manifest["made"]
    assert (made["card"]["digest"], made["call"]["prompt"]) == (editing.card.digest(), "make it red")
    assert made["exactness"]["class"] == "tolerance"
    assert result.seconds.keys() == {"diffusion", "decode", "encode", "store"}


async def test_progress_has_the_shares_2_88_10_and_every_step(editing: Shelf, tmp_path: Path) -> None:
    editing.sink.records.clear()
    await editing.replica.edit(edit_call(editing, tmp_path))
    records = editing.sink.records
    steps = [record for record in records if record.phase is Phase.DIFFUSION]
    assert [(record.step, record.total_steps) for record in steps] == [(step, 2 * STEPS) for step in range(1, 7)]
    assert [record.fraction for record in steps] == pytest.approx(
        [clip_fraction(Phase.DIFFUSION, step=step, total_steps=6) for step in range(1, 7)])
    assert list(dict.fromkeys(record.phase for record in records)) == [
        Phase.INITIALISE, Phase.DIFFUSION, Phase.SAVING, Phase.DONE]
    fractions = [record.fraction for record in records]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert editing.sink.ended[-1] == ("job", "c0")


async def test_a_tracker_counts_frames(finding: Shelf, tmp_path: Path) -> None:
    finding.sink.records.clear()
    await finding.replica.track(track_call(finding, tmp_path))
    steps = [(record.step, record.total_steps) for record in finding.sink.records if record.phase is Phase.DIFFUSION]
    assert steps == [(frame, FRAMES) for frame in range(1, FRAMES + 1)]


async def test_what_is_in_the_store_is_not_made_again_and_twins_share_a_run(editing: Shelf, tmp_path: Path) -> None:
    call = edit_call(editing, tmp_path)
    editing.sink.records.clear()
    one, other = await asyncio.gather(editing.replica.edit(call),
                                      editing.replica.edit(replace(call, job_id="job2", attempt=4)))
    assert one == other
    steps = [(record.job_id, record.attempt) for record in editing.sink.records if record.phase is Phase.DIFFUSION]
    assert sorted(steps) == [("job", 1)] * 6 + [("job2", 4)] * 6
    editing.sink.records.clear()
    again = await editing.replica.edit(call)
    assert (again.artifact, editing.sink.records) == (one.artifact, [])


async def test_a_cancelled_edit_stops_within_a_step_and_leaves_nothing(editing: Shelf, tmp_path: Path) -> None:
    call = edit_call(editing, tmp_path, steps=100)
    editing.sink.records.clear()
    editing.sink.began.clear()
    running = asyncio.create_task(editing.replica.edit(call))
    assert await asyncio.to_thread(editing.sink.began.wait, 10)
    assert await editing.replica.cancel(call.key)
    with pytest.raises(RenderCancelled):
        await running
    assert len([record for record in editing.sink.records if record.phase is Phase.DIFFUSION]) < 100
    assert editing.store.find(call.key) is None


async def test_other_cards_and_other_work_are_refused(editing: Shelf, finding: Shelf, tmp_path: Path) -> None:
    with pytest.raises(RenderRefused, match=r"planned with model card tiny \(0000\), this replica runs tiny"):
        await editing.replica.edit(edit_call(editing, tmp_path, card_digest="0000"))
    with pytest.raises(RenderRefused, match="cannot do edit_video, only edit_frames"):
        await editing.replica.edit(edit_call(editing, tmp_path, task="edit_video"))
    with pytest.raises(RenderRefused, match="knows no words"):
        await finding.replica.track(track_call(finding, tmp_path, find=Find(prompt="hair")))
    call = edit_call(editing, tmp_path)
    with pytest.raises(RenderRefused, match="the call names no input 'masks', only frames"):
        await editing.replica.edit(replace(call, inputs={PICTURES: call.inputs[PICTURES]}))
    with pytest.raises(RenderRefused, match=r"image_guidance_scale: 0\.5"):
        await editing.replica.edit(edit_call(editing, tmp_path, image_guidance=0.5))


class Breaking:
    """An editor that raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def problems(self, take: EditTake) -> tuple[Problem, ...]:
        return ()

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None, watch: Watch) -> UInt8Array:
        if self.error is not None:
            raise self.error
        return take.frames_THWC


async def test_a_model_that_breaks_fails_the_call_and_only_a_broken_gpu_the_replica(
        editing: Shelf, tmp_path: Path) -> None:
    editor = Breaking()
    replica = EditReplica(editing.card, ModelsSettings(torch_threads=1), editing.store, editing.sink, 0.0,
                          open_=lambda card, device: Workbench(editors={Task.EDIT_FRAMES: editor}))
    editor.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(GpuOutOfMemory, match="a chunk of 4 frames does not fit the GPU beside tiny; a smaller edit_size"):
        await replica.edit(edit_call(editing, tmp_path))
    editor.error = ValueError("shapes differ")
    with pytest.raises(ModelFailed, match="ValueError: shapes differ"):
        await replica.edit(edit_call(editing, tmp_path))
    await replica.check_health()
    editor.error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(ModelFailed, match="device-side assert"):
        await replica.edit(edit_call(editing, tmp_path))
    with pytest.raises(RuntimeError, match="the GPU context is broken"):
        await replica.check_health()
    replica.close()
