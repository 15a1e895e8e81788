"""Session: the whole application on this machine for the life of one command. Imported after `prepare_environment`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Iterable
from dataclasses import replace

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from configs.load import cards_in_use
from configs.settings import HttpSettings, Settings
from serve_app.app import APP_NAME, DIRECTOR, INGRESS, build
from serve_app.capacity import check_labels, told_shares
from serve_app.cluster import start_ray
from serve_app.deployments import ModelDeployment
from serve_app.gpus import with_gpu_memory
from serve_app.ingress import ActorBoard
from serve_app.models import adapters, weights
from serve_app.sharing import machines_of, require_shared
from workflows.errors import InvalidDocument, Problem, StartFailed

STOP_TIMEOUT_S = 15.0


def _deployed(app: serve.Application, *, http: bool) -> DeploymentHandle:
    """Run the application, return its Director; a replica that cannot start is an error with its own last words."""
    try:
        serve.run(app, name=APP_NAME, route_prefix="/" if http else None)
        return serve.get_deployment_handle(DIRECTOR, APP_NAME)
    except RuntimeError as error:
        parts = serve.status().applications[APP_NAME].deployments
        words = "\n".join(f"{name}: {part.message}" for name, part in parts.items() if part.message)
        raise StartFailed(problem="a part of the application did not start", detail=words or str(error)) from error


def require_free(settings: HttpSettings) -> None:
    """Say that a port is taken before anything is started: Serve would try for a long time, and say it badly."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise StartFailed(problem=f"cannot listen on {settings.host} port {settings.port}; choose another with "
                                      f"--set http.port={settings.port % 65535 + 1}",
                              detail=error.strerror or str(error)) from error


def require_weights(settings: Settings) -> None:
    """Refuse models that are not on this machine before anything is started.

    On a cluster elsewhere the replicas look on their own machines. Raises InvalidDocument with one problem, and its
    command, per card.
    """
    if settings.ray.address or settings.models.auto_download:
        return
    problems: list[Problem] = []
    for card in cards_in_use(settings):
        try:
            if weights.has_weights(card):
                weights.require(card)
            adapters.require(card)
        except InvalidDocument as error:
            problems += [replace(problem, field=f"{error.file}: {problem.field}") for problem in error.problems]
    if problems:
        raise InvalidDocument(problems=tuple(problems))


def require_no_service() -> None:
    """Refuse to put one command's application in the place of a service that runs on the joined cluster. What another
    command has left behind there is replaced.
    """
    found = serve.status().applications.get(APP_NAME)
    if found is not None and found.status != "DELETING" and INGRESS in found.deployments:
        raise StartFailed(problem="reelray serves on this cluster already, and only one can; give the command to it "
                                  "with --server URL, or stop `reelray serve` there")


class Session:
    """Ray, the models and the Director, started in the constructor and ended by `close`."""

    def __init__(self, settings: Settings, *, only: Iterable[str], http: bool = False, films: bool = True,
                 model: type = ModelDeployment) -> None:
        """Start all and wait until the models are warm; with `http` also what `settings.http` says; without `films`
        nothing that only they need. `model`: see `serve_app.app.build`.

        Raises ImpossibleResources, InvalidSettings, SettingsError, StartFailed.
        """
        self._settings = settings
        require_shared(settings)
        if http:
            require_free(settings.http)
        require_weights(settings)
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self.dashboard = start_ray(settings.ray)
        try:
            nodes = ray.nodes()
            require_shared(settings, machines=machines_of(nodes))
            check_labels(settings, nodes)
            cluster = ray.cluster_resources()
            if settings.ray.address and not http:
                require_no_service()
            # Found out once, here; every process that is started from here is told.
            settings = with_gpu_memory(settings, cluster)
            app = build(settings, cluster=cluster, only=only, http=http, films=films, model=model)
            self.shares = told_shares(settings, cards_in_use(settings), cluster)
            # Where nothing speaks HTTP there is no proxy, and no port that could be taken.
            serve.start(proxy_location="HeadOnly" if http else "Disabled",
                        http_options=HTTPOptions(host=settings.http.host, port=settings.http.port),
                        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False,
                                                     encoding="JSON" if settings.log_format == "json" else "TEXT"))
            # Started first and waited for last: a film's first steps must find somebody who watches.
            self.observer = ActorBoard(settings)
            self._director = _deployed(app, http=http)
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
        """Hand running work back to the database, then end Ray; on a joined cluster, the application."""
        try:
            self._director.stop.remote().result(timeout_s=STOP_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - a Director that cannot answer loses its lease by itself
            logging.getLogger(__name__).warning("the Director did not stop in time; its lease will run out")
        try:
            if self._settings.ray.address:
                # The cluster stays; without a Director its replicas would hold GPUs for nobody.
                serve.delete(APP_NAME, _blocking=False)
        finally:
            ray.shutdown()
