"""`run_video_edit` as a program calls it: files, status and log, however it ends."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from configs.settings import Settings
from serve_app.edit_library import get_video_edit_status, run_video_edit
from tests.edit_clips import red_ball, write_source
from tests.fakes_edits import request_for
from workflows.edit_status import EditState
from workflows.media.probe import probe

ORDER = [state.value for state in EditState]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(red_ball(24).frames_THWC, tmp_path / "ball.mp4")


def test_an_edit_from_the_video_to_the_files_with_true_progress(
    tmp_path: Path, settings: Settings, source: Path,
) -> None:
    out = tmp_path / "out"
    seen: list[dict] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            path = out / "status.json"
            if path.is_file():
                seen.append(json.loads(path.read_text()))  # never half a file

    watcher = threading.Thread(target=look)
    watcher.start()
    run_video_edit(request_for(source, output_dir=str(out)), settings=settings)
    done.set()
    watcher.join()
    told = get_video_edit_status("edit", settings=settings)  # finds the directory itself
    assert (told.status, told.progress, told.error) == (EditState.FINISHED, 1.0, "")
    assert (told.current_frame, told.total_frames) == (24, 24)
    assert probe(Path(told.output_video_path)).frames == probe(Path(told.mask_preview_path)).frames == 24
    assert sorted(path.name for path in out.iterdir()) == [
        "edit_flicker.json", "edit_flicker.png", "edit_log.txt", "edit_mask.mp4", "edit_output.mp4", "status.json"]
    assert "save: done in" in Path(told.logs_path).read_text()
    states = [row["status"] for row in seen]
    assert states == sorted(states, key=ORDER.index)
    assert [row["progress"] for row in seen] == sorted(row["progress"] for row in seen)
    assert seen[0]["status"] == "queued"
    before = time.monotonic()
    run_video_edit(request_for(source, output_dir=str(tmp_path / "again")), settings=settings)
    assert time.monotonic() - before < 2  # everything was found
    assert (tmp_path / "again" / "edit_output.mp4").read_bytes() == (out / "edit_output.mp4").read_bytes()


def test_whatever_goes_wrong_ends_in_the_status_and_the_log(tmp_path: Path, settings: Settings, source: Path) -> None:
    run_video_edit(request_for(source, job_id="hair", mask_prompt="hair"), settings=settings)
    told = get_video_edit_status("hair", tmp_path, settings=settings)
    assert told.status is EditState.FAILED
    assert told.error.startswith("mask_prompt: 'hair': the classical tracker knows colours, points and boxes")
    run_video_edit(request_for(source, job_id="gone", input_video_path="nowhere.mp4"), settings=settings)
    told = get_video_edit_status("gone", tmp_path, settings=settings)
    assert told.error == "input_video_path: nowhere.mp4: no such file"
    assert "Traceback" in Path(told.logs_path).read_text()
    run_video_edit(request_for(source, job_id="none", mask_prompt="yellow thing"), settings=settings)
    told = get_video_edit_status("none", tmp_path, settings=settings)
    assert told.status is EditState.FAILED
    assert "nothing was found for 'yellow thing'" in told.error
    run_video_edit(request_for(source, job_id="card", tracker="sam4"), settings=settings)
    assert get_video_edit_status("card", settings=settings).error == (
        "tracker: there is no card 'sam4'; nearest valid: sam3")


def test_a_job_that_nobody_knows_is_failed_and_says_so(tmp_path: Path, settings: Settings) -> None:
    told = get_video_edit_status("ghost", settings=settings)
    assert (told.status, told.error) == (EditState.FAILED, (
        "unknown job 'ghost': no edit with this id was run on this machine; name its output_dir"))
    assert "there is no status.json" in get_video_edit_status("ghost", tmp_path, settings=settings).message
    (tmp_path / "status.json").write_text("{")
    assert "cannot be read" in get_video_edit_status("ghost", tmp_path, settings=settings).message
    (tmp_path / "status.json").write_text('{"job_id": "other"}')
    assert "is of job 'other'" in get_video_edit_status("ghost", tmp_path, settings=settings).message
    assert get_video_edit_status("../ghost", settings=settings).status is EditState.FAILED
