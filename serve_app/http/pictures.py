"""Routes that take pictures and show them again. Reads what was sent; what a picture is, is the desk's."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import TheDesk, refusals
from serve_app.http.forms import FORM_TYPE, read_parts
from serve_app.http.problems import Detail, Refused
from serve_app.http.schemas import Part
from serve_app.service.links import picture_url
from serve_app.service.pictures import media_type_of
from workflows.errors import InvalidDocument
from workflows.types import MediaType

router = APIRouter(prefix="/api/pictures", tags=["pictures"])

PART = "file"
PICTURE_TYPES = (MediaType.PNG.value, MediaType.JPEG.value)
ANY_TYPE = "application/octet-stream"
_BYTES = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {
    **dict.fromkeys(PICTURE_TYPES, _BYTES),
    FORM_TYPE: {"schema": {"type": "object", "required": [PART], "properties": {PART: _BYTES["schema"]}}}}}}
PictureId = Annotated[str, Path(description="Id of a picture: the SHA-256 of its bytes.", pattern="^[0-9a-f]{64}$")]


class PictureReply(Part):
    """An uploaded picture."""

    id: str
    """A storyboard names it `picture:ID`."""
    url: str
    media_type: MediaType
    width: int
    """Pixels, turned as its EXIF data says."""
    height: int
    size_bytes: int


@router.post("", status_code=201, response_model=PictureReply, openapi_extra=BODY,
             responses=refusals(400, 403, 413, 415, 422), summary="Upload a picture")
async def upload_picture(request: Request, desk: TheDesk) -> Response:
    """Keep a PNG or JPEG, sent as it is or as the one part `file` of a form, so that a storyboard can say
    `image: picture:ID`.

    The id is the digest of the bytes: the same picture again is the same picture.
    """
    data, said = await asyncio.to_thread(_sent, await request.body(), request.headers.get("content-type", ""))
    found = media_type_of(data)
    if found is not None and said in PICTURE_TYPES and found.value != said:
        raise _refused(f"the bytes are {found.value} and are sent as {said}")
    try:
        picture = await desk.pictures.take_in(data)
    except InvalidDocument as error:
        raise _refused(error.problems[0].problem, error.problems[0].nearest) from None
    url = picture_url(picture.id)
    return JSONResponse({"id": picture.id, "url": url, "media_type": picture.media_type.value,
                         "width": picture.width_px, "height": picture.height_px, "size_bytes": picture.size_bytes},
                        201, {"Location": url})


@router.head("/{picture_id}", include_in_schema=False)
@router.get("/{picture_id}", response_class=Response, responses={**FILE_DOC, **refusals(404, 416, 422)},
            summary="A picture")
async def picture(request: Request, picture_id: PictureId, desk: TheDesk) -> Response:
    """An uploaded picture; ranges and entity tags as HTTP has them."""
    artifact = await asyncio.to_thread(desk.pictures.find, picture_id)
    return await artifact_response(request, desk.store, artifact, picture_id)


def _sent(body: bytes, content_type: str) -> tuple[bytes, str]:
    """The picture's bytes, and the type they are said to have. Raises Refused."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == FORM_TYPE:
        parts = read_parts(body, content_type)
        if set(parts) != {PART}:
            raise Refused(400, "invalid-form", f"the form has one part, {PART!r}, and this one has "
                                               f"{', '.join(sorted(parts))[:200] or 'none'}")
        body, kind = parts[PART].data, parts[PART].media_type or ANY_TYPE
        if kind == ANY_TYPE:
            return body, kind
    if kind not in PICTURE_TYPES:
        raise Refused(415, "unsupported-media-type", f"a picture comes as {' or '.join(PICTURE_TYPES)}, or as the part "
                                                     f"{PART!r} of {FORM_TYPE}, not as {kind[:100] or 'nothing'}")
    return body, kind


def _refused(problem: str, nearest: str = "") -> Refused:
    return Refused(422, "invalid-picture", problem + (f"; nearest valid: {nearest}" if nearest else ""),
                   errors=(Detail(detail=problem, nearest=nearest),))
