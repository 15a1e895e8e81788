"""Videos as jobs, for clients of OpenAI's API. Knows the desk; see docs/openai.md."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from configs.model_card import Task
from serve_app.edit_submit import KIND as EDIT
from serve_app.http.access import TheCaller
from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import TheDesk
from serve_app.http.forms import read_fields
from serve_app.http.openai import BODY, REFUSALS, require_model
from serve_app.http.wishes import VIDEO_ADVICE, data_in, read_wish, refused_field, refused_wish
from serve_app.service.desk import Desk
from serve_app.service.files import ShotFile
from serve_app.service.films import Order
from serve_app.service.pictures import SCHEME
from serve_app.service.video_edits import THEIRS
from serve_app.service.videos import SHOT, Videos, rows_progress, video_json
from serve_app.service.wishes import FIELD_OF, ImageReference, VideoWish
from workflows.durable.rows import JobRow
from workflows.errors import InvalidDocument
from workflows.types import Json

router = APIRouter(prefix="/v1/videos", tags=["openai"])

PICTURE = "input_reference"
POLL_MS = 500
"""How soon a client should ask again while a video is made."""
VideoId = Annotated[str, Path(description="Id of a video.", max_length=200)]


class RemixWish(BaseModel):
    """What a remix changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]


REMIX_ADVICE = {name: "a remix keeps it; make a new video to change it"
                for name in VideoWish.model_fields} | {**VIDEO_ADVICE}


@router.post("", summary="Make a video", openapi_extra=BODY, responses=REFUSALS)
async def create_video(request: Request, desk: TheDesk, caller: TheCaller) -> Response:
    """Queue a video from a prompt, sent as JSON or as a form; look at it until it is completed.

    `input_reference` is the picture that it starts from: a file in a form, or an object with `image_url` (a data: URL)
    or `file_id`. What the model cannot do is refused, with the nearest valid value.
    """
    kind = request.headers.get("content-type", "")
    fields = await asyncio.to_thread(read_fields, await request.body(), kind, (PICTURE,))
    wish = read_wish(VideoWish, fields.values, VIDEO_ADVICE)
    has_picture = PICTURE in fields.files or wish.input_reference is not None
    require_model(desk, Task.IMAGE_TO_VIDEO if has_picture else Task.TEXT_TO_VIDEO, wish.model)
    order = Order(token=uuid.uuid4().hex, key_id=caller.key_id)
    try:
        image = await _picture(desk, wish.input_reference, fields.files.get(PICTURE))
        row = await asyncio.to_thread(_videos(desk).submit, wish, order, image)
    except InvalidDocument as error:
        raise refused_wish(error) from None
    desk.submitted(row.id)
    return await shown_video(desk, row)


@router.get("", summary="List videos", responses=REFUSALS)
async def list_videos(
    desk: TheDesk, caller: TheCaller,
    after: Annotated[str, Query(description="Id of the last video of the page before.", max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=100, description="Videos in one page.")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="`desc`: newest first; `asc`: oldest first.")] = "desc",
) -> Response:
    """Videos, newest first unless `order` says otherwise; their progress does not count the step that runs."""
    if after:
        await desk.access.require_own(caller, after)
    page = await asyncio.to_thread(_videos(desk).page, after, limit, caller.own_jobs, oldest_first=order == "asc")
    data = [video_json(row, nodes, rows_progress(row, nodes, desk.views.shown(row.id))) for row, nodes in page.videos]
    return JSONResponse({"object": "list", "data": data, "first_id": data[0]["id"] if data else None,
                         "last_id": data[-1]["id"] if data else None, "has_more": page.has_more})


@router.get("/{video_id}", summary="Show a video", responses=REFUSALS)
async def retrieve_video(video_id: VideoId, desk: TheDesk) -> Response:
    """The video object; the header `openai-poll-after-ms` says when to ask again."""
    return await shown_video(desk, await asyncio.to_thread(_videos(desk).find, video_id))


@router.delete("/{video_id}", summary="Forget a video", responses=REFUSALS)
async def delete_video(video_id: VideoId, desk: TheDesk) -> Response:
    """Forget a video that is over; 409 while it is made (cancel it first)."""
    row = await asyncio.to_thread(_videos(desk).find, video_id)
    await desk.delete(row.id)
    return JSONResponse({"id": row.id, "object": "video.deleted", "deleted": True})


@router.post("/{video_id}/cancel", summary="Cancel a video", responses=REFUSALS)
async def cancel_video(video_id: VideoId, desk: TheDesk) -> Response:
    """End a video; one that is made stops at its next denoising step, and is `failed` with the code `cancelled` then.

    A video that is over stays as it is.
    """
    row = await asyncio.to_thread(_videos(desk).find, video_id)
    await desk.cancel(row.id)
    return await shown_video(desk, await asyncio.to_thread(_videos(desk).find, video_id))


@router.post("/{video_id}/remix", summary="Remix a video", openapi_extra=BODY, responses=REFUSALS)
async def remix_video(request: Request, video_id: VideoId, desk: TheDesk, caller: TheCaller) -> Response:
    """Queue a new video with another prompt and everything else as this one has it, its seed and picture too; an edit
    is made once more of the same video.
    """
    old = await asyncio.to_thread(_videos(desk).find, video_id)
    fields = await asyncio.to_thread(read_fields, await request.body(), request.headers.get("content-type", ""))
    prompt = read_wish(RemixWish, fields.values, REMIX_ADVICE).prompt
    order = Order(token=uuid.uuid4().hex, key_id=caller.key_id)
    try:
        remix = desk.video_edits.remix if old.kind == EDIT else _videos(desk).remix
        row = await asyncio.to_thread(remix, video_id, prompt, order)
    except InvalidDocument as error:
        raise refused_wish(error, THEIRS if old.kind == EDIT else FIELD_OF) from None
    desk.submitted(row.id)
    return await shown_video(desk, row)


@router.get("/{video_id}/content", summary="Download a video", response_class=Response,
            responses={**FILE_DOC, **REFUSALS, 416: REFUSALS[404]})
async def video_content(
    request: Request, video_id: VideoId, desk: TheDesk,
    variant: Annotated[Literal["video", "thumbnail", "spritesheet"], Query(
        description="MP4; a small PNG; or a JPEG with 4x4 frames.")] = "video",
) -> Response:
    """The file, with ranges; 404 until it is made.

    A spritesheet has four rows of four frames, edge to edge, each at most 320 px long: the first frame, the last, and
    those evenly between, row by row. A video of less than 16 frames leaves the last cells black.
    """
    row = await asyncio.to_thread(_videos(desk).find, video_id)
    if variant == "video":
        artifact = await asyncio.to_thread(desk.files.video, row.id)
    elif variant == "spritesheet":
        artifact = await asyncio.to_thread(desk.files.spritesheet, row.id)
    elif row.kind == EDIT:
        artifact = await asyncio.to_thread(desk.files.thumbnail, row.id)
    else:
        artifact = await asyncio.to_thread(desk.files.of_shot, row.id, SHOT, ShotFile.THUMBNAIL)
    return await artifact_response(request, desk.store, artifact, row.id)


async def _picture(desk: Desk, reference: ImageReference | None, file: bytes | None) -> str:
    """What a storyboard calls the picture that was sent; empty: none was. Raises Refused, InvalidDocument."""
    if file is not None and reference is not None:
        raise refused_field(PICTURE, "is given twice, as a file and as a value; send one of them")
    if reference is not None and reference.file_id is not None:
        return f"{SCHEME}{reference.file_id}"
    data = data_in(PICTURE, reference.image_url) if reference is not None and reference.image_url is not None else file
    if data is None:
        return ""
    try:
        return SCHEME + (await desk.pictures.take_in(data)).id
    except InvalidDocument as error:
        raise refused_field(PICTURE, error.problems[0].problem, error.problems[0].nearest) from None


def _videos(desk: Desk) -> Videos:
    return Videos(desk.ledger, desk.films)


async def shown_video(desk: Desk, row: JobRow) -> Response:
    """The video object, as a reply."""
    headers = {} if row.status.is_terminal else {"openai-poll-after-ms": str(POLL_MS)}
    return JSONResponse(await _object(desk, row), headers=headers)


async def _object(desk: Desk, row: JobRow) -> dict[str, Json]:
    progress = 1.0 if row.status.is_terminal else (await desk.views.job(row.id)).progress
    return video_json(row, await asyncio.to_thread(desk.ledger.nodes, row.id), progress)
