"""build(settings) -> Application: the only place where classes become Serve deployments. Read this file first.

    Ingress (HTTP, only where it serves) ──► Director
    Director ──► one ModelDeployment per card (replicas on GPUs, fractions allowed)
        ├──────► one EditDeployment per card that finds or edits in videos
        ├──────► ChatDeployment (a language model that writes stories, only where one is asked for)
        └──────► MediaDeployment (CPU)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from configs.chat_card import AnyCard, ChatCard
from configs.load import casting, edit_cards, load_cards, story_card
from configs.settings import Settings
from serve_app.capacity import check_resources, gpus_of
from serve_app.cluster import scratch_dir
from serve_app.deployments import (
    ChatDeployment,
    DirectorDeployment,
    EditDeployment,
    MediaDeployment,
    ModelDeployment,
    model_deployment,
)
from serve_app.director import calls_at_once
from serve_app.ingress import IngressDeployment
from serve_app.scaling_policy import autoscaling_of

APP_NAME = "reelray"
DIRECTOR = "director"
INGRESS = "ingress"

# Serve retries a full replica after 25 ms, then 50, up to 0.5 s; a GPU would idle that long between two shots.
ROUTER = RequestRouterConfig(request_router_class="serve_app.routing:PlacementRouter", initial_backoff_s=0.01,
                             max_backoff_s=0.05)


def build(settings: Settings, *, cluster: Mapping[str, float], only: Iterable[str] = (),
          model: type = ModelDeployment, http: bool = False, films: bool = True) -> serve.Application:
    """The application for these settings on a cluster with these total resources (`ray.cluster_resources()`).

    `only` restricts the Director to these job ids; `http` puts the HTTP routes in front of it; without `films` the
    models that make them are left out. Raises SettingsError for
    cards, and ImpossibleResources when a replica could never start: Serve itself would wait for ever.
    `model(card, settings)` is the class behind every card; benchmarks and failure tests put another one there.
    """
    cards = {card.name: card for card in casting(settings, load_cards(settings)).values()} if films else {}
    writer = story_card(settings)
    edits = edit_cards(settings, load_cards(settings))
    check_resources(settings, [*cards.values(), *edits, *([writer] if writer else [])], cluster)
    models = {name: _model(model, card, settings, cluster) for name, card in cards.items()}
    hands = {card.name: _model(EditDeployment, card, settings, cluster) for card in edits}
    chat = _model(ChatDeployment, writer, settings, cluster) if writer else None
    media = serve.deployment(
        MediaDeployment, name="media", max_ongoing_requests=settings.cpu_slots, graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": 0.5, **_where(settings.ray.service_labels)},
    ).bind(settings)
    director = serve.deployment(
        DirectorDeployment, name=DIRECTOR, max_ongoing_requests=1000, health_check_period_s=2,
        graceful_shutdown_timeout_s=10, ray_actor_options={"num_cpus": 0.1, **_where(settings.ray.service_labels)},
    ).bind(settings, models, media, tuple(only), chat, edits=hands)
    if not http:
        return director
    # Every open event stream is a request that goes on; Serve's limit of five would shut out the sixth client.
    return serve.deployment(
        serve.ingress()(IngressDeployment), name=INGRESS, num_replicas=settings.http.replicas,
        max_ongoing_requests=1000, health_check_period_s=2, graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 0.1, **_where(settings.ray.service_labels)},
    ).bind(settings, director, APP_NAME)


def _model(model: type, card: AnyCard, settings: Settings, cluster: Mapping[str, float]) -> serve.Application:
    replicas = settings.models.replica_of(card.name)
    num_cpus = card.resources.num_cpus if replicas.num_cpus is None else replicas.num_cpus
    scales = replicas.min_replicas is not None
    return serve.deployment(
        model, name=model_deployment(card.name), max_ongoing_requests=calls_at_once(card),
        num_replicas=None if scales else replicas.replicas,
        autoscaling_config=autoscaling_of(card.name, settings) if scales else None,
        health_check_period_s=2, graceful_shutdown_timeout_s=settings.models.drain_s,
        graceful_shutdown_wait_loop_s=0.2, request_router_config=ROUTER,
        ray_actor_options={"num_gpus": gpus_of(card, settings, cluster), "num_cpus": num_cpus,
                           **_compiler(card, settings), **_where(replicas.labels)},
    ).bind(card, settings)


def _where(labels: Mapping[str, str]) -> dict[str, Any]:
    return {"label_selector": dict(labels)} if labels else {}


def _compiler(card: AnyCard, settings: Settings) -> dict[str, Any]:
    """Compiled code outlives the replica that compiled it: the next one finds it under `data_dir`."""
    if isinstance(card, ChatCard) or card.options.compile == "none":
        return {}
    directory = str(scratch_dir(settings) / "compiled")
    return {"runtime_env": {"env_vars": {"TORCHINDUCTOR_CACHE_DIR": directory}}}
