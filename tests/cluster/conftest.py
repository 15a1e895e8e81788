"""One Ray for the whole session, its own ports and directory; one application per test that asks for it."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
from serve_app.ingress import ActorBoard
from tests.kernels import KernelModel
from tests.postgres import PostgresServer
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventRow, EventType, NewJob
from workflows.plan import plan_film
from workflows.status import JobView, job_view
from workflows.store import Store
from workflows.storyboard import parse_storyboard
from workflows.types import Priority

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
    observer: ActorBoard

    def submit(self, storyboard: str, job_id: str, priority: str = "interactive") -> None:
        """Parse, plan, submit, wake."""
        board = parse_storyboard(storyboard)
        plan = plan_film(board, cards=casting(self.settings, load_cards(self.settings)), assets={})
        self.ledger.submit(NewJob(id=job_id, title=board.title, document={"title": board.title}, nodes=plan.nodes,
                                  priority=Priority(priority)))
        self.director.wake.remote().result(timeout_s=20)

    def view(self, job_id: str) -> JobView:
        """The job's rows."""
        return job_view(self.ledger.job(job_id), self.ledger.nodes(job_id))

    def wait(self, job_id: str, timeout_s: float = 180.0) -> JobView:
        """Until the job is over."""
        return self.until(lambda: self.view(job_id).status.is_terminal, timeout_s) and self.view(job_id)

    def until(self, condition: Callable[[], bool], timeout_s: float = 180.0) -> bool:
        """Poll until the condition holds."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{timeout_s} s passed"
            time.sleep(0.02)
        return True

    def events(self, job_id: str, *types: EventType) -> list[EventRow]:
        """The job's events of these types, oldest first."""
        return [event for event in self.ledger.events(job_id, 0, 5000) if not types or event.type in types]

    def kernel_lines(self, job_id: str) -> list[list[str]]:
        """What the kernel wrote of this job's nodes: `[what, key, attempt, pid, time]`, in order."""
        path = self.settings.data_dir / "starts.txt"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        keys = {str(event.data.get("key")) for event in self.events(job_id, EventType.NODE_STARTED)}
        keys |= {node.key for node in self.ledger.nodes(job_id)}
        return [line for line in lines if line[1] in keys]

    def starts(self, job_id: str) -> int:
        """How often a model began to compute for this job."""
        return sum(line[0] == "start" for line in self.kernel_lines(job_id))

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of this cluster whose title contains `name`, e.g. `director`."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found


Deploy = Callable[..., Running]


@pytest.fixture(scope="module")
def deploy(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploy]:
    """Deploy the application: `deploy(["engine.attempts=1"], database_url=...)`.

    Deploying takes seconds, so a module's tests share an application as long as they ask for the same one; each test
    submits jobs of its own name.
    """
    running: dict[tuple[str, ...], Running] = {}

    def start(overrides: list[str] | None = None, *, database_url: str = "", model: type = KernelModel) -> Running:
        asked = (f"database_url={database_url}", *(overrides or []))
        if asked not in running:
            _end(running)
            running[asked] = _deploy(cluster, tmp_path_factory.mktemp("app"), asked, model)
        return running[asked]

    yield start
    _end(running)


def _deploy(cluster: str, data_dir: Path, overrides: Iterable[str], model: type) -> Running:
    settings = load_settings("ci", [f"data_dir={data_dir}", "models.text_to_image=placeholder",
                                    "models.text_to_video=placeholder", "models.image_to_video=placeholder",
                                    *overrides], {})
    app = build(settings, cluster=ray.cluster_resources(), model=model)
    director = serve.run(app, name=APP, route_prefix=None)
    return Running(settings=settings, director=director, ledger=Ledger(settings.database), store=Store(settings.store),
                   directory=cluster, observer=ActorBoard(settings))


def _end(running: dict[tuple[str, ...], Running]) -> None:
    for one in running.values():
        with contextlib.suppress(Exception):
            one.director.stop.remote().result(timeout_s=10)
        one.ledger.close()
    if running:
        serve.delete(APP)
    running.clear()


@pytest.fixture(scope="module")
def postgres_url(postgres_server: PostgresServer) -> str:
    """A fresh database on the session's private server."""
    return postgres_server.create()
