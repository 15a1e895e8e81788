"""How a request becomes a job, whatever it makes: its order, what is told of it, and one job per Idempotency-Key."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi.responses import JSONResponse, Response

from serve_app.http.edit_schemas import EditQuery
from serve_app.http.idempotency import fingerprint, once, reserve
from serve_app.http.problems import Detail, Refused
from serve_app.http.schemas import FilmQuery
from serve_app.service.access import Caller
from serve_app.service.desk import Desk
from serve_app.service.films import Order
from serve_app.service.links import job_links, job_url
from workflows.durable.replies import Stored
from workflows.durable.rows import JobRow, Limits
from workflows.errors import InvalidDocument
from workflows.types import Json


async def admit(desk: Desk, webhook_url: str) -> None:
    """Refuse an address that webhooks may not go to."""
    try:
        if webhook_url:
            await desk.webhooks.admit(webhook_url)
    except InvalidDocument as error:
        raise refused_parameter(error, "webhook_url") from None


def refused_parameter(error: InvalidDocument, name: str) -> Refused:
    """What is wrong with a parameter of the address."""
    wrong = error.problems[0]
    return Refused(422, "invalid-request", f"{name}: {wrong.problem}", errors=(
        Detail(detail=wrong.problem, parameter=name, nearest=wrong.nearest),))


def order_of(ask: FilmQuery | EditQuery, caller: Caller, token: str) -> Order:
    """What is asked for besides what is to be made."""
    return Order(token=token, priority=ask.priority, key_id=caller.key_id, webhook_url=ask.webhook_url,
                 limits=Limits(concurrency=ask.concurrency, attempt_timeout_s=ask.timeout_s))


async def told(desk: Desk, row: JobRow, warnings: Sequence[str], webhook_url: str) -> Mapping[str, Json]:
    """What a client is told of the job that was just queued for it; the hub and the Director hear of it too."""
    desk.submitted(row.id)
    hook = {"webhook": await asyncio.to_thread(desk.webhooks.made_with, row.id)} if webhook_url else {}
    return {**hook, "id": row.id, "status": row.status.value, "title": row.title, "warnings": list(warnings),
            "document_digest": row.document_digest, "links": {**job_links(row.id)}}


async def queued(desk: Desk, scope: str, key: str | None, asked: Sequence[bytes],
                 make: Callable[[str], Awaitable[Mapping[str, Json]]]) -> Response:
    """Queue a job, or give the reply of the same request before. `make` gets the token that the job's id follows from.

    `scope`: of which verb the key is, and whose; `asked`: all that was asked for. Raises Refused.
    """
    if key is None:
        return _accepted(await make(uuid.uuid4().hex))
    found = await reserve(desk.replies, scope, key, fingerprint(*asked))
    if isinstance(found, Stored):
        return _accepted(found.body, replayed=True)
    return _accepted(await once(desk.replies, found, make))


def _accepted(body: Mapping[str, Json], *, replayed: bool = False) -> Response:
    headers = {"Location": job_url(str(body["id"]))}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return JSONResponse(dict(body), 202, headers)
