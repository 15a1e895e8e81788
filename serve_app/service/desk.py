"""Desk: everything the HTTP service does, in one place, built from ports. Knows neither FastAPI nor Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from configs.load import casting, load_cards, scorer_of, story_card
from configs.model_card import ModelCard, Task
from configs.settings import Settings
from serve_app.service.access import Access
from serve_app.service.batches import BatchDesk
from serve_app.service.edits import edits_of
from serve_app.service.feed import Board
from serve_app.service.files import Files
from serve_app.service.films import Films
from serve_app.service.forecast import Forecast
from serve_app.service.hub import Hub
from serve_app.service.links import job_links
from serve_app.service.metrics import Metrics, batches_by_state, webhook_deliveries
from serve_app.service.pictures import Pictures
from serve_app.service.results import Results
from serve_app.service.streams import Streams
from serve_app.service.uploads import Uploads
from serve_app.service.video_edits import VideoEdits
from serve_app.service.views import Sources, Views, summary_json
from serve_app.service.webhooks import Webhooks
from serve_app.webhooks.guard import Guard
from workflows.durable.ledger import Ledger
from workflows.durable.meters import Meters
from workflows.durable.overview import Overview
from workflows.durable.replies import Replies
from workflows.durable.takes import Takes
from workflows.store import Store
from workflows.story import writer_identity
from workflows.types import JobStatus, Json


class Studio(Protocol):
    """Director and board, told of what was written. Hints: they never raise, and may be lost."""

    def wake(self) -> None:
        """There is a new job, or a job was opened again. Never blocks."""

    def cancelled(self, job_id: str) -> None:
        """Its calls should stop at their next step. May block for a moment."""

    def reopened(self, job_id: str) -> None:
        """Its steps so far belong to an earlier run. May block for a moment."""


class Cluster(Protocol):
    """What runs where. Blocking; may raise anything."""

    def resources(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """All of the cluster's, and those that are free."""

    def parts(self) -> Mapping[str, str]:
        """Deployment -> its state; `HEALTHY` when it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside the desk."""

    ledger: Ledger
    store: Store
    board: Board
    studio: Studio
    cluster: Cluster
    slots: Mapping[str, int]
    """Calls in flight that each lane has room for."""


class Desk:
    """One per ingress process."""

    def __init__(self, settings: Settings, ports: Ports) -> None:
        """Raises SettingsError for the cards."""
        self.settings = settings.http
        self.models = settings.models
        self.cards: Mapping[str, ModelCard] = load_cards(settings)
        self.cast: Mapping[Task, ModelCard] = casting(settings, self.cards)
        self.ledger = ports.ledger
        self.store = ports.store
        self.cluster = ports.cluster
        self.slots = ports.slots
        self.access = Access(ports.ledger, settings.http)
        self.replies = Replies(ports.ledger.database)
        self.overview = Overview(ports.ledger.database)
        self.takes = Takes(ports.ledger.database)
        self.forecast = Forecast(self.overview, ports.slots)
        self.pictures = Pictures(ports.store, settings.http)
        self.films = Films(ports.ledger, ports.store, self.forecast, self.cast, self.pictures,
                           writer_identity(settings.story, story_card(settings)), scorer_of(settings, self.cards))
        self.uploads = Uploads(ports.store, settings.http, settings.data_dir.expanduser() / "uploads")
        self.edits = edits_of(settings, ports.ledger, ports.store, self.forecast)
        self.batches = BatchDesk(ports.ledger, self.forecast)
        self.files = Files(ports.ledger, ports.store, self.takes)
        self.results = Results(ports.ledger, self.files, self.uploads)
        self.video_edits = VideoEdits(self.edits, self.results, self.uploads)
        self.hub = Hub(ports.ledger, self.overview, ports.board, window=settings.http.window)
        self.views = Views(Sources(ledger=ports.ledger, overview=self.overview, takes=self.takes,
                                   forecast=self.forecast, live=self.hub.live))
        self.streams = Streams(self.hub, self.views, ports.ledger, heartbeat_s=settings.http.heartbeat_s,
                               max_bytes=settings.http.stream_kb * 1000)
        self.webhooks = Webhooks(ports.ledger, Guard(settings.webhooks))
        self.metrics = Metrics(Meters(ports.ledger.database), self.overview, ports.slots,
                               (lambda: webhook_deliveries(self.webhooks.tally()),
                                lambda: batches_by_state(self.batches.tally())))
        self._studio = ports.studio

    async def close(self) -> None:
        """Let every watcher go."""
        await self.hub.close()

    def submitted(self, job_id: str) -> None:
        """A job was queued, now or again: the Director should look, and older replies do not count."""
        self.views.forget(job_id)
        self._studio.wake()
        self.hub.nudge()

    def submitted_many(self, job_ids: Iterable[str]) -> None:
        """As `submitted`, for jobs of a batch, or for a batch whose limits were changed."""
        for job_id in job_ids:
            self.views.forget(job_id)
        self._studio.wake()
        self.hub.nudge()

    async def cancel(self, job_id: str) -> JobStatus:
        """Ask for the end of a job; a finished one stays as it is. Raises UnknownJob."""
        row = await asyncio.to_thread(self.ledger.cancel, job_id)
        await asyncio.to_thread(self._studio.cancelled, job_id)
        self.submitted(job_id)
        return row.status

    async def retry(self, job_id: str, selection: Collection[str], *, force: bool) -> tuple[str, ...]:
        """Run a finished job again; see `Ledger.rerun`."""
        chosen = await asyncio.to_thread(self.ledger.rerun, job_id, selection, force=force)
        if chosen:
            await asyncio.to_thread(self._studio.reopened, job_id)
            self.submitted(job_id)
        return chosen

    async def change_shot(self, job_id: str, shot_id: str, changes: Mapping[str, Json]) -> tuple[str, ...]:
        """Change one shot of a finished film; see `Films.change_shot`."""
        chosen = await asyncio.to_thread(self.films.change_shot, job_id, shot_id, changes)
        if chosen:
            await asyncio.to_thread(self._studio.reopened, job_id)
        self.submitted(job_id)
        return chosen

    async def promote(self, job_id: str, shots: Collection[str]) -> tuple[str, ...]:
        """Make drafts of a finished film final; see `Films.promote`."""
        chosen = await asyncio.to_thread(self.films.promote, job_id, shots)
        if chosen:
            await asyncio.to_thread(self._studio.reopened, job_id)
        self.submitted(job_id)
        return chosen

    async def delete(self, job_id: str) -> None:
        """Forget a finished job. Raises UnknownJob, JobConflict."""
        await asyncio.to_thread(self.ledger.delete, job_id)
        await asyncio.to_thread(self._studio.reopened, job_id)
        self.submitted(job_id)

    async def cancel_batch(self, batch_id: str) -> None:
        """Ask for the end of a batch's jobs. Raises UnknownBatch."""
        asked = await asyncio.to_thread(self.batches.rows.cancel, batch_id)
        left = {found.job_id for found in await asyncio.to_thread(self.batches.rows.files, batch_id)
                if not found.status.is_terminal}
        for job_id in asked:
            if job_id in left:  # a Director has it in hand
                await asyncio.to_thread(self._studio.cancelled, job_id)
        self.submitted_many(asked)

    async def retry_batch(self, batch_id: str) -> Collection[str]:
        """Run again what did not succeed; the jobs that were opened. Raises UnknownBatch."""
        opened = await asyncio.to_thread(self.batches.rows.retry, batch_id)
        for job_id in opened:
            await asyncio.to_thread(self._studio.reopened, job_id)
        self.submitted_many(opened)
        return tuple(opened)

    async def delete_batch(self, batch_id: str) -> None:
        """Forget a batch that is over. Raises UnknownBatch, BatchConflict."""
        files = await asyncio.to_thread(self.batches.rows.files, batch_id)
        await asyncio.to_thread(self.batches.rows.delete, batch_id)
        for found in files:
            await asyncio.to_thread(self._studio.reopened, found.job_id)
        self.submitted_many(found.job_id for found in files)

    def jobs(self, status: JobStatus | None, kind: str, limit: int, cursor: str, key_id: str = "",
             ) -> dict[str, Json]:
        """Some jobs, newest first, as the list's reply; only those of one API key where given. Blocking.

        Raises InvalidDocument for a wrong cursor.
        """
        page = self.ledger.jobs(status, kind=kind, limit=limit, cursor=cursor, key_id=key_id)
        tallies = self.overview.tallies([row.id for row in page.jobs])
        return {"jobs": [summary_json(row, tallies[row.id]) for row in page.jobs], "next_cursor": page.next_cursor}

    async def standing(self, job_id: str, nodes: Collection[str]) -> dict[str, Json]:
        """What a change has set going, as its reply."""
        row = await asyncio.to_thread(self.ledger.job, job_id)
        return {"id": job_id, "status": row.status.value, "nodes": list(nodes), "links": {**job_links(job_id)}}
