"""What every request passes first: who may send it, how long its body may be and take, and what happens when all else
fails.

Without keys the service trusts whoever reaches it. A web page that somebody has open reaches loopback too: so a
request that a browser sends on behalf of another site is refused, and so is one addressed to a name that is not ours.
A browser sends a key that it was told by itself, so this holds with keys too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.settings import HttpSettings
from serve_app.http.problems import Refused, crashed, problem_response

READING = frozenset({"GET", "HEAD", "OPTIONS"})
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
PICTURE_PATHS = frozenset({"/api/pictures", "/v1/videos"})
"""Bodies sent to these may hold a picture."""
VIDEO_PATHS = frozenset({"/api/uploads", "/api/edits", "/v1/videos/edits", "/edit"})
"""Bodies sent to these may hold a video, and are not held in memory."""
BATCH_PATH = "/api/batches"
"""Bodies sent to this hold many films."""
FORM_BYTES = 10_000
"""What a form may have around a picture."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware; streams pass through it untouched."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        """Guard `app` as these settings say."""
        self._app = app
        self._settings = settings
        self._origins = frozenset(settings.cors_origins)
        names = {name.lower() for name in (*settings.allowed_hosts, settings.host, f"[{settings.host}]")}
        # On other addresses the machine has names that nobody told us.
        self._names = LOOPBACK_NAMES | names if settings.is_loopback or settings.allowed_hosts else frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is not None:
            answer = problem_response(refused.status_code, refused.code, str(refused.detail), instance=scope["path"])
            await answer(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, self._limited(receive, scope["path"], lambda: started), watched)
        except Exception as error:
            if started:
                raise
            await crashed(error, scope["path"])(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        host, *more = headers.getlist("host") or [""]
        if more:
            return Refused(400, "two-hosts", "a request has one Host header")
        if self._names and _name(host) not in self._names:
            return Refused(421, "unknown-host", f"this server is not called {host[:100]!r}; reach it as localhost, or "
                                                "add the name to http.allowed_hosts")
        if "\0" in scope["path"]:
            return Refused(404, "not-found", "no such path")
        if (scope["method"] not in READING and headers.get("origin", "") not in self._origins
                and _is_foreign(headers, host)):
            return Refused(403, "other-site", "a page of another site may not change anything here")
        length = headers.get("content-length", "")
        too_large, most = self._too_large(scope["path"])
        return too_large if length.isdecimal() and int(length) > most else None

    def _limited(self, receive: Receive, path: str, has_begun: Callable[[], bool]) -> Receive:
        """A body is counted and timed while it arrives. Once the reply has begun nobody can be told: the client is gone
        then, as far as the application hears.
        """
        total, is_whole = 0, False
        too_large, most = self._too_large(path)
        limit_s, name = (self._settings.upload_timeout_s, "http.upload_timeout_s") if path in VIDEO_PATHS else (
            self._settings.body_timeout_s, "http.body_timeout_s")
        ends_s = asyncio.get_running_loop().time() + limit_s

        async def counted() -> Message:
            nonlocal total, is_whole
            refused = None
            try:
                async with asyncio.timeout_at(None if is_whole else ends_s):
                    message = await receive()
            except TimeoutError:
                message, refused = {"type": "http.disconnect"}, _too_slow(limit_s, name)
            total += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if total > most:
                message, refused = {"type": "http.disconnect"}, too_large
            if refused is not None and not has_begun():
                raise refused
            return message

        return counted

    def _too_large(self, path: str) -> tuple[Refused, int]:
        """What is said of a body that is too long, and the most bytes it may have."""
        if path in VIDEO_PATHS:
            most, name = self._settings.max_video_mb * 1_000_000 + 2 * FORM_BYTES, "http.max_video_mb"
        elif path in PICTURE_PATHS:
            most, name = self._settings.max_picture_kb * 1000 + FORM_BYTES, "http.max_picture_kb"
        elif path == BATCH_PATH:
            most, name = self._settings.max_batch_kb * 1000, "http.max_batch_kb"
        else:
            most, name = self._settings.max_body_kb * 1000, "http.max_body_kb"
        return Refused(413, "too-large", f"the body is longer than {most} bytes ({name})"), most


def _too_slow(limit_s: float, name: str) -> Refused:
    return Refused(408, "too-slow", f"the body did not arrive within {limit_s:g} s ({name})",
                   headers={"Connection": "close"})


def _is_foreign(headers: Mapping[str, str], host: str) -> bool:
    """A browser says so itself; programs that are no browsers send neither header."""
    if headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != host


def _name(host: str) -> str:
    """Without the port; empty for what is no host."""
    match = HOST.fullmatch(host)
    return match[1].lower() if match else ""
