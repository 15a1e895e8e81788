"""What rows say of the store: every key and digest that stands in them. Knows the tables, no file.

Not by lists of columns, which a new table would silently miss: whatever looks like a key, in any text or JSON of any
row, counts. A token that happens to look like one keeps a file that nobody has; that is the safe mistake.
"""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa

from workflows.durable.tables import job, metadata, node, usage
from workflows.types import TERMINAL_JOBS, JobStatus

MENTION = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{32})(?![0-9a-f])")
BILLS = frozenset({usage.name})
"""What was paid for stays in the books when its job is forgotten; it holds on to no file."""
ROWS_AT_ONCE = 1000


def mentioned(connection: sa.Connection, *, ended_before_s: float | None = None) -> frozenset[str]:
    """Keys (32 hex digits) and digests (64) in all rows; without those of jobs that ended before that unix time.

    The connection should be a snapshot: a row that moves from one table to another must not be missed in both.
    """
    found: set[str] = set()
    for table in metadata.sorted_tables:
        texts = [sa.cast(column, sa.Text) for column in table.c if isinstance(column.type, sa.String | sa.JSON)]
        if table.name in BILLS or not texts:
            continue
        wanted = sa.select(*texts)
        if ended_before_s is not None and (owner := _owner(table)) is not None:
            wanted = wanted.where(owner.not_in(sa.select(job.c.id).where(_ended(ended_before_s))))
        for row in connection.execute(wanted, execution_options={"yield_per": ROWS_AT_ONCE}):
            for text in row:
                found.update(MENTION.findall(text or ""))
    return frozenset(found)


def ended_jobs(connection: sa.Connection, before_s: float) -> tuple[str, ...]:
    """Ids of jobs that ended before that unix time, the oldest first."""
    return tuple(connection.scalars(sa.select(job.c.id).where(_ended(before_s)).order_by(job.c.finished_at)))


def open_keys(connection: sa.Connection) -> frozenset[str]:
    """Keys of nodes of jobs that are not over, as far as they are known: their checkpoints are still wanted."""
    over = [status.value for status in TERMINAL_JOBS]
    return frozenset(connection.scalars(
        sa.select(node.c.key).join(job, job.c.id == node.c.job_id).where(job.c.status.not_in(over), node.c.key != "")))


def job_count(connection: sa.Connection) -> int:
    """How many jobs there are."""
    return connection.scalar(sa.select(sa.func.count()).select_from(job)) or 0


def _owner(table: sa.Table) -> sa.ColumnElement[Any] | None:
    """The column that says with which job a row goes; None where it outlives its job."""
    if table is job:
        return job.c.id
    return next((column for column in table.c
                 if any(key.column is job.c.id and key.ondelete == "CASCADE" for key in column.foreign_keys)), None)


def _ended(before_s: float) -> sa.ColumnElement[bool]:
    over = [status.value for status in JobStatus if status.is_terminal]
    return sa.and_(job.c.status.in_(over), job.c.finished_at < before_s)
