"""Replicas that come and go with the work: who counts it, and who gives the Director room for it. Knows no Ray.

The Director's replica counts the rows and tells the ProgressActor; Serve's controller, which decides how many replicas
there are, asks there (`serve_app.scaling_policy`). The database's address stays out of Serve's configuration, which
dashboards show. Where the GPUs are too few for all cards, who counts also says how many replicas each is to have:
nobody else sees the work of all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from configs.chat_card import AnyCard, ChatCard
from configs.settings import Settings
from serve_app.capacity import gpus_of, max_gpus
from serve_app.director import calls_at_once
from workflows.division import Claim, Division, Pace, Room, divide
from workflows.durable.backlog import Backlogs
from workflows.scaling import WANTED, Backlog, Rule
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Replicas of one card, as Serve says."""

    running: int = 0
    starting: int = 0
    """Also those that wait for a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """What the cards that come and go share."""

    room: Room
    per_replica: Mapping[str, float]
    """By card; none for those that do not share: they need no GPU, or may not run on the same machines."""


NO_GPUS = Gpus(room=Room(gpus=0.0), per_replica={})


def gpus_now(settings: Settings, cards: Iterable[AnyCard], cluster: Mapping[str, float]) -> Gpus:
    """The GPUs that the cluster has or can have, less those of replicas that stay.

    Cards with unlike labels share nothing: which GPUs are whose is known to Ray alone.
    """
    own = [(card, settings.models.replica_of(card.name)) for card in cards if card.loader != "embedding"]
    coming = [(card, replicas) for card, replicas in own if replicas.min_replicas is not None]
    if any(replicas.labels != coming[0][1].labels for _, replicas in coming):
        return NO_GPUS
    taken = [gpus_of(card, settings, cluster) for card, replicas in own if replicas.min_replicas is None
             for _ in range(replicas.replicas)]
    shares = {card.name: gpus_of(card, settings, cluster) for card, _ in coming}
    return Gpus(room=Room(gpus=max_gpus(settings, cluster), taken=tuple(taken)),
                per_replica={name: gpus for name, gpus in shares.items() if gpus > 0})


class Divider:
    """Divides the GPUs again and again, and remembers the last time."""

    def __init__(self, settings: Settings, gpus: Callable[[], Gpus], *,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """`gpus()` may block; `clock` is a test's."""
        self._models = settings.models
        self._gpus = gpus
        self._clock = clock
        self._last = Division()

    def wanted(self, found: Mapping[str, Backlog], seen: Mapping[str, Seen]) -> dict[str, int]:
        """Replicas that cards are to have, by name; empty where there are GPUs for all of them. Blocking."""
        gpus = self._gpus()
        scaling = self._models.scaling
        claims = [self._claim(card, found[card], seen.get(card, Seen()), share)
                  for card, share in gpus.per_replica.items() if card in found]
        before = self._last.wanted
        self._last = divide(claims, self._last, room=gpus.room, at_s=self._clock(),
                            pace=Pace(load_s=scaling.load_s, yield_s=scaling.yield_s))
        if self._last.wanted != before:
            log.info("replicas of cards that share %g GPUs: %s", gpus.room.gpus,
                     self._last.wanted or "as many as each needs")
        return self._last.wanted

    def _claim(self, card: str, backlog: Backlog, seen: Seen, gpus: float) -> Claim:
        own, scaling = self._models.replica_of(card), self._models.scaling
        rule = Rule(least=own.at_start, most=own.replicas, finish_within_s=scaling.finish_within_s,
                    idle_s=scaling.idle_s)
        return Claim(card=card, backlog=backlog, rule=rule, gpus=gpus, running=seen.running,
                     held=seen.running + seen.starting)


def told(found: Mapping[str, Backlog], wanted: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """What the board keeps for Serve's controller: the numbers by card, with `wanted` where it is said."""
    return {card: work.to_json() | ({WANTED: float(wanted[card])} if card in wanted else {})
            for card, work in found.items()}


class Scaler:
    """Looks at the work and at the replicas, again and again."""

    def __init__(self, backlogs: Backlogs, scaled: Iterable[Scaled], *, divider: Divider,
                 replicas: Callable[[], Mapping[str, Seen]],
                 tell: Callable[[Mapping[str, Backlog], Mapping[str, int]], None],
                 give_room: Callable[[str, int], None]) -> None:
        """`replicas()`: by card, blocking; `tell` hears of the work by card, and of the replicas that cards are to
        have; `give_room(lane, calls)` is called in the event loop.
        """
        self._backlogs = backlogs
        self._scaled = tuple(scaled)
        self._divider = divider
        self._replicas = replicas
        self._tell = tell
        self._give_room = give_room
        self._wanted: Mapping[str, int] = {}

    async def run(self, look_s: float) -> None:
        """Until cancelled; what cannot be counted now is counted later."""
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - a database or controller that is away comes back
                log.warning("the work for models could not be counted: %s: %s", type(error).__name__, error)
            await asyncio.sleep(look_s)

    async def look(self) -> None:
        """Once."""
        seen = await asyncio.to_thread(self._replicas)
        self._give_rooms(seen)
        found = await asyncio.to_thread(self._count)
        self._wanted = await asyncio.to_thread(self._divider.wanted, found, seen)
        # Before Serve hears of it: what is handed over must wait in the database, not for a replica that is gone.
        self._give_rooms(seen)
        await asyncio.to_thread(self._tell, found, self._wanted)

    def _give_rooms(self, seen: Mapping[str, Seen]) -> None:
        for one in self._scaled:
            running = seen.get(one.card, Seen()).running
            self._give_room(one.lane, one.calls * min(running, self._wanted.get(one.card, running)))

    def _count(self) -> dict[str, Backlog]:
        found = self._backlogs.of([one.lane for one in self._scaled])
        return {one.card: found[one.lane] for one in self._scaled}
