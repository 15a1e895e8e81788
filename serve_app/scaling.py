"""Replicas that come and go with the work: who counts it, and who gives the Director room for it. Knows no Ray.

The Director's replica counts the rows and tells the ProgressActor; Serve's controller, which decides how many replicas
there are, asks there (`serve_app.scaling_policy`). The database's address stays out of Serve's configuration, which
dashboards show.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from configs.chat_card import AnyCard, ChatCard
from configs.settings import Settings
from serve_app.director import calls_at_once
from workflows.durable.backlog import Backlogs
from workflows.scaling import Backlog
from workflows.types import STORY_LANE

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """One card whose replicas come and go."""

    card: str
    lane: str
    calls: int
    """In flight per replica."""


def scaled_of(settings: Settings, cards: Iterable[AnyCard]) -> tuple[Scaled, ...]:
    """Those of these cards that have `min_replicas`; what compares pictures has no replicas."""
    return tuple(Scaled(card=card.name, lane=STORY_LANE if isinstance(card, ChatCard) else card.name,
                        calls=calls_at_once(card))
                 for card in cards if settings.models.replica_of(card.name).min_replicas is not None
                 and card.loader != "embedding")


class Scaler:
    """Looks at the work and at the replicas, again and again."""

    def __init__(self, backlogs: Backlogs, scaled: Iterable[Scaled], *, look_s: float,
                 replicas: Callable[[], Mapping[str, int]], tell: Callable[[Mapping[str, Backlog]], None],
                 give_room: Callable[[str, int], None]) -> None:
        """`replicas()`: card -> how many run, blocking; `tell` hears of the work by card; `give_room(lane, calls)` is
        called in the event loop.
        """
        self._backlogs = backlogs
        self._scaled = tuple(scaled)
        self._look_s = look_s
        self._replicas = replicas
        self._tell = tell
        self._give_room = give_room

    async def run(self) -> None:
        """Until cancelled; what cannot be counted now is counted later."""
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - a database or controller that is away comes back
                log.warning("the work for models could not be counted: %s: %s", type(error).__name__, error)
            await asyncio.sleep(self._look_s)

    async def look(self) -> None:
        """Once."""
        running = await asyncio.to_thread(self._replicas)
        for one in self._scaled:
            self._give_room(one.lane, one.calls * running.get(one.card, 0))
        await asyncio.to_thread(self._count)

    def _count(self) -> None:
        found = self._backlogs.of([one.lane for one in self._scaled])
        self._tell({one.card: found[one.lane] for one in self._scaled})
