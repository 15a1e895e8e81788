"""The page's form that edits a video, and the part of an edit's page that shows its mask. It works as a plain form too:
then the video comes with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from serve_app.http.access import TheCaller
from serve_app.http.deps import JobId, TheDesk
from serve_app.http.edit_schemas import MASKS, VIDEO
from serve_app.http.edits import form_fields, with_results
from serve_app.http.form_stream import arriving, read_form
from serve_app.http.problems import Refused
from serve_app.http.ui import PageRoute, page_reply, to_job
from serve_app.http.uploads import Arrivals
from serve_app.service.access import Caller
from serve_app.service.desk import Desk
from serve_app.service.edit_pages import SOURCE, SWITCHES, EditPages
from serve_app.service.edit_places import BOXES, POINTS, places_of
from serve_app.service.films import Order
from serve_app.service.pages import Pages
from workflows.errors import InvalidDocument, Problem
from workflows.types import Json

router = APIRouter(route_class=PageRoute, include_in_schema=False)

RESULT, KEPT_MASKS, TOKEN = "result", "kept_masks", "token"
"""Fields of the form alone: a job whose video is edited, masks that were sent before, and what tells one sending from
the next.
"""


@router.get("/edit")
async def form(desk: TheDesk, caller: TheCaller,
               job: Annotated[str, Query(alias="from", max_length=200)] = "") -> Response:
    """The form; or the form with what another edit was asked for, or with the film that is to be edited."""
    values: Mapping[str, str] = {}
    if job:
        await desk.access.require_own(caller, job)
        values = await asyncio.to_thread(EditPages(desk).values_from, job)
    return await _form(desk, caller, values)


@router.post("/edit")
async def submit(request: Request, desk: TheDesk, caller: TheCaller) -> Response:
    """Queue the edit and go to its page; or the form again, with what is wrong at its field. Videos are kept."""
    with ExitStack() as stack:
        arrivals = Arrivals(desk, stack)
        try:
            values = await read_form(arriving(request), request.headers.get("content-type", ""), (VIDEO, MASKS),
                                     arrivals.room)
        except InvalidDocument as error:
            return await _form(desk, caller, {}, error.problems)
        # A switch that is off is not sent.
        written = {**dict.fromkeys(SWITCHES, "false"),
                   **{name: text for name, text in values.items() if text.strip() and name != TOKEN}}
        try:
            fields = await _taken(desk, written, arrivals)
        except InvalidDocument as error:
            return await _form(desk, caller, written, error.problems)
    shown = {**written, **{name: str(fields[name]) for name in (SOURCE, MASKS) if name in fields}}
    try:
        fields = await with_results(desk, caller, fields)
        job_id = await asyncio.to_thread(_submit, desk, caller, fields, values.get(TOKEN, ""))
    except InvalidDocument as error:
        return await _form(desk, caller, shown, error.problems)
    desk.submitted(job_id)
    return to_job(job_id)


@router.get("/films/{job_id}/mask")
async def mask(job_id: JobId, desk: TheDesk) -> Response:
    """What an edit has found, as soon as it can be seen: a part of the page."""
    page = await Pages(desk).film(job_id)
    if page.edit is None:
        raise Refused(404, "unknown-part", "only edits of videos have a mask")
    return page_reply("_edit_mask.html", {"film": page})


async def _form(desk: Desk, caller: Caller, values: Mapping[str, str], problems: Sequence[Problem] = ()) -> Response:
    shown = await asyncio.to_thread(EditPages(desk).form, values, problems, caller.own_jobs)
    return page_reply("new_edit.html", {"form": shown, "token": uuid.uuid4().hex}, 422 if problems else 200)


async def _taken(desk: Desk, written: Mapping[str, str], arrivals: Arrivals) -> dict[str, Json]:
    """The request's fields as the form says them; its videos are stored. Raises InvalidDocument."""
    for part in [part for part, (file, name) in arrivals.found.items() if not name and not file.size_bytes]:
        del arrivals.found[part]  # browsers send a part for a file that nobody chose
    texts = {name: text for name, text in written.items() if name != RESULT}
    if RESULT in written:
        if SOURCE in texts or VIDEO in arrivals.found:
            raise InvalidDocument(problems=(Problem(
                field=SOURCE, problem="a file and an earlier result are both chosen", nearest="one of the two"),))
        texts[SOURCE] = written[RESULT]
    elif VIDEO in arrivals.found:
        texts.pop(SOURCE, None)  # the one that was sent before is replaced
    kept = texts.pop(KEPT_MASKS, "")
    if kept and MASKS not in arrivals.found:
        texts[MASKS] = kept
    places: dict[str, Json] = {name: places_of(name, texts.pop(name)) for name in (POINTS, BOXES) if name in texts}
    fields = {**await asyncio.to_thread(form_fields, texts, arrivals), **places}
    if SOURCE not in fields:
        raise InvalidDocument(problems=(Problem(field=SOURCE, problem="no video is chosen",
                                                nearest="a file, or an earlier result"),))
    return fields


def _submit(desk: Desk, caller: Caller, fields: Mapping[str, Json], token: str) -> str:
    """The same form with the same token is the same job. Blocking. Raises InvalidDocument."""
    asked = "\0".join((caller.key_id, token, json.dumps(fields, sort_keys=True)))
    drawn = hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()
    return desk.video_edits.submit(fields, Order(token=drawn, key_id=caller.key_id)).id
