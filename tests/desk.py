"""The HTTP service without Ray: a real ledger and store, an engine with steps that paint, a board in this process."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from starlette.testclient import TestClient

from actors.progress import Poll, ProgressBoard
from configs.load import casting, load_cards, load_settings
from configs.settings import Settings
from serve_app.http.api import build_api
from serve_app.service.desk import Desk, Ports
from tests.studio import QUICK
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import JobRow
from workflows.errors import ModelFailed
from workflows.media.decode import write_png
from workflows.media.encode import EncodeOptions, encode
from workflows.stages.pick import pick
from workflows.stages.story import RULES, story
from workflows.store import Store
from workflows.story import StoryWriter
from workflows.types import (
    STORY_LANE,
    JobStatus,
    Json,
    MediaType,
    NodeCall,
    NodeKind,
    NodeResult,
    Phase,
    ProgressRecord,
)

SLOTS = {"sketch": 4, "cpu": 2}
TWO_SHOTS: dict[str, Json] = {"title": "Two", "shots": [
    {"prompt": "a red circle moves left over a blue background", "mode": "keyframe"},
    {"prompt": "a yellow star falls down over a black background"}]}

ROUTES = {
    "/api/pictures": {"post"}, "/api/pictures/{picture_id}": {"get"},
    "/api/uploads": {"post"}, "/api/uploads/{upload_id}": {"get"}, "/api/edits": {"post"},
    "/api/jobs/{job_id}/source": {"get"}, "/api/jobs/{job_id}/thumbnail": {"get"},
    "/api/jobs/{job_id}/mask": {"get"}, "/api/jobs/{job_id}/report": {"get"}, "/api/jobs/{job_id}/plot": {"get"},
    "/api/films": {"post"}, "/api/films/{job_id}/promote": {"post"}, "/api/films/{job_id}/shots/{shot_id}": {"patch"},
    "/api/jobs": {"get"},
    "/api/batches": {"get", "post"}, "/api/batches/{batch_id}": {"get", "patch", "delete"},
    "/api/batches/{batch_id}/pause": {"post"}, "/api/batches/{batch_id}/resume": {"post"},
    "/api/batches/{batch_id}/cancel": {"post"}, "/api/batches/{batch_id}/retry": {"post"},
    "/api/batches/{batch_id}/report": {"get"},
    "/api/jobs/{job_id}": {"get", "delete"}, "/api/jobs/{job_id}/log": {"get"},
    "/api/jobs/{job_id}/images": {"get"}, "/api/jobs/{job_id}/events": {"get"},
    "/api/jobs/{job_id}/cancel": {"post"}, "/api/jobs/{job_id}/retry": {"post"}, "/api/jobs/{job_id}/video": {"get"},
    "/api/jobs/{job_id}/shots/{shot_id}/{file}": {"get"}, "/api/models": {"get"}, "/api/capacity": {"get"},
    "/healthz": {"get"}, "/readyz": {"get"}, "/metrics": {"get"}, "/api/webhooks": {"get", "post"},
    "/api/webhooks/{webhook_id}": {"get", "delete"}, "/api/webhooks/{webhook_id}/test": {"post"},
    "/api/webhooks/{webhook_id}/deliveries": {"get"},
    "/api/webhooks/{webhook_id}/deliveries/{message_id}/redeliver": {"post"},
    "/v1/models": {"get"}, "/v1/models/{model}": {"get"}, "/v1/videos": {"get", "post"},
    "/v1/videos/{video_id}": {"get", "delete"}, "/v1/videos/{video_id}/content": {"get"},
    "/v1/images/generations": {"post"}, "/v1/images/{image_id}/content": {"get"},
    "/v1/videos/edits": {"post"}, "/v1/videos/{video_id}/cancel": {"post"}, "/v1/videos/{video_id}/remix": {"post"},
}


class LocalBoard:
    """The progress board in this process, counting what it is asked; silent while `away`."""

    def __init__(self, ring: int = 2000) -> None:
        self.board = ProgressBoard(ring)
        self.polls = 0
        self.histories = 0
        self.away = False
        self.asked, self.cut = asyncio.Event(), asyncio.Event()
        """Set by the first poll, and when one is cut off."""

    async def history(self, job_id: str) -> Poll:
        self.histories += 1
        if self.away:
            raise ConnectionError("the actor is gone")
        return await self.board.history(job_id)

    async def poll(self, job_id: str, epoch: str, after: int) -> Poll:
        self.polls += 1
        self.asked.set()
        if self.away:
            raise ConnectionError("the actor is gone")
        try:
            return await self.board.poll(job_id, epoch, after, timeout_s=5.0)
        except asyncio.CancelledError:
            self.cut.set()
            raise

    def restart(self) -> None:
        """A new life, empty."""
        old, self.board = self.board, ProgressBoard(2000)
        old._wake(set(old._waiters))


@dataclass
class Hints:
    """What Director and board were told."""

    told: list[tuple[str, str]] = field(default_factory=list)
    at_wake: Callable[[], None] = lambda: None
    """What a Director does at once."""

    def wake(self) -> None:
        self.told.append(("wake", ""))
        self.at_wake()

    def cancelled(self, job_id: str) -> None:
        self.told.append(("cancelled", job_id))

    def reopened(self, job_id: str) -> None:
        self.told.append(("reopened", job_id))


@dataclass
class StillCluster:
    """A cluster that says what it is told to say."""

    states: dict[str, str] = field(default_factory=lambda: {"director": "HEALTHY", "model-sketch": "HEALTHY"})
    error: Exception | None = None

    def resources(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        if self.error:
            raise self.error
        return {"GPU": 2.0, "CPU": 8.0, "node:10.0.0.1": 1.0}, {"GPU": 0.5, "CPU": 3.0}

    def parts(self) -> Mapping[str, str]:
        return self.states


class Painter:
    """Steps that make real files: one colour per key; a prompt with `star` fails while `failing` is set."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.made: list[str] = []
        self.failing = False

    async def __call__(self, call: NodeCall) -> NodeResult:
        if self.failing and "star" in str(call.payload.get("prompt")):
            raise ModelFailed(node_id=call.node_id, reason="it burned")
        self.made.append(call.node_id)
        return await asyncio.to_thread(self._paint, call)

    def _paint(self, call: NodeCall) -> NodeResult:
        colour = tuple(hashlib.sha256(call.key.encode()).digest()[:3])
        frames_THWC = np.full((4, 32, 48, 3), colour, np.uint8)
        with tempfile.TemporaryDirectory() as scratch:
            if call.kind is NodeKind.KEYFRAME:
                path, media_type = Path(scratch) / "a.png", MediaType.PNG
                write_png(frames_THWC[0], path)
            else:
                path, media_type = Path(scratch) / "a.mp4", MediaType.MP4
                encode(frames_THWC, fps=8, to=path, options=EncodeOptions(threads=1))
            artifact = self._store.put(call.key, path, media_type=media_type, manifest={})
        return NodeResult(artifact=artifact)


@dataclass
class Shop:
    """A desk, a client, and an engine that a test runs when it wants to."""

    settings: Settings
    desk: Desk
    client: TestClient
    ledger: Ledger
    store: Store
    painter: Painter
    board: LocalBoard
    hints: Hints
    cluster: StillCluster
    writer: StoryWriter = RULES

    def submit(self, document: Mapping[str, Json] = TWO_SHOTS) -> str:
        """Send a film; its id."""
        reply = self.client.post("/api/films", json=dict(document))
        assert reply.status_code == 202, reply.text
        return str(reply.json()["id"])

    def render(self, job_id: str) -> JobRow:
        """Run an engine until the job is over."""
        return asyncio.run(self.run_to_end(job_id))

    def render_all(self) -> None:
        """Run an engine until no job is open."""
        asyncio.run(self._run_until(lambda: not any(
            self.ledger.jobs(status, limit=1).jobs for status in (JobStatus.QUEUED, JobStatus.RUNNING))))

    async def run_to_end(self, job_id: str) -> JobRow:
        """Run an engine in this loop until the job is over."""
        await self._run_until(lambda: self.ledger.job(job_id).status.is_terminal)
        return self.ledger.job(job_id)

    async def _run_until(self, is_over: Callable[[], bool]) -> None:
        steps = {**dict.fromkeys(NodeKind, self.painter), NodeKind.PICK: pick, NodeKind.STORY: partial(
            story, cards=casting(self.settings, load_cards(self.settings)), store=self.store, writer=self.writer)}
        engine = Engine(self.ledger, steps, store=self.store, dispatcher=Dispatcher({**SLOTS, STORY_LANE: 1}),
                        settings=QUICK.model_copy(update={"attempts": 1}))
        running = asyncio.create_task(engine.run())
        async with asyncio.timeout(30):
            while not is_over():  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the database sends no signal
        await engine.stop()
        await running

    def film(self, document: Mapping[str, Json] = TWO_SHOTS) -> str:
        """Send a film and render it; its id."""
        job_id = self.submit(document)
        self.render(job_id)
        return job_id

    def status(self, job_id: str) -> dict[str, Json]:
        """The job's reply, not from memory."""
        self.desk.views.forget(job_id)
        reply = self.client.get(f"/api/jobs/{job_id}")
        assert reply.status_code == 200, reply.text
        data: dict[str, Json] = reply.json()
        return data


def open_shop(directory: Path, database_file: Path, *overrides: str) -> Shop:
    """A shop over a migrated database file; not entered, so that its loop belongs to the test."""
    settings = load_settings("laptop", [f"data_dir={directory}", *overrides], {})
    ledger, store = Ledger(f"sqlite:///{database_file}"), Store(str(directory / "store"))
    board, hints, cluster = LocalBoard(), Hints(), StillCluster()
    desk = Desk(settings, Ports(ledger=ledger, store=store, board=board, studio=hints, cluster=cluster, slots=SLOTS))
    client = TestClient(build_api(desk), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    return Shop(settings=settings, desk=desk, client=client, ledger=ledger, store=store, painter=Painter(store),
                board=board, hints=hints, cluster=cluster)


def step(job_id: str, node_id: str, n: int, *, attempt: int = 1, total: int = 20) -> ProgressRecord:
    """A denoising step of a clip."""
    return ProgressRecord(job_id=job_id, node_id=node_id, shot_id=node_id.partition(".")[0], attempt=attempt, n=n,
                          phase=Phase.DIFFUSION, step=n, total_steps=total, timestep=1000.0 - n, fraction=n / total,
                          at_s=0.0)
