"""Appends to a job's history: one row per thing that happened, with a line for people. Knows the event table only;
what webhooks must hear of it, `outbox` writes in the same transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from workflows.durable import outbox
from workflows.durable.rows import EventType, Level
from workflows.durable.tables import event
from workflows.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One event, before it has a number."""

    type: EventType
    line: str = ""
    node_id: str = ""
    level: Level = Level.INFO
    data: Mapping[str, Json] = field(default_factory=dict)


def log_notes(text: str, *, level: Level, node_id: str = "") -> list[Note]:
    """Free text for the job's log, one note per line of it."""
    return [Note(type=EventType.LOG, line=line, level=level, node_id=node_id) for line in text.splitlines() if line]


_INSERT = sa.insert(event)


def append(connection: sa.Connection, job_id: str, notes: Iterable[Note]) -> None:
    """Write the notes in the caller's transaction.

    The caller holds the job's row lock (or SQLite's write lock): numbers then grow in the order of the commits,
    and a reader that asks for what came after the last number it saw misses nothing.
    """
    at, notes = time.time(), list(notes)
    rows = [{"job_id": job_id, "at": at, "type": note.type.value, "node_id": note.node_id, "level": note.level.value,
             "line": _storable(note.line), "data": dict(note.data)} for note in notes]
    if rows:
        connection.execute(_INSERT, rows)
        outbox.post(connection, job_id, [(note.type, note.node_id) for note in notes])


def _storable(text: str) -> str:
    """The text without what a database refuses, NUL and halves of surrogate pairs: a message may hold anything."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
