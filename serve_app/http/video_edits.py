"""Edits of videos, for clients of OpenAI's API. Knows the desk; see docs/openai.md."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import JsonValue

from serve_app.http.access import TheCaller
from serve_app.http.deps import TheDesk
from serve_app.http.edits import short_body, with_results
from serve_app.http.form_stream import arriving, read_form
from serve_app.http.forms import FORM_TYPE, JSON_TYPE, read_fields
from serve_app.http.openai import REFUSALS
from serve_app.http.uploads import Arrivals
from serve_app.http.videos import shown_video
from serve_app.http.wishes import EDIT_ADVICE, no_model, read_wish, refused_field, refused_wish
from serve_app.service.desk import Desk
from serve_app.service.films import Order
from serve_app.service.uploads import SCHEME
from serve_app.service.video_edits import MASKS, OURS, THEIRS, VIDEO, VideoEditWish
from workflows.errors import InvalidDocument
from workflows.types import Json

router = APIRouter(prefix="/v1/videos", tags=["openai"])

BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    kind: {"schema": {"type": "object", "required": ["prompt", VIDEO]}} for kind in (JSON_TYPE, FORM_TYPE)}}}


@router.post("/edits", summary="Edit a video", openapi_extra=BODY, responses=REFUSALS)
async def edit_video(request: Request, desk: TheDesk, caller: TheCaller) -> Response:
    """Queue an edit of a video, sent as JSON or as a form; look at it until it is completed, as at any other video.

    `video` is a file in a form, or an object with the `id` of a video that was made here, or with the `file_id` of an
    upload. `mask_prompt` says what of it is changed. What cannot be done is refused, with the nearest valid value.
    """
    with ExitStack() as stack:
        arrivals = Arrivals(desk, stack)
        wish = read_wish(VideoEditWish, await _values(request, desk, arrivals), EDIT_ADVICE)
        if wish.model and wish.model not in (able := desk.edits.cards_for("editor")):
            raise no_model(wish.model, ", ".join(able), 400)
        fields = {**wish.fields(), **await asyncio.to_thread(_kept, wish, arrivals)}
    if OURS[VIDEO] not in fields:
        raise refused_field(VIDEO, "there is none to edit; send a file, or name one made here", '{"id": "..."}')
    try:
        fields = await with_results(desk, caller, fields)
        order = Order(token=uuid.uuid4().hex, key_id=caller.key_id)
        row = await asyncio.to_thread(desk.video_edits.submit, fields, order)
    except InvalidDocument as error:
        raise refused_wish(error, THEIRS) from None
    desk.submitted(row.id)
    return await shown_video(desk, row)


async def _values(request: Request, desk: Desk, arrivals: Arrivals) -> Mapping[str, JsonValue]:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() == FORM_TYPE:
        try:
            return {**await read_form(arriving(request), kind, (VIDEO, MASKS), arrivals.room)}
        except InvalidDocument as error:
            raise refused_field(VIDEO, error.problems[0].problem, error.problems[0].nearest) from None
    return (await asyncio.to_thread(read_fields, await short_body(request, desk), kind)).values


def _kept(wish: VideoEditWish, arrivals: Arrivals) -> dict[str, Json]:
    """The videos that came as files, stored. Blocking. Raises Refused."""
    fields: dict[str, Json] = {}
    for part in arrivals.found:
        if (wish.video if part == VIDEO else wish.mask_video) is not None:
            raise refused_field(part, "is given twice, as a file and as a value; send one of them")
        try:
            fields[OURS.get(part, part)] = f"{SCHEME}{arrivals.keep(part).id}"
        except InvalidDocument as error:
            raise refused_field(part, error.problems[0].problem, error.problems[0].nearest) from None
    return fields
