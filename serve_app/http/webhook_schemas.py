"""What requests and replies about webhooks look like. Knows no route."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from serve_app.http.schemas import Part, Seconds, UnixTime
from workflows.durable.outbox import DeliveryStatus, HookEvent

PRINTABLE = r"^[^\x00-\x1f]*$"


class WebhookRequest(Part):
    """Where to send what."""

    url: Annotated[str, Field(min_length=1, max_length=2000)] = Field(examples=["https://example.com/reelray"])
    """`https://`, and a public address, unless the operator allows more."""
    events: tuple[HookEvent, ...] = Field(default=(), examples=[["job.succeeded", "job.failed"]])
    """Empty: all."""
    job_id: Annotated[str, Field(max_length=200, pattern=PRINTABLE)] | None = None
    """Only events of this job, from now on."""
    note: Annotated[str, Field(max_length=200, pattern=PRINTABLE)] = ""
    """For people."""


class WebhookReply(Part):
    """A registered endpoint."""

    id: str = Field(examples=["wh_0f3b9c1d2e4a5b6c7d8e"])
    url: str
    events: tuple[HookEvent, ...]
    """Empty: all."""
    job_id: str | None
    note: str
    disabled: str | None
    """Why nothing is sent there any more."""
    created_at: UnixTime


class WebhookCreated(WebhookReply):
    """A new endpoint."""

    secret: str = Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="])
    """Deliveries are signed with it; it is not shown again."""


class WebhookList(Part):
    """Every endpoint, oldest first."""

    webhooks: tuple[WebhookReply, ...]


class AttemptReply(Part):
    """One attempt to deliver."""

    at: UnixTime
    latency_s: Seconds
    http_status: int | None
    """Null: there was no reply."""
    error: str | None
    """Null: delivered."""
    reply: str
    """The first characters of the reply's body."""


class DeliveryReply(Part):
    """One event for one endpoint."""

    id: str = Field(examples=["evt_5f0c1b2a9d3e4f5061728394a5b6c7d8"])
    """`webhook-id`."""
    type: str = Field(examples=["job.succeeded"])
    job_id: str | None
    status: DeliveryStatus
    next_attempt_at: UnixTime | None
    created_at: UnixTime
    finished_at: UnixTime | None
    attempts: tuple[AttemptReply, ...]
    """Oldest first."""


class DeliveryList(Part):
    """Some deliveries, newest first."""

    deliveries: tuple[DeliveryReply, ...]
    next_cursor: str
    """Give it back as `cursor` for the next page; empty on the last."""
