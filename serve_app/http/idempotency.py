"""`Idempotency-Key`: a request that is sent again is answered again, not done again. Knows no route."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

from fastapi import Header

from serve_app.http.problems import Refused
from workflows.durable.replies import InFlight, OtherRequest, Replies, Reserved, Stored
from workflows.types import Json

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255, description=(
    "A value that you draw, e.g. a UUID. The same request with the same key within 24 hours gets the first reply and "
    "makes nothing new; 409 while the first is being answered, 422 when the request is another one."))]


def fingerprint(*parts: bytes) -> str:
    """What makes two requests the same."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()


async def once(
    replies: Replies, reserved: Reserved, work: Callable[[str], Awaitable[Mapping[str, Json]]],
) -> Mapping[str, Json]:
    """Do the work under a reserved key and keep its reply; a failure frees the key. `work` gets the key's token."""
    async def finish() -> Mapping[str, Json]:
        try:
            body = await work(reserved.token)
        except Exception:
            await asyncio.to_thread(replies.abandon, reserved)
            raise
        await asyncio.to_thread(replies.finish, reserved, body)
        return body

    # A client that hangs up meanwhile must find the reply when it asks again.
    return await asyncio.shield(asyncio.create_task(finish()))


async def reserve(replies: Replies, scope: str, key: str, digest: str) -> Reserved | Stored:
    """The right to do the work, or the reply of who did it. Raises Refused."""
    found = await asyncio.to_thread(replies.begin, scope, key, digest)
    if isinstance(found, InFlight):
        raise Refused(409, "request-in-flight", "a request with this Idempotency-Key is being answered; ask again",
                      headers={"Retry-After": "1"})
    if isinstance(found, OtherRequest):
        raise Refused(422, "idempotency-key-reused", "this Idempotency-Key was used for another request; draw "
                                                     "a new one")
    return found
