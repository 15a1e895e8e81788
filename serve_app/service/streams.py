"""A watcher's event stream, and a job's log as it grows. Of HTTP it knows only how the lines of a stream look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from serve_app.service.feed import Beginning, Feed, Position, snapshot_text
from serve_app.service.hub import Hub
from serve_app.service.views import Views
from workflows.durable.ledger import Ledger

RECONNECT_MS = 2000
"""What clients are asked to wait before they connect again."""
HEARTBEAT = b": heartbeat\n\n"
LOG_PAGE = 1000
LOG_WAIT_S = 2.0


class Streams:
    """Streams of one process."""

    def __init__(self, hub: Hub, views: Views, ledger: Ledger, *, heartbeat_s: float, max_bytes: int) -> None:
        """A stream that has nothing to say for `heartbeat_s` says so; events end after `max_bytes`, and go on when the
        client comes back: what stands between us and a slow reader may keep all that we say.
        """
        self._hub = hub
        self._views = views
        self._ledger = ledger
        self._heartbeat_s = heartbeat_s
        self._max_bytes = max_bytes

    async def events(self, job_id: str, last_id: str = "", *, all_steps: bool = False,
                     ) -> AsyncIterator[bytes] | None:
        """The job's events after `last_id`; None when it is over and the client has heard all. Raises UnknownJob.

        Without an id, or with one that is none: the present run from its start, and if wanted with all its steps.
        """
        feed = await self._hub.feed(job_id)
        heard = Position.read(last_id)
        if feed.is_over or (heard and heard.rows > feed.at.rows):
            # It may have been opened again a moment ago; or another process looked later, and must not be told twice.
            await feed.look()
        beginning = feed.begin(heard, all_steps=all_steps)
        if heard and feed.is_over and not beginning.frames and not beginning.with_snapshot:
            return None
        if heard and heard.rows > feed.at.rows:
            heard = None
        return self._limited(self._stream(feed, beginning, heard))

    async def log(self, job_id: str, offset: int) -> AsyncIterator[str]:
        """Lines of the job's log from `offset` on, until the job is over. Raises UnknownJob at the first line."""
        while True:
            over = (await asyncio.to_thread(self._ledger.job, job_id)).status.is_terminal
            page = await asyncio.to_thread(self._ledger.log_lines, job_id, offset, LOG_PAGE)
            for line in page.lines:
                yield line + "\n"
            if not page.lines:
                if over:
                    return
                await (await self._hub.feed(job_id)).news(LOG_WAIT_S)
            offset = page.next_offset

    async def _limited(self, stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
        sent = 0
        async with aclosing(stream):
            async for piece in stream:
                yield piece
                sent += len(piece)
                # Only behind an id: what comes next is what the client has not heard.
                if sent >= self._max_bytes and b"id: " in piece:
                    return

    async def _stream(self, feed: Feed, beginning: Beginning, heard: Position | None) -> AsyncGenerator[bytes, None]:
        feed.watchers += 1
        try:
            yield f"retry: {RECONNECT_MS}\n\n".encode()
            if beginning.with_snapshot:
                yield await self._snapshot(feed)
            self._forget_older(feed)
            for frame in beginning.frames:
                yield frame.text_after(heard)  # begins behind what was heard: never empty
            number = beginning.number
            while not feed.is_gone:
                frames = feed.after(number)
                if frames is None:
                    number = feed.number
                    yield await self._snapshot(feed)
                elif frames:
                    number = frames[-1].number
                    self._forget_older(feed)
                    for text in filter(None, (frame.text_after(heard) for frame in frames)):
                        yield text
                elif feed.is_over:
                    return
                elif not await feed.news(self._heartbeat_s):
                    yield HEARTBEAT
        finally:
            feed.watchers -= 1

    def _forget_older(self, feed: Feed) -> None:
        """Who hears that the job is over, and then asks for it, must not be told how it was a moment before."""
        if feed.is_over:
            self._views.forget(feed.job_id)

    async def _snapshot(self, feed: Feed) -> bytes:
        at = feed.at
        seen = await self._views.job(feed.job_id, after_s=feed.changed_s)
        return snapshot_text(seen.body, at)
