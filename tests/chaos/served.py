"""`reelray serve` as a victim: started with ports and files of its own, and known by its processes.

Nothing here is sent to a process that is not a child of a server that was started here.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

import psutil

START_S = 300.0
"""A loaded machine of two cores needs a minute; longer than this is a failure."""
STOP_S = 90.0
CLI = ("-c", "from serve_app.cli import main; main()", "serve")
READY = "/readyz"


class Component(StrEnum):
    """Who may be struck. Raylets are not among them: a machine of one node is lost with its only one."""

    DIRECTOR = "director"
    MODEL = "model replica"
    MEDIA = "media replica"
    INGRESS = "ingress"
    BOARD = "progress board"
    SERVER = "whole server"
    DATABASE = "database"


TITLES = {
    Component.DIRECTOR: "ServeReplica:reelray:director", Component.MODEL: "ServeReplica:reelray:model-",
    Component.MEDIA: "ServeReplica:reelray:media", Component.INGRESS: "ServeReplica:reelray:ingress",
    Component.BOARD: "ray::ProgressBoard",
}
"""What the titles of their processes hold."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, path: str = READY, *, timeout_s: float = 5.0) -> bool:
    """Whether a GET is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def until(good: Callable[[], object], limit_s: float, what: str) -> None:
    """Wait for it. Raises TimeoutError."""
    end_s = time.monotonic() + limit_s
    while not good():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(0.05)


class Served:
    """One server at one place; it can be killed and started again there."""

    def __init__(self, place: Path, settings: Sequence[str], *, program: Sequence[str] = CLI) -> None:
        """`place`: where its state stays; `settings`: `dotted.key=value`; `program`: what Python runs."""
        self.place = place
        self.port = free_port()
        self._settings = tuple(settings)
        self._program = tuple(program)
        self._process: subprocess.Popen[bytes] | None = None
        self._ray_dirs: list[str] = []
        self.starts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """All that it is told by `--set`, but for Ray's directory."""
        return (f"data_dir={self.place / 'state'}", f"http.port={self.port}", *self._settings)

    def start(self) -> None:
        """Start it and wait until it answers."""
        # Ray's own files go to a short path: its sockets need one.
        ray_dir = tempfile.mkdtemp(prefix="rc", dir="/tmp")
        self._ray_dirs.append(ray_dir)
        words = [word for setting in (*self.overrides, f"ray.temp_dir={ray_dir}") for word in ("--set", setting)]
        self.place.mkdir(parents=True, exist_ok=True)
        with (self.place / f"server-{self.starts}.log").open("wb") as log:
            self._process = subprocess.Popen([sys.executable, *self._program, "--profile", "ci", *words], stdout=log,
                                             stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                             start_new_session=True)
        self.starts += 1
        end_s = time.monotonic() + START_S
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the server did not start:\n{self.log()}")
            time.sleep(0.3)

    @property
    def is_running(self) -> bool:
        """The command has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def log(self, lines: int = 40) -> str:
        """The last lines of the newest life."""
        text = (self.place / f"server-{self.starts - 1}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def processes(self, component: Component) -> list[psutil.Process]:
        """The living processes of one component, oldest first."""
        if self._process is None:
            return []
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if TITLES[component] in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def kill_all(self) -> None:
        """kill -9 of the command and of all of Ray that it started."""
        assert self._process is not None
        victims: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            victims = [root, *root.children(recursive=True)]
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        self._process.wait(STOP_S)
        psutil.wait_procs(victims, STOP_S)
        self._process = None

    def stop(self) -> None:
        """End it in order, or else all the same; forget Ray's files."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        if self._process is not None:
            self.kill_all()
        for ray_dir in self._ray_dirs:
            shutil.rmtree(ray_dir, ignore_errors=True)

    def __enter__(self) -> Served:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def freeze(process: psutil.Process, seconds: float) -> None:
    """SIGSTOP, a while, SIGCONT."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
