"""Pictures in one request, for clients of OpenAI's API: a durable job, and a reply that waits for it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from configs.model_card import Task
from serve_app.http.access import TheCaller
from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import TheDesk
from serve_app.http.forms import read_fields
from serve_app.http.openai import BODY, REFUSALS, require_model
from serve_app.http.problems import STATUS_OF_FAULT, Refused
from serve_app.http.wishes import IMAGE_ADVICE, read_wish, refused_wish
from serve_app.service.desk import Desk
from serve_app.service.films import Order
from serve_app.service.images import Images
from serve_app.service.links import job_url
from serve_app.service.wishes import ImageWish, ResponseFormat
from workflows.durable.rows import JobRow
from workflows.errors import BudgetSpent, InvalidDocument
from workflows.types import JobStatus, Json

router = APIRouter(prefix="/v1/images", tags=["openai"])

LOOK_S = 0.5
"""A client that has gone is noticed this soon."""
FINAL = {"x-should-retry": "false"}
"""OpenAI's clients send again what failed with 409 and 5xx, unless they are told that it is no use."""
ImageId = Annotated[str, Path(description="Id of a reply with pictures.", max_length=200)]


@router.post("/generations", summary="Make pictures", openapi_extra=BODY,
             responses={**REFUSALS, 500: REFUSALS[404], 504: REFUSALS[404]})
async def generate_images(request: Request, desk: TheDesk, caller: TheCaller) -> Response:
    """Make pictures from a prompt, and wait for them.

    They are a job like any other. A client that hangs up cancels it, since it never learned its name; pictures that are
    made by then are found again by the same request. A client that waited too long is told the job's name, and it goes
    on.
    """
    fields = await asyncio.to_thread(read_fields, await request.body(), request.headers.get("content-type", ""))
    wish = read_wish(ImageWish, fields.values, IMAGE_ADVICE)
    require_model(desk, Task.TEXT_TO_IMAGE, wish.model)
    images = _images(desk)
    order = Order(token=uuid.uuid4().hex, key_id=caller.key_id)
    submitting = asyncio.create_task(asyncio.to_thread(images.submit, wish, order))
    try:
        row = await asyncio.shield(submitting)
        desk.submitted(row.id)
        await _end(request, desk, row.id)
    except InvalidDocument as error:
        raise refused_wish(error) from None
    except asyncio.CancelledError:
        # How a server says that the client has gone; a second word must not keep the job from its end.
        await asyncio.shield(asyncio.create_task(_take_back(desk, submitting)))
        raise
    row = await asyncio.to_thread(images.find, row.id)
    if row.status is not JobStatus.SUCCEEDED:
        raise await asyncio.to_thread(_failed, desk, row)
    data = await asyncio.to_thread(_data, images, row, wish, str(request.base_url))
    return JSONResponse({"created": int(row.created_at_s), "id": row.id, "data": data, **_said(row)})


@router.get("/{image_id}/content", summary="Download a picture", response_class=Response,
            responses={**FILE_DOC, **REFUSALS, 416: REFUSALS[404]})
async def image_content(
    request: Request, image_id: ImageId, desk: TheDesk,
    index: Annotated[int, Query(ge=0, le=9, description="Which of them, from 0.")] = 0,
) -> Response:
    """The file, with ranges, in the format that was asked for; 404 until it is made."""
    artifact = await asyncio.to_thread(_images(desk).picture, image_id, index)
    return await artifact_response(request, desk.store, artifact, f"{image_id}-{index}")


async def _end(request: Request, desk: Desk, job_id: str) -> None:
    """Return when the job is over. Raises Refused when the client has gone, or has waited long enough."""
    end_s = time.monotonic() + desk.settings.wait_s
    while not (feed := await desk.hub.feed(job_id)).is_over:
        if await request.is_disconnected():
            await desk.cancel(job_id)
            raise Refused(499, "client-closed-request", "the client has gone")
        if time.monotonic() >= end_s:
            text = (f"{job_id} is not made after {desk.settings.wait_s:g} s (http.wait_s), and goes on: look at "
                    f"{job_url(job_id)}, then fetch /v1/images/{job_id}/content")
            raise Refused(504, "timeout", text, headers=FINAL)
        await feed.news(min(LOOK_S, max(end_s - time.monotonic(), 0.01)))


async def _take_back(desk: Desk, submitting: asyncio.Task[JobRow]) -> None:
    """End the job, which may not be in the database yet."""
    with contextlib.suppress(InvalidDocument):
        await desk.cancel((await submitting).id)


def _images(desk: Desk) -> Images:
    return Images(desk.ledger, desk.store, desk.cast, desk.files)


def _failed(desk: Desk, row: JobRow) -> Refused:
    if row.status is JobStatus.CANCELLED:
        return Refused(409, "cancelled", f"{row.id} was cancelled", headers=FINAL)
    errors = [node.error for node in desk.ledger.nodes(row.id) if node.error]
    text = "; ".join(error.message for error in errors) or "nothing was made"
    if any(error.type == BudgetSpent.__name__ for error in errors):
        return Refused(429, "insufficient-quota", f"{row.id}: {text}", headers=FINAL)
    status = STATUS_OF_FAULT[errors[0].fault] if errors else 500
    return Refused(status, "generation-failed", f"{row.id}: {text}", headers=FINAL)


def _data(images: Images, row: JobRow, wish: ImageWish, base_url: str) -> list[Json]:
    if wish.response_format is ResponseFormat.URL:
        return [{"url": f"{base_url}v1/images/{row.id}/content?index={index}"} for index in range(wish.n)]
    pictures = [images.bytes_of(images.picture(row.id, index)) for index in range(wish.n)]
    return [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures]


def _said(row: JobRow) -> dict[str, Json]:
    facts = row.document["image"]
    assert isinstance(facts, dict)
    return {name: facts[name] for name in ("model", "size", "output_format")}
