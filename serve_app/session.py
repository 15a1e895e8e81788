"""Session: the whole application on this machine for the life of one command. Imported after `prepare_environment`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Iterable

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from actors.progress import Poll, progress_actor
from configs.settings import Settings
from serve_app.app import APP_NAME, build
from serve_app.cluster import start_ray
from workflows.errors import StartFailed

STOP_TIMEOUT_S = 15.0
POLL_TIMEOUT_S = 5.0
BOARD_START_S = 30.0


class BoardObserver:
    """Polls the ProgressActor."""

    def __init__(self, settings: Settings) -> None:
        """Find or create the actor."""
        self._settings = settings
        self._actor = progress_actor(settings.progress, settings.ray.namespace)

    def wait_until_ready(self) -> None:
        """Block until the actor answers; give up quietly after a while, since progress is soft state."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._actor.ping.remote(), timeout=BOARD_START_S)

    async def poll(self, job_id: str, epoch: str, after: int) -> Poll:
        """Long-poll; after a failure the actor is looked up again."""
        try:
            poll: Poll = await self._actor.poll.remote(job_id, epoch, after, POLL_TIMEOUT_S)
        except Exception:
            self._actor = await asyncio.to_thread(progress_actor, self._settings.progress,
                                                  self._settings.ray.namespace)
            raise
        return poll


def _deployed(app: serve.Application) -> DeploymentHandle:
    """Run the application; a replica that cannot start is an error with its own last words."""
    try:
        return serve.run(app, name=APP_NAME, route_prefix=None)
    except RuntimeError as error:
        parts = serve.status().applications[APP_NAME].deployments
        words = "\n".join(f"{name}: {part.message}" for name, part in parts.items() if part.message)
        raise StartFailed(problem="a part of the application did not start", detail=words or str(error)) from error


class Session:
    """Ray, the models and the Director, started in the constructor and ended by `close`."""

    def __init__(self, settings: Settings, *, only: Iterable[str]) -> None:
        """Start all and wait until the models are warm. Raises ImpossibleResources, SettingsError, StartFailed."""
        self._settings = settings
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.dashboard = start_ray(settings.ray)
        try:
            app = build(settings, cluster=ray.cluster_resources(), only=only)
            # Nothing here speaks HTTP; without a proxy no port can be taken.
            serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING",
                                                                                enable_access_log=False))
            # Started first and waited for last: a film's first steps must find somebody who watches.
            self.observer = BoardObserver(settings)
            self._director = _deployed(app)
            self.observer.wait_until_ready()
        except BaseException:
            ray.shutdown()
            raise

    def wake(self) -> Awaitable[None]:
        """Tell the Director that there is a new job."""
        answer: Awaitable[None] = self._director.wake.remote()
        return answer

    def cancel(self, job_id: str) -> Awaitable[None]:
        """Cancel a job through the Director, which reaches the GPU within one step."""
        answer: Awaitable[None] = self._director.cancel.remote(job_id)
        return answer

    def close(self) -> None:
        """Hand running work back to the database, then end Ray."""
        try:
            self._director.stop.remote().result(timeout_s=STOP_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - a Director that cannot answer loses its lease by itself
            logging.getLogger(__name__).warning("the Director did not stop in time; its lease will run out")
        ray.shutdown()
