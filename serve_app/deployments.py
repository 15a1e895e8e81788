"""The constructors that Serve calls inside a replica: settings in, ports built, the plain class started.

All behaviour is in the plain classes, which tests build with fakes. This module loads no torch: the Director, the media
worker and the command line import it too, and each would pay seconds for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from actors.progress import ActorTransport
from actors.reporter import Reporter
from configs.chat_card import ChatCard
from configs.load import cards_in_use, load_cards, scorer_of, story_card
from configs.model_card import ModelCard
from configs.settings import Settings
from serve_app.cluster import scratch_dir
from serve_app.director import Director, Ports
from serve_app.handles import ChatHandle, NodeHandle, model_handles
from serve_app.leaving import when_stopping
from serve_app.media_worker import MediaWorker
from serve_app.models.embedding import CardEmbedder
from serve_app.providers.local import Answer, Question
from serve_app.scaling import Divider, Scaled, Scaler, Seen, gpus_now, scaled_of, told
from serve_app.webhooks.courier import SocketCourier
from serve_app.webhooks.guard import Guard
from serve_app.webhooks.postman import Postman
from serve_app.writers.model import story_writer
from workflows.checkpoints import CheckpointShelf
from workflows.durable.backlog import Backlogs
from workflows.durable.database import Database
from workflows.durable.ledger import Ledger
from workflows.ports import RenderCall
from workflows.store import Store
from workflows.types import NodeCall, NodeResult

if TYPE_CHECKING:
    from serve_app.models.chat_replica import ChatReplica
    from serve_app.models.edit_replica import EditReplica
    from serve_app.models.replica import ModelReplica


class ModelDeployment:
    """One replica of one model card."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        """Load, warm up, and only then be ready."""
        from serve_app.models.replica import ModelReplica  # torch and diffusers, in this process only

        assigned = ray.get_runtime_context().get_assigned_resources()
        reporter = _reporter(settings, self._cancel_job)
        self._replica: ModelReplica = ModelReplica(
            card, settings.models, settings.media, open_store(settings, patient=True), reporter,
            float(assigned.get("GPU", 0)), checkpoints=CheckpointShelf(settings.store),
            name=own_name())
        when_stopping(self._replica.leave)

    async def image(self, call: RenderCall) -> NodeResult:
        """Text to one picture."""
        return await self._replica.image(call)

    async def clip(self, call: RenderCall) -> NodeResult:
        """Text, or text and first frame, to one clip."""
        return await self._replica.clip(call)

    async def assist(self, call: RenderCall) -> None:
        """Help another replica of the card with its call."""
        await self._replica.assist(call)

    def _cancel_job(self, job_id: str) -> None:
        self._replica.cancel_job(job_id)

    async def check_health(self) -> None:
        """Async, and cheap: a sync one would wait for the same threads as the work."""
        await self._replica.check_health()


class EditDeployment:
    """One replica of one card that tracks or edits."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        """Load, warm up, and only then be ready."""
        from serve_app.models.edit_replica import EditReplica  # torch, diffusers, transformers: in this process only

        assigned = ray.get_runtime_context().get_assigned_resources()
        reporter = _reporter(settings, self._cancel_job)
        self._replica: EditReplica = EditReplica(card, settings.models, open_store(settings, patient=True), reporter,
                                                 float(assigned.get("GPU", 0)))

    async def run(self, call: NodeCall) -> NodeResult:
        """One mask node or one edit node."""
        return await self._replica.run(call)

    def _cancel_job(self, job_id: str) -> None:
        self._replica.cancel_job(job_id)

    async def check_health(self) -> None:
        """Async, and cheap: a sync one would wait for the same threads as the work."""
        await self._replica.check_health()


class ChatDeployment:
    """One replica of the language model that writes stories."""

    def __init__(self, card: ChatCard, settings: Settings) -> None:
        """Load, warm up, and only then be ready."""
        from serve_app.models.chat_replica import ChatReplica  # torch and transformers, in this process only

        assigned = ray.get_runtime_context().get_assigned_resources()
        self._replica: ChatReplica = ChatReplica(card, settings.models, float(assigned.get("GPU", 0)))

    async def answer(self, question: Question) -> Answer:
        """The answer to one question."""
        return await self._replica.answer(question)

    async def check_health(self) -> None:
        """Async, and cheap: a sync one would wait for the same threads as the work."""
        await self._replica.check_health()


class MediaDeployment(MediaWorker):
    """The CPU stages."""

    def __init__(self, settings: Settings) -> None:
        """Ready at once."""
        reporter = _reporter(settings, self.cancel_job)
        scorer = scorer_of(settings, load_cards(settings))
        embedder = None if scorer is None else CardEmbedder(scorer, fetch=settings.models.auto_download)
        super().__init__(settings.media, open_store(settings, patient=True), reporter, slots=settings.cpu_slots,
                         embedder=embedder)


class DirectorDeployment(Director):
    """The Director, and the postman beside it; one on SQLite, any number on Postgres."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it; the engine's task needs the replica's event loop
        self, settings: Settings, models: Mapping[str, DeploymentHandle], media: DeploymentHandle,
        only: tuple[str, ...] = (), chat: DeploymentHandle | None = None, *,
        edits: Mapping[str, DeploymentHandle] = MappingProxyType({}),
    ) -> None:
        """Start the engine at once."""
        ledger = Ledger(settings.database)
        super().__init__(settings, Ports(
            ledger=ledger, store=open_store(settings), story_store=open_store(settings, patient=True),
            models=model_handles(models),
            media=NodeHandle(media), edits={card: NodeHandle(handle) for card, handle in edits.items()},
            board=ActorTransport(settings.progress, settings.ray.namespace),
            writer=story_writer(settings.story, story_card(settings), None if chat is None else ChatHandle(chat)),
        ), only=frozenset(only) or None)
        scaled = scaled_of(settings, cards_in_use(settings))
        self._scaling = asyncio.create_task(self._scale(settings, ledger.database, scaled), name="scaler")
        courier = SocketCourier(Guard(settings.webhooks), timeout_s=settings.webhooks.timeout_s)
        self._postman = Postman(ledger.database, courier, settings.webhooks)
        self._posting = asyncio.create_task(self._postman.run(), name="postman")
        loop = asyncio.get_running_loop()
        # Its jobs are free for the next Director at once, not only when their leases have run out.
        when_stopping(lambda: asyncio.run_coroutine_threadsafe(self.stop(), loop))

    async def _scale(self, settings: Settings, database: Database, scaled: tuple[Scaled, ...]) -> None:
        """Count the work for replicas that come and go; there is no room for calls before one is seen."""
        if not scaled:
            return
        for one in scaled:
            self.give_room(one.lane, 0)
        app_name = serve.get_replica_context().app_name
        board = ActorTransport(settings.progress, settings.ray.namespace)
        cards = cards_in_use(settings)
        await Scaler(
            Backlogs(database), scaled, give_room=self.give_room,
            divider=Divider(settings, lambda: gpus_now(settings, cards, ray.cluster_resources())),
            replicas=lambda: seen_replicas(app_name, [one.card for one in scaled]),
            tell=lambda found, wanted: board.tell_backlogs(told(found, wanted)),
        ).run(settings.models.scaling.look_s)

    async def stop(self) -> None:
        """As the Director does; webhooks under way are cut off and sent again by the next one."""
        self._scaling.cancel()
        await super().stop()
        await self._postman.stop()
        await asyncio.wait([self._posting])


def model_deployment(card: str) -> str:
    """What Serve calls the deployment of a model card."""
    return f"model-{card}"


def own_name() -> str:
    """What the router knows this replica by."""
    return str(serve.get_replica_context().replica_id.unique_id)


def seen_replicas(app_name: str, cards: Iterable[str]) -> dict[str, Seen]:
    """Replicas of each card that take calls now, and those that are to, as Serve says. Blocking."""
    found = serve.status().applications.get(app_name)
    parts = {} if found is None else found.deployments
    states = {card: parts[name].replica_states for card in cards if (name := model_deployment(card)) in parts}
    return {card: Seen(running=int(counts.get("RUNNING", 0)),
                       starting=sum(int(counts.get(state, 0)) for state in ("STARTING", "UPDATING", "RECOVERING")))
            for card, counts in states.items()}


def open_store(settings: Settings, *, patient: bool = False) -> Store:
    """The store that these settings name; a patient one waits while it is away, and its caller's thread with it."""
    return Store(settings.store, cache_dir=scratch_dir(settings),
                 patience_s=settings.engine.store_patience_s if patient else 0.0)


def _reporter(settings: Settings, on_cancelled: Callable[[str], None]) -> Reporter:
    transport = ActorTransport(settings.progress, settings.ray.namespace)
    return Reporter(transport, flush_s=settings.progress.flush_s, on_cancelled=on_cancelled)
