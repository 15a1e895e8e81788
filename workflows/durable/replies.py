"""Replies kept under the key of a request, so that a repeated request is not a second one. Knows no HTTP.

A key is reserved before the work and holds the reply after it. Whoever reserved it and died holds it for `patience_s`
more; the next one then takes the work over, with the same token, so that both make the same thing.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from workflows.durable.database import Database
from workflows.durable.tables import reply
from workflows.types import Json

KEEP_S = 24 * 3600.0
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """The caller does the work, then calls `finish` or `abandon`."""

    scope: str
    key: str
    token: str
    """32 hex digits; the same for whoever takes the work over."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """Somebody is at work under this key."""


@dataclass(frozen=True, slots=True)
class OtherRequest:
    """The key was used for something else."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The work was done; this was the reply."""

    body: Mapping[str, Json]


class Replies:
    """The kept replies of one database."""

    def __init__(self, database: Database, *, keep_s: float = KEEP_S, patience_s: float = PATIENCE_S) -> None:
        """Keep replies for `keep_s`; a request that is silent for `patience_s` is taken for dead."""
        self._database = database
        self._keep_s = keep_s
        self._patience_s = patience_s

    def begin(self, scope: str, key: str, digest: str) -> Reserved | InFlight | OtherRequest | Stored:
        """Reserve a key for the request with this digest, or learn what became of it."""
        try:
            with self._database.write() as connection:
                return self._begin(connection, scope, key, digest)
        except IntegrityError:
            return InFlight()  # two at once, and the other was quicker

    def finish(self, reserved: Reserved, body: Mapping[str, Json]) -> None:
        """Keep the reply."""
        with self._database.write() as connection:
            connection.execute(sa.update(reply).where(_is(reserved)).values(body=dict(body)))

    def abandon(self, reserved: Reserved) -> None:
        """Nothing was done: the key is free again."""
        with self._database.write() as connection:
            connection.execute(sa.delete(reply).where(_is(reserved), reply.c.body.is_(None)))

    def _begin(self, connection: sa.Connection, scope: str, key: str,
               digest: str) -> Reserved | InFlight | OtherRequest | Stored:
        # Servers on several machines ask how old a row is that another one wrote.
        now_s = float(connection.scalar(sa.select(self._database.now_s())) or 0.0)
        connection.execute(sa.delete(reply).where(reply.c.created_at < now_s - self._keep_s))
        here = sa.and_(reply.c.scope == scope, reply.c.key == key)
        row = connection.execute(sa.select(reply).where(here).with_for_update()).mappings().first()
        if row is None:
            token = uuid.uuid4().hex
            connection.execute(sa.insert(reply).values(scope=scope, key=key, digest=digest, token=token, body=None,
                                                       created_at=now_s, touched_at=now_s))
            return Reserved(scope=scope, key=key, token=token)
        if row["digest"] != digest:
            return OtherRequest()
        if row["body"] is not None:
            return Stored(row["body"])
        if row["touched_at"] > now_s - self._patience_s:
            return InFlight()
        connection.execute(sa.update(reply).where(here).values(touched_at=now_s))
        return Reserved(scope=scope, key=key, token=row["token"])


def _is(reserved: Reserved) -> sa.ColumnElement[Any]:
    return sa.and_(reply.c.scope == reserved.scope, reply.c.key == reserved.key, reply.c.token == reserved.token)
