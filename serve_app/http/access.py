"""The door: API keys, roles and rates in front of every route. What they mean is in `serve_app.service.access`.

A key comes as `Authorization: Bearer KEY`, or as the password of Basic authentication: browsers ask for that
themselves, and then send it with pages, event streams and films alike.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.settings import HttpSettings
from serve_app.http.deps import refusals
from serve_app.http.problems import Refused, problem_response
from serve_app.service.access import ANYBODY, OPEN_PATHS, Access, Caller, Quota, act_of

JOB_PARAMETERS = ("job_id", "video_id", "image_id")
"""Path parameters that name a job."""
BATCH_PARAMETER = "batch_id"
CHALLENGE = 'Bearer realm="reelray"'
BROWSER_CHALLENGE = 'Basic realm="reelray: any name, your key as the password", charset="UTF-8"'
SENT_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "Range")
TOLD_HEADERS = ("Content-Range", "ETag", "Idempotency-Replayed", "Location", "RateLimit", "RateLimit-Policy",
                "Retry-After", "openai-poll-after-ms")


class Doorman:
    """ASGI middleware: lets a request in with its caller, or answers it."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Stand before `app`."""
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who it is; count; pass on."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or not self._access.needs_keys:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = await self._access.caller(key_in(headers))
        if caller is None:
            await refusal_response(_unknown(headers), scope["path"])(scope, receive, send)
            return
        quota = self._access.take(caller)
        telling = _with_quota(send, quota)
        refused = _refusal(caller, quota, scope)
        if refused is not None:
            await refusal_response(refused, scope["path"])(scope, receive, telling)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, telling)


async def caller_of(request: Request) -> Caller:
    """Who sent this request."""
    caller: Caller = request.scope.get("state", {}).get("caller", ANYBODY)
    return caller


TheCaller = Annotated[Caller, Depends(caller_of)]


async def own_jobs_only(request: Request, caller: TheCaller) -> None:
    """For every route: a job or batch in the path must be one that the caller may see. Raises UnknownJob, UnknownBatch.
    """
    access: Access = request.app.state.desk.access
    for name in JOB_PARAMETERS:
        if name in request.path_params:
            await access.require_own(caller, str(request.path_params[name]))
    if BATCH_PARAMETER in request.path_params:
        await access.require_own_batch(caller, str(request.path_params[BATCH_PARAMETER]))


def key_in(headers: Mapping[str, str]) -> str:
    """The key that a request carries; empty without one."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def refusal_response(refused: Refused, path: str) -> Response:
    """A refusal at the door, in the words of the route it was sent to: OpenAI's envelope under /v1, else a problem."""
    return problem_response(refused.status_code, refused.code, str(refused.detail), instance=path,
                            headers=refused.headers)


def allow_origins(app: FastAPI, settings: HttpSettings) -> None:
    """Let pages of the configured origins use the service; without any, no reply has a CORS header."""
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(settings.cors_origins), allow_credentials=False,
                           allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"], allow_headers=list(SENT_HEADERS),
                           expose_headers=list(TOLD_HEADERS), max_age=600)


def describe(document: dict[str, Any]) -> None:
    """Say in the OpenAPI document how keys are sent, and what is refused at the door."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": {
        "type": "http", "scheme": "bearer", "description": "An API key (`reelray keys create`), where the server asks "
                                                           "for one. Also taken as the password of Basic."}}
    document["security"] = [{"key": []}, {}]
    door = {str(status): reply for status, reply in refusals(401, 403, 429).items() if status != 503}
    for reply in door.values():
        del reply["model"]
    for path, verbs in document["paths"].items():
        if path not in OPEN_PATHS and not path.startswith("/v1/"):
            for operation in verbs.values():
                operation["responses"] = {**door, **operation["responses"]}


def _unknown(headers: Mapping[str, str]) -> Refused:
    said = "this key opens nothing; it is wrong, or was revoked" if headers.get("authorization") else (
        "an API key is needed: Authorization: Bearer KEY; `reelray keys create NAME` makes one")
    challenge = BROWSER_CHALLENGE if "text/html" in headers.get("accept", "") else CHALLENGE
    return Refused(401, "unauthorized", said, headers={"WWW-Authenticate": challenge})


def _refusal(caller: Caller, quota: Quota | None, scope: Scope) -> Refused | None:
    if quota is not None and quota.retry_after_s:
        return Refused(429, "too-many-requests", f"key {caller.name} may send {quota.limit} requests per minute here; "
                                                 f"ask again in {quota.retry_after_s} s",
                       headers={"Retry-After": str(quota.retry_after_s)})
    act = act_of(scope["method"], scope["path"])
    if not caller.may(act):
        said = f"key {caller.name} has role {caller.role.value}, which may not {act.value} here"
        return Refused(403, "forbidden", said, headers={
            "WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope"'})
    return None


def _with_quota(send: Send, quota: Quota | None) -> Send:
    """Tell how much is left with the reply, as draft-ietf-httpapi-ratelimit-headers has it."""
    if quota is None:
        return send

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["RateLimit-Policy"] = f'"key";q={quota.limit};w=60'
            headers["RateLimit"] = f'"key";r={quota.remaining};t={quota.reset_s}'
        await send(message)

    return telling
