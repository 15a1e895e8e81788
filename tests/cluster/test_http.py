"""The service as a user has it: `reelray serve` in a process of its own, and a client that knows only HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
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

from workflows.media.probe import probe

pytestmark = pytest.mark.cluster

START_S = 240.0
BODY_S = 3
"""A body must arrive within this time."""
FILM: dict[str, Any] = {"title": "Over HTTP", "shots": [{"prompt": "a red circle", "steps": 1}, {"prompt": "a star"}]}


@dataclass(frozen=True)
class Server:
    port: int
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request: status, headers, body."""
        with_body = {"Content-Type": "application/json"} if body is not None else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, {**with_body, **headers})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def events(self, path: str, **headers: str) -> Iterator[tuple[str, str, Any]]:
        """Server-sent events as they come: id, name, data."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"Accept": "text/event-stream", **headers})
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        fields: dict[str, str] = {}
        for raw in reply:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
                fields = {}
        connection.close()


def free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return int(probe_socket.getsockname()[1])


PLACEHOLDER = [f"models.{task}=placeholder" for task in ("text_to_image", "text_to_video", "image_to_video")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the placeholder model."""
    with serving(tmp_path_factory.mktemp("served"), *PLACEHOLDER) as served:
        yield served


@contextlib.contextmanager
def serving(place: Path, *models: str) -> Iterator[Server]:
    """`reelray serve`; Ray's own files go to a short path (its sockets need one)."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as ray_dir:
        settings = [f"data_dir={place / 'state'}", f"ray.temp_dir={ray_dir}", f"http.port={port}", *models]
        words = [word for setting in settings for word in ("--set", setting)]
        process = subprocess.Popen(
            [sys.executable, "-c", "from serve_app.cli import main; main()", "serve", "--profile", "ci",
             "--set", f"http.body_timeout_s={BODY_S}", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        served = Server(port=port, process=process)
        try:
            wait_until_serving(process, port)
            yield served
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def wait_until_serving(process: subprocess.Popen[str], port: int) -> None:
    """It says where it is once models and Director are up."""
    assert process.stdout is not None
    told, end = "", time.monotonic() + START_S
    for line in process.stdout:
        told += line
        if f"http://127.0.0.1:{port}" in line:
            return
        assert time.monotonic() < end, told
    raise AssertionError(f"the server ended:\n{told}")


def test_a_client_submits_hears_steps_and_gets_its_film(server: Server, tmp_path: Path) -> None:
    assert server.ask("GET", "/readyz")[0] == 200
    status, headers, body = server.ask("POST", "/api/films", FILM, **{"Idempotency-Key": "once"})
    assert status == 202, body
    job_url = headers["location"]
    assert server.ask("POST", "/api/films", FILM, **{"Idempotency-Key": "once"})[1]["location"] == job_url

    events = list(server.events(f"{job_url}/events"))
    names = [name for _, name, _ in events]
    assert names[-1] == "done"
    assert events[-1][2]["data"]["success_count"] == 2
    steps = [data["shot"] for _, name, data in events if name == "shot_update" and data["shot"]["total_steps"]]
    assert {shot["id"] for shot in steps} == {"s1", "s2"}, "steps of both shots were heard"
    assert re.fullmatch(r"[0-9a-f]{8}:\d+\.\d+", events[-1][0])
    assert server.ask("GET", f"{job_url}/events", **{"Last-Event-ID": events[-1][0]})[0] == 204

    job = json.loads(server.ask("GET", job_url)[2])
    assert (job["status"], job["progress"]) == ("succeeded", 1.0)
    status, headers, film = server.ask("GET", job["video"]["url"])
    assert (status, headers["content-type"], len(film)) == (200, "video/mp4", job["video"]["size_bytes"])
    assert server.ask("GET", job["video"]["url"], Range="bytes=0-9")[2] == film[:10]
    (tmp_path / "film.mp4").write_bytes(film)
    assert probe(tmp_path / "film.mp4").frames == 2 * 17

    changed = server.ask("PATCH", "/api/films/{}/shots/s2".format(job["id"]), {"caption": "The end"})
    assert (changed[0], json.loads(changed[2])["nodes"]) == (202, ["s2.caption", "compose"])
    assert [name for _, name, _ in server.events(f"{job_url}/events")][-1] == "done"

    refused = server.ask("POST", "/api/films", {"shots": [{"promt": "x"}]})
    assert (refused[0], refused[1]["content-type"]) == (422, "application/problem+json")
    assert server.ask("DELETE", job_url)[0] == 204
    assert server.ask("GET", job_url)[0] == 404


class TestSlowClients:
    """What uvicorn alone does is in tests/unit/http/test_slow_clients.py; here Serve's proxy stands between."""

    POST = "POST /api/films HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n"

    def test_a_body_that_drips_is_ended(self, server: Server) -> None:
        for head, drop in ((f"{self.POST}Content-Length: 1000\r\n\r\n", b"x"),
                           (f"{self.POST}Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as line:
                line.sendall(head.encode())
                reply, end = b"", time.monotonic() + 60
                while b"\r\n\r\n" not in reply:
                    assert time.monotonic() < end, "nobody ended it"
                    line.sendall(drop)
                    with contextlib.suppress(TimeoutError):
                        reply += line.recv(4096)
                assert reply.startswith(b"HTTP/1.1 408 "), reply

    def test_one_that_is_too_long_is_refused(self, server: Server) -> None:
        for head, piece in ((f"{self.POST}Content-Length: 1100001\r\n\r\n", b""),
                            (f"{self.POST}Transfer-Encoding: chunked\r\n\r\n",
                             b"186a0\r\n" + b"x" * 100_000 + b"\r\n")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as line:
                line.sendall(head.encode() + piece * 12)
                assert line.recv(4096).startswith(b"HTTP/1.1 413 ")

    def test_heads_that_drip_and_watchers_that_do_not_read_hold_up_nobody(self, server: Server) -> None:
        film = {"title": "Watched", "shots": [{"prompt": f"shot {number}", "frames": 33} for number in range(4)]}
        job_url = server.ask("POST", "/api/films", film)[1]["location"]
        with contextlib.ExitStack() as lines:
            for text in ["GET /api/jobs HTTP/1.1\r\nHost: 127."] * 100 + [
                    f"GET {job_url}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"] * 100:
                line = lines.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
                line.sendall(text.encode())
            heard = [(name, data) for _, name, data in server.events(f"{job_url}/events")]
            assert heard[-1][0] == "done"
            started = time.monotonic()
            assert server.ask("GET", "/api/jobs")[0] == 200
            assert time.monotonic() - started < 10


def killed(server: Server, title: str) -> None:
    """kill -9 of the first process of this server whose title holds `title`; LookupError when there is none."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                process.kill()
                return
    raise LookupError(f"no process called {title}")


def heard_to_the_end(server: Server, job_url: str, at_event: Callable[[int], None]) -> list[tuple[str, Any]]:
    """All events of a job, by a client that comes back with its last id whenever it is cut off."""
    heard: list[tuple[str, Any]] = []
    last, end = "", time.monotonic() + START_S
    while not heard or heard[-1][0] != "done":
        assert time.monotonic() < end, "the job did not end in time"
        try:
            for event_id, name, data in server.events(f"{job_url}/events", **({"Last-Event-ID": last} if last else {})):
                last = event_id or last
                heard.append((name, data))
                at_event(len(heard))
        except (OSError, http.client.HTTPException, AssertionError):
            time.sleep(0.2)  # not up again yet
    return heard


@pytest.mark.slow
@pytest.mark.chaos
def test_a_client_that_comes_back_misses_nothing_when_ingress_director_and_board_are_killed(server: Server) -> None:
    prompts = [{"prompt": f"shot {number}", "frames": 33} for number in range(24)]
    job_url = server.ask("POST", "/api/films", {"title": "Killed", "shots": prompts})[1]["location"]
    # The ingress last: while it is away, the film goes on and nobody could say when to strike next.
    victims = {8: "ServeReplica:reelray:director", 20: "ProgressBoard", 30: "ServeReplica:reelray:ingress"}
    struck = []

    def strike(count: int) -> None:
        if count in victims:
            struck.append((victims[count], json.loads(server.ask("GET", job_url)[2])["status"]))
            killed(server, victims[count])

    heard = heard_to_the_end(server, job_url, strike)
    assert struck == [(victim, "running") for victim in victims.values()], "all three died while the film was made"
    assert heard[-1][1]["data"]["success_count"] == len(prompts)
    shots = [data["shot"] for name, data in heard if name == "shot_update"]
    done = {shot["id"] for shot in shots if shot["status"] == "succeeded"}
    assert len(done) == len(prompts), "every shot's end was heard"
    assert [name for name, _ in heard].count("done") == 1
    assert {f"clip {n}/24" for n in range(1, 25)} <= {data["message"] for name, data in heard if name == "progress"}
