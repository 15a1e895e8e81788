"""All rows of a database as lines of JSON, and back into an empty one, SQLite or Postgres. Knows no table by name.

A table is one line `{"table": name, "columns": [...]}`, then one array per row. The tables are those of the code, so a
new one is in the next dump without a word here. Reading is one snapshot; writing is one transaction, which makes
the tables of the dump's own revision, fills them, and then migrates them like any other old database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.migrations import migrate
from workflows.durable.tables import metadata
from workflows.errors import InvalidSettings
from workflows.types import Json

ROWS_AT_ONCE = 500

Change = Callable[[Json], Json]
"""What is done to every JSON value on its way in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a dump does not say in its lines."""

    revision: str
    """Of the tables."""
    counts: Mapping[str, int]
    """Rows by table."""
    sequences: Mapping[str, int]
    """The highest number that was ever given in tables that count their rows: none is given twice, deleted or not."""


def facts_of(connection: sa.Connection) -> Facts:
    """Of the database in this snapshot."""
    counts = {table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
              for table in metadata.sorted_tables}
    return Facts(revision=migrate.revision_of(connection), counts=counts, sequences={
        table.name: _last_number(connection, table, column)
        for table in metadata.sorted_tables if (column := table.autoincrement_column) is not None})


def lines(connection: sa.Connection) -> Iterator[str]:
    """Every row in this snapshot, tables before those that refer to them."""
    for table in metadata.sorted_tables:
        yield json.dumps({"table": table.name, "columns": list(table.c.keys())})
        wanted = sa.select(table).order_by(*table.primary_key)
        for row in connection.execute(wanted, execution_options={"yield_per": ROWS_AT_ONCE}):
            yield json.dumps(list(row), ensure_ascii=False)


def is_empty(connection: sa.Connection) -> bool:
    """Whether no table has a row."""
    return not any(connection.scalar(sa.select(sa.exists().select_from(table))) for table in metadata.sorted_tables)


def load(database: Database, dumped: Iterable[str], facts: Facts, change: Change) -> None:
    """Fill an empty database: all of it, or nothing. Raises InvalidSettings when it is not empty."""
    with database.write() as connection:
        if database.is_postgres:
            connection.execute(sa.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        require_empty(database, connection)
        migrate.rebuild(connection, facts.revision)
        tables = sa.MetaData()
        tables.reflect(connection)
        for table, rows in _batches(dumped, tables):
            connection.execute(sa.insert(table), [_changed(table, row, change) for row in rows])
        for name, number in facts.sequences.items():
            _set_last_number(connection, tables.tables[name], number)
        migrate.upgrade(connection, database.name)


def require_empty(database: Database, connection: sa.Connection) -> None:
    """Raise InvalidSettings for a database that holds anything."""
    if not is_empty(connection):
        raise InvalidSettings(problem=f"database {database.name} is not empty; restore into a new one, e.g. "
                                      "--set data_dir=DIR or --set database_url=URL")


def _batches(dumped: Iterable[str], tables: sa.MetaData) -> Iterator[tuple[sa.Table, list[dict[str, Any]]]]:
    table: sa.Table | None = None
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    for line in dumped:
        value = json.loads(line)
        if isinstance(value, dict) or len(rows) == ROWS_AT_ONCE:
            if table is not None and rows:
                yield table, rows
            rows = []
        if isinstance(value, dict):
            table, columns = _prepared(tables.tables[value["table"]]), value["columns"]
        else:
            rows.append(dict(zip(columns, value, strict=True)))
    if table is not None and rows:
        yield table, rows


def _prepared(table: sa.Table) -> sa.Table:
    for column in table.c:
        if isinstance(column.type, sa.JSON):
            # As the tables of the code have it: nothing is NULL, not JSON's null.
            column.type = sa.JSON(none_as_null=True)
    return table


def _changed(table: sa.Table, row: dict[str, Any], change: Change) -> dict[str, Any]:
    return {name: change(value) if isinstance(table.c[name].type, sa.JSON) else value for name, value in row.items()}


def _last_number(connection: sa.Connection, table: sa.Table, column: sa.Column[Any]) -> int:
    highest = connection.scalar(sa.select(sa.func.max(column))) or 0
    if connection.dialect.name == "postgresql":
        sequence = connection.scalar(sa.select(sa.func.pg_get_serial_sequence(table.name, column.name)))
        last, called = connection.execute(sa.text(f"SELECT last_value, is_called FROM {sequence}")).one()
        given = last if called else 0
    elif table.dialect_options["sqlite"]["autoincrement"]:
        given = connection.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name"),
                                  {"name": table.name}) or 0
    else:
        given = 0
    return max(highest, int(given))


def _set_last_number(connection: sa.Connection, table: sa.Table, number: int) -> None:
    if number < 1:
        return
    if connection.dialect.name == "postgresql":
        (column,) = table.primary_key
        connection.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, column.name), number)))
        return
    if connection.scalar(sa.text("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_sequence'")):
        counts = "AUTOINCREMENT" in str(connection.scalar(
            sa.text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": table.name})).upper()
        if counts:
            connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
            connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"),
                               {"name": table.name, "seq": number})
