"""The command line as a user has it: processes of its own, real Ray, the embedded model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.load import load_cards
from configs.settings import Settings
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType
from workflows.media.decode import read_frames, read_picture
from workflows.media.probe import probe
from workflows.types import JobStatus

pytestmark = pytest.mark.cluster

WORLD = load_cards(Settings())["sketch"].world
SHOTS = [("red", "blue"), ("yellow", "black"), ("green", "white"), ("white", "purple")]
FILM = "title: Colours\nseed: 3\ndefaults: {steps: 8}\nshots:\n" + "".join(
    f"  - prompt: a {colour} circle moves left over a {background} background\n" for colour, background in SHOTS)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory with a storyboard; Ray's own files go to a short path (its sockets need one)."""
    (tmp_path / "film.yaml").write_text(FILM)
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as directory:
        (tmp_path / "ray").symlink_to(directory)
        yield tmp_path


def command(place: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", "from serve_app.cli import main; main()", *words, "--profile", "ci", "--set",
            f"data_dir={place / 'state'}", "--set", f"ray.temp_dir={(place / 'ray').resolve()}"]


def run(place: Path, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(place, *words), capture_output=True, text=True, timeout=timeout_s, cwd=place,
                          check=False)


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(place, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            cwd=place, start_new_session=True)


def render(place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run(place, "render", str(place / "film.yaml"), "-o", str(place / "film.mp4"), *more)


def ledger(place: Path) -> Ledger:
    return Ledger(f"sqlite:///{place / 'state' / 'state.db'}")


def until(condition: Callable[[], bool], timeout_s: float = 180) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not get there in time"
        time.sleep(0.1)


def clips_done(place: Path) -> int:
    """Nodes that have succeeded so far; read beside the running render, without opening a ledger of our own."""
    path = place / "state" / "state.db"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        try:
            query = "SELECT count(*) FROM event WHERE type = ?"
            return int(connection.execute(query, (EventType.NODE_SUCCEEDED.value,)).fetchone()[0])
        except sqlite3.OperationalError:  # not migrated yet
            return 0


def nothing_started_after_its_commit(place: Path) -> None:
    book = ledger(place)
    done: set[str] = set()
    for event in book.events(book.jobs(limit=1).jobs[0].id, 0, 5000):
        if event.type in {EventType.NODE_STARTED, EventType.NODE_SUCCEEDED, EventType.NODE_CACHED}:
            assert event.node_id not in done, f"{event.type} of {event.node_id} after its commit"
        if event.type in {EventType.NODE_SUCCEEDED, EventType.NODE_CACHED}:
            done.add(event.node_id)
    book.close()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    me = psutil.Process(process.pid)
    return [me, *me.children(recursive=True)]


def test_every_shot_of_the_film_shows_the_colours_of_its_own_prompt(place: Path) -> None:
    """Four shots over two replicas; background and object colour are measured in the final film."""
    assert WORLD is not None
    done = render(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(place / "film.mp4")
    assert probe(place / "film.mp4").codec == "h264"
    frames_THWC = read_frames(place / "film.mp4")
    length = len(frames_THWC) // len(SHOTS)
    for number, (colour, background) in enumerate(SHOTS):
        shot_THWC = frames_THWC[number * length:(number + 1) * length].astype(int)
        border = np.median(shot_THWC[:, [0, 1, -2, -1]].reshape(-1, 3), axis=0)
        nearest = min(WORLD.backgrounds, key=lambda name: np.abs(border - WORLD.backgrounds[name]).sum())
        assert nearest == background, f"shot {number + 1}: border {border}"
        away = np.abs(shot_THWC - border).sum(axis=-1) > 150
        assert away.any(), f"shot {number + 1} shows no object"
        inside = np.median(shot_THWC[away], axis=0)
        seen = min(WORLD.colours, key=lambda name: np.abs(inside - WORLD.colours[name]).sum())
        assert seen == colour, f"shot {number + 1}: object {inside}"


def test_the_same_command_again_takes_no_model_and_looking_at_jobs_needs_no_ray(place: Path) -> None:
    assert "no jobs yet" in run(place, "jobs").stdout
    assert render(place).returncode == 0
    first = (place / "film.mp4").read_bytes()
    (place / "film.mp4").unlink()
    again = render(place)
    assert again.returncode == 0
    assert "starting Ray" not in again.stdout
    assert (place / "film.mp4").read_bytes() == first

    [job] = json.loads(run(place, "jobs", "--json").stdout)
    assert job["status"] == "succeeded"
    assert "succeeded" in run(place, "status", job["id"]).stdout
    assert "s1.clip" in run(place, "log", job["id"]).stdout
    unknown = run(place, "status", "nothing")
    assert unknown.returncode == 2
    assert "no job 'nothing'; `reelray jobs` lists them" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(place: Path) -> None:
    process = start(place, "render", str(place / "film.yaml"), "-o", str(place / "film.mp4"))
    until(lambda: clips_done(place) >= 1)
    processes = family(process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on" in output
    psutil.wait_procs(processes, timeout=20)
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    done = render(place)
    assert done.returncode == 0, done.stdout + done.stderr
    nothing_started_after_its_commit(place)


@pytest.mark.slow
def test_kill_9_of_every_process_mid_film_and_the_same_command_goes_on(place: Path) -> None:
    process = start(place, "render", str(place / "film.yaml"), "-o", str(place / "film.mp4"))
    until(lambda: clips_done(place) >= 1)
    for victim in reversed(family(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    committed = clips_done(place)
    done = render(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert clips_done(place) > committed
    nothing_started_after_its_commit(place)
    book = ledger(place)
    assert book.jobs(limit=1).jobs[0].status is JobStatus.SUCCEEDED
    book.close()


def test_json_output_carries_true_steps_and_ends_with_the_path(place: Path) -> None:
    done = render(place, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    for shot in ("s1", "s2", "s3", "s4"):
        clip = [event["step"] for event in steps if event["node"] == f"{shot}.clip" and event["phase"] == "diffusion"]
        assert sorted(set(clip)) == [*range(min(clip), 9)], "a step was not shown"
        assert min(clip) <= 1
        assert clip == sorted(clip)
    shares = [event["job"]["progress"] for event in events if event["event"] == "job"]
    assert shares == sorted(shares)
    assert events[-1]["event"] == "result"
    assert events[-1]["path"] == str(place / "film.mp4")


@pytest.mark.slow
def test_pictures_alone_come_as_files_and_show_their_shots(place: Path) -> None:
    done = run(place, "render", str(place / "film.yaml"), "--stages", "images", "-o", str(place / "stills"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(place / "stills")
    assert sorted(path.name for path in (place / "stills").iterdir()) == ["s1.png", "s2.png", "s3.png", "s4.png"]
    for number, (_, background) in enumerate(SHOTS, start=1):
        frame_HWC = read_picture(place / "stills" / f"s{number}.png")
        assert frame_HWC.shape == (128, 192, 3)
        corner = np.median(frame_HWC[:8, :8].reshape(-1, 3), axis=0)
        distances = {name: float(np.abs(corner - colour).sum()) for name, colour in WORLD.backgrounds.items()}
        assert min(distances, key=distances.__getitem__) == background


@pytest.mark.slow
def test_a_draft_promoted_shot_by_shot_is_the_final_film(place: Path) -> None:
    """Four and eight real steps: same bytes as the film that was final at once, which renders nothing."""
    assert render(place, "--tier", "draft").returncode == 0
    [job] = ledger(place).jobs().jobs
    draft = (place / "film.mp4").read_bytes()
    for shots in (("--shots", "s2,s3"), ()):
        promoted = run(place, "promote", job.id, "-o", str(place / "promoted.mp4"), *shots)
        assert promoted.returncode == 0, promoted.stderr
        assert ("s1 (draft)" in promoted.stdout) == bool(shots)
    final = render(place, "--json")
    shots = json.loads(final.stdout.splitlines()[-1])["job"]["shots"]
    assert all(node["cached"] for shot in shots for node in shot["nodes"])
    assert (place / "film.mp4").read_bytes() == (place / "promoted.mp4").read_bytes() != draft
    again = render(place, "--tier", "draft")
    assert again.returncode == 0, again.stderr
    assert (place / "film.mp4").read_bytes() == draft, "the film before it was promoted is another job by now"
