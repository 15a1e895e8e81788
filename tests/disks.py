"""A disk that is full under a ledger's SQLite file: real SQLITE_FULL errors, without filling one."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa

from workflows.durable.ledger import Ledger

NO_LIMIT = 2**31


class Disk:
    """Under one ledger; while it `is_full` the file cannot grow by a page."""

    def __init__(self, ledger: Ledger) -> None:
        self.is_full = False
        self.refused = 0
        """Statements that failed for it."""
        engine = ledger.database._engine
        sa.event.listen(engine, "checkout", self._limit)
        sa.event.listen(engine, "handle_error", self._count)

    def _limit(self, connection: sqlite3.Connection, *_: object) -> None:
        # SQLite takes no less than what the file has.
        connection.execute(f"PRAGMA max_page_count={1 if self.is_full else NO_LIMIT}")

    def _count(self, context: sa.engine.ExceptionContext) -> None:
        self.refused += getattr(context.original_exception, "sqlite_errorname", "") == "SQLITE_FULL"
