"""Database calls off the event loop, patient while the database is away. Knows nothing of what is called."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from workflows.durable.database import is_down

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
"""Between two tries while the database is away."""
TELL_EVERY_S = 10.0
"""Hundreds of nodes may wait for the same outage; one line says it for all."""


class Patience:
    """A few threads for database calls. One thread more than writers: a heartbeat never queues behind node writes."""

    def __init__(self, *, writers: int) -> None:
        """`writers`: calls of `insist` at the same time."""
        self._threads = ThreadPoolExecutor(writers + 1, thread_name_prefix="reelray-db")
        self._writers = asyncio.Semaphore(writers)
        self._told_s = -TELL_EVERY_S

    async def once(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call on a thread; errors come through."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *args, **kwargs))

    async def insist(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call on a thread, again and again while the database is away; any other error comes through."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                async with self._writers:
                    return await self.once(call, *args, **kwargs)
            except Exception as error:
                if not is_down(error):
                    raise
                self.tell(error)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def tell(self, error: Exception) -> None:
        """Log that the database is away, now and then."""
        if time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._told_s = time.monotonic()
            log.warning("database is away; jobs in hand wait for it: %s", str(error).splitlines()[0])

    def close(self) -> None:
        """End the threads; a call that is running finishes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
