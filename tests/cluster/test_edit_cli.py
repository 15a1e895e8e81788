"""`reelray edit` as a user has it: a process of its own, real Ray, the models without weights, a clip whose truth is
known.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cluster.test_cli import ledger, place, run, start, until  # noqa: F401 - a fixture among them
from tests.edit_clips import Truth, red_ball, write_source
from workflows.durable.rows import EventType
from workflows.media.decode import read_frames
from workflows.media.probe import probe

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FRAMES = 60
WISH = ["--mask-prompt", "red ball", "--edit-prompt", "make it blue", "--edit-size", "64", "--chunk-frames", "16"]


@pytest.fixture(scope="module")
def truth() -> Truth:
    return red_ball(FRAMES)


@pytest.fixture
def clip(place: Path, truth: Truth) -> Path:  # noqa: F811
    return write_source(truth.frames_THWC, place / "ball.mp4")


def edit(place: Path, *more: str) -> subprocess.CompletedProcess[str]:  # noqa: F811
    return run(place, "edit", "ball.mp4", "-o", "out.mp4", *WISH, *more)


def test_the_ball_turns_blue_and_nothing_else_does(place: Path, clip: Path, truth: Truth) -> None:  # noqa: F811
    """Inside the true mask the colour is another one; outside it, away from the rim, the picture is the source's."""
    done = edit(place, "--all-files")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == "out.mp4"
    before, after = read_frames(clip).astype(int), read_frames(place / "out.mp4").astype(int)
    assert after.shape == before.shape
    inside = truth.masks_THW > 0
    red = (before[..., 0] > before[..., 2] + 60) & inside
    blue = after[..., 2] > after[..., 0] + 40
    assert (blue & red).sum() / red.sum() > 0.99, "no rim of the old colour stays"
    away = np.stack([cv2.dilate(mask, np.ones((13, 13), np.uint8)) for mask in truth.masks_THW]) == 0
    error = np.square((after - before)[away]).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40
    assert probe(place / "out.mp4").fps == probe(clip).fps
    assert probe(place / "out_mask.mp4").frames == FRAMES
    assert json.loads((place / "out_flicker.json").read_text())["warp_error"]
    assert (place / "out_flicker.png").stat().st_size
    assert "save: done" in (place / "out_log.txt").read_text()
    again = edit(place)
    assert again.returncode == 0, again.stderr
    assert "starting Ray" not in again.stdout, "the job is found finished"
    listed = json.loads(run(place, "jobs", "--json").stdout)
    assert [(job["kind"], job["status"]) for job in listed] == [("edit", "succeeded")]
    nothing = run(place, "edit", "ball.mp4", "-o", "none.mp4", "--mask-prompt", "yellow ball", "--edit-prompt",
                  "make it blue", "--edit-size", "64")
    assert nothing.returncode == 1
    assert "nothing was found for 'yellow ball'" in " ".join(nothing.stderr.split())
    assert not (place / "none.mp4").exists()


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(place: Path, clip: Path) -> None:  # noqa: F811
    words = ["edit", "ball.mp4", "-o", "out.mp4", *WISH, "--set", "cpu_slots=1"]
    process = start(place, *words)
    path = place / "state" / "state.db"
    until(path.exists)
    book = ledger(place)

    def finished() -> list[str]:
        return [event.node_id for job in book.jobs(limit=1).jobs for event in book.events(job.id, 0, 5000)
                if event.type is EventType.NODE_SUCCEEDED]

    until(lambda: "c1.mask" in finished() or process.poll() is not None)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (130, 0), output  # 0: it was over before the signal came
    if process.returncode == 130:
        assert "what is finished is kept, the same command goes on" in " ".join(output.split())
    done = run(place, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    job = book.jobs(limit=1).jobs[0].id
    over: set[str] = set()
    for event in book.events(job, 0, 5000):
        if event.type in (EventType.NODE_STARTED, EventType.NODE_SUCCEEDED):
            assert event.node_id not in over, f"{event.node_id} was done, and done again"
        if event.type is EventType.NODE_SUCCEEDED:
            over.add(event.node_id)
    book.close()
