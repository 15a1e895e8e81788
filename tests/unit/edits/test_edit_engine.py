"""Edits through the durable engine: real nodes, real files, the classical models in place of deployments."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.edit_clips import WIDTH_PX, Unwatched, iou, red_ball, write_source
from tests.fakes_edits import EditShop, Flickering, planned, request_for
from tests.studio import QUICK
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import JobRow, NewJob, NodeRow
from workflows.edit_plan import EDIT_KINDS, chunks_of
from workflows.edit_ports import EditTake, ProgressCallback
from workflows.errors import RenderCancelled, ReplicaLost
from workflows.media.classical_editor import ClassicalEditor
from workflows.media.decode import read_frames
from workflows.media.encode import EncodeOptions
from workflows.media.frames import UInt8Array
from workflows.media.lossless import read_lossless
from workflows.media.masks import MaskReel
from workflows.media.probe import probe
from workflows.plan import plan_keys
from workflows.stages.edit_bench import pieces_of, shaping_of
from workflows.stages.edit_local import LocalEdits
from workflows.status import job_view
from workflows.store import Store
from workflows.types import JobStatus, NodeCall, NodeKind, NodeStatus, Stage

CLIP = red_ball(40)


@dataclass
class Site:
    """One ledger and one store with an engine that is started for each job."""

    ledger: Ledger
    store: Store
    source: Path
    shop: EditShop = field(init=False)
    slots: int = 2

    def __post_init__(self) -> None:
        self.shop = EditShop(self.store)

    def submit(self, job_id: str = "edit", **changes: object) -> None:
        nodes = planned(request_for(self.source, **changes), self.store)
        self.ledger.submit(NewJob(id=job_id, kind="edit", document={}, nodes=nodes))

    async def run(self, job_id: str = "edit", *, until: str = "") -> JobRow:
        """Until the job is over, or until the node `until` has its result."""
        engine = Engine(self.ledger, self.shop.steps(), store=self.store, settings=QUICK,
                        dispatcher=Dispatcher({"cpu": self.slots}))
        task = asyncio.create_task(engine.run())
        try:
            async with asyncio.timeout(60):
                while not self._is_over(job_id, until):  # noqa: ASYNC110 - the database sends no signal
                    await asyncio.sleep(0.01)
        finally:
            await engine.stop()
            await task
        return self.ledger.job(job_id)

    def _is_over(self, job_id: str, until: str) -> bool:
        if until:
            return self.node(until, job_id).status.is_terminal
        return self.ledger.job(job_id).status.is_terminal

    def node(self, node_id: str, job_id: str = "edit") -> NodeRow:
        return next(node for node in self.ledger.nodes(job_id) if node.id == node_id)

    def file(self, node_id: str, job_id: str = "edit") -> Path:
        artifact = self.node(node_id, job_id).artifact
        assert artifact is not None, self.ledger.log_lines(job_id, limit=1000).lines[-20:]
        return self.store.fetch(artifact)

    def masks(self, job_id: str = "edit") -> UInt8Array:
        told = json.loads(self.file("propagate", job_id).read_text())
        reel = MaskReel(pieces_of(told), lambda node: self.file(node, job_id), shaping_of(told))
        return np.array(list(reel.read(first=0, frames=len(told["track"]["centres"]))))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(CLIP.frames_THWC, tmp_path_factory.mktemp("edits") / "ball.mp4")


@pytest.fixture
def site(tmp_path: Path, source: Path):
    ledger = Ledger(f"sqlite:///{tmp_path / 'state.db'}")
    yield Site(ledger=ledger, store=Store(str(tmp_path / "store")), source=source)
    ledger.close()


async def test_a_ball_becomes_green_and_nothing_else_does(site: Site) -> None:
    """IoU >= 0.9; outside the mask no pixel changed before encoding and 45 dB after; all other frames as they were."""
    site.submit(dilate_kernel=0)  # the mask as it was found
    job = await site.run()
    assert job.status is JobStatus.SUCCEEDED, site.ledger.log_lines("edit", limit=1000).lines[-20:]
    assert iou(site.masks(), CLIP.masks_THW) >= 0.9
    report = json.loads(site.file("report").read_text())
    assert report["outside_mask"]["changed_pixels"] == 0
    assert report["outside_mask"]["psnr_db"] >= 45
    was, now = probe(site.source), probe(site.file("save"))
    assert (now.fps, now.frames, now.has_audio) == (was.fps, was.frames, True)
    frames = read_frames(site.file("save"))
    red, green, _ = frames[3][CLIP.masks_THW[3] > 0].mean(axis=0)
    assert green > red
    assert probe(site.file("preview")).frames == 40
    assert site.file("plot").read_bytes().startswith(b"\x89PNG")
    assert "in 5 of 40 frames there is nothing to edit; they stay as they are" in job.warnings
    view = job_view(job, site.ledger.nodes("edit"))
    assert (view.stage, view.progress, [shot.id for shot in view.shots]) == (Stage.SAVING, 1.0, ["c1", "c2", "c3"])
    assert view.result == site.node("save").artifact


@pytest.mark.slow
async def test_another_edit_of_the_same_region_finds_nothing_again(site: Site) -> None:
    site.submit()
    await site.run()
    site.shop.started.clear()
    site.submit("blue", edit_prompt="make it blue")
    await site.run("blue")
    assert sorted(site.shop.started) == ["c1.edit", "c2.edit", "c3.edit", "plot", "report", "save", "smooth"]
    site.shop.started.clear()
    site.submit("soft", feather_px=6)
    await site.run("soft")
    assert sorted(site.shop.started) == ["plot", "report", "save"]


@pytest.mark.slow
async def test_one_slot_and_two_give_the_same_bytes(site: Site, tmp_path: Path) -> None:
    site.submit()
    await site.run()
    other = Site(ledger=site.ledger, store=Store(str(tmp_path / "other")), source=site.source, slots=1)
    other.submit("alone")
    await other.run("alone")
    for node in ("c2.mask", "c2.edit", "smooth", "save", "preview", "report", "plot"):
        assert site.node(node).artifact.sha256 == other.node(node, "alone").artifact.sha256, node


@pytest.mark.slow
async def test_chunks_that_are_done_are_not_edited_again_by_the_next_director(site: Site) -> None:
    site.slots = 1
    site.submit()
    await site.run(until="c1.edit")
    done = site.shop.started.count("c1.edit")
    assert not site.node("save").status.is_terminal
    assert (await site.run()).status is JobStatus.SUCCEEDED
    assert site.shop.started.count("c1.edit") == done == 1


@pytest.mark.slow
async def test_a_replica_that_dies_under_a_chunk_costs_that_chunk_alone(site: Site) -> None:
    deaths = ["c2.edit"]

    def die(call: NodeCall) -> None:
        if call.node_id in deaths:
            deaths.remove(call.node_id)
            raise ReplicaLost(node_id=call.node_id, reason="killed")

    site.shop.before = die
    site.submit()
    assert (await site.run()).status is JobStatus.SUCCEEDED
    assert {name: site.shop.started.count(name) for name in ("c1.edit", "c2.edit", "c3.edit", "c2.mask")} == {
        "c1.edit": 1, "c2.edit": 2, "c3.edit": 1, "c2.mask": 1}


async def test_nothing_found_is_a_plain_answer_that_names_prompt_and_score(site: Site) -> None:
    site.submit(mask_prompt="yellow thing")
    job = await site.run()
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.type == "NothingFound"
    assert job.error.message.startswith("propagate: nothing was found for 'yellow thing' in 40 frames by the tracker "
                                        "classical; the best score seen is 0.")
    assert site.node("propagate").attempt == 1


@pytest.mark.slow
async def test_words_that_the_models_do_not_know_are_refused_at_once(site: Site) -> None:
    site.submit(edit_prompt="make it look like winter")
    job = await site.run()
    assert job.status is JobStatus.FAILED
    assert site.node("c1.edit").status is NodeStatus.FAILED
    assert site.node("c1.edit").attempt == 1
    assert "recolours and does nothing else" in job.error.message


@pytest.mark.slow
async def test_a_point_in_a_late_chunk_is_followed_back_to_the_beginning(site: Site) -> None:
    """The chunks before it are walked backward in time, each from where the one after it begins."""
    late = red_ball(40).frames_THWC.copy()
    late[:, :16, :16] = (200, 30, 30)  # as red, but not what the point is on
    path = write_source(late, site.source.with_name("late.mp4"))
    site.source = path
    column, row = np.argwhere(CLIP.masks_THW[38] > 0).mean(axis=0)[::-1]
    site.submit(mask_prompt="", points=[{"frame": 38, "x": float(column), "y": float(row)}], dilate_kernel=0)
    job = await site.run()
    assert job.status is JobStatus.SUCCEEDED
    assert site.node("c1.mask").payload["backward"] is True
    masks = site.masks()
    assert not masks[:, :16, :16].any()
    assert iou(masks, CLIP.masks_THW) >= 0.9


@pytest.mark.slow
async def test_given_masks_need_no_tracker_and_may_be_turned_round(site: Site, tmp_path: Path) -> None:
    given = write_source(np.repeat(CLIP.masks_THW[..., None], 3, axis=3), tmp_path / "masks.mp4", sound=False)
    site.submit(mask_prompt="", mask_video=str(given), invert_mask=True, start_s=0.25, max_frames=20)
    job = await site.run()
    assert job.status is JobStatus.SUCCEEDED, site.ledger.log_lines("edit", limit=1000).lines[-20:]
    assert iou(site.masks(), 255 - CLIP.masks_THW[6:26]) >= 0.98
    assert probe(site.file("save")).frames == 20


class Moody:
    """Recolours, each chunk in a lightness of its own: what a diffusion model does with each new batch."""

    def __init__(self) -> None:
        self._plain = ClassicalEditor()

    def problems(self, take: EditTake) -> tuple:
        return ()

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None, watch: Unwatched) -> UInt8Array:
        edited = self._plain.edit(take, progress_callback=progress_callback, watch=watch)
        mood = int(take.frames_THWC[0].sum()) % 3 * 12 - 12
        return (edited.astype(int) + mood).clip(0, 255).astype(np.uint8)


def still_ball(frames: int) -> tuple[UInt8Array, UInt8Array]:
    """A ball that stays where it is on a ground that breathes a little: what changes there was changed by the edit."""
    one = red_ball(8)
    clip = np.repeat(one.frames_THWC[2:3], frames, axis=0)
    for t, frame in enumerate(clip):
        frame[:, WIDTH_PX * 3 // 4:] = (90 + 40 * np.sin(t), 100, 110)
    return clip, np.repeat(one.masks_THW[2:3], frames, axis=0)


@pytest.mark.slow
async def test_flicker_is_halved_and_no_seam_can_be_seen_between_chunks(site: Site, tmp_path: Path) -> None:
    """The report's own numbers for a flickering editor; then frame differences at seams against the 99th percentile."""
    moving = red_ball(60)
    site.shop.editor = Flickering()
    site.submit()
    await site.run()
    warp = json.loads(site.file("report").read_text())["warp_error"]
    assert warp["before"] > 5
    assert warp["after"] <= 0.5 * warp["before"], warp

    site.shop.editor = Moody()
    for job, clip, masks in (("still", *still_ball(60)), ("moving", moving.frames_THWC, moving.masks_THW)):
        site.source = write_source(clip, tmp_path / f"{job}.mp4", sound=False)
        site.submit(job, chunk_frames=24)
        await site.run(job)
        chunks = chunks_of(60, 24, 6)
        raw = [next(read_lossless(site.file(f"{chunk.id}.edit", job), first=0, frames=1)) for chunk in chunks]
        frames = read_frames(site.file("save", job)).astype(float)
        steps = np.array([np.abs(frames[t] - frames[t - 1])[(masks[t] | masks[t - 1]) > 0].mean()
                          if masks[t].any() else 0.0 for t in range(1, 60)])
        if job == "still":
            assert max(np.abs(one.astype(int) - other).mean() for one in raw for other in raw) > 2  # moods differ
            assert steps.max() < 3  # of 12
        else:
            seams = [t for chunk in chunks[1:] for t in range(chunk.first, chunk.first + 7)]
            assert steps[[t - 1 for t in seams]].max() <= np.percentile(steps, 99)


def test_every_stage_stops_where_it_is_told_to_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    """The callback raises within the first two frames of each node; then the node is run whole."""
    store = Store(str(tmp_path / "store"))
    local = LocalEdits(store, EncodeOptions(preset="ultrafast"))
    nodes = planned(request_for(source, max_frames=12, chunk_frames=8), store)
    keys, made, stopped = plan_keys(nodes), {}, set()
    for node in nodes:
        call = NodeCall(job_id="edit", node_id=node.id, shot_id=node.shot_id, kind=node.kind, key=keys[node.id],
                        attempt=1, generation=0, payload=node.payload,
                        inputs={dep: made[dep] for dep in node.deps}, left_s=0.0)
        told = []

        def stop(done: int, total: int, told: list = told) -> None:
            told.append((done, total))
            if len(told) == 2 or total == 1:
                raise RenderCancelled(node_id="edit", reason="cancelled")

        with pytest.raises(RenderCancelled):
            local.run(call, stop)
        stopped.add(node.kind)
        assert store.find(keys[node.id]) is None
        made[node.id] = local.run(call, lambda done, total: None).artifact
    assert stopped == EDIT_KINDS


def test_chunks_cover_every_frame_once_and_share_what_they_fade_over() -> None:
    for frames in (1, 7, 16, 17, 40, 100, 101):
        chunks = chunks_of(frames, 16, 4)
        owned = [t for chunk in chunks for t in range(chunk.own_first, chunk.own_end)]
        assert owned == list(range(frames))
        assert all(chunk.first <= chunk.own_first < chunk.own_end <= chunk.end for chunk in chunks)
        assert all(chunk.frames <= 16 for chunk in chunks)
        assert all(one.end - two.first == 4 for one, two in pairwise(chunks))
    assert len(chunks_of(108_000, 48, 8)) == 2700


def test_what_a_request_changes_changes_the_keys_of_what_hangs_on_it_alone(tmp_path: Path, source: Path) -> None:
    store = Store(str(tmp_path / "store"))

    def keys(**changes: object) -> dict[str, str]:
        return plan_keys(planned(request_for(source, **changes), store))

    plain = keys()
    kinds = {name: {node.split(".")[-1] for node, key in keys(**changes).items() if plain.get(node) != key}
             for name, changes in {
                 "edit_prompt": {"edit_prompt": "make it blue"}, "seed": {"seed": 7}, "dilate": {"dilate_kernel": 9},
                 "smoothing": {"smoothing": 0.2}, "audio": {"keep_audio": False}, "job": {"job_id": "other"}}.items()}
    after_edit = {"edit", "smooth", "save", "report", "plot"}
    assert kinds == {"edit_prompt": after_edit, "seed": after_edit, "dilate": {"propagate", "preview", *after_edit},
                     "smoothing": {"smooth", "save", "report", "plot"}, "audio": {"save", "report", "plot"},
                     "job": set()}
    assert {node.kind for node in planned(request_for(source), store)} == {
        kind for kind in NodeKind if kind.stage in list(Stage)[4:]}
