"""Questions to the store off the event loop, asked again while it is away. Knows no job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

from workflows.errors import StoreAway
from workflows.ports import ArtifactStore
from workflows.types import Artifact

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
"""Between two questions while the store is away."""
Tell = Callable[[str], Awaitable[None]]


class StoreWatch:
    """The store as all walks of one Director ask it.

    What is looked up decides whether a GPU works for minutes. So nobody guesses while the store is away; and only one
    of a thousand waiting nodes asks it then, since each question may take a client half a minute of a thread.
    """

    def __init__(self, store: ArtifactStore, *, limit_s: float) -> None:
        """`limit_s`: how long one question waits for its answer."""
        self._store = store
        self._limit_s = limit_s
        self._turn = asyncio.Lock()
        self._away = False

    async def find(self, key: str, tell: Tell) -> Artifact | None:
        """The artifact committed under a key, or None. `tell` hears of an outage when it is met, and when it is over.

        Raises StoreAway when the limit has passed, and what else the store raises at once.
        """
        started_s, wait_s = time.monotonic(), FIRST_WAIT_S
        while True:
            async with self._turn if self._away else nullcontext():
                try:
                    found = await asyncio.to_thread(self._store.find, key)
                except StoreAway as error:
                    is_news, self._away = not self._away, True
                    if is_news:
                        await tell(f"{error}; nothing new is started until it is back")
                    if time.monotonic() - started_s >= self._limit_s:
                        raise
                    # Inside the turn: whoever comes next has not to ask at once.
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, LONGEST_WAIT_S)
                else:
                    if self._away:
                        self._away = False
                        await tell(f"the store is back after {time.monotonic() - started_s:.0f} s")
                    return found
