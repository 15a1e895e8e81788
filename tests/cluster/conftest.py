"""One Ray for the whole session, its own ports and directory; one application per test that asks for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from configs.load import casting, load_cards, load_settings
from configs.settings import Settings
from serve_app.app import build
from serve_app.session import BoardObserver
from tests.kernels import KernelModel
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventRow, EventType, NewJob
from workflows.plan import plan_film
from workflows.status import JobView, job_view
from workflows.store import Store
from workflows.storyboard import parse_storyboard

APP = "reelray-test"


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A local Ray with four logical GPUs; its session directory."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Not under pytest's directory: ray's socket paths must stay below 107 characters.
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as directory:
        ray.init(address="local", num_cpus=32, num_gpus=4, include_dashboard=False, log_to_driver=False,
                 object_store_memory=100_000_000, namespace="reelray", _temp_dir=directory, logging_level="ERROR")
        serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING",
                                                                            enable_access_log=False))
        yield directory
        serve.shutdown()
        ray.shutdown()


@dataclass
class Running:
    """A deployed application and what a test needs to look at it."""

    settings: Settings
    director: DeploymentHandle
    ledger: Ledger
    store: Store
    directory: str
    observer: BoardObserver
    views: list[JobView] = field(default_factory=list)

    def submit(self, storyboard: str, job_id: str = "film", priority: str = "interactive") -> None:
        """Parse, plan, submit, wake."""
        board = parse_storyboard(storyboard)
        plan = plan_film(board, cards=casting(self.settings, load_cards(self.settings)))
        self.ledger.submit(NewJob(id=job_id, title=board.title, document={"title": board.title}, nodes=plan.nodes,
                                  priority=priority))  # type: ignore[arg-type]
        self.director.wake.remote().result(timeout_s=20)

    def view(self, job_id: str = "film") -> JobView:
        """The job's rows."""
        return job_view(self.ledger.job(job_id), self.ledger.nodes(job_id))

    def wait(self, job_id: str = "film", timeout_s: float = 60.0) -> JobView:
        """Until the job is over."""
        return self.until(lambda: self.view(job_id).status.is_terminal, timeout_s) and self.view(job_id)

    def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        """Poll until the condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, "\n".join(self.ledger.log_lines("film", 0, 200).lines[-40:])
            time.sleep(0.02)
        return True

    def events(self, job_id: str = "film", *types: EventType) -> list[EventRow]:
        """The job's events of these types, oldest first."""
        return [event for event in self.ledger.events(job_id, 0, 5000) if not types or event.type in types]

    def starts(self) -> list[str]:
        """Keys of the kernel's starts, in order."""
        path = self.settings.data_dir / "starts.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith("start ")]

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of this cluster whose title contains `name`, e.g. `director`."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def run(self, work: Awaitable[object]) -> object:
        """Run a coroutine."""
        return asyncio.run(work)  # type: ignore[arg-type]


Deploy = Callable[..., Running]


@pytest.fixture
def deploy(cluster: str, tmp_path: Path) -> Iterator[Deploy]:
    """Deploy the application: `deploy(["engine.attempts=1"], model=KernelModel, database_url=...)`."""
    running: list[Running] = []

    def start(overrides: list[str] | None = None, *, model: type = KernelModel, database_url: str = "") -> Running:
        settings = load_settings("ci", [f"data_dir={tmp_path}", f"database_url={database_url}",
                                        "models.text_to_image=placeholder", "models.text_to_video=placeholder",
                                        "models.image_to_video=placeholder", *(overrides or [])], {})
        app = build(settings, cluster=ray.cluster_resources(), model=model)
        director = serve.run(app, name=APP, route_prefix=None)
        one = Running(settings=settings, director=director, ledger=Ledger(settings.database),
                      store=Store(settings.store), directory=cluster, observer=BoardObserver(settings))
        running.append(one)
        return one

    yield start
    for one in running:
        with contextlib.suppress(Exception):
            one.director.stop.remote().result(timeout_s=10)
        one.ledger.close()
    if running:
        serve.delete(APP)
