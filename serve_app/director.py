"""The Director: walks the jobs it has leased, and sends every ready node where it can run. Knows no Ray.

Holds nothing that the database does not hold too: kill it at any moment and the next one continues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from configs.chat_card import AnyCard, ChatCard
from configs.load import casting, edit_cards, load_cards
from configs.model_card import ModelCard, Task
from configs.settings import Settings
from workflows.dispatch import Depth, Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.edit_plan import CLASSICAL, EDIT_KINDS
from workflows.elastic import Tail
from workflows.ports import ArtifactStore, MediaWorker, Model, Step
from workflows.stages.edit_route import EditWorker, ask_model
from workflows.stages.pick import pick
from workflows.stages.render import clip, keyframe
from workflows.stages.story import RULES, story
from workflows.story import StoryWriter
from workflows.types import CPU_LANE, STORY_LANE, NodeKind

log = logging.getLogger(__name__)


class Board(Protocol):
    """What the Director needs of the ProgressActor; every call is a hint that may be lost."""

    def cancel(self, job_id: str) -> None:
        """Stop calls of this job whose caller is gone."""

    def forget(self, job_id: str) -> None:
        """Drop a job's records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside the Director, put in by `serve_app.app` or by a test."""

    ledger: Ledger
    store: ArtifactStore
    models: Mapping[str, Model]
    """By card name."""
    media: MediaWorker
    board: Board
    edits: Mapping[str, EditWorker] = field(default_factory=dict)
    """Trackers and editors by card name."""
    story_store: ArtifactStore | None = None
    """The same store, waiting while it is away: a story costs a model's minutes. None: `store`."""
    writer: StoryWriter = RULES
    """Breaks the scripts that were submitted for it."""


class Director:
    """Runs jobs until it is stopped."""

    def __init__(self, settings: Settings, ports: Ports, *, only: frozenset[str] | None = None) -> None:
        """`only` restricts it to these job ids; needs a running event loop."""
        self._settings = settings
        self._ports = ports
        cards = load_cards(settings)
        self._cast = casting(settings, cards)
        edits = edit_cards(settings, cards)
        lanes = lane_capacity(settings, self._cast, edits)
        depths = {card.name: depth_of(card) for card in (*self._cast.values(), *edits)}
        self._dispatcher = Dispatcher(lanes, depths=depths, patience_s=settings.engine.batch_wait_s,
                                      tails=tails_of(self._cast.values()))
        self._engine = Engine(ports.ledger, self._steps(), store=ports.store, dispatcher=self._dispatcher,
                              settings=settings.engine, only=only)
        self._running = asyncio.get_running_loop().create_task(self._engine.run(), name="engine")

    async def wake(self) -> None:
        """Look for new jobs now rather than at the next poll."""
        self._engine.wake()

    async def cancel(self, job_id: str) -> None:
        """Stop a job: its nodes on GPUs end at their next denoising step. Raises UnknownJob."""
        await asyncio.to_thread(self._ports.ledger.cancel, job_id)
        self._engine.wake()
        await asyncio.to_thread(self._ports.board.cancel, job_id)

    async def retry(self, job_id: str, selection: tuple[str, ...] = (), force: bool = False) -> tuple[str, ...]:
        """Open a finished job again; returns the ids of the nodes that will run (see `Ledger.rerun`)."""
        chosen = await asyncio.to_thread(partial(self._ports.ledger.rerun, job_id, selection, force=force))
        await asyncio.to_thread(self._ports.board.forget, job_id)
        self._engine.wake()
        return chosen

    def give_room(self, lane: str, slots: int) -> None:
        """Calls in flight that a lane has room for from now on; those that are too many end in their own time."""
        if self._dispatcher.capacity(lane) != slots:
            self._dispatcher.resize(lane, slots)

    async def stop(self) -> None:
        """Hand everything back: running nodes become pending again, leases are released."""
        await self._engine.stop()
        await asyncio.wait([self._running])

    async def check_health(self) -> None:
        """Raise when the engine has ended without being asked to."""
        if self._running.done() and not self._running.cancelled() and (error := self._running.exception()):
            raise RuntimeError(f"the engine stopped: {type(error).__name__}: {error}")

    def _steps(self) -> dict[NodeKind, Step]:
        """The stages with their ports in place."""
        media = self._ports.media.run
        in_video = partial(ask_model, models=self._ports.edits, media=self._ports.media,
                           on_cpu=frozenset({CLASSICAL.card}))
        told_in = self._ports.story_store or self._ports.store
        return {NodeKind.STORY: partial(story, cards=self._cast, store=told_in, writer=self._ports.writer),
                NodeKind.KEYFRAME: partial(keyframe, models=self._ports.models),
                NodeKind.CLIP: partial(clip, models=self._ports.models),
                NodeKind.INTERPOLATE: media, NodeKind.CAPTION: media, NodeKind.COMPOSE: media,
                NodeKind.SCORE: media, NodeKind.PICK: pick,
                **dict.fromkeys(EDIT_KINDS, media), NodeKind.MASK: in_video, NodeKind.EDIT: in_video}


def depth_of(card: AnyCard) -> Depth:
    """Calls at one replica: those that it works on at the same time, and as many that wait beside them."""
    if isinstance(card, ChatCard):
        return Depth()  # who waits beside a long answer loses the time that its own one needs
    return Depth(at_once=card.remote.parallel) if card.remote else Depth(at_once=card.batch, ahead=card.batch)


def calls_at_once(card: AnyCard) -> int:
    """Calls in flight per replica, at most."""
    return depth_of(card).calls


def tails_of(cards: Iterable[ModelCard]) -> dict[str, Tail]:
    """By lane: how idle replicas help, where the card lets them."""
    return {card.name: Tail(sizes=card.elastic.sizes, calls_per_replica=calls_at_once(card))
            for card in cards if card.elastic is not None}


def lane_capacity(settings: Settings, cast: Mapping[Task, ModelCard],
                  edits: Iterable[ModelCard] = ()) -> dict[str, int]:
    """Calls in flight per lane: what each card's replicas take at once, CPU slots, a language model's stories."""
    lanes = {card.name: calls_at_once(card) * settings.models.replica_of(card.name).replicas
             for card in (*cast.values(), *edits)}
    # Also where no model is asked: scripts that were submitted for one are refused there, with the reason.
    story = settings.story
    stories = settings.models.replica_of(story.card).replicas if story.card else story.parallel
    return {**lanes, CPU_LANE: settings.cpu_slots, STORY_LANE: stories}
