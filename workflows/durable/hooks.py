"""The verbs on webhook endpoints and their deliveries that any process may call. Knows the tables, not who sends."""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from workflows.durable import outbox
from workflows.durable.database import Database
from workflows.durable.mail import Attempt
from workflows.durable.outbox import TEST_EVENT, DeliveryStatus
from workflows.durable.tables import delivery, delivery_try, hook
from workflows.errors import UnknownWebhook, WebhookConflict

SECRET_BYTES = 32
MAX_HOOKS = 200
"""Of all jobs together, and of one job; every end of a shot looks at both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRow:
    """An endpoint, without its secret."""

    id: str
    url: str
    events: tuple[str, ...]
    """What it is sent; empty: everything."""
    job_id: str
    """Only of this job; empty: of every one."""
    note: str
    disabled: str
    """Why nothing is sent there any more; empty while it is."""
    created_at_s: float

    @classmethod
    def of(cls, row: sa.RowMapping) -> HookRow:
        """From a row of the `hook` table."""
        return cls(id=row["id"], url=row["url"], events=tuple(row["events"]), job_id=row["job_id"], note=row["note"],
                   disabled=row["disabled"], created_at_s=row["created_at"])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One event for one endpoint, and how its attempts went."""

    seq: int
    hook_id: str
    message_id: str
    type: str
    job_id: str
    status: DeliveryStatus
    next_at_s: float | None
    """Of the next attempt; None when there is none."""
    created_at_s: float
    finished_at_s: float | None
    attempts: tuple[Attempt, ...]
    """Oldest first."""


class Hooks:
    """The endpoints of one database."""

    def __init__(self, database: Database) -> None:
        """Read and write this database."""
        self._database = database

    def register(self, url: str, *, events: Collection[str] = (), job_id: str = "", note: str = "",
                 ) -> tuple[HookRow, str]:
        """A new endpoint and its secret (`whsec_...`), which no other verb returns. The URL is the caller's to check.

        Raises WebhookConflict when there are too many.
        """
        with self._database.write() as connection:
            there = sa.select(sa.func.count()).select_from(hook).where(hook.c.job_id == job_id)
            if (connection.scalar(there) or 0) >= MAX_HOOKS:
                raise WebhookConflict(webhook_id="new", problem=f"there are {MAX_HOOKS} webhooks; delete one first")
            hook_id, secret = add_hook(connection, url, events=events, job_id=job_id, note=note)
        return self.hook(hook_id), secret

    def hooks(self, *, job_id: str = "") -> tuple[HookRow, ...]:
        """The endpoints of all jobs together, or those of one job alone, oldest first."""
        with self._database.read() as connection:
            return tuple(HookRow.of(row) for row in connection.execute(
                sa.select(hook).where(hook.c.job_id == job_id).order_by(hook.c.created_at, hook.c.id)).mappings())

    def made_with(self, job_id: str) -> tuple[str, str]:
        """Id and secret of the endpoint that was registered with a job. Raises UnknownWebhook."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(hook.c.id, hook.c.secret).where(hook.c.job_id == job_id)
                                     .order_by(hook.c.created_at).limit(1)).first()
        if row is None:
            raise UnknownWebhook(webhook_id=f"of job {job_id}")
        return row.id, row.secret

    def hook(self, hook_id: str) -> HookRow:
        """One endpoint; raises UnknownWebhook."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(hook).where(hook.c.id == hook_id)).mappings().first()
        if row is None:
            raise UnknownWebhook(webhook_id=hook_id)
        return HookRow.of(row)

    def delete(self, hook_id: str) -> None:
        """Forget an endpoint, what waits for it, and its log. Raises UnknownWebhook."""
        with self._database.write() as connection:
            if not connection.execute(sa.delete(hook).where(hook.c.id == hook_id)).rowcount:
                raise UnknownWebhook(webhook_id=hook_id)

    def test(self, hook_id: str) -> DeliveryRow:
        """Queue a test event for an endpoint. Raises UnknownWebhook, and WebhookConflict when it is disabled."""
        sent = outbox.message(TEST_EVENT, {"webhook_id": hook_id})
        with self._database.write() as connection:
            self._lock_active(connection, hook_id)
            outbox.queue(connection, hook_id, "", [sent])
        return self.delivery(hook_id, sent.id)

    def redeliver(self, hook_id: str, message_id: str) -> DeliveryRow:
        """Send it again now, under its old id, with the whole schedule before it; harmless while it is pending.

        Raises UnknownWebhook, and WebhookConflict when the endpoint is disabled.
        """
        with self._database.write() as connection:
            self._lock_active(connection, hook_id)
            # A claim in progress loses its token: its outcome is not this one's.
            changed = connection.execute(
                sa.update(delivery).where(delivery.c.hook_id == hook_id, delivery.c.message_id == message_id)
                .values(status=DeliveryStatus.PENDING.value, attempt=0, next_at=self._database.now_s(), owner=None,
                        lease_until=None, finished_at=None)).rowcount
        if not changed:
            raise UnknownWebhook(webhook_id=hook_id, message_id=message_id)
        return self.delivery(hook_id, message_id)

    def delivery(self, hook_id: str, message_id: str) -> DeliveryRow:
        """One delivery; raises UnknownWebhook."""
        found = self._deliveries(sa.and_(delivery.c.hook_id == hook_id, delivery.c.message_id == message_id), 1)
        if not found:
            raise UnknownWebhook(webhook_id=hook_id, message_id=message_id)
        return found[0]

    def deliveries(self, hook_id: str, *, status: DeliveryStatus | None = None, before: int = 0,
                   limit: int = 50) -> tuple[DeliveryRow, ...]:
        """An endpoint's deliveries, newest first; `before`: only those with a lower `seq`. Raises UnknownWebhook."""
        self.hook(hook_id)
        wanted = delivery.c.hook_id == hook_id
        if status is not None:
            wanted = sa.and_(wanted, delivery.c.status == status.value)
        if before:
            wanted = sa.and_(wanted, delivery.c.seq < before)
        return self._deliveries(wanted, limit)

    def tally(self) -> Mapping[DeliveryStatus, int]:
        """How many deliveries there are by status, among those that are kept."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(delivery.c.status, sa.func.count()).group_by(delivery.c.status)).all()
        found = {status: int(count) for status, count in rows}
        return {status: found.get(status.value, 0) for status in DeliveryStatus}

    def _lock_active(self, connection: sa.Connection, hook_id: str) -> None:
        why = connection.scalar(sa.select(hook.c.disabled).where(hook.c.id == hook_id)
                                .with_for_update(read=True, key_share=True))
        if why is None:
            raise UnknownWebhook(webhook_id=hook_id)
        if why:
            raise WebhookConflict(webhook_id=hook_id, problem=f"is disabled: {why}; register its address anew")

    def _deliveries(self, wanted: sa.ColumnElement[bool], limit: int) -> tuple[DeliveryRow, ...]:
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(delivery).where(wanted).order_by(delivery.c.seq.desc()).limit(limit)).mappings().all()
            tries = connection.execute(
                sa.select(delivery_try).where(delivery_try.c.delivery_seq.in_([row["seq"] for row in rows]))
                .order_by(delivery_try.c.seq)).mappings().all() if rows else []
        return tuple(_delivery(row, [found for found in tries if found["delivery_seq"] == row["seq"]]) for row in rows)


def add_hook(connection: sa.Connection, url: str, *, events: Collection[str] = (), job_id: str = "",
             note: str = "") -> tuple[str, str]:
    """A new endpoint in the caller's transaction; its id and its secret."""
    hook_id = f"wh_{uuid.uuid4().hex[:20]}"
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    connection.execute(sa.insert(hook).values(
        id=hook_id, url=url, secret=secret, events=sorted(events), job_id=job_id, note=note, disabled="",
        created_at=time.time()))
    return hook_id, secret


def _delivery(row: sa.RowMapping, tries: Collection[sa.RowMapping]) -> DeliveryRow:
    status = DeliveryStatus(row["status"])
    return DeliveryRow(
        seq=row["seq"], hook_id=row["hook_id"], message_id=row["message_id"], type=row["type"], job_id=row["job_id"],
        status=status, next_at_s=row["next_at"] if status is DeliveryStatus.PENDING else None,
        created_at_s=row["created_at"], finished_at_s=row["finished_at"],
        attempts=tuple(Attempt(at_s=found["at"], latency_s=found["latency_s"], http_status=found["http_status"],
                               error=found["error"], reply=found["reply"]) for found in tries))
