"""`reelray ... --server URL` against a real `reelray serve`: two processes that share nothing but HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.test_http import Server, free_port, serving
from workflows.media.decode import read_frames, write_png

pytestmark = pytest.mark.cluster

STEPS = 8
FILM = (f"title: From afar\ndefaults: {{steps: {STEPS}}}\nshots:\n"
        "  - {prompt: a red circle moves left over a blue background, image: pictures/first.png}\n"
        "  - prompt: a yellow star falls down over a black background\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the embedded model: its steps are real."""
    with serving(tmp_path_factory.mktemp("served")) as served:
        yield served


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    write_png(np.full((64, 96, 3), (20, 40, 200), np.uint8), tmp_path / "pictures" / "first.png")
    (tmp_path / "film.yaml").write_text(FILM)
    return tmp_path


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from serve_app.cli import main; main()", *words]


def run(place: Path, *words: str, url: str = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **({"REELRAY_SERVER": url} if url else {})}
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, cwd=place, env=environ,
                          check=False)


def test_a_film_is_rendered_on_the_server_and_ends_here(server: Server, place: Path) -> None:
    """With a local picture: every step is shown, the film is the one that GET video gives, no Ray is started here."""
    url = f"http://127.0.0.1:{server.port}"
    done = run(place, "render", "film.yaml", "-o", "film.mp4", "--json", "--server", url)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for shot in ("s1", "s2"):
        told = [(line["attempt"], line["step"]) for line in lines if line["event"] == "step" and line["shot"] == shot
                and line["phase"] == "diffusion"]
        assert told == sorted(told)
        last = sorted({step for attempt, step in told if attempt == told[-1][0]})
        assert last in ([*range(STEPS + 1)], [*range(1, STEPS + 1)]), told
    shares = [line["job"]["progress"] for line in lines if line["event"] == "job"]
    assert shares == sorted(shares)
    assert (lines[-1]["event"], lines[-1]["status"], lines[-1]["path"]) == ("result", "succeeded", "film.mp4")
    job_id = lines[-1]["job"]["id"]
    film = (place / "film.mp4").read_bytes()
    assert film == server.ask("GET", f"/api/jobs/{job_id}/video")[2]
    assert len(read_frames(place / "film.mp4")) == 2 * 17
    picture = (place / "pictures" / "first.png").read_bytes()
    assert server.ask("GET", f"/api/jobs/{job_id}/shots/s1/keyframe")[2] == picture

    again = run(place, "render", "film.yaml", "-o", "again.mp4", url=url)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "again.mp4"
    assert (place / "again.mp4").read_bytes() == film
    listed = json.loads(run(place, "jobs", "--json", url=url).stdout)
    assert [job["id"] for job in listed if job["title"] == "From afar"] == [job_id]
    assert "succeeded" in run(place, "status", job_id, url=url).stdout
    assert "s1.clip" in run(place, "log", job_id, "-f", url=url).stdout


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_on_the_server(server: Server, place: Path) -> None:
    """And the same command joins it, cancel and retry reach it."""
    url = f"http://127.0.0.1:{server.port}"
    # So long that it is not over before the signal arrives, which is sent at the first sign of the job.
    shots = "".join(f"  - prompt: a red circle\n    steps: {90 + number}\n" for number in range(12))
    (place / "long.yaml").write_text(f"title: Long\nshots:\n{shots}")
    # Whoever runs the tests in the background of a shell has them ignore Ctrl-C, and what they start inherits that.
    process = subprocess.Popen(command("render", "long.yaml", "--json", "--server", url), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=place,
                               preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))  # noqa: PLW1509
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] != "note":
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert f"-f --server {url}` follows it" in said
    [job_id] = [job["id"] for job in json.loads(server.ask("GET", "/api/jobs")[2])["jobs"] if job["title"] == "Long"]
    assert json.loads(server.ask("GET", f"/api/jobs/{job_id}")[2])["status"] in ("queued", "running", "succeeded")
    joined = run(place, "render", "long.yaml", "-o", "long.mp4", "--json", "--server", url)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert json.loads(joined.stdout.splitlines()[-1])["job"]["id"] == job_id
    assert f"{job_id}: succeeded" in run(place, "cancel", job_id, "--server", url).stdout
    forced = run(place, "retry", job_id, "--shots", "s2", "--force", "-o", "forced.mp4", "--server", url)
    assert (forced.returncode, forced.stdout.splitlines()[-1]) == (0, "forced.mp4"), forced.stderr


def test_a_server_that_is_not_there_is_named_at_once(place: Path) -> None:
    url, began_s = f"http://127.0.0.1:{free_port()}", time.monotonic()
    done = run(place, "render", "film.yaml", "--server", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{url} does not answer as it should" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began_s < 30


@pytest.mark.slow
def test_a_server_that_is_started_again_goes_on_with_the_film_and_so_does_the_command(
        tmp_path_factory: pytest.TempPathFactory, place: Path) -> None:
    """The server is stopped in the middle and started again on its port; the command waits, and says so."""
    state, port = tmp_path_factory.mktemp("restarted"), free_port()
    shots = "".join(f"  - prompt: a red circle\n    steps: {90 + number}\n" for number in range(16))
    (place / "long.yaml").write_text(f"title: Long\nshots:\n{shots}")
    with serving(state, port=port):
        process = subprocess.Popen(command("render", "long.yaml", "-o", "long.mp4", "--json", "--server",
                                           f"http://127.0.0.1:{port}"), stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, cwd=place)
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline())]
        while told[-1]["event"] != "step" or told[-1]["step"] < 5:
            told.append(json.loads(process.stdout.readline()))
    # It stays away until the command has noticed: that looks now and then, and a server may start faster.
    while "trying again" not in told[-1].get("message", ""):
        line = process.stdout.readline()
        assert line, f"the film ended before the server was away: {told[-1]}"
        told.append(json.loads(line))
    with serving(state, port=port):
        # Not `communicate`: it would lose what `readline` has read ahead.
        rest = process.stdout.read()
        assert process.wait(timeout=240) == 0, rest
    told += [json.loads(line) for line in rest.splitlines()]
    notes = [line["message"] for line in told if line["event"] == "note"]
    assert notes[-1] == "the server answers again"
    assert told[-1]["status"] == "succeeded"
    assert (place / "long.mp4").stat().st_size
