"""Errors as replies: the one place that turns ours into problem+json (RFC 9457). Knows no route.

| error                                   | status                       |
|-----------------------------------------|------------------------------|
| Unknown..., ArtifactMissing             | 404                          |
| JobConflict, WebhookConflict            | 409                          |
| any other that the caller can mend      | 422, with `errors[]`         |
| any other of the system                 | 500                          |
| capacity, a database that is away       | 503 with Retry-After         |
| anything else that is raised            | 500, without its text        |
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import takewhile

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from workflows.durable.database import is_down
from workflows.errors import (
    ArtifactMissing,
    BatchConflict,
    Fault,
    InvalidDocument,
    JobConflict,
    Problem,
    ReelrayError,
    UnknownBatch,
    UnknownJob,
    UnknownKey,
    UnknownPart,
    UnknownPicture,
    UnknownUpload,
    UnknownWebhook,
    WebhookConflict,
)
from workflows.types import Json

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:reelray:problem:"
OPENAI_PATH = "/v1/"
"""Under it errors come in OpenAI's envelope."""
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
RETRY_AFTER_S = 5
MAX_DETAILS = 100
"""A request with more wrong parts has one cause behind them."""
MAX_NAME = 200
"""Characters of a field's name."""
STATUS_OF_FAULT = {Fault.CALLER: 422, Fault.SYSTEM: 500, Fault.CAPACITY: 503}
NOT_FOUND = (UnknownJob, UnknownPart, UnknownPicture, UnknownUpload, UnknownKey, UnknownWebhook, UnknownBatch,
             ArtifactMissing)
CONFLICT = (JobConflict, WebhookConflict, BatchConflict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """One entry of `errors[]`."""

    detail: str
    pointer: str = ""
    """JSON pointer into the request body, as a URI fragment: `#/shots/2/frames`."""
    parameter: str = ""
    """Name of a query parameter, path parameter or header, where one of those is wrong."""
    shot: str = ""
    line: int | None = None
    """1-based line of the body."""
    nearest: str = ""
    """The nearest valid value, ready to paste."""
    file: str = ""
    """Which of several documents in the body."""
    code: str = ""
    """A short name for programs, where it is not that of the whole; told in OpenAI's envelope only."""

    def to_json(self) -> dict[str, Json]:
        """As plain data, without what is not known."""
        known: dict[str, Json] = {"detail": self.detail, "pointer": self.pointer, "parameter": self.parameter,
                                  "shot": self.shot, "line": self.line, "nearest": self.nearest, "file": self.file}
        return {name: value for name, value in known.items() if value}


class Refused(HTTPException):
    """A request that the HTTP layer itself refuses."""

    def __init__(self, status: int, code: str, detail: str, *, errors: Sequence[Detail] = (),
                 headers: Mapping[str, str] | None = None, most: int = MAX_DETAILS) -> None:
        """`code` is a short name for programs, `detail` a sentence for people; `most` of the errors are told."""
        super().__init__(status, detail, dict(headers or {}))
        self.code = code
        self.errors = tuple(errors)[:most]


def install(app: FastAPI) -> None:
    """Answer every error of this application as problem+json."""
    app.add_exception_handler(ReelrayError, _of_ours)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _of_validation)


def refused_document(error: InvalidDocument, shot_ids: Sequence[str] = ()) -> Refused:
    """A document that was refused, with pointers into it; `shot_ids` are its shots in order."""
    details = tuple(Detail(detail=problem.problem, pointer=pointer_of(problem, shot_ids), shot=problem.shot_id,
                           line=problem.line, nearest=problem.nearest, file=problem.file) for problem in error.problems)
    return Refused(422, "invalid-document", _summary(details), errors=details)


def refused_change(error: InvalidDocument, shot_id: str) -> Refused:
    """A change of one shot that was refused: the body has the shot's fields at its top."""
    details = tuple(
        Detail(detail=problem.problem, shot=problem.shot_id, nearest=problem.nearest,
               pointer=_pointer(_parts(problem.field)) if problem.shot_id in ("", shot_id) and problem.field else "")
        for problem in error.problems)
    return Refused(422, "invalid-document", _summary(details), errors=details)


def pointer_of(problem: Problem, shot_ids: Sequence[str]) -> str:
    """Where in the document a problem is, as a JSON pointer; empty when that is not known."""
    parts = _parts(problem.field)
    if problem.shot_id:
        if problem.shot_id not in shot_ids:
            return ""
        parts = ["shots", str(shot_ids.index(problem.shot_id)), *parts]
    return _pointer(parts) if parts else ""


def body_detail(message: str, path: Sequence[str]) -> Detail:
    """What pydantic says of the part of the body at this path."""
    return Detail(detail=_plain(message), pointer=_pointer(path))


def problem_response(status: int, code: str, detail: str, *, errors: Sequence[Detail] = (), instance: str = "",
                     headers: Mapping[str, str] | None = None) -> Response:
    """A problem as a reply; under /v1 in the envelope that OpenAI's clients read."""
    is_openai = instance.startswith(OPENAI_PATH)
    body = _envelope(status, code, detail, errors) if is_openai else _problem(status, code, detail, errors, instance)
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    # What is quoted of a request may hold half a character.
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, {**retry, **(headers or {})}, "application/json" if is_openai else MEDIA_TYPE)


def _problem(status: int, code: str, detail: str, errors: Sequence[Detail], instance: str) -> dict[str, Json]:
    body: dict[str, Json] = {"type": TYPE_PREFIX + code, "title": HTTPStatus(status).phrase, "status": status,
                             "detail": detail, "code": code}
    if instance:
        body["instance"] = instance
    if errors:
        body["errors"] = [error.to_json() for error in errors]
    return body


def _envelope(status: int, code: str, detail: str, errors: Sequence[Detail]) -> dict[str, Json]:
    kind = "server_error" if status >= 500 else OPENAI_TYPES.get(status, "invalid_request_error")
    error: dict[str, Json] = {"message": detail, "type": kind, "param": _param(errors[0]) if errors else None,
                              "code": code.replace("-", "_")}
    if len(errors) > 1:
        error["errors"] = [{"message": one.detail, "param": _param(one), "code": (one.code or code).replace("-", "_")}
                           for one in errors]
    return {"error": error}


def _param(one: Detail) -> str | None:
    return one.parameter or one.pointer.removeprefix("#/") or None


def crashed(error: Exception, path: str) -> Response:
    """The reply to what nobody raised on purpose; its text stays in the log, which only operators read."""
    if is_down(error):
        log.warning("%s: database is away: %s", path, str(error).splitlines()[0])
        return problem_response(503, "database-away", "the database cannot be reached for now; ask again",
                                instance=path)
    log.error("%s failed", path, exc_info=error)
    return problem_response(500, "internal", "something went wrong inside reelray; its log says what", instance=path)


async def _of_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, ReelrayError)
    path = request.url.path
    if isinstance(error, InvalidDocument):
        refused = refused_document(error)
        return problem_response(422, refused.code, str(refused.detail), errors=refused.errors, instance=path)
    status = 404 if isinstance(error, NOT_FOUND) else 409 if isinstance(error, CONFLICT) else (
        STATUS_OF_FAULT[error.fault])
    if status == 500:
        log.error("%s failed", path, exc_info=error)
    return problem_response(status, _kebab(type(error).__name__), str(error), instance=path)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, Refused) else _kebab(HTTPStatus(error.status_code).phrase.replace(" ", ""))
    errors = error.errors if isinstance(error, Refused) else ()
    return problem_response(error.status_code, code, str(error.detail), errors=errors, instance=request.url.path,
                            headers=error.headers)


async def _of_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = []
    for found in error.errors()[:MAX_DETAILS]:
        where, *path = (str(part) for part in found["loc"])
        if where == "body":
            details.append(body_detail(found["msg"], path))
        else:
            details.append(Detail(detail=_plain(found["msg"]), parameter=path[0] if path else where))
    return problem_response(422, "invalid-request", _summary(details), errors=details, instance=request.url.path)


def _summary(details: Sequence[Detail]) -> str:
    first = details[0]
    parts = (f"shot {first.shot}" if first.shot else "", first.parameter or first.pointer, first.detail)
    text = ": ".join(part for part in parts if part)
    return text if len(details) == 1 else f"{text} (and {len(details) - 1} more, see errors)"


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _parts(field: str) -> list[str]:
    """`characters[0].id` as [`characters`, `0`, `id`]."""
    return re.findall(r"[^.\[\]]+", field)


def _pointer(parts: Sequence[str]) -> str:
    # A name that nobody could have meant is not repeated: the pointer ends above it.
    known = takewhile(lambda part: len(part) <= MAX_NAME, parts)
    return "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in known)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
