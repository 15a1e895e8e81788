"""Who sends which delivery: claim, record. Knows the tables and the lease clock, not how a delivery is sent.

A claim is one statement and draws a fresh token, as a job's claim does: of two that look at once, one gets the row. The
attempt is recorded under that token. Whoever dies between sending and recording has its lease run out, and somebody
else sends the same bytes under the same id again: at least once.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.outbox import DeliveryStatus
from workflows.durable.tables import delivery, delivery_try, hook, job


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A delivery in hand."""

    seq: int
    token: str
    hook_id: str
    url: str
    secret: str
    message_id: str
    type: str
    body: str
    attempt: int
    """Attempts so far that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one attempt went."""

    at_s: float
    latency_s: float
    http_status: int = 0
    """0: there was no reply."""
    error: str = ""
    """Empty: delivered."""
    reply: str = ""
    """The first characters of the reply's body."""


class Mail:
    """The deliveries of one database, as one sender sees them."""

    def __init__(self, database: Database, *, lease_s: float) -> None:
        """`lease_s`: a sender that is silent for this long loses what it claimed."""
        self._database = database
        self._lease_s = lease_s

    def is_due(self, *, without: Collection[str] = ()) -> bool:
        """Look without writing: is there anything to send, endpoints in `without` aside?"""
        with self._database.read() as connection:
            return connection.scalar(sa.select(delivery.c.seq).where(self._due(without)).limit(1)) is not None

    def claim(self, limit: int = 1, *, without: Collection[str] = ()) -> tuple[Letter, ...]:
        """Take up to `limit` due deliveries that nobody holds, the longest due first."""
        token = uuid.uuid4().hex
        with self._database.write() as connection:
            due = self._due(without)
            picked = (sa.select(delivery.c.seq).where(due).order_by(delivery.c.next_at, delivery.c.seq).limit(limit)
                      .with_for_update(skip_locked=True).cte("picked"))
            # The condition is asked again because SQLite knows no row locks.
            taken = connection.execute(
                sa.update(delivery).where(delivery.c.seq.in_(sa.select(picked.c.seq)), due)
                .values(owner=token, lease_until=self._database.now_s() + self._lease_s)
                .returning(delivery)).mappings().all()
            where_to = sa.select(hook.c.id, hook.c.url, hook.c.secret).where(
                hook.c.id.in_([row["hook_id"] for row in taken]))
            homes = {row.id: row for row in connection.execute(where_to)}
        return tuple(Letter(
            seq=row["seq"], token=token, hook_id=row["hook_id"], url=homes[row["hook_id"]].url,
            secret=homes[row["hook_id"]].secret, message_id=row["message_id"], type=row["type"], body=row["body"],
            attempt=row["attempt"]) for row in sorted(taken, key=lambda row: int(row["seq"])))

    def delivered(self, letter: Letter, attempt: Attempt) -> bool:
        """The endpoint has it. False: the claim was lost meanwhile, and nothing is recorded."""
        return self._record(letter, attempt, status=DeliveryStatus.DELIVERED.value, next_at=delivery.c.next_at)

    def failed(self, letter: Letter, attempt: Attempt, *, wait_s: float | None) -> bool:
        """The attempt failed; the next one is in `wait_s`, None: there is none. False: the claim was lost."""
        if wait_s is None:
            return self._record(letter, attempt, status=DeliveryStatus.FAILED.value, next_at=delivery.c.next_at)
        return self._record(letter, attempt, status=DeliveryStatus.PENDING.value,
                            next_at=self._database.now_s() + wait_s)

    def gone(self, letter: Letter, attempt: Attempt) -> bool:
        """The endpoint wants no more: it is disabled, and all that waits for it ends. False: the claim was lost."""
        with self._database.write() as connection:
            # The endpoint's row first, as its deletion locks it first too.
            connection.execute(sa.update(hook).where(hook.c.id == letter.hook_id, hook.c.disabled == "").values(
                disabled=f"it answered {attempt.http_status}"))
            mine = self._end(connection, letter, attempt, status=DeliveryStatus.FAILED.value,
                             next_at=delivery.c.next_at)
            connection.execute(
                sa.update(delivery).where(delivery.c.hook_id == letter.hook_id,
                                          delivery.c.status == DeliveryStatus.PENDING.value)
                .values(status=DeliveryStatus.FAILED.value, finished_at=self._database.now_s(), owner=None,
                        lease_until=None))
        return mine

    def forget(self, older_than_s: float) -> int:
        """Drop what was settled longer ago than this, with its log, and endpoints of deleted jobs; how many of the
        former."""
        with self._database.write() as connection:
            dropped = connection.execute(sa.delete(delivery).where(
                delivery.c.finished_at < self._database.now_s() - older_than_s)).rowcount
            # Of a job that is no more there is nothing left to tell.
            connection.execute(sa.delete(hook).where(
                hook.c.job_id != "", hook.c.job_id.not_in(sa.select(job.c.id)),
                hook.c.id.not_in(sa.select(delivery.c.hook_id))))
        return dropped

    def _due(self, without: Collection[str]) -> sa.ColumnElement[bool]:
        now_s = self._database.now_s()
        active = sa.select(hook.c.id).where(hook.c.disabled == "")
        due = sa.and_(delivery.c.status == DeliveryStatus.PENDING.value, delivery.c.next_at <= now_s,
                      sa.or_(delivery.c.owner.is_(None), delivery.c.lease_until < now_s),
                      delivery.c.hook_id.in_(active))
        return sa.and_(due, delivery.c.hook_id.not_in(without)) if without else due

    def _record(self, letter: Letter, attempt: Attempt, *, status: str, next_at: sa.ColumnElement[float]) -> bool:
        with self._database.write() as connection:
            return self._end(connection, letter, attempt, status=status, next_at=next_at)

    def _end(self, connection: sa.Connection, letter: Letter, attempt: Attempt, *, status: str,
             next_at: sa.ColumnElement[float]) -> bool:
        over = status != DeliveryStatus.PENDING.value
        changed = connection.execute(
            sa.update(delivery).where(delivery.c.seq == letter.seq, delivery.c.owner == letter.token)
            .values(status=status, attempt=letter.attempt + 1, next_at=next_at, owner=None, lease_until=None,
                    finished_at=self._database.now_s() if over else None))
        if not changed.rowcount:
            return False
        connection.execute(sa.insert(delivery_try).values(
            delivery_seq=letter.seq, at=attempt.at_s, latency_s=attempt.latency_s, http_status=attempt.http_status,
            error=attempt.error, reply=attempt.reply))
        return True
