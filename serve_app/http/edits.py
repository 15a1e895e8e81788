"""Routes that edit videos, and hand out what an edit makes beside its video. Reads what was sent; the rest is the
desk's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from serve_app.http.access import TheCaller
from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import JobId, TheDesk, refusals
from serve_app.http.edit_schemas import MASKS, VIDEO, EditPlanReply, EditQuery
from serve_app.http.form_stream import arriving, read_form
from serve_app.http.forms import FORM_TYPE, JSON_TYPE
from serve_app.http.idempotency import IdempotencyKey
from serve_app.http.problems import Refused, refused_document
from serve_app.http.queueing import admit, order_of, queued, told
from serve_app.http.schemas import Accepted
from serve_app.http.uploads import Arrivals
from serve_app.service.access import Caller
from serve_app.service.desk import Desk
from serve_app.service.edits import EditDraft, EditFile, named_videos, read_wish
from serve_app.service.films import read_json
from serve_app.service.results import RESULT, no_result
from serve_app.service.uploads import SCHEME
from workflows.edit import EditRequest
from workflows.errors import InvalidDocument, Problem, UnknownJob
from workflows.source import decode_text
from workflows.types import Artifact, Json, MediaType

router = APIRouter(tags=["edits"])

SCOPE = "POST /api/edits"
FIELD_OF = {VIDEO: "input_video_path", MASKS: MASKS, "input_video_path": "input_video_path"}
"""Parts that may be files, or say where one is -> the field that they fill in."""
TEXTS = frozenset(name for name, field in EditRequest.model_fields.items()
                  if isinstance(field.annotation, type) and issubclass(field.annotation, str))
"""Fields that are text; others are written as JSON in a form."""
CONTAINERS = ((b"ftyp", MediaType.MP4), (b"\x1a\x45\xdf\xa3", MediaType.MKV))
"""What stands in the first bytes of a file -> its type."""
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    JSON_TYPE: {"schema": {"$ref": "#/components/schemas/EditWish"}, "examples": {"recolour": {"value": {
        "input_video_path": "upload:ID", "mask_prompt": "red ball", "edit_prompt": "make it blue"}}}},
    FORM_TYPE: {"schema": {"$ref": "#/components/schemas/EditForm"}}}}}


@router.post("/api/edits", status_code=202, response_model=Accepted, openapi_extra=BODY,
             responses={200: {"model": EditPlanReply, "description": "The plan (`dry_run`); nothing was done"},
                        **refusals(400, 403, 409, 413, 415, 422)}, summary="Edit a video")
async def create_edit(request: Request, desk: TheDesk, caller: TheCaller, ask: Annotated[EditQuery, Query()],
                      idempotency_key: IdempotencyKey = None) -> Response:
    """Queue an edit: find something in a video, change it, leave the rest as it is.

    The video is a part of the form, an upload (`upload:ID`), or an address that this server may read. It is looked at
    before anything runs: the reply to what cannot be done names every problem, with its field and the nearest valid
    value.
    """
    try:
        fields = await with_results(desk, caller, await _fields(request, desk))
        wish = read_wish(fields)
    except InvalidDocument as error:
        raise refused_document(error) from None

    async def make(token: str) -> Mapping[str, Json]:
        draft = await drafted(desk, wish)
        await admit(desk, ask.webhook_url)
        row = await asyncio.to_thread(desk.edits.submit, draft, order_of(ask, caller, token))
        return await told(desk, row, draft.warnings, ask.webhook_url)

    if ask.dry_run:
        draft = await drafted(desk, wish)
        await admit(desk, ask.webhook_url)
        return JSONResponse(await asyncio.to_thread(desk.edits.preview, draft))
    return await queued(desk, f"{SCOPE} {caller.key_id}".strip(), idempotency_key,
                        (json.dumps(fields, sort_keys=True).encode(), ask.model_dump_json().encode()), make)


@router.head("/api/jobs/{job_id}/source", include_in_schema=False)
@router.get("/api/jobs/{job_id}/source", response_class=Response, responses={**FILE_DOC, **refusals(404, 416, 422)},
            summary="What an edit is made of")
async def source(request: Request, job_id: JobId, desk: TheDesk) -> Response:
    """The video as it was given, whole."""
    found = await asyncio.to_thread(desk.results.source, job_id)
    artifact = await asyncio.to_thread(_typed, desk, found.artifact)
    return await artifact_response(request, desk.store, artifact, f"{job_id}-source")


@router.head("/api/jobs/{job_id}/thumbnail", include_in_schema=False)
@router.get("/api/jobs/{job_id}/thumbnail", response_class=Response, responses={**FILE_DOC, **refusals(404, 416, 422)},
            summary="A small picture of a job's video")
async def thumbnail(request: Request, job_id: JobId, desk: TheDesk) -> Response:
    """Its first frame (PNG), at most 320 px long; of an edit that is not finished, the first of what it is made of."""
    artifact = await asyncio.to_thread(desk.files.thumbnail, job_id)
    return await artifact_response(request, desk.store, artifact, f"{job_id}-thumbnail")


@router.head("/api/jobs/{job_id}/mask", include_in_schema=False)
@router.get("/api/jobs/{job_id}/mask", response_class=Response, responses={**FILE_DOC, **refusals(404, 416, 422)},
            summary="What an edit has found")
async def mask(request: Request, job_id: JobId, desk: TheDesk) -> Response:
    """The mask laid over the video, as MP4, to be looked at; there before the edit is finished."""
    return await _file(request, job_id, desk, EditFile.MASK)


@router.head("/api/jobs/{job_id}/report", include_in_schema=False)
@router.get("/api/jobs/{job_id}/report", response_class=Response, summary="How steady an edit is", responses={
    **FILE_DOC, 200: {"description": "The report", "content": {JSON_TYPE: {"schema": {"type": "object"}}}},
    **refusals(404, 416, 422)})
async def report(request: Request, job_id: JobId, desk: TheDesk) -> Response:
    """Warp error before and after smoothing, and what changed outside the mask."""
    return await _file(request, job_id, desk, EditFile.REPORT)


@router.head("/api/jobs/{job_id}/plot", include_in_schema=False)
@router.get("/api/jobs/{job_id}/plot", response_class=Response, responses={**FILE_DOC, **refusals(404, 416, 422)},
            summary="How steady an edit is, drawn")
async def plot(request: Request, job_id: JobId, desk: TheDesk) -> Response:
    """The report as a picture (PNG)."""
    return await _file(request, job_id, desk, EditFile.PLOT)


async def _file(request: Request, job_id: str, desk: Desk, what: EditFile) -> Response:
    artifact = await asyncio.to_thread(desk.edits.file, job_id, what)
    return await artifact_response(request, desk.store, artifact, f"{job_id}-{what.value}")


async def _fields(request: Request, desk: Desk) -> dict[str, Json]:
    """What was asked for; videos in the form are stored, and named by their ids. Raises Refused, InvalidDocument."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON_TYPE:
        value = await asyncio.to_thread(read_json, decode_text(await short_body(request, desk)), "edit.json")
        if not isinstance(value, dict):
            raise Refused(400, "invalid-json", 'the body is an object of fields, as in {"edit_prompt": "..."}')
        return value
    if kind != FORM_TYPE:
        raise Refused(415, "unsupported-media-type", f"an edit comes as {JSON_TYPE} or {FORM_TYPE}, not as "
                                                     f"{kind[:100] or 'a body without content type'}")
    with ExitStack() as stack:
        arrivals = Arrivals(desk, stack)
        values = await read_form(arriving(request), content_type, tuple(FIELD_OF), arrivals.room)
        return await asyncio.to_thread(form_fields, values, arrivals)


async def short_body(request: Request, desk: Desk) -> bytes:
    """A body without a video. The guard has let it through as if it might hold one."""
    most, body = desk.settings.max_body_kb * 1000, bytearray()
    async for piece in arriving(request):
        body += piece
        if len(body) > most:
            raise Refused(413, "too-large", f"the body is longer than {most} bytes (http.max_body_kb)")
    return bytes(body)


def form_fields(values: Mapping[str, str], arrivals: Arrivals) -> dict[str, Json]:
    """The fields that a form says; its videos are stored, and named by their ids. Blocking. Raises InvalidDocument."""
    named = {FIELD_OF.get(name, name): text for name, text in values.items()}
    fields: dict[str, Json] = {name: text if name in TEXTS else _value(text) for name, text in named.items()}
    problems: list[Problem] = []
    for part in arrivals.found:
        field = FIELD_OF[part]
        if field in fields:
            problems.append(Problem(field=field, problem="is given twice, as a file and as an address",
                                    nearest="one of the two"))
            continue
        try:
            fields[field] = f"{SCHEME}{arrivals.keep(part).id}"
        except InvalidDocument as error:
            problems += [Problem(field=field, problem=found.problem, nearest=found.nearest) for found in error.problems]
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    return fields


def _typed(desk: Desk, video: Artifact) -> Artifact:
    """A user's video by the type that its first bytes say, so that browsers play it."""
    with desk.store.open(video) as stream:
        head = stream.read(8)
    found = next((media_type for start, media_type in CONTAINERS if start in head), video.media_type)
    return replace(video, media_type=found)


def _value(text: str) -> Json:
    """What a form's text means; text that is no JSON stays what it is, and is refused as such at its field."""
    try:
        return read_json(text, "form.json")
    except InvalidDocument:
        return text


async def with_results(desk: Desk, caller: Caller, fields: Mapping[str, Json]) -> dict[str, Json]:
    """The fields with a `job:ID` in place of a video taken as that job's video. Raises InvalidDocument."""
    named = {field: str(fields[field]).removeprefix(RESULT) for field in ("input_video_path", MASKS)
             if str(fields.get(field, "")).startswith(RESULT)}
    found: dict[str, Json] = {}
    for field, job_id in named.items():
        try:
            await desk.access.require_own(caller, job_id)
        except UnknownJob as error:
            raise no_result(field, error) from None
        found[field] = await asyncio.to_thread(desk.results.adopt, job_id, field)
    return {**fields, **found}


async def drafted(desk: Desk, wish: EditRequest) -> EditDraft:
    """Look at the videos and plan. Raises Refused with every problem."""
    def look() -> EditDraft:
        return desk.edits.draft(wish, named_videos(wish, desk.uploads))

    try:
        return await asyncio.to_thread(look)
    except InvalidDocument as error:
        raise refused_document(error) from None
