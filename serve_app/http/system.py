"""Routes about the server itself: models, capacity, health. Knows the desk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from configs.memory import share_of
from configs.model_card import ModelCard
from serve_app.http.deps import TheDesk, refusals
from serve_app.http.health_schemas import HealthReply, Readiness, ReadyReply
from serve_app.http.schemas import (
    CapacityReply,
    LaneReply,
    ModelList,
    ModelReply,
)
from serve_app.service.desk import Desk
from serve_app.service.exposition import CONTENT_TYPE
from workflows.drafts import draft_text
from workflows.types import JobStatus

log = logging.getLogger(__name__)
router = APIRouter(tags=["system"])

HEALTHY = frozenset({"ok", "HEALTHY", "UPSCALING", "DOWNSCALING"})
"""A model whose replicas come and go takes work all the while."""
ANSWER_S = 5.0
"""A cluster that does not answer for so long is not ready."""


@router.get("/api/models", responses=refusals(), summary="List model cards")
async def models(desk: TheDesk) -> ModelList:
    """What can render here: each card with its tasks, sizes, lengths and defaults."""
    return ModelList(models=tuple(_model(card, desk) for card in desk.cards.values()))


@router.get("/api/capacity", responses=refusals(), summary="Slots, and what waits for them")
async def capacity(desk: TheDesk) -> CapacityReply:
    """Slots per model, how many are taken, how much waits, and what the cluster has."""
    load = await asyncio.to_thread(desk.overview.load)
    cluster, available = await asyncio.wait_for(asyncio.to_thread(desk.cluster.resources), ANSWER_S)
    lanes = dict.fromkeys([*desk.slots, *load.running, *load.waiting])
    return CapacityReply(
        lanes=tuple(LaneReply(lane=lane, slots=desk.slots.get(lane, 0), running=load.running.get(lane, 0),
                              waiting=load.waiting.get(lane, 0)) for lane in lanes),
        jobs_queued=load.jobs.get(JobStatus.QUEUED, 0), jobs_running=load.jobs.get(JobStatus.RUNNING, 0),
        cluster=_plain(cluster), available=_plain(available))


@router.get("/metrics", response_class=PlainTextResponse, summary="Measurements",
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals()})
async def metrics(desk: TheDesk) -> Response:
    """Jobs, queues, durations and GPU-seconds for Prometheus (text format 0.0.4), the same from every replica; at most
    5 s old.
    """
    return Response(await asyncio.to_thread(desk.metrics.page), media_type=CONTENT_TYPE)


@router.get("/healthz", summary="Is the server alive")
async def healthz() -> HealthReply:
    """200 as long as requests are answered at all; the version tells clients what they may ask."""
    return HealthReply(status="ok", version=version("reelray"))


@router.get("/readyz", response_model=ReadyReply, summary="Will jobs be run",
            responses={503: {"model": ReadyReply, "description": "Models or Director are not up"}})
async def readyz(desk: TheDesk) -> Response:
    """200 when the database answers, the models are warm and the Director runs; 503 with what is missing otherwise."""
    parts = {"database": await _answers(desk.overview.ask)}
    try:
        parts |= await asyncio.wait_for(asyncio.to_thread(desk.cluster.parts), ANSWER_S)
    except Exception as error:  # noqa: BLE001 - whatever the cluster's client raises: it cannot say that all is well
        log.warning("the cluster does not answer: %s", error)
        parts["cluster"] = "away"
    ready = all(state in HEALTHY for state in parts.values())
    status = Readiness.READY if ready else Readiness.STARTING
    return JSONResponse({"status": status.value, "parts": parts}, 200 if ready else 503)


async def _answers(ask: Callable[[], None]) -> str:
    try:
        await asyncio.to_thread(ask)
    except Exception as error:  # noqa: BLE001 - any failure of the database's client means the same here
        log.warning("the database does not answer: %s", error)
        return "away"
    return "ok"


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """Without the names of nodes, which Ray keeps among the resources."""
    return {name: float(amount) for name, amount in resources.items() if ":" not in name}


def _model(card: ModelCard, desk: Desk) -> ModelReply:
    return ModelReply(
        name=card.name, title=card.title, tasks=tuple(task.value for task in card.tasks), licence=card.licence,
        used_for=tuple(task.value for task, chosen in desk.cast.items() if chosen.name == card.name),
        defaults=card.defaults.model_dump(mode="json"), size=card.size.model_dump(mode="json"),
        frames=card.frames.model_dump(mode="json"), num_gpus=share_of(card, desk.models).gpus,
        vocabulary=card.world.describe() if card.world else None, draft=draft_text(card))
