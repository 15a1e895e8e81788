"""Routes for webhooks. Knows the desk, not how anything is sent."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from serve_app.http.deps import TheDesk, refusals
from serve_app.http.webhook_schemas import (
    PRINTABLE,
    DeliveryList,
    DeliveryReply,
    WebhookCreated,
    WebhookList,
    WebhookReply,
    WebhookRequest,
)
from workflows.durable.outbox import DeliveryStatus

router = APIRouter(prefix="/api/webhooks", tags=["webhooks"])

NO_STORE = {"Cache-Control": "no-store"}
WebhookId = Annotated[str, Path(description="Id of a webhook.", pattern="^[0-9a-z_]{1,40}$")]
MessageId = Annotated[str, Path(description="Id of a delivery, its `webhook-id`.", pattern="^[0-9a-z_]{1,40}$")]


@router.post("", status_code=201, response_model=WebhookCreated, responses=refusals(400, 403, 404, 409, 413, 422),
             summary="Register a webhook")
async def register(desk: TheDesk, asked: WebhookRequest) -> Response:
    """Have events sent to an address, signed after Standard Webhooks. The reply alone has the secret.

    The address must be `https://` and public: what it leads to is looked up now, and again before each delivery.
    """
    made = await desk.webhooks.register(asked.url, events=asked.events, job_id=asked.job_id, note=asked.note)
    return JSONResponse(made, 201, {"Location": f"/api/webhooks/{made['id']}", **NO_STORE})


@router.get("", response_model=WebhookList, responses=refusals(422), summary="List webhooks")
async def list_webhooks(
    desk: TheDesk, job_id: Annotated[str, Query(pattern=PRINTABLE, max_length=200, description=(
        "The webhooks of this job alone, instead of those that hear of every job."))] = "",
) -> Response:
    """Webhooks, oldest first; secrets are not shown."""
    return JSONResponse(await asyncio.to_thread(desk.webhooks.all, job_id), headers=NO_STORE)


@router.get("/{webhook_id}", response_model=WebhookReply, responses=refusals(404, 422), summary="Look at a webhook")
async def show(webhook_id: WebhookId, desk: TheDesk) -> Response:
    """One webhook, and why it is disabled if it is."""
    return JSONResponse(await asyncio.to_thread(desk.webhooks.one, webhook_id), headers=NO_STORE)


@router.delete("/{webhook_id}", status_code=204, responses=refusals(403, 404, 422), summary="Delete a webhook")
async def delete(webhook_id: WebhookId, desk: TheDesk) -> None:
    """Forget a webhook, what waits to be sent there, and its log."""
    await asyncio.to_thread(desk.webhooks.delete, webhook_id)


@router.post("/{webhook_id}/test", status_code=202, response_model=DeliveryReply,
             responses=refusals(403, 404, 409, 422), summary="Send a test event")
async def test(webhook_id: WebhookId, desk: TheDesk) -> Response:
    """Queue an event `webhook.test`, whatever the filter; how it went is in the deliveries a moment later."""
    return JSONResponse(await asyncio.to_thread(desk.webhooks.test, webhook_id), 202)


@router.get("/{webhook_id}/deliveries", response_model=DeliveryList, responses=refusals(404, 422),
            summary="Delivery log")
async def deliveries(
    webhook_id: WebhookId, desk: TheDesk,
    status: Annotated[DeliveryStatus | None, Query(description="Only deliveries with this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Deliveries per page.")] = 50,
    cursor: Annotated[str, Query(pattern="^[0-9]{0,15}$", description="`next_cursor` of the page before.")] = "",
) -> Response:
    """What was or will be sent to a webhook, newest first: every attempt with status, latency and the reply's
    beginning, and when the next one is.
    """
    return JSONResponse(await asyncio.to_thread(
        desk.webhooks.deliveries, webhook_id, status=status, limit=limit, cursor=int(cursor or 0)), headers=NO_STORE)


@router.post("/{webhook_id}/deliveries/{message_id}/redeliver", status_code=202, response_model=DeliveryReply,
             responses=refusals(403, 404, 409, 422), summary="Send one again")
async def redeliver(webhook_id: WebhookId, message_id: MessageId, desk: TheDesk) -> Response:
    """Send a delivery again now, under its old `webhook-id`, whatever became of it."""
    return JSONResponse(await asyncio.to_thread(desk.webhooks.redeliver, webhook_id, message_id), 202)
