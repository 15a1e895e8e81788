"""The ingress: what Serve constructs behind HTTP, and the desk's ports made of Ray. All behaviour is in the desk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from actors.progress import ActorTransport, Poll, progress_actor
from configs.load import casting, edit_cards, load_cards
from configs.settings import Settings
from serve_app.deployments import open_store
from serve_app.director import lane_capacity
from serve_app.http.api import build_api
from serve_app.service.desk import Desk, Ports
from workflows.durable.ledger import Ledger

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 5.0
"""A long poll is answered after this time, with nothing if there is nothing."""
BOARD_START_S = 30.0


class ActorBoard:
    """The ProgressActor, found or created; looked up again after a failure."""

    def __init__(self, settings: Settings) -> None:
        """Find or create the actor."""
        self._settings = settings
        self._actor = self._find()

    def wait_until_ready(self) -> None:
        """Block until the actor answers; give up quietly after a while, since progress is soft state."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._actor.ping.remote(), timeout=BOARD_START_S)

    async def history(self, job_id: str) -> Poll:
        """Every event of the job that is still kept."""
        return await self._ask(lambda: self._actor.history.remote(job_id))

    async def poll(self, job_id: str, epoch: str, after: int) -> Poll:
        """Long-poll the job's events."""
        return await self._ask(lambda: self._actor.poll.remote(job_id, epoch, after, POLL_TIMEOUT_S))

    async def _ask(self, question: Callable[[], ray.ObjectRef]) -> Poll:
        try:
            poll: Poll = await question()
        except Exception:
            self._actor = await asyncio.to_thread(self._find)
            raise
        return poll

    def _find(self) -> ray.actor.ActorHandle:
        return progress_actor(self._settings.progress, self._settings.ray.namespace)


class RayStudio:
    """Director and board, told without waiting for an answer."""

    def __init__(self, settings: Settings, director: DeploymentHandle) -> None:
        """`director` may be restarted at any time; what it missed it finds in the database."""
        self._director = director
        self._transport = ActorTransport(settings.progress, settings.ray.namespace)

    def wake(self) -> None:
        """There is a new job, or a job was opened again."""
        try:
            self._director.wake.remote()
        except Exception as error:  # noqa: BLE001 - the Director looks by itself a moment later
            log.warning("the Director was not woken: %s: %s", type(error).__name__, error)

    def cancelled(self, job_id: str) -> None:
        """Its calls should stop at their next step."""
        self._transport.cancel(job_id)

    def reopened(self, job_id: str) -> None:
        """Its steps so far belong to an earlier run."""
        self._transport.forget(job_id)


class RayCluster:
    """What runs where, as Ray and Serve say."""

    def __init__(self, app_name: str) -> None:
        """`app_name`: the application whose parts count."""
        self._app_name = app_name

    def resources(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """All of the cluster's, and those that are free."""
        return ray.cluster_resources(), ray.available_resources()

    def parts(self) -> Mapping[str, str]:
        """Deployment -> its state."""
        found = serve.status().applications.get(self._app_name)
        if found is None:
            return {"application": "missing"}
        return {name: str(part.status.value) for name, part in found.deployments.items()}


class IngressDeployment:
    """One process that answers HTTP; any number of them, each as good as the other."""

    def __init__(self, settings: Settings, director: DeploymentHandle, app_name: str) -> None:
        """Open database and store; the application itself is built when Serve asks for it."""
        cards = load_cards(settings)
        cast = casting(settings, cards)
        slots = lane_capacity(settings, cast, edit_cards(settings, cards))
        self._desk = Desk(settings, Ports(
            ledger=Ledger(settings.database), store=open_store(settings), board=ActorBoard(settings),
            studio=RayStudio(settings, director), cluster=RayCluster(app_name), slots=slots))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve once, in the replica's event loop."""
        return build_api(self._desk)
