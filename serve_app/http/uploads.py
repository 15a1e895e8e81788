"""Routes that take videos and give them back. Reads what was sent, as it arrives; what a video is, is the desk's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import TheDesk, refusals
from serve_app.http.edit_schemas import BYTES, UploadReply
from serve_app.http.form_stream import PIECE_BYTES, Sink, arriving, read_form
from serve_app.http.forms import FORM_TYPE
from serve_app.http.problems import Detail, Refused
from serve_app.service.desk import Desk
from serve_app.service.links import upload_url
from serve_app.service.uploads import SCHEME, Incoming, Upload, video_json
from workflows.errors import InvalidDocument

router = APIRouter(prefix="/api/uploads", tags=["edits"])

PART = "file"
ANY_TYPE = "application/octet-stream"
VIDEO_TYPES = ("video/mp4", "video/quicktime", "video/x-matroska", "video/webm", ANY_TYPE)
"""Those that the document names; every `video/...` is taken."""
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    **{kind: {"schema": BYTES} for kind in VIDEO_TYPES},
    FORM_TYPE: {"schema": {"type": "object", "required": [PART], "properties": {PART: BYTES}}}}}}
UploadId = Annotated[str, Path(description="Id of a video: the SHA-256 of its bytes.", pattern="^[0-9a-f]{64}$")]


class Arrivals:
    """The files of one request, each in a room of its own; what was not kept is gone at the end."""

    def __init__(self, desk: Desk, stack: ExitStack) -> None:
        """`stack` closes the rooms."""
        self._uploads, self._stack = desk.uploads, stack
        self.found: dict[str, tuple[Incoming, str]] = {}
        """By part: the bytes, and the name that they were sent with."""

    def room(self, part: str, filename: str) -> Sink:
        """For a file. Blocking."""
        incoming = self._stack.enter_context(self._uploads.incoming())
        self.found[part] = incoming, filename
        return incoming

    def keep(self, part: str) -> Upload:
        """Store what came in this part. Blocking. Raises InvalidDocument for what is no video."""
        return self._uploads.keep(*self.found[part])


@router.post("", status_code=201, response_model=UploadReply, openapi_extra=BODY,
             responses=refusals(400, 403, 413, 415, 422), summary="Upload a video")
async def upload_video(request: Request, desk: TheDesk) -> Response:
    """Keep a video, sent as it is or as the one part `file` of a form, so that an edit can name it `upload:ID`.

    The id is the digest of the bytes: the same video again is the same video, and `HEAD /api/uploads/ID` says whether
    it is here already.
    """
    with ExitStack() as stack:
        arrivals = await asyncio.to_thread(Arrivals, desk, stack)
        await _receive(request, arrivals)
        try:
            upload = await asyncio.to_thread(arrivals.keep, PART)
        except InvalidDocument as error:
            raise refused_video(error) from None
    url = upload_url(upload.id)
    return JSONResponse({"id": upload.id, "uri": f"{SCHEME}{upload.id}", "url": url, "size_bytes": upload.size_bytes,
                         "video": video_json(upload.video)}, 201, {"Location": url})


@router.head("/{upload_id}", include_in_schema=False)
@router.get("/{upload_id}", response_class=Response, summary="An uploaded video", responses={
    **FILE_DOC, 200: {"description": "The file", "content": {ANY_TYPE: {}}}, **refusals(404, 416, 422)})
async def uploaded_video(request: Request, upload_id: UploadId, desk: TheDesk) -> Response:
    """The video as it was sent; ranges and entity tags as HTTP has them."""
    given = await asyncio.to_thread(desk.uploads.find, upload_id)
    return await artifact_response(request, desk.store, given.artifact, upload_id)


def refused_video(error: InvalidDocument) -> Refused:
    """What is wrong with a file that was sent by itself."""
    found = error.problems[0]
    nearest = f"; nearest valid: {found.nearest}" if found.nearest else ""
    return Refused(422, "invalid-video", found.problem + nearest, errors=(
        Detail(detail=found.problem, nearest=found.nearest),))


async def _receive(request: Request, arrivals: Arrivals) -> None:
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind == FORM_TYPE:
            values = await read_form(arriving(request), content_type, (PART,), arrivals.room)
            if values or PART not in arrivals.found:
                raise Refused(400, "invalid-form", f"the form has one part, the file {PART!r}")
        elif kind.startswith("video/") or kind == ANY_TYPE:
            await _pour(arriving(request), await asyncio.to_thread(arrivals.room, PART, ""))
        else:
            raise Refused(415, "unsupported-media-type", f"a video comes as video/... or {ANY_TYPE}, or as the part "
                                                         f"{PART!r} of {FORM_TYPE}, not as {kind[:100] or 'nothing'}")
    except InvalidDocument as error:
        raise refused_video(error) from None


async def _pour(pieces: AsyncIterator[bytes], sink: Sink) -> None:
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= PIECE_BYTES:
            await asyncio.to_thread(sink.write, bytes(waiting))
            waiting.clear()
    await asyncio.to_thread(sink.write, bytes(waiting))
