"""Brings a database to the newest revision, once, whoever opens it first. Knows alembic and one connection."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from workflows.durable.tables import metadata
from workflows.errors import InvalidSettings

SERIAL = 7_733_801
"""Postgres advisory lock under which one process migrates; any number that no other program uses."""
VERSION_TABLE = "reelray_version"

# alembic keeps its running migration in a module global.
_one_at_a_time = threading.Lock()


def is_current(connection: sa.Connection, name: str) -> bool:
    """Whether the schema is this code's own.

    Raises InvalidSettings when a newer reelray wrote it; `name` is how the message calls the database.
    """
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = set(context.get_current_heads())
    newest, known = _revisions()
    if found - known:
        raise InvalidSettings(
            problem=f"database {name} is at revision {', '.join(sorted(found - known))}, newer than this reelray "
                    f"(revision {newest}); upgrade reelray, or use another database")
    return found == {newest}


def revision_of(connection: sa.Connection) -> str:
    """The revision of a database, empty for one without tables."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return ", ".join(sorted(context.get_current_heads()))


def is_known(revision: str) -> bool:
    """Whether this code can bring a database of that revision up to date."""
    return revision in _revisions()[1]


def rebuild(connection: sa.Connection, revision: str) -> None:
    """Make the tables of an earlier revision in place of those there, which must hold nothing."""
    with _one_at_a_time:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SERIAL)))
        metadata.drop_all(connection)
        connection.execute(sa.text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def upgrade(connection: sa.Connection, name: str) -> None:
    """Apply what is missing, inside the caller's write transaction: all of it, or nothing."""
    with _one_at_a_time:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SERIAL)))
        # Somebody else may have been first; only under the lock is the answer final.
        if is_current(connection, name):
            return
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    # `%` would be read as the start of an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The newest revision, and all of them."""
    scripts = ScriptDirectory.from_config(_config())
    newest = scripts.get_current_head()
    assert newest is not None, "migrations/versions is empty"
    return newest, frozenset(revision.revision for revision in scripts.walk_revisions())
