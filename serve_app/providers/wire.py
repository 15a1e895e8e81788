"""One request to somebody else's API: bounded in time and size, without redirects, and silent about the key.

Answers come back as bytes or JSON; everything else is an ApiFailure that says whether another try makes sense.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx2

from configs.endpoint import Endpoint
from workflows.types import Json

MAX_MESSAGE_CHARS = 300
TRANSIENT = frozenset({408, 409, 425, 429})
"""Below 500, what another try may be spared."""
_HIDDEN = "[key]"


class ApiFailure(Exception):
    """A request without a usable answer; `str()` is for people and never holds the key."""

    def __init__(self, reason: str, *, final: bool = False, status: int = 0, retry_after_s: float = 0.0) -> None:
        """`final`: the same request will fail again; `retry_after_s`: what the server asks for, 0 when nothing."""
        super().__init__(reason)
        self.reason = reason
        self.final = final
        self.status = status
        self.retry_after_s = retry_after_s


class UnusableAnswer(ApiFailure):
    """The model answered, with nothing that can be used."""


class Wire:
    """Requests to one endpoint."""

    def __init__(self, endpoint: Endpoint, key: str, *, timeout_s: float, max_bytes: int) -> None:
        """`timeout_s` for a whole request with its answer; `max_bytes` of an answer."""
        self._base = endpoint.api_url.rstrip("/")
        self._host = urlsplit(self._base).netloc
        self._key = key
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    async def post_json(self, path: str, body: Mapping[str, Json]) -> Json:
        """Send JSON to `{api_url}{path}`; the answer, which must be JSON. Raises ApiFailure."""
        return self._parsed(await self._request("POST", path, dict(body)))

    async def get_json(self, path: str) -> Json:
        """What `{api_url}{path}` answers, which must be JSON. Raises ApiFailure."""
        return self._parsed(await self._request("GET", path))

    async def get_bytes(self, path: str) -> bytes:
        """What `{api_url}{path}` answers. Raises ApiFailure."""
        return await self._request("GET", path)

    def clean(self, text: str) -> str:
        """A server's words on one line, short, without the key and without control characters."""
        if self._key:
            text = text.replace(self._key, _HIDDEN)
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return line if len(line) <= MAX_MESSAGE_CHARS else f"{line[:MAX_MESSAGE_CHARS]}..."

    async def _request(self, method: str, path: str, body: Mapping[str, Json] | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            async with asyncio.timeout(self._timeout_s), httpx2.AsyncClient(
                    timeout=self._timeout_s, follow_redirects=False) as client:
                return await self._answer(client, client.build_request(
                    method, f"{self._base}{path}", json=body, headers={**headers, "Accept-Encoding": "identity"}))
        except TimeoutError:
            raise ApiFailure(f"{self._host} gave no answer within {self._timeout_s:g} s (timeout_s)") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            text = self.clean(str(error)) or type(error).__name__
            raise ApiFailure(f"{self._host} cannot be asked: {text}") from None

    async def _answer(self, client: httpx2.AsyncClient, request: httpx2.Request) -> bytes:
        reply = await client.send(request, stream=True)
        try:
            body = await read_bounded(reply, self._max_bytes, self._host)
        finally:
            await reply.aclose()
        if reply.is_success:
            return body
        raise self._failure(reply, body)

    def _failure(self, reply: httpx2.Response, body: bytes) -> ApiFailure:
        status = reply.status_code
        if reply.is_redirect:
            return ApiFailure(f"{self._host} answers with a redirect ({status}), which is not followed: a key would go "
                              "along; write the final address into api_url", final=True, status=status)
        said = self.clean(message_of(body)) or reply.reason_phrase
        return ApiFailure(f"{self._host} answers {status}: {said}", final=status < 500 and status not in TRANSIENT,
                          status=status, retry_after_s=retry_after_s(reply.headers.get("retry-after", "")))

    def _parsed(self, body: bytes) -> Json:
        try:
            value: Json = json.loads(body)
        except (ValueError, RecursionError):
            raise ApiFailure(f"{self._host} answers something that is no JSON") from None
        return value


async def read_bounded(reply: httpx2.Response, max_bytes: int, host: str) -> bytes:
    """The body of a streamed reply. Raises ApiFailure when it is longer than `max_bytes`."""
    body = bytearray()
    async for chunk in reply.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise ApiFailure(f"{host} answers more than {max_bytes / 1e6:g} MB", final=True)
    return bytes(body)


def message_of(body: bytes) -> str:
    """A server's own words in an error's body: OpenAI's envelope, a problem document, or plain text."""
    text = body[:20_000].decode("utf-8", errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # A proxy's page says the most in its title.
        return re.sub(r"<[^>]*>", " ", text)
    while isinstance(value, dict):
        value = next((value[name] for name in ("error", "message", "detail", "title") if value.get(name)), "")
    return value if isinstance(value, str) else json.dumps(value)


def retry_after_s(header: str) -> float:
    """Seconds that a `Retry-After` header asks for: a number or a date; 0 when it is neither."""
    try:
        return max(float(header), 0.0) if header.strip().isdigit() else max(
            parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
