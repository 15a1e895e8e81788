"""Routes that clients of OpenAI's API know: models, and videos as jobs. Knows the desk; see docs/openai.md."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, JsonValue, ValidationError

from configs.model_card import ModelCard, Task
from serve_app.http.access import TheCaller
from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import TheDesk
from serve_app.http.forms import FORM_TYPE, JSON_TYPE, read_fields
from serve_app.http.problems import Detail, Refused
from serve_app.http.schemas import Part
from serve_app.service.desk import Desk
from serve_app.service.files import ShotFile
from serve_app.service.videos import FIELD_OF, Videos, Wish, video_json
from workflows.durable.rows import JobRow
from workflows.errors import InvalidDocument
from workflows.types import Json

router = APIRouter(prefix="/v1", tags=["openai"])

POLL_MS = 500
"""How soon a client should ask again while a video is made."""
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Refused", "content": {"application/json": {"schema": _ERROR}}}
    for status in (400, 404, 408, 409, 413, 415, 422, 503)}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    kind: {"schema": {"type": "object", "required": ["prompt"]}} for kind in (JSON_TYPE, FORM_TYPE)}}}
VideoId = Annotated[str, Path(description="Id of a video.", max_length=200)]
ModelId = Annotated[str, Path(description="Name of a model card.", max_length=200)]


class VideoRequest(Part):
    """A video to be made. The last six fields are other servers' additions that have a knob here."""

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    """Name of the card that makes videos here."""
    seconds: str | float | None = None
    size: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None


KNOWN = ", ".join(VideoRequest.model_fields)


@router.get("/models", summary="List models", responses=REFUSALS)
async def list_models(desk: TheDesk) -> Response:
    """Every model card, as OpenAI lists models."""
    return JSONResponse({"object": "list", "data": [_model(card) for card in desk.cards.values()]})


@router.get("/models/{model}", summary="Show a model", responses=REFUSALS)
async def retrieve_model(model: ModelId, desk: TheDesk) -> Response:
    """One model card; 404 names those that there are."""
    if model not in desk.cards:
        raise _no_model(model, ", ".join(desk.cards), 404)
    return JSONResponse(_model(desk.cards[model]))


@router.post("/videos", summary="Make a video", openapi_extra=BODY, responses=REFUSALS)
async def create_video(request: Request, desk: TheDesk, caller: TheCaller) -> Response:
    """Queue a video from a prompt, sent as JSON or as a form; look at it until it is completed.

    What the model cannot do is refused, with the nearest valid value.
    """
    asked = _read(read_fields(await request.body(), request.headers.get("content-type", "")))
    model = desk.cast[Task.TEXT_TO_VIDEO].name
    if asked.model not in (None, model):
        raise _no_model(str(asked.model), model, 400)
    videos = _videos(desk)
    try:
        row = await asyncio.to_thread(videos.submit, _wish(asked), model, uuid.uuid4().hex, caller.key_id)
    except InvalidDocument as error:
        raise _refused(error) from None
    desk.submitted(row.id)
    return await _shown(desk, row)


@router.get("/videos", summary="List videos", responses=REFUSALS)
async def list_videos(
    desk: TheDesk, caller: TheCaller,
    after: Annotated[str, Query(description="Id of the last video of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=100, description="Videos in one page.")] = 20,
    order: Annotated[Literal["desc"], Query(description="Newest first; there is no other order.")] = "desc",
) -> Response:
    """Videos, newest first."""
    rows, more = await asyncio.to_thread(_videos(desk).page, after, limit, caller.own_jobs)
    data = [await _object(desk, row) for row in rows]
    return JSONResponse({"object": "list", "data": data, "first_id": rows[0].id if rows else None,
                         "last_id": rows[-1].id if rows else None, "has_more": more})


@router.get("/videos/{video_id}", summary="Show a video", responses=REFUSALS)
async def retrieve_video(video_id: VideoId, desk: TheDesk) -> Response:
    """The video object; the header `openai-poll-after-ms` says when to ask again."""
    return await _shown(desk, await asyncio.to_thread(_videos(desk).find, video_id))


@router.delete("/videos/{video_id}", summary="Forget a video", responses=REFUSALS)
async def delete_video(video_id: VideoId, desk: TheDesk) -> Response:
    """Forget a video that is over; 409 while it is made (cancel its job first)."""
    row = await asyncio.to_thread(_videos(desk).find, video_id)
    await desk.delete(row.id)
    return JSONResponse({"id": row.id, "object": "video.deleted", "deleted": True})


@router.get("/videos/{video_id}/content", summary="Download a video", response_class=Response,
            responses={**FILE_DOC, **REFUSALS, 416: REFUSALS[404]})
async def video_content(
    request: Request, video_id: VideoId, desk: TheDesk,
    variant: Annotated[Literal["video", "thumbnail"], Query(description="MP4, or a small PNG.")] = "video",
) -> Response:
    """The file, with ranges; 404 until it is made."""
    row = await asyncio.to_thread(_videos(desk).find, video_id)
    if variant == "video":
        artifact = await asyncio.to_thread(desk.files.video, row.id)
    else:
        artifact = await asyncio.to_thread(desk.files.of_shot, row.id, "s1", ShotFile.THUMBNAIL)
    return await artifact_response(request, desk.store, artifact, row.id)


def _videos(desk: Desk) -> Videos:
    return Videos(desk.ledger, desk.films)


def _read(body: dict[str, JsonValue]) -> VideoRequest:
    try:
        return VideoRequest.model_validate(body)
    except ValidationError as error:
        details = []
        for found in error.errors(include_url=False):
            name = ".".join(str(part) for part in found["loc"][:1])
            unknown = found["type"] == "extra_forbidden"
            text = f"{name} is not supported here; leave it out (known: {KNOWN})" if unknown else found["msg"]
            details.append(Detail(detail=text, parameter=name))
        raise Refused(400, "unsupported_parameter" if unknown else "invalid_value", details[0].detail,
                      errors=details) from None


def _wish(asked: VideoRequest) -> Wish:
    try:
        seconds = None if asked.seconds is None else float(asked.seconds)
    except ValueError:
        text = f"seconds is a number, not {asked.seconds!r}"
        raise Refused(400, "invalid_value", text, errors=[Detail(detail=text, parameter="seconds")]) from None
    return Wish(prompt=asked.prompt, seconds=seconds, size=asked.size, num_frames=asked.num_frames, fps=asked.fps,
                seed=asked.seed, num_inference_steps=asked.num_inference_steps, guidance_scale=asked.guidance_scale,
                negative_prompt=asked.negative_prompt)


def _refused(error: InvalidDocument) -> Refused:
    details = [Detail(detail=found.problem, parameter=FIELD_OF.get(found.field, found.field), nearest=found.nearest)
               for found in error.problems]
    nearest = f"; nearest valid: {details[0].nearest}" if details[0].nearest else ""
    return Refused(400, "invalid_value", details[0].detail + nearest, errors=details)


def _no_model(model: str, known: str, status: int) -> Refused:
    text = f"there is no model {model!r} for this here; nearest valid: {known}"
    return Refused(status, "model_not_found", text, errors=[Detail(detail=text, parameter="model", nearest=known)])


async def _shown(desk: Desk, row: JobRow) -> Response:
    headers = {} if row.status.is_terminal else {"openai-poll-after-ms": str(POLL_MS)}
    return JSONResponse(await _object(desk, row), headers=headers)


async def _object(desk: Desk, row: JobRow) -> dict[str, Json]:
    seen = await desk.views.job(row.id)
    return video_json(row, seen.progress, await asyncio.to_thread(_videos(desk).reasons, row))


def _model(card: ModelCard) -> dict[str, Json]:
    return {"id": card.name, "object": "model", "created": 0, "owned_by": "reelray"}
