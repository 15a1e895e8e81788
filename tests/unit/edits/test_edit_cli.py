"""`reelray edit` up to the moment at which something is started: options, plans, refusals, and what is shown."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from configs.load import load_cards, load_settings
from serve_app.cli import app
from serve_app.edit_rows import edit_rows
from serve_app.edit_settings import settings_for
from serve_app.screen import summary
from serve_app.service.edits import local_edits, local_job
from serve_app.workplace import Workplace, open_workplace
from tests.edit_clips import red_ball, write_source
from tests.fakes_edits import request_for
from workflows.edit_hands import with_card_defaults
from workflows.errors import InvalidDocument
from workflows.status import JobView, job_view
from workflows.types import JobStatus, NodeKind, NodeStatus, Phase, ProgressRecord

FRAMES = 24
GIVEN = ["--mask-prompt", "red ball", "--edit-prompt", "make it blue"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(red_ball(FRAMES).frames_THWC, tmp_path_factory.mktemp("clips") / "ball.mp4")


@pytest.fixture
def state(tmp_path: Path, migrated_file: Path) -> Path:
    (tmp_path / "state").mkdir()
    shutil.copy(migrated_file, tmp_path / "state" / "state.db")
    return tmp_path / "state"


def run(state: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["edit", *words, "--set", f"data_dir={state}"])


def test_every_option_is_a_field_of_the_request_and_what_is_not_given_is_not_said(state: Path, clip: Path) -> None:
    words = ["--max-frames", "20", "--start-s", "0.1", "--end-s", "0.95", "--erode-kernel", "1", "--dilate-kernel", "4",
             "--feather-px", "3", "--crop-margin", "0.5", "--edit-size", "64", "--steps", "7", "--guidance-scale", "6",
             "--image-guidance-scale", "1.2", "--smoothing", "0.4", "--seed", "9", "--no-keep-audio",
             "--chunk-frames", "16", "--invert-mask", "--instances", "best", "--point", "30,64@2", "--not-point",
             "3,3", "--box", "10,40,60,90"]
    done = run(state, str(clip), *GIVEN, *words, "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    asked = plan["request"]
    assert {name: asked[name] for name in ("max_frames", "start_s", "end_s", "erode_kernel", "dilate_kernel", "seed")
            } == {"max_frames": 20, "start_s": 0.1, "end_s": 0.95, "erode_kernel": 1, "dilate_kernel": 4, "seed": 9}
    assert (asked["keep_audio"], asked["invert_mask"], asked["instances"]) == (False, True, "best")
    assert asked["points"] == [{"frame": 2, "x": 30.0, "y": 64.0, "inside": True},
                               {"frame": 0, "x": 3.0, "y": 3.0, "inside": False}]
    assert asked["boxes"] == [{"frame": 0, "left": 10.0, "top": 40.0, "right": 60.0, "bottom": 90.0}]
    assert (plan["frames"], plan["chunks"], plan["cache_hits"]) == (20, 2, 0)
    assert plan["warnings"] == ["the source's sound is left out, as keep_audio: false says"]


def test_a_plan_is_told_in_words_and_starts_nothing(state: Path, clip: Path) -> None:
    done = run(state, str(clip), *GIVEN, "--dry-run")
    assert done.exit_code == 0, done.output
    for told in ("192x128 px, 24 frames per second, 1.0 s", "24 frames, 1.0 s, in 1 chunk", "0 s of models"):
        assert told in " ".join(done.stdout.split())


BAD = {
    "places": (["--point", "12"], "--point '12': 2 numbers are needed, and a frame after @ where it is not the first; "
                                  "nearest valid: 10,20 or 10,20@24"),
    "no_number": (["--box", "1,2,3,4.4.4"], "--box '1,2,3,4.4.4': 4 numbers"),
    "itself": (["-o", "ball.mp4"], "ball.mp4 is the video itself"), "directory": (["-o", "."], "is a directory"),
    "server": (["--server", "http://127.0.0.1:1"], "--set and --server http://127.0.0.1:1 do not go together"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_refused_with_what_can(state: Path, clip: Path, name: str) -> None:
    words, told = BAD[name]
    with contextlib.chdir(clip.parent):
        done = run(state, "ball.mp4", *GIVEN, *words)
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())


@pytest.mark.parametrize(("words", "field"), [
    (["--mask-prompt", "hair"], "mask_prompt"), (["--edit-size", "500"], "edit_size"),
    (["--tracker", "sam4"], "tracker"), (["--max-frames", "0"], "max_frames"), (["--start-s", "9"], "start_s")])
def test_a_request_that_cannot_be_done_is_refused_before_anything_starts(
        state: Path, clip: Path, words: list[str], field: str) -> None:
    done = run(state, str(clip), *GIVEN, *words)
    assert isinstance(done.exception, InvalidDocument)
    assert [problem.field for problem in done.exception.problems] == [field]


def test_an_editor_is_asked_with_its_own_numbers_where_the_request_says_none(clip: Path) -> None:
    cards = load_cards(load_settings("laptop", environ={}))
    card = cards["flux2-klein-4b-edit"]
    plain = request_for(clip, editor=card.name, edit_size=None)
    own = with_card_defaults(plain, cards)
    assert (own.steps, own.guidance_scale, own.edit_size) == (
        card.defaults.steps, card.defaults.guidance, card.defaults.width_px)
    assert (own.steps, own.edit_size) != (plain.steps, plain.edit_size)
    said = with_card_defaults(request_for(clip, editor=card.name, steps=20, edit_size=512), cards)
    assert (said.steps, said.edit_size) == (20, 512)
    pix2pix = with_card_defaults(request_for(clip, editor="instruct-pix2pix"), cards)
    assert pix2pix.image_guidance_scale == cards["instruct-pix2pix"].edit.image_guidance  # type: ignore[union-attr]
    assert with_card_defaults(request_for(clip), cards) == request_for(clip)


# -- what is started and shown ------------------------------------------------------------------------------------


@pytest.fixture
def place(state: Path) -> Workplace:
    return open_workplace(load_settings("laptop", [f"data_dir={state}", "story.writer=rules"], {}))


def edit_of(place: Workplace, clip: Path) -> JobView:
    """A queued edit in two chunks."""
    draft = local_edits(place.settings, place.ledger, place.store).draft(request_for(clip))
    job = place.ledger.submit(local_job(draft))
    return job_view(job, place.ledger.nodes(job.id))


def test_the_same_edit_is_the_same_job_and_starts_no_model_of_films(place: Workplace, clip: Path) -> None:
    edits = local_edits(place.settings, place.ledger, place.store)
    jobs = [local_job(edits.draft(request_for(clip, seed=seed))) for seed in (1, 1, 2)]
    assert jobs[0].id == jobs[1].id != jobs[2].id
    assert jobs[0].id.startswith("ball-")
    started = settings_for(place.settings, jobs[0].kind, jobs[0].nodes).models
    assert (started.edit_cards, started.text_to_video) == ((), "placeholder")
    assert settings_for(place.settings, "film", jobs[0].nodes) == place.settings


def test_stages_are_shown_however_many_chunks_there_are(place: Workplace, clip: Path) -> None:
    view = edit_of(place, clip)
    assert [row[0] for row in edit_rows(view)] == [
        "extracting", "masking", "propagating", "editing", "smoothing", "saving"]
    job, nodes = place.ledger.job(view.id), place.ledger.nodes(view.id)
    assert sum(node.kind is NodeKind.MASK for node in nodes) == 2
    moved = [replace(node, attempt=1, status=NodeStatus.RUNNING if node.id == "c2.mask" else (
        NodeStatus.SUCCEEDED if node.id in ("extract", "c1.mask") else node.status)) for node in nodes]
    live = ProgressRecord(job_id=view.id, node_id="c2.mask", shot_id="c2", attempt=1, n=1, phase=Phase.SAVING, step=4,
                          total_steps=8, timestep=0.0, fraction=0.5, at_s=0.0)
    rows = {name: (status.value, share, node.message) for name, node, status, share, _ in edit_rows(
        job_view(job, moved, {"c2.mask": live}))}
    assert rows["masking"] == ("running", 0.75, "1 of 2 done, frame 4 of 8")
    assert rows["extracting"][:2] == ("succeeded", 1.0)
    over = replace(view, status=JobStatus.SUCCEEDED, started_at_s=1.0, finished_at_s=3.0)
    assert summary(over) == "edited video, 2.0 s"
