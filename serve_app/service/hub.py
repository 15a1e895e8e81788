"""Hub: follows each watched job once, whoever watches it in this process. Knows the ledger and the board's port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from serve_app.service.feed import RETRY_S, Board, Feed
from workflows.durable.ledger import Ledger
from workflows.durable.overview import Overview
from workflows.types import ProgressRecord

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""How often new rows of watched jobs are looked for."""
LINGER_S = 30.0
"""A job stays watched so long after its last watcher left: pages are reloaded, and polling clients come back."""


class Hub:
    """The feeds of one process."""

    def __init__(self, ledger: Ledger, overview: Overview, board: Board, *, window: int) -> None:
        """`window`: newest frames kept per job and kind, for watchers that come back."""
        self._ledger = ledger
        self._overview = overview
        self._board = board
        self._window = window
        self._feeds: dict[str, asyncio.Task[Feed]] = {}
        self._nudged = asyncio.Event()
        self._looker: asyncio.Task[None] | None = None

    async def feed(self, job_id: str) -> Feed:
        """The job's feed, opened if nobody did yet. Raises UnknownJob."""
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look(), name="hub")
        opening = self._feeds.get(job_id)
        if opening is None or (opening.done() and not _opened(opening)):
            opening = self._feeds[job_id] = asyncio.create_task(self._open(job_id), name=f"open {job_id}")
            opening.add_done_callback(lambda task: _opened(task) or self._feeds.pop(job_id, None))
        feed = await asyncio.shield(opening)
        feed.used_s = time.monotonic()
        return feed

    async def live(self, job_id: str) -> Mapping[str, ProgressRecord]:
        """The newest step of each running node."""
        return dict((await self.feed(job_id)).live)

    def nudge(self) -> None:
        """Something was just written: look now."""
        self._nudged.set()

    async def close(self) -> None:
        """End all feeds."""
        if self._looker is not None:
            self._looker.cancel()
            await asyncio.wait([self._looker])
        for opening in list(self._feeds.values()):
            if _opened(opening):
                await opening.result().close()
        self._feeds.clear()

    async def _open(self, job_id: str) -> Feed:
        feed = Feed(job_id, self._ledger, self._board, self._window)
        await feed.open()
        return feed

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the nudge.
                async with asyncio.timeout(LOOK_S):
                    await self._nudged.wait()
            self._nudged.clear()
            feeds = [opening.result() for opening in self._feeds.values() if _opened(opening)]
            try:
                await self._look_once([feed for feed in feeds if not feed.is_gone])
            except Exception as error:  # noqa: BLE001 - a database that is away: watchers wait, and miss nothing
                log.warning("rows of watched jobs cannot be read for now: %s", str(error).splitlines()[0])
                await asyncio.sleep(RETRY_S)
            await self._let_go(feeds)

    async def _look_once(self, feeds: Sequence[Feed]) -> None:
        if not feeds:
            return
        newest = await asyncio.to_thread(self._overview.newest_events, [feed.job_id for feed in feeds])
        for feed in feeds:
            if newest.get(feed.job_id, -1) != feed.at.rows:
                await feed.look()

    async def _let_go(self, feeds: Iterable[Feed]) -> None:
        for feed in feeds:
            idle = feed.watchers == 0 and time.monotonic() - feed.used_s > LINGER_S
            if feed.is_gone or idle:
                self._feeds.pop(feed.job_id, None)
                await feed.close()


def _opened(opening: asyncio.Task[Feed]) -> bool:
    return opening.done() and not opening.cancelled() and opening.exception() is None
