"""The postman: takes what is due from the outbox, signs it, has it carried, writes down how it went. Knows no Ray.

Nothing is remembered here that the database does not hold: kill it at any moment, and any other one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from standardwebhooks import Webhook

from configs.settings import WebhookSettings
from serve_app.webhooks.courier import Courier, Reply
from workflows.durable.database import Database, is_down
from workflows.durable.mail import Attempt, Letter, Mail
from workflows.durable.patience import Patience
from workflows.durable.schedule import wait_s
from workflows.durable.verdict import Draw
from workflows.errors import WebhookFailed

log = logging.getLogger(__name__)

GONE = 410
ASK_LATER = (429, 503)
"""Replies whose `Retry-After` is honoured."""
KEPT_CHARS = 1000
"""Of a reply, in the log."""
SWEEP_S = 3600.0
"""How often what is older than `keep_days` is dropped."""
DAY_S = 86_400.0

Clock = Callable[[], float]
"""Unix seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a postman measures with."""

    clock: Clock = time.time
    draw: Draw = random.random


class Postman:
    """Sends until it is stopped; any number of them on one database."""

    def __init__(self, database: Database, courier: Courier, settings: WebhookSettings,
                 tools: Tools = Tools()) -> None:
        """`courier` must give up on its own, within less than `lease_s`."""
        self._mail = Mail(database, lease_s=settings.lease_s)
        self._courier = courier
        self._settings = settings
        self._tools = tools
        self._patience = Patience(writers=1)
        self._walks: dict[asyncio.Task[None], str] = {}
        self._stopped = asyncio.Event()
        self._swept_s = 0.0

    async def run(self) -> None:
        """Send what is due, again and again, until `stop`. Nothing that goes wrong ends it."""
        try:
            while not self._stopped.is_set():
                try:
                    await self._set_out()
                    await self._sweep()
                except Exception as error:
                    # A Director must not fall with its postman.
                    if is_down(error):
                        self._patience.tell(error)
                    else:
                        log.exception("webhooks wait")
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                    async with asyncio.timeout(self._settings.poll_s):
                        await self._stopped.wait()
        finally:
            # Cut off, their leases run out, and they are sent again.
            for walk in self._walks:
                walk.cancel()
            await asyncio.gather(*self._walks, return_exceptions=True)
            self._patience.close()

    async def stop(self) -> None:
        """End after this; attempts under way are cut off and made again by the next postman."""
        self._stopped.set()

    async def deliver(self, letter: Letter) -> bool:
        """Make one attempt and write down how it went. False: the claim was lost, and nothing was written."""
        at_s, start_s = self._tools.clock(), time.monotonic()
        reply: Reply | None = None
        error = ""
        try:
            reply = await self._courier.post(letter.url, self._headers(letter, at_s), letter.body.encode())
        except WebhookFailed as failed:
            error = failed.reason
        except Exception as crash:
            log.exception("webhook %s could not be sent", letter.hook_id)
            error = f"{type(crash).__name__}: {crash}"
        attempt = Attempt(
            at_s=at_s, latency_s=round(time.monotonic() - start_s, 4), http_status=reply.status if reply else 0,
            error=_storable(error if reply is None else _complaint(reply)),
            reply=_storable(reply.body.decode("utf-8", "replace")) if reply else "")
        return await self._write_down(letter, attempt, reply)

    async def _write_down(self, letter: Letter, attempt: Attempt, reply: Reply | None) -> bool:
        if not attempt.error:
            return await self._patience.insist(self._mail.delivered, letter, attempt)
        if attempt.http_status == GONE:
            log.warning("webhook %s answered 410 and is disabled", letter.hook_id)
            return await self._patience.insist(self._mail.gone, letter, attempt)
        asked_s = _retry_after_s(reply, self._tools.clock()) if reply and reply.status in ASK_LATER else 0.0
        wait = wait_s(letter.attempt + 1, draw=self._tools.draw, asked_s=asked_s)
        return await self._patience.insist(self._mail.failed, letter, attempt, wait_s=wait)

    async def _set_out(self) -> None:
        """Claim one after the other while there is room: a slow endpoint takes its own places only."""
        while len(self._walks) < self._settings.parallel and not self._stopped.is_set():
            under_way = Counter(self._walks.values())
            full = [hook_id for hook_id, n in under_way.items() if n >= self._settings.parallel_per_webhook]
            if not await self._patience.once(self._mail.is_due, without=full):
                return
            for letter in await self._patience.once(self._mail.claim, 1, without=full):
                walk = asyncio.create_task(self._walk(letter), name=f"webhook {letter.message_id}")
                self._walks[walk] = letter.hook_id
                walk.add_done_callback(self._back)

    async def _walk(self, letter: Letter) -> None:
        if not await self.deliver(letter):
            log.warning("webhook %s: the claim of %s was lost; it is sent again", letter.hook_id, letter.message_id)

    def _back(self, walk: asyncio.Task[None]) -> None:
        del self._walks[walk]
        if not walk.cancelled() and (error := walk.exception()):
            log.error("a webhook was not written down and is sent again", exc_info=error)

    async def _sweep(self) -> None:
        if time.monotonic() - self._swept_s >= SWEEP_S or not self._swept_s:
            self._swept_s = time.monotonic()
            await self._patience.once(self._mail.forget, self._settings.keep_days * DAY_S)

    def _headers(self, letter: Letter, at_s: float) -> dict[str, str]:
        signature = Webhook(letter.secret).sign(letter.message_id, datetime.fromtimestamp(at_s, UTC), letter.body)
        return {"Content-Type": "application/json", "User-Agent": "reelray-webhooks", "Accept": "*/*",
                "webhook-id": letter.message_id, "webhook-timestamp": str(int(at_s)), "webhook-signature": signature}


def _complaint(reply: Reply) -> str:
    """What is wrong with a reply; empty when nothing is."""
    if 200 <= reply.status < 300:
        return ""
    if 300 <= reply.status < 400:
        return f"it answered {reply.status}; redirects are not followed"
    return f"it answered {reply.status}"


def _retry_after_s(reply: Reply, now_s: float) -> float:
    """Seconds that `Retry-After` asks for: a number, or a date; 0 when it is neither."""
    text = reply.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now_s)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[:KEPT_CHARS]
