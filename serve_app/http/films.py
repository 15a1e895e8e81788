"""Routes that make and change films. Reads what was sent; everything else is the desk's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import JsonValue, ValidationError

from serve_app.http.access import TheCaller
from serve_app.http.deps import JobId, ShotId, TheDesk, refusals
from serve_app.http.idempotency import IdempotencyKey
from serve_app.http.problems import Refused, body_detail, refused_change, refused_document
from serve_app.http.queueing import admit, order_of, queued, refused_parameter, told
from serve_app.http.schemas import Accepted, ChangeReply, FilmQuery, PlanReply, PromoteRequest, ScriptRequest
from serve_app.service.desk import Desk
from serve_app.service.films import Draft, Sent, read_json, shot_ids_in
from workflows.errors import InvalidDocument
from workflows.plan import last_stage_of
from workflows.source import decode_text
from workflows.tiers import Tier
from workflows.types import Json, Stage

router = APIRouter(tags=["films"])

SCOPE = "POST /api/films"
JSON_TYPES = ("application/json",)
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
TEXT_TYPES = ("text/plain", "text/markdown")
FOUNTAIN_TYPES = ("text/fountain", "text/x-fountain", "application/fountain")
SUFFIX_OF_FORMAT = {"auto": "", "fountain": ".fountain", "text": ".txt"}
REQUEST_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    "application/json": {
        "schema": {"oneOf": [{"$ref": "#/components/schemas/Storyboard"},
                             {"$ref": "#/components/schemas/ScriptRequest"}]},
        "examples": {
            "storyboard": {"value": {"title": "Shapes", "shots": [
                {"prompt": "a red circle moves right over a blue background", "caption": "Morning"}]}},
            "script": {"value": {"script": "A red circle moves left over a blue background."}}}},
    "application/yaml": {"schema": {"type": "string"}, "examples": {"storyboard": {
        "value": "shots:\n  - prompt: a red circle moves right over a blue background\n"}}},
    "text/plain": {"schema": {"type": "string"}, "examples": {"script": {
        "value": "A red circle moves left over a blue background.\n\nA yellow star falls down."}}},
    "text/fountain": {"schema": {"type": "string"}, "examples": {"screenplay": {
        "value": "INT. STUDIO - DAY\n\nA red circle moves left over a blue background.\n"}}},
}}}
CHANGE_BODY: dict[str, Any] = {"required": True, "content": {
    "application/json": {"schema": {"$ref": "#/components/schemas/ShotChange"}, "examples": {
        "prompt": {"value": {"prompt": "a green circle moves right over a blue background"}},
        "length": {"value": {"duration_s": 2, "frames": None}},
        "earlier take": {"value": {"restore_take": 1}}}}}}


@router.post("/api/films", status_code=202, response_model=Accepted, openapi_extra=REQUEST_BODY,
             responses={200: {"model": PlanReply, "description": "The plan (`dry_run`); nothing was done"},
                        **refusals(403, 409, 413, 415, 422)}, summary="Make a film")
async def create_film(request: Request, desk: TheDesk, caller: TheCaller, ask: Annotated[FilmQuery, Query()],
                      idempotency_key: IdempotencyKey = None) -> Response:
    """Queue a film, from a storyboard (JSON or YAML, by content type) or from a script (plain text, Fountain, or JSON
    with `script`).

    The whole document is checked before anything runs: the reply to a wrong one names every problem, with its place and
    the nearest valid value.
    """
    body = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    last_stage = last_stage_asked(ask.stages)

    async def make(token: str) -> Mapping[str, Json]:
        draft = await _drafted(desk, body, media_type, last_stage, ask.tier)
        await admit(desk, ask.webhook_url)
        row = await asyncio.to_thread(desk.films.submit, draft, order_of(ask, caller, token))
        return await told(desk, row, draft.warnings, ask.webhook_url)

    if ask.dry_run:
        draft = await _drafted(desk, body, media_type, last_stage, ask.tier)
        await admit(desk, ask.webhook_url)
        return JSONResponse(await asyncio.to_thread(desk.films.preview, draft))
    asked = ask.model_dump_json(exclude={"priority", "dry_run"}, exclude_defaults=True)
    more = () if asked == "{}" else (asked.encode(),)
    return await queued(desk, f"{SCOPE} {caller.key_id}".strip(), idempotency_key,
                        (media_type.encode(), ask.priority.value.encode(), body, *more), make)


@router.patch("/api/films/{job_id}/shots/{shot_id}", status_code=202, response_model=ChangeReply,
              responses={200: {"model": ChangeReply, "description": "Nothing has to be rendered"},
                         **refusals(400, 403, 404, 409, 413, 422)}, summary="Change a shot")
async def change_shot(job_id: JobId, shot_id: ShotId, desk: TheDesk,
                      changes: Annotated[dict[str, JsonValue], Body()]) -> Response:
    """Change fields of one shot of a finished film; null takes a field away. Exactly that shot, what continues it, and
    the film are rendered again.

    The take that is replaced is kept: it stays under `takes` of the shot, and `restore_take` shows it again without
    rendering anything for it.
    """
    try:
        nodes = await desk.change_shot(job_id, shot_id, changes)
    except InvalidDocument as error:
        raise refused_change(error, shot_id) from None
    return JSONResponse(await desk.standing(job_id, nodes), 202 if nodes else 200)


@router.post("/api/films/{job_id}/promote", status_code=202, response_model=ChangeReply,
             responses={200: {"model": ChangeReply, "description": "Nothing has to be rendered"},
                        **refusals(400, 403, 404, 409, 413, 422)}, summary="Make drafts final")
async def promote_film(job_id: JobId, desk: TheDesk, asked: PromoteRequest | None = None) -> Response:
    """Render drafts of a finished film again as final, from their own seeds: the chosen shots, or all. Only they, what
    continues them, and the film are rendered again; the result is the one that `tier=final` would have given at once.

    Drafts of clips are kept under `takes` of their shots.
    """
    nodes = await desk.promote(job_id, (asked and asked.shots) or ())
    return JSONResponse(await desk.standing(job_id, nodes), 202 if nodes else 200)


def read_film(body: bytes, media_type: str) -> Sent:
    """What was sent, as text with a name. Raises InvalidDocument, and Refused for another media type."""
    if media_type in YAML_TYPES:
        return Sent(text=decode_text(body), file="film.yaml", is_script=False)
    if media_type in FOUNTAIN_TYPES:
        return Sent(text=decode_text(body), file="script.fountain", is_script=True)
    if media_type in TEXT_TYPES:
        return Sent(text=decode_text(body), file="script.txt", is_script=True)
    if media_type not in JSON_TYPES:
        known = ", ".join((*JSON_TYPES, YAML_TYPES[0], TEXT_TYPES[0], FOUNTAIN_TYPES[0]))
        raise Refused(415, "unsupported-media-type", f"a film comes as one of {known}, not as "
                                                     f"{media_type or 'a body without content type'}")
    text = decode_text(body)
    value = read_json(text, "film.json")
    if isinstance(value, dict) and "script" in value:
        return _script(value)
    return Sent(text=text, file="film.json", is_script=False)


def _script(value: Mapping[str, Json]) -> Sent:
    try:
        asked = ScriptRequest.model_validate(value)
    except ValidationError as error:
        details = tuple(body_detail(found["msg"], [str(part) for part in found["loc"]])
                        for found in error.errors(include_url=False))
        raise Refused(422, "invalid-document", details[0].detail, errors=details) from None
    return Sent(text=asked.script, file=f"script{SUFFIX_OF_FORMAT[asked.format]}", is_script=True, title=asked.title,
                film=asked.film)


def last_stage_asked(stages: str) -> Stage:
    """How far `stages` goes. Raises Refused."""
    try:
        return last_stage_of(stages)
    except InvalidDocument as error:
        raise refused_parameter(error, "stages") from None


async def _drafted(desk: Desk, body: bytes, media_type: str, last_stage: Stage, tier: Tier | None) -> Draft:
    try:
        sent = await asyncio.to_thread(read_film, body, media_type)
    except InvalidDocument as error:
        raise refused_document(error) from None
    try:
        return await asyncio.to_thread(desk.films.draft, sent, last_stage, tier)
    except InvalidDocument as error:
        raise refused_document(error, await asyncio.to_thread(shot_ids_in, sent)) from None
