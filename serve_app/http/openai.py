"""Routes that clients of OpenAI's API know: which models there are; and what those routes share. See docs/openai.md."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse, Response

from configs.model_card import ModelCard, Task
from serve_app.http.deps import TheDesk
from serve_app.http.forms import FORM_TYPE, JSON_TYPE
from serve_app.http.wishes import no_model
from serve_app.service.desk import Desk
from workflows.types import Json

router = APIRouter(prefix="/v1", tags=["openai"])

_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Refused", "content": {"application/json": {"schema": _ERROR}}}
    for status in (400, 404, 408, 409, 413, 415, 422, 503)}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    kind: {"schema": {"type": "object", "required": ["prompt"]}} for kind in (JSON_TYPE, FORM_TYPE)}}}
ModelId = Annotated[str, Path(description="Name of a model card.", max_length=200)]


@router.get("/models", summary="List models", responses=REFUSALS)
async def list_models(desk: TheDesk) -> Response:
    """Every model card, as OpenAI lists models."""
    return JSONResponse({"object": "list", "data": [_model(card) for card in desk.cards.values()]})


@router.get("/models/{model}", summary="Show a model", responses=REFUSALS)
async def retrieve_model(model: ModelId, desk: TheDesk) -> Response:
    """One model card; 404 names those that there are."""
    if model not in desk.cards:
        raise no_model(model, ", ".join(desk.cards), 404)
    return JSONResponse(_model(desk.cards[model]))


def require_model(desk: Desk, task: Task, asked: str | None) -> None:
    """Raise Refused when another card answers this task here than was asked for."""
    model = desk.cast[task].name
    if asked not in (None, "", model):
        raise no_model(str(asked), model, 400)


def _model(card: ModelCard) -> dict[str, Json]:
    return {"id": card.name, "object": "model", "created": 0, "owned_by": "reelray"}
