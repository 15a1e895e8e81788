"""Webhook endpoints as HTTP has them: register, look, test, send again. Blocking but for `register`; knows no route."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

from serve_app.webhooks.guard import Guard
from workflows.durable.hooks import DeliveryRow, HookRow, Hooks
from workflows.durable.ledger import Ledger
from workflows.durable.outbox import DeliveryStatus, HookEvent
from workflows.errors import InvalidDocument, Problem
from workflows.types import Json

LOOKUP_S = 5.0
RESOLVERS = 8
"""Threads of their own: who registers names that nobody answers for holds up nobody else."""


class Webhooks:
    """The endpoints of one ledger, behind one guard."""

    def __init__(self, ledger: Ledger, guard: Guard, *, lookup_s: float = LOOKUP_S) -> None:
        """`guard` says which addresses may be registered; a name must be found within `lookup_s`."""
        self._ledger = ledger
        self._guard = guard
        self._hooks = Hooks(ledger.database)
        self._lookup_s = lookup_s
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="reelray-dns")

    def tally(self) -> Mapping[DeliveryStatus, int]:
        """How many deliveries there are by status, among those that are kept. Blocking."""
        return self._hooks.tally()

    async def register(
        self, url: str, *, events: Collection[HookEvent], job_id: str | None, note: str,
    ) -> dict[str, Json]:
        """A new endpoint, with its secret. Raises InvalidDocument, UnknownJob, WebhookConflict."""
        await self.admit(url)
        return await asyncio.to_thread(self._register, url, events, job_id, note)

    async def admit(self, url: str) -> None:
        """Check an address before it is registered. Raises InvalidDocument."""
        try:
            async with asyncio.timeout(self._lookup_s):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._guard.admit, url)
        except TimeoutError:
            raise InvalidDocument(problems=(Problem(
                field="url", problem=f"nobody says within {self._lookup_s:g} s where this name leads"),)) from None

    def made_with(self, job_id: str) -> dict[str, Json]:
        """Id and secret of the endpoint that was registered with a job. Raises UnknownWebhook."""
        hook_id, secret = self._hooks.made_with(job_id)
        return {"id": hook_id, "secret": secret}

    def _register(self, url: str, events: Collection[HookEvent], job_id: str | None, note: str) -> dict[str, Json]:
        if job_id is not None:
            self._ledger.job(job_id)
        row, secret = self._hooks.register(url, events=[event.value for event in events], job_id=job_id or "",
                                           note=note)
        return {**hook_json(row), "secret": secret}

    def all(self, job_id: str = "") -> dict[str, Json]:
        """The endpoints of all jobs together, or those of one job alone."""
        return {"webhooks": [hook_json(row) for row in self._hooks.hooks(job_id=job_id)]}

    def one(self, hook_id: str) -> dict[str, Json]:
        """One endpoint. Raises UnknownWebhook."""
        return hook_json(self._hooks.hook(hook_id))

    def delete(self, hook_id: str) -> None:
        """Forget an endpoint and what waits for it. Raises UnknownWebhook."""
        self._hooks.delete(hook_id)

    def test(self, hook_id: str) -> dict[str, Json]:
        """Queue a test event. Raises UnknownWebhook, WebhookConflict."""
        return delivery_json(self._hooks.test(hook_id))

    def redeliver(self, hook_id: str, message_id: str) -> dict[str, Json]:
        """Queue a delivery again. Raises UnknownWebhook, WebhookConflict."""
        return delivery_json(self._hooks.redeliver(hook_id, message_id))

    def deliveries(self, hook_id: str, *, status: DeliveryStatus | None, limit: int, cursor: int) -> dict[str, Json]:
        """An endpoint's log. Raises UnknownWebhook."""
        rows = self._hooks.deliveries(hook_id, status=status, before=cursor, limit=limit + 1)
        shown = rows[:limit]
        return {"deliveries": [delivery_json(row) for row in shown],
                "next_cursor": str(shown[-1].seq) if len(rows) > limit else ""}


def hook_json(row: HookRow) -> dict[str, Json]:
    """An endpoint, without its secret."""
    return {"id": row.id, "url": row.url, "events": list(row.events), "job_id": row.job_id or None, "note": row.note,
            "disabled": row.disabled or None, "created_at": row.created_at_s}


def delivery_json(row: DeliveryRow) -> dict[str, Json]:
    """A delivery and its attempts."""
    return {"id": row.message_id, "type": row.type, "job_id": row.job_id or None, "status": row.status.value,
            "next_attempt_at": row.next_at_s, "created_at": row.created_at_s, "finished_at": row.finished_at_s,
            "attempts": _attempts(row)}


def _attempts(row: DeliveryRow) -> list[Json]:
    return [{"at": found.at_s, "latency_s": found.latency_s, "http_status": found.http_status or None,
             "error": found.error or None, "reply": found.reply} for found in row.attempts]
