"""What webhooks must hear: written in the transaction in which it happens, so neither can be without the other.

Knows the tables, not who sends. Every endpoint that wants an event gets a row with the bytes to be sent; an endpoint
registered later hears of later things only.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import sqlalchemy as sa

from workflows.durable.database import now_s_of
from workflows.durable.rows import EventType, JobRow, NodeRow
from workflows.durable.tables import delivery, hook, job, node
from workflows.types import JobStatus, Json, NodeKind, NodeStatus


class HookEvent(StrEnum):
    """What an endpoint can ask to hear of."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_PARTIAL = "job.partial"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    SHOT_SUCCEEDED = "shot.succeeded"
    SHOT_FAILED = "shot.failed"
    VIDEO_COMPLETED = "video.completed"
    VIDEO_FAILED = "video.failed"


TEST_EVENT = "webhook.test"
"""Sent when it is asked for, whatever the endpoint's filter."""


class DeliveryStatus(StrEnum):
    """What became of one event for one endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """The last attempt of the schedule failed, or the endpoint was disabled."""


VIDEO_KIND = "video"
"""Kind of the jobs that stand for one video of the OpenAI-compatible API; they tell `video.*` too."""
ENDS = {EventType.NODE_SUCCEEDED, EventType.NODE_CACHED, EventType.NODE_FAILED, EventType.NODE_SKIPPED}
"""Events that may be the end of a shot."""
SHOT_EVENTS = frozenset({HookEvent.SHOT_SUCCEEDED.value, HookEvent.SHOT_FAILED.value})
LOST = (NodeStatus.FAILED, NodeStatus.SKIPPED)


# Built once: every node's end asks.
_LISTENING = (sa.select(hook.c.id, hook.c.events)
              .where(hook.c.disabled == "", sa.or_(hook.c.job_id == "", hook.c.job_id == sa.bindparam("of_job")))
              .order_by(hook.c.id).with_for_update(read=True, key_share=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One event, as it is sent."""

    id: str
    """`webhook-id`: the same for every endpoint and every attempt."""
    type: str
    body: str
    """JSON."""


def post(connection: sa.Connection, job_id: str, told: Sequence[tuple[EventType, str]]) -> None:
    """Queue what endpoints want to hear of these events (`told`: event type, node id) in the caller's transaction.

    The caller holds the job's row lock, and has written the nodes' new states.
    """
    over = any(type is EventType.JOB_FINISHED for type, _ in told)
    ended = [node_id for type, node_id in told if type in ENDS]
    if not over and not ended:
        return
    listening = _listening(connection, job_id)
    if not listening:
        return
    # Many want to hear of jobs only: for them a shot's end costs this one look.
    hear_shots = any(not wanted or wanted & SHOT_EVENTS for _, wanted in listening)
    messages = _of_shots(connection, job_id, ended) if ended and hear_shots else []
    if over:
        messages += _of_job(connection, job_id)
    for hook_id, wanted in listening:
        queue(connection, hook_id, job_id, [found for found in messages if not wanted or found.type in wanted])


def queue(connection: sa.Connection, hook_id: str, job_id: str, messages: Sequence[Message]) -> None:
    """Make these messages due for one endpoint, now."""
    at = time.time()
    rows = [{"hook_id": hook_id, "job_id": job_id, "message_id": message.id, "type": message.type,
             "body": message.body, "status": DeliveryStatus.PENDING.value, "attempt": 0,
             "created_at": at} for message in messages]
    if rows:
        # Senders ask by the database's clock, and this machine's may be another.
        connection.execute(sa.insert(delivery).values(next_at=now_s_of(connection)), rows)


def message(type: str, data: Mapping[str, Json], *, like_openai: bool = False) -> Message:
    """An event with an id of its own; `like_openai`: in the shape of OpenAI's events."""
    id, at = f"evt_{uuid.uuid4().hex}", time.time()
    stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body: dict[str, Json] = {"type": type, "timestamp": stamp, "data": dict(data)}
    if like_openai:
        body = {"id": id, "object": "event", "created_at": int(at), "type": type, "data": dict(data)}
    # ASCII: the signature is over these bytes, and no proxy has a reason to touch them.
    return Message(id=id, type=type, body=json.dumps(body, separators=(",", ":")))


def _listening(connection: sa.Connection, job_id: str) -> list[tuple[str, frozenset[str]]]:
    """Endpoints for this job and what they want. Their rows are kept from deletion until the transaction ends: a node's
    commit must not fail because an endpoint was removed."""
    return [(row.id, frozenset(row.events)) for row in connection.execute(_LISTENING, {"of_job": job_id})]


def _of_job(connection: sa.Connection, job_id: str) -> list[Message]:
    row = JobRow.of(connection.execute(sa.select(job).where(job.c.id == job_id)).mappings().one())
    data: dict[str, Json] = {
        "id": row.id, "kind": row.kind, "title": row.title, "status": row.status.value, "created_at": row.created_at_s,
        "started_at": row.started_at_s, "finished_at": row.finished_at_s,
        "error": row.error.message if row.error else None}
    messages = [message(f"job.{row.status.value}", {"job": data})]
    if row.kind == VIDEO_KIND:
        ended = HookEvent.VIDEO_COMPLETED if row.status is JobStatus.SUCCEEDED else HookEvent.VIDEO_FAILED
        messages.append(message(ended.value, {"id": row.id}, like_openai=True))
    return messages


def _of_shots(connection: sa.Connection, job_id: str, ended: Sequence[str]) -> list[Message]:
    """A shot succeeds with its last node, and fails with the first that has no result."""
    shots = sa.select(node.c.shot_id).where(node.c.job_id == job_id, node.c.id.in_(ended), node.c.shot_id != "")
    rows = [NodeRow.of(row) for row in connection.execute(
        sa.select(node).where(node.c.job_id == job_id, node.c.shot_id.in_(shots)).order_by(node.c.ord)).mappings()]
    messages = []
    for shot_id in dict.fromkeys(row.shot_id for row in rows):
        nodes = [row for row in rows if row.shot_id == shot_id and row.kind is not NodeKind.SCORE]
        lost = [row for row in nodes if row.status in LOST]
        if all(row.status is NodeStatus.SUCCEEDED for row in nodes):
            messages.append(_of_shot(HookEvent.SHOT_SUCCEEDED, job_id, shot_id, None))
        elif lost and all(row.id in ended for row in lost):
            why = next((row.error.message for row in lost if row.error), "a shot that it continues has no result")
            messages.append(_of_shot(HookEvent.SHOT_FAILED, job_id, shot_id, why))
    return messages


def _of_shot(type: HookEvent, job_id: str, shot_id: str, error: str | None) -> Message:
    status = type.value.partition(".")[2]
    return message(type.value, {"job_id": job_id, "shot": {"id": shot_id, "status": status, "error": error}})
