"""One database, opened, migrated and safe to share between threads. Knows SQLite and Postgres, no job and no node.

SQLite runs in WAL mode with `synchronous=FULL`: a commit is on disk when it returns, so what a submitter was told
survives a power cut. It costs one fsync per commit (about a millisecond on an SSD, beside nodes that take seconds);
NORMAL would be faster and could forget the last second of commits. Writes take the write lock when they begin
(BEGIN IMMEDIATE), so that two writers queue instead of failing half-way; reads never wait.

Postgres: every write locks its job's row first, so a job's commits are in one order, and a session that falls silent
inside a transaction is ended by the server, so that a stopped process cannot keep a row from the Director that takes
over.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from workflows.durable.migrations import migrate
from workflows.errors import InvalidSettings

BUSY_TIMEOUT_MS = 15_000
"""How long a SQLite writer waits for another; our transactions take milliseconds."""
WAL_TRIES = 50
"""Two processes that open a new file at once may both try to switch it to WAL; SQLite does not queue that switch."""
POSTGRES_SESSION = ("SET idle_in_transaction_session_timeout = '5s'", "SET lock_timeout = '30s'")
IDLE_IN_TRANSACTION = "25P03"
"""SQLSTATE of a session that the first of these ended: this process was frozen in the middle of a transaction."""
POSTGRES_NETWORK = {"connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""Seconds, and a count: a server that vanished without closing its connections is noticed within half a minute."""
POSTGRES_WRITERS = 3
"""Writers of one process; those of one job queue for its row anyway. SQLite has room for one at a time, and a second
would only sleep in the busy handler."""
DRIVER = "postgresql+psycopg"


class Database:
    """A pool of connections with the two kinds of transaction that the ledger needs."""

    def __init__(self, url: str) -> None:
        """Open the database at a SQLAlchemy URL and bring its schema up to date.

        Raises InvalidSettings when the URL cannot be used: unknown kind, missing driver, not reachable, not
        writable, or written by a newer reelray.
        """
        parsed = _parse(url)
        self.is_postgres = parsed.get_backend_name() == "postgresql"
        self.writers = POSTGRES_WRITERS if self.is_postgres else 1
        """How many writing threads are worth having."""
        self.name = parsed.render_as_string(hide_password=True)
        self._engine = _postgres(parsed) if self.is_postgres else _sqlite(parsed)
        # Two faces of one pool; the begin hook reads which.
        self._reader = self._engine.execution_options(begin="BEGIN")
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._looker = self._engine.execution_options(isolation_level="REPEATABLE READ") if self.is_postgres else (
            self._reader)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent look; never waits for a writer."""
        with self._reader.begin() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """One consistent look however many statements it takes and however long; never waits for a writer."""
        with self._looker.begin() as connection:
            if self.is_postgres:
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction: all of it is committed at the end, or nothing when the body raises."""
        with self._writer.begin() as connection:
            yield connection

    def now_s(self) -> sa.ColumnElement[float]:
        """The clock of leases and of what is due, unix seconds: the server's own, or this machine's for SQLite."""
        return _now_s(is_postgres=self.is_postgres)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def _open(self) -> None:
        try:
            with self.read() as connection:
                current = migrate.is_current(connection, self.name)
            if not current:
                with self.write() as connection:
                    migrate.upgrade(connection, self.name)
        except (DBAPIError, sqlite3.Error) as error:
            raise InvalidSettings(problem=f"database {self.name} cannot be used: {_first_line(error)}; "
                                          f"{self._advice()}") from error

    def _advice(self) -> str:
        if self.is_postgres:
            return "check that the server runs, and that host, port, user and password are right"
        return "check that the directory and the file can be written by this user"


def now_s_of(connection: sa.Connection) -> sa.ColumnElement[float]:
    """`Database.now_s` of the database that a connection goes to."""
    return _now_s(is_postgres=connection.dialect.name == "postgresql")


def _now_s(*, is_postgres: bool) -> sa.ColumnElement[float]:
    if is_postgres:
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return sa.literal(time.time(), sa.Double)


def is_down(error: BaseException) -> bool:
    """Whether the database is away, busy or full for now, as opposed to a statement that is wrong."""
    if isinstance(error, OperationalError | InterfaceError | TimeoutError | sqlite3.OperationalError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) == IDLE_IN_TRANSACTION


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The text may hold a password: it is not repeated.
        raise InvalidSettings(problem="database_url is not a SQLAlchemy URL; examples: sqlite:////var/lib/reelray/"
                                      "state.db, postgresql+psycopg://user:password@host/reelray") from None
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", DRIVER):
        backend = parsed.drivername.split("+")[0]
        nearest = parsed.set(drivername=DRIVER) if backend in ("postgresql", "postgres") else URL.create(
            "sqlite", database="/var/lib/reelray/state.db")
        raise InvalidSettings(problem=f"database_url starts with {parsed.drivername!r}; "
                                      f"nearest valid: {nearest.render_as_string(hide_password=True)}")
    return parsed


def _sqlite(url: URL) -> sa.Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise InvalidSettings(problem="database_url names no file on disk, and jobs must outlive the process; "
                                      "nearest valid: sqlite:////tmp/reelray.db")
    path = Path(url.database)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSettings(problem=f"database directory {path.parent} cannot be made: {error.strerror}; "
                                      "name one that this user can write") from error
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    # The driver's own BEGIN comes too late (at the first write); ours comes first, in `_begin_sqlite`.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    mode = ""
    for _ in range(WAL_TRIES):
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        if mode == "wal":
            return
        time.sleep(0.02)
    raise sqlite3.OperationalError(f"its journal mode stays {mode or 'locked'!r} where WAL is needed; use a local disk")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options()["begin"])


def _postgres(url: URL) -> sa.Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise InvalidSettings(problem='database_url names Postgres, whose driver is not installed; '
                                      'run: pip install "reelray[postgres]"')
    unset = {name: value for name, value in POSTGRES_NETWORK.items() if name not in url.query}
    engine = sa.create_engine(url, pool_pre_ping=True, connect_args=unset)
    sa.event.listen(engine, "connect", _prepare_postgres)
    return engine


def _prepare_postgres(connection: Any, _entry: ConnectionPoolEntry) -> None:
    with connection.cursor() as cursor:
        for statement in POSTGRES_SESSION:
            cursor.execute(statement)
    connection.commit()


def _first_line(error: Exception) -> str:
    text = str(error.orig if isinstance(error, DBAPIError) else error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
