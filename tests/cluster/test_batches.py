"""`reelray batch` as a user has it: stopped, killed, paused and resumed with real Ray, and no clip rendered twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_cli import clips_done, family, ledger, run, start, until
from workflows.durable.rows import EventType
from workflows.media.probe import probe

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

BOARD = "seed: 3\ndefaults: {{steps: 14}}\nshots:\n" + "".join(
    f"  - prompt: a {{colour}} circle moves {way} over a white background\n" for way in ("left", "right"))
COLOURS = ("red", "yellow", "green", "purple")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Four films of two shots; Ray's own files go to a short path (its sockets need one)."""
    (tmp_path / "boards").mkdir()
    for colour in COLOURS:
        (tmp_path / "boards" / f"{colour}.yaml").write_text(BOARD.format(colour=colour))
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as directory:
        (tmp_path / "ray").symlink_to(directory)
        yield tmp_path


def words(place: Path, *more: str) -> list[str]:
    return ["batch", str(place / "boards"), "-o", str(place / "films"), *more]


def listed(place: Path) -> dict[str, Any]:
    [batch] = json.loads(run(place, "batch", "list", "--json").stdout)
    found: dict[str, Any] = batch
    return found


def commits(place: Path) -> Counter[tuple[str, str]]:
    """How often each node of each job was made, and nothing started after that."""
    book, made = ledger(place), Counter[tuple[str, str]]()
    for job in book.jobs(limit=100).jobs:
        for event in book.events(job.id, 0, 5000):
            if event.type is EventType.NODE_STARTED:
                assert not made[job.id, event.node_id], f"{event.node_id} of {job.id} started after its commit"
            if event.type in (EventType.NODE_SUCCEEDED, EventType.NODE_CACHED):
                made[job.id, event.node_id] += 1
    book.close()
    return made


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output


def test_a_batch_survives_ctrl_c_kill_and_pause_and_renders_nothing_twice(place: Path) -> None:
    # 1. Ctrl-C
    process = start(place, *words(place, "--concurrency", "2"))
    until(lambda: clips_done(place) >= 1)
    process.send_signal(signal.SIGINT)
    assert "the same command goes on" in ended(process)
    assert process.returncode == 130
    # 2. kill -9 of everything
    before = clips_done(place)
    process = start(place, *words(place))
    until(lambda: clips_done(place) > before)
    for victim in reversed(family(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
    ended(process)
    # 3. paused from another terminal
    before = clips_done(place)
    batch_id = listed(place)["id"]
    process = start(place, *words(place))
    until(lambda: clips_done(place) > before)
    assert "paused" in run(place, "batch", "pause", batch_id).stdout
    output = ended(process)
    assert process.returncode == 130, output
    assert f"reelray batch resume {batch_id}" in output
    paused = clips_done(place)
    again = run(place, *words(place))
    assert (again.returncode, "starting Ray" in again.stdout) == (130, False), again.stdout + again.stderr
    assert clips_done(place) == paused
    # 4. to its end
    done = run(place, "batch", "resume", batch_id, "-o", str(place / "films"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded: 4 of 4 films" in done.stdout
    assert {path.name for path in (place / "films").iterdir()} == {f"{colour}.mp4" for colour in COLOURS}
    assert all(probe(path).codec == "h264" for path in (place / "films").iterdir())
    made = commits(place)
    assert set(made.values()) == {1}
    assert len(made) == 4 * 3
    only_what_changed_is_rendered(place, batch_id)


def only_what_changed_is_rendered(place: Path, batch_id: str) -> None:
    """And the report tells what it cost, and what was saved."""
    text = BOARD.format(colour="red").replace("circle moves left", "star moves left")
    (place / "boards" / "red.yaml").write_text(text)
    changed = run(place, *words(place, "--json"))
    assert changed.returncode == 0, changed.stderr
    report = json.loads(run(place, "batch", "report", batch_id, "--price", "1", "--json").stdout)
    rows = {(row["file"], row["shot"], row["replaced"]): row for row in report["rows"]}
    fresh, kept, old = (rows["red.yaml", shot, gone] for shot, gone in (("s1", False), ("s2", False), ("s2", True)))
    assert fresh["gpu_seconds_useful"] > 0 == kept["gpu_seconds_useful"]
    assert kept["gpu_seconds_saved"] == pytest.approx(old["gpu_seconds_useful"], abs=0.01)
    assert report["total"]["cost"] > 0
