"""The real server in a process of its own, which a test may stop and start again, and Debian's Chromium before it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
START_S = 240.0


@dataclass
class Served:
    """`reelray serve` with the embedded model; the same state and address after every start."""

    place: Path
    ray_dir: Path
    port: int
    settings: tuple[str, ...] = ()
    """Further ones, as `key=value`."""
    process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = (f"data_dir={self.place / 'state'}", f"ray.temp_dir={self.ray_dir}", f"http.port={self.port}",
                    *self.settings)
        words = ["--profile", "ci", *(word for setting in settings for word in ("--set", setting))]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from serve_app.cli import main; main()", "serve", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        assert self.process.stdout is not None
        told, end = "", time.monotonic() + START_S
        for line in self.process.stdout:
            told += line
            if "ready;" in line:
                return
            assert time.monotonic() < end, told
        raise AssertionError(f"the server ended:\n{told}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.communicate(timeout=90)
            self.process = None

    def submit(self, film: dict[str, Any]) -> str:
        """Send a film past the page; its id."""
        request = urllib.request.Request(f"{self.url}/api/films", json.dumps(film).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return str(json.load(reply)["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/jobs/{job_id}", timeout=60) as reply:
            found: dict[str, Any] = json.load(reply)
            return found

    def finished(self, film: dict[str, Any]) -> str:
        """Send a film and wait for its end; its id."""
        job_id, end = self.submit(film), time.monotonic() + START_S
        while self.job(job_id)["status"] in ("queued", "running"):
            assert time.monotonic() < end, self.job(job_id)
            time.sleep(0.2)
        return job_id


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Asks nobody who they are."""
    with a_place(tmp_path_factory.mktemp("served")) as server:
        server.start()
        yield server
        server.stop()


@contextlib.contextmanager
def a_place(place: Path, *settings: str) -> Iterator[Served]:
    """A server that was not started yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    # Not under pytest's directory: ray's socket paths must stay below 107 characters.
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as ray_dir:
        yield Served(place=place, ray_dir=Path(ray_dir), port=port, settings=settings)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    assert CHROMIUM, "tests that need it are skipped without"
    with sync_playwright() as playwright:
        # Containers that run tests as root have no sandbox for it.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Eyes:
    """Open windows, and what went wrong in them that no test may see."""

    browser: Browser
    base_url: str
    contexts: list[BrowserContext] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def window(self, width_px: int = 1280, height_px: int = 860, *, scheme: str = "light",
               motion: str = "no-preference", scripts: bool = True, key: str = "") -> Page:
        """A window of this size and taste; `key` is typed where the browser asks for a password."""
        context = self.browser.new_context(
            base_url=self.base_url, viewport={"width": width_px, "height": height_px}, java_script_enabled=scripts,
            http_credentials={"username": "me", "password": key} if key else None,
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce" if motion == "reduce" else "no-preference")
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: self.broken.append(str(error)))
        page.on("console", self._listen)
        return page

    def _listen(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.broken.append(message.text)


@pytest.fixture
def eyes(chromium: Browser, served: Served) -> Iterator[Eyes]:
    """Windows onto the server; no script of the page may fail, and nothing may be against its own policy."""
    mine = Eyes(browser=chromium, base_url=served.url)
    yield mine
    for context in mine.contexts:
        context.close()
    assert mine.broken == []
