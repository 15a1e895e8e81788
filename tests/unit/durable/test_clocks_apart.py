"""A database on a machine whose clock is an hour behind this one's: what it measures, it measures alone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.postgres import PostgresServer
from workflows.durable.database import Database
from workflows.durable.hooks import Hooks
from workflows.durable.mail import Mail
from workflows.durable.replies import Replies
from workflows.durable.tables import reply

pytestmark = pytest.mark.postgres
BEHIND_S = 3600


@pytest.fixture
def behind(shared_database: Database, postgres_server: PostgresServer) -> Iterator[Database]:
    """A real server; for this connection its clock function is one of ours."""
    with shared_database.write() as connection:
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS behind")
        connection.exec_driver_sql(
            "CREATE OR REPLACE FUNCTION behind.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
            f"$$ SELECT pg_catalog.clock_timestamp() - interval '{BEHIND_S} seconds' $$")
    name = sa.make_url(shared_database.name).database
    database = Database(f"{postgres_server.url(str(name))}&options=-csearch_path%3Dpublic,behind,pg_catalog")
    yield database
    database.close()


def test_what_is_told_now_is_due_now(behind: Database) -> None:
    hooks = Hooks(behind)
    row, _ = hooks.register("https://example.com/hook")
    sent = hooks.test(row.id)
    assert [letter.message_id for letter in Mail(behind, lease_s=60).claim()] == [sent.message_id]


def test_whether_a_request_is_still_worked_on_is_asked_by_one_clock(behind: Database) -> None:
    Replies(behind).begin("films", "behind", "d")
    with behind.read() as connection:
        touched_s = connection.scalar(sa.select(reply.c.touched_at).where(reply.c.key == "behind"))
    assert touched_s == pytest.approx(time.time() - BEHIND_S, abs=60)
