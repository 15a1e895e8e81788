"""The constructors that Serve calls inside a replica: settings in, ports built, the plain class started.

Each is its plain class plus a constructor; all behaviour is in the plain classes, which tests build with fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ray
from ray.serve.handle import DeploymentHandle

from actors.progress import ActorTransport
from actors.reporter import Reporter
from configs.model_card import ModelCard
from configs.settings import Settings
from serve_app.cluster import scratch_dir
from serve_app.director import Director, Ports
from serve_app.handles import MediaHandle, model_handles
from serve_app.media_worker import MediaWorker
from serve_app.models.replica import ModelReplica
from workflows.durable.ledger import Ledger
from workflows.store import Store


class ModelDeployment(ModelReplica):
    """One replica of one model card."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        """Load, warm up, and only then be ready."""
        self._reporter = _reporter(settings, self.cancel_job)
        assigned = ray.get_runtime_context().get_assigned_resources()
        super().__init__(card, settings.models, settings.media, _store(settings), self._reporter,
                         assigned_gpus=float(assigned.get("GPU", 0)))


class MediaDeployment(MediaWorker):
    """The CPU stages."""

    def __init__(self, settings: Settings) -> None:
        """Ready at once."""
        self._reporter = _reporter(settings, self.cancel_job)
        super().__init__(settings.media, _store(settings), self._reporter, slots=settings.cpu_slots)


class DirectorDeployment(Director):
    """The Director; one on SQLite, any number on Postgres."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it; the engine's task needs the replica's event loop
        self, settings: Settings, models: Mapping[str, DeploymentHandle], media: DeploymentHandle,
        only: tuple[str, ...] = (),
    ) -> None:
        """Start the engine at once."""
        super().__init__(settings, Ports(
            ledger=Ledger(settings.database), store=_store(settings), models=model_handles(models),
            media=MediaHandle(media), board=ActorTransport(settings.progress, settings.ray.namespace),
        ), only=frozenset(only) or None)


def _store(settings: Settings) -> Store:
    return Store(settings.store, cache_dir=scratch_dir(settings))


def _reporter(settings: Settings, on_cancelled: Callable[[str], None]) -> Reporter:
    transport = ActorTransport(settings.progress, settings.ray.namespace)
    return Reporter(transport, flush_s=settings.progress.flush_s, on_cancelled=on_cancelled)
