"""An edit by models through the real application: chunks spread over replicas; who is killed costs its chunk alone.

The models are tiny random checkpoints of SAM 2 and InstructPix2Pix. All else is what real ones run through.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from configs.load import load_cards
from serve_app.edit_submit import edit_job
from tests.cluster.conftest import Deploy, Running
from tests.edit_clips import write_source
from tests.fakes_edits import request_for
from tests.tiny_track import build_points
from tests.workbench import editor_card, moving_square, tracker_card
from workflows.durable.rows import EventType
from workflows.edit_hands import hands_of
from workflows.media.probe import probe
from workflows.types import JobStatus, NodeStatus, Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FRAMES = 26
EDITS = ["c1.edit", "c2.edit", "c3.edit", "c4.edit"]
PLACEHOLDERS = [f"models.{task}=placeholder" for task in ("text_to_image", "text_to_video", "image_to_video")]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cards `eye` and `hand`."""
    directory = tmp_path_factory.mktemp("cards")
    eye = tracker_card(build_points(directory)).model_copy(update={"name": "eye"})
    hand = editor_card("instruct_pix2pix", directory, "StableDiffusionInstructPix2PixPipeline", frames_at_once=4,
                       image_guidance=1.5).model_copy(update={"name": "hand"})
    for card, gpus in ((eye, 0.5), (hand, 1)):
        tree = {**card.model_dump(mode="json", exclude_unset=True), "resources": {"num_gpus": gpus, "num_cpus": 0.1}}
        (directory / f"{card.name}.yaml").write_text(yaml.safe_dump(tree))
    return directory


def submit(running: Running, job_id: str, directory: Path, **changes: object) -> None:
    source = write_source(moving_square(FRAMES), directory / f"{job_id}.mp4", fps=8)
    request = request_for(source, job_id=job_id, mask_prompt=None, points=[{"x": 20, "y": 30}], tracker="eye",
                          editor="hand", edit_prompt="make it red", chunk_frames=8, **changes)
    tracker, editor = hands_of(request, load_cards(running.settings))
    running.ledger.submit(edit_job(request, running.store, tracker=tracker, editor=editor).new)
    running.director.wake.remote().result(timeout_s=20)


def application(deploy: Deploy, cards: Path, editors: int = 2) -> Running:
    """Each editor has a logical GPU of its own."""
    return deploy([*PLACEHOLDERS, f"models.card_dirs=[{cards}]", "models.edit_cards=[eye, hand]",
                   "models.by_card.eye.replicas=1", f"models.by_card.hand.replicas={editors}",
                   "models.torch_threads=1"])


def hands(running: Running) -> list[psutil.Process]:
    return running.processes("ServeReplica:reelray-test:model-hand")


def test_chunks_go_to_both_editors_and_become_a_video(deploy: Deploy, cards: Path, tmp_path: Path) -> None:
    running = application(deploy, cards)
    before = {process.pid: process.cpu_times().user for process in hands(running)}
    assert len(before) == 2
    submit(running, "both", tmp_path, steps=10)
    assert running.wait("both").status is JobStatus.SUCCEEDED
    spent = [process.cpu_times().user - before[process.pid] for process in hands(running)]
    assert min(spent) > max(spent) * 0.2
    (save,) = [node for node in running.ledger.nodes("both") if node.id == "save"]
    assert save.artifact is not None
    assert probe(running.store.fetch(save.artifact)).frames == FRAMES


def finished_edits(running: Running, job_id: str) -> set[str]:
    return {node.id for node in running.ledger.nodes(job_id)
            if node.id in EDITS and node.status is NodeStatus.SUCCEEDED}


def sha256_of_result(running: Running, job_id: str) -> str:
    (save,) = [node for node in running.ledger.nodes(job_id) if node.id == "save"]
    assert save.artifact is not None
    return save.artifact.sha256


def test_an_editor_that_is_killed_costs_its_own_chunks_alone(deploy: Deploy, cards: Path, tmp_path: Path) -> None:
    running = application(deploy, cards)
    submit(running, "kill", tmp_path, steps=24, seed=1)
    running.until(lambda: bool(finished_edits(running, "kill")))
    done = finished_edits(running, "kill")
    hands(running)[0].kill()
    assert running.wait("kill").status is JobStatus.SUCCEEDED
    starts = [event.node_id for event in running.events("kill", EventType.NODE_STARTED)]
    assert all(starts.count(node) == 1 for node in done)
    assert set(EDITS) <= set(starts)


def test_a_killed_director_and_a_killed_editor_edit_no_finished_chunk_again_and_one_gpu_makes_the_same_bytes(
        deploy: Deploy, cards: Path, tmp_path: Path) -> None:
    running = application(deploy, cards)
    submit(running, "both-killed", tmp_path, steps=24, seed=2)
    running.until(lambda: bool(finished_edits(running, "both-killed")))
    done = finished_edits(running, "both-killed")
    assert len(done) < len(EDITS), "there is something left to edit"
    assert running.view("both-killed").stage is Stage.EDITING
    for process in (running.processes(":director")[0], hands(running)[0]):
        os.kill(process.pid, signal.SIGKILL)
    assert running.wait("both-killed").status is JobStatus.SUCCEEDED
    assert len(running.events("both-killed", EventType.JOB_STARTED)) >= 2
    starts = [event.node_id for event in running.events("both-killed", EventType.NODE_STARTED)]
    assert all(starts.count(node) == 1 for node in done)
    assert any(starts.count(node) == 2 for node in EDITS), "what was cut off is edited again"
    on_two = sha256_of_result(running, "both-killed")

    # An application of its own has a store of its own: nothing of the first is found there.
    running = application(deploy, cards, editors=1)
    assert len(hands(running)) == 1
    submit(running, "one-gpu", tmp_path, steps=24, seed=2)
    assert running.wait("one-gpu").status is JobStatus.SUCCEEDED
    assert not running.events("one-gpu", EventType.NODE_CACHED)
    assert sha256_of_result(running, "one-gpu") == on_two
