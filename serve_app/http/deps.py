"""What routes share: the desk behind them, and how they document their refusals."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path, Request

from serve_app.http.problems import MEDIA_TYPE
from serve_app.http.schemas import Problem
from serve_app.service.desk import Desk

MEANINGS = {
    400: "The body cannot be read as JSON", 401: "No API key, or none that opens anything",
    403: "The key's role forbids it, or a browser sent it on behalf of another site",
    404: "There is no such thing, or not yet", 408: "The body arrived too slowly",
    409: "The job is in a state that forbids it", 413: "The body is too long", 415: "A body of another type",
    416: "The range lies outside the file", 422: "Something in the request is wrong; `errors` says what and where",
    429: "The key sent too many requests; `Retry-After` says when to ask again",
    503: "Something that is needed is away for now",
}


async def desk_of(request: Request) -> Desk:
    """The desk of this application. Async, because FastAPI sends every other kind through a thread."""
    desk: Desk = request.app.state.desk
    return desk


TheDesk = Annotated[Desk, Depends(desk_of)]
JobId = Annotated[str, Path(description="Id of a job.", max_length=200)]
ShotId = Annotated[str, Path(description="Id of a shot, as in the storyboard.", max_length=64)]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These replies, as problems, for the OpenAPI document; 503 may always happen, and 408 to whatever has a body."""
    more = (408, 503) if 413 in statuses else (503,)
    return {status: {"description": MEANINGS[status], "model": Problem,
                     "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
            for status in (*statuses, *more)}
