"""`reelray serve` on every address: keys at the door, a budget that stops a film and lets it go on, metrics, logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.test_http import START_S, Server, free_port
from workflows.durable.database import Database
from workflows.durable.keys import Keys, Role

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SHOTS = [{"prompt": f"shot {number}"} for number in range(12)]


@dataclass(frozen=True)
class Studio:
    server: Server
    keys: Keys
    log: Path

    def ask(self, token: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        status, _, reply = self.server.ask(method, path, body, Authorization=f"Bearer {token}")
        return status, json.loads(reply) if reply[:1] in (b"{", b"[") else reply

    def until(self, good: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not good():
            assert time.monotonic() < end, self.log.read_text()
            assert self.server.process.poll() is None, self.log.read_text()
            time.sleep(0.1)


def command(*settings: str) -> list[str]:
    return [sys.executable, "-c", "from serve_app.cli import main; main()", "serve", "--profile", "ci",
            *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    place, port = tmp_path_factory.mktemp("keyed"), free_port()
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as ray_dir:
        models = [f"models.{task}=placeholder" for task in ("text_to_image", "text_to_video", "image_to_video")]
        words = command(f"data_dir={place}", f"ray.temp_dir={ray_dir}", f"http.port={port}", "http.host=0.0.0.0",
                        "log_format=json", *models)
        refused = subprocess.run(words, capture_output=True, text=True, timeout=START_S, check=False)
        assert (refused.returncode, "there are none" in refused.stderr) == (2, True), refused.stderr
        keys = Keys(Database(f"sqlite:///{place / 'state.db'}"))
        keys.create("somebody", Role.ADMIN)
        with (place / "log").open("w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        studio = Studio(server=Server(port=port, process=process), keys=keys, log=place / "log")
        try:
            studio.until(lambda: "serving at" in studio.log.read_text())
            yield studio
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def test_a_film_stops_at_its_keys_budget_and_goes_on_when_that_grew(studio: Studio) -> None:
    issued = studio.keys.create("small purse", Role.USER, gpu_budget_s=0.01)
    studio.until(lambda: studio.ask(issued.token, "GET", "/api/jobs")[0] == 200)
    assert studio.server.ask("GET", "/api/jobs")[0] == 401
    assert studio.server.ask("GET", "/readyz")[0] == 200

    status, made = studio.ask(issued.token, "POST", "/api/films", {"title": "Purse", "shots": SHOTS})
    assert status == 202
    url = f"/api/jobs/{made['id']}"
    events = list(studio.server.events(f"{url}/events", Authorization=f"Bearer {issued.token}"))
    assert events[-1][1] == "done"
    job = studio.ask(issued.token, "GET", url)[1]
    assert job["status"] in ("failed", "partial")
    assert "small purse has used" in json.dumps(job["errors"])
    rendered = sum(shot["status"] == "succeeded" for shot in job["shots"])
    assert 0 < rendered < len(SHOTS)

    spent = studio.keys.spent_s()[issued.key.id]
    assert spent >= 0.01
    studio.keys.change(issued.key.id, gpu_budget_s=1000.0)
    assert studio.ask(issued.token, "POST", f"{url}/retry")[0] == 202
    studio.until(lambda: studio.ask(issued.token, "GET", url)[1]["status"] == "succeeded")
    assert studio.ask(issued.token, "GET", f"{url}/video")[0] == 200

    other = studio.keys.create("other", Role.USER)
    studio.until(lambda: studio.ask(other.token, "GET", "/api/jobs")[0] == 200)
    assert studio.ask(other.token, "GET", url)[0] == 404
    assert studio.ask(other.token, "GET", "/metrics")[0] == 403

    reader = studio.keys.create("prometheus", Role.READ)
    studio.until(lambda: studio.ask(reader.token, "GET", "/metrics")[0] == 200)
    time.sleep(5.1)  # a page is remembered that long
    page = studio.ask(reader.token, "GET", "/metrics")[1].decode()
    assert 'reelray_attempts_total{kind="clip",outcome="useful"} 12' in page
    assert 'reelray_jobs{status="succeeded"} 1' in page

    lines = [json.loads(line) for line in studio.log.read_text().splitlines() if line.startswith("{")]
    ended = {line["shot_id"] for line in lines if line.get("type") == "node.succeeded" and line["job_id"] == made["id"]}
    assert {shot["id"] for shot in job["shots"]} <= ended

    studio.keys.revoke(issued.key.id)
    studio.until(lambda: studio.ask(issued.token, "GET", "/api/jobs")[0] == 401)


STRANGER = """
import ray
ray.init(address={address!r}, logging_level="ERROR", log_to_driver=False)
print("let in", ray.get(ray.remote(lambda: 7).remote(), timeout=20))
"""


def test_ray_runs_nobodys_code_without_the_token(studio: Studio) -> None:
    """The token is the owner's alone to read, and a driver on the same machine without it is refused."""
    token = studio.log.parent / "ray_token"
    assert token.stat().st_mode & 0o777 == 0o600
    (gcs,) = [process for process in psutil.Process(studio.server.process.pid).children(recursive=True)
              if process.name() == "gcs_server"]
    ports = {found.laddr.port for found in gcs.net_connections("tcp") if found.status == psutil.CONN_LISTEN}
    refusals = []
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "HOME": str(studio.log.parent)}
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    for port in ports:
        code = STRANGER.format(address=f"127.0.0.1:{port}")
        try:
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                                  timeout=60, check=False)
        except subprocess.TimeoutExpired:
            continue  # it still knocks
        assert "let in" not in done.stdout
        refusals.append(done.stderr)
    assert [text for text in refusals if "token-auth" in text], refusals
