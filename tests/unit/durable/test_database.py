"""Opening a database: schema, migrations, refusals, transactions."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tests.postgres import PostgresServer
from tests.studio import film
from workflows.durable.database import Database
from workflows.durable.ledger import Ledger
from workflows.durable.migrations.migrate import VERSION_TABLE
from workflows.durable.tables import job, metadata
from workflows.errors import InvalidSettings

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([Database.__module__])


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'state.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create()


class TestMigrations:
    def test_the_revisions_lead_to_exactly_the_tables_of_the_code(self, empty_url: str) -> None:
        database = Database(empty_url)
        with database.read() as connection:
            context = MigrationContext.configure(connection, opts={
                "version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True})
            assert compare_metadata(context, metadata) == []
        database.close()

    def test_four_processes_may_open_a_new_database_at_once(self, empty_url: str) -> None:
        openers = [FORKS.Process(target=Database, args=(empty_url,)) for _ in range(4)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join()
        assert [opener.exitcode for opener in openers] == [0] * 4

    def test_eight_threads_may_open_a_new_database_at_once(self, empty_url: str) -> None:
        errors: list[Exception] = []

        def open_it() -> None:
            try:
                Database(empty_url).close()
            except Exception as error:  # noqa: BLE001 - shown by the assertion
                errors.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []

    def test_a_database_of_a_newer_release_is_refused(self, empty_url: str) -> None:
        database = Database(empty_url)
        with database.write() as connection:
            connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        database.close()
        with pytest.raises(InvalidSettings, match=r"at revision 9999, newer than this reelray .*upgrade reelray"):
            Database(empty_url)

    def test_a_database_of_the_first_release_is_brought_up_to_date_with_its_jobs(self, empty_url: str) -> None:
        first = Ledger(empty_url)
        first.submit(film())
        with first.database.write() as connection:
            connection.execute(sa.text("DROP INDEX node_by_end"))
            connection.execute(sa.text("DROP INDEX job_by_key"))
            connection.execute(sa.text("DROP INDEX job_by_batch"))
            for column in ("key_id", "concurrency", "attempt_timeout_s", "batch_id"):
                connection.execute(sa.text(f"ALTER TABLE job DROP COLUMN {column}"))
            for table in ("batch_file", "batch", "take", "reply", "api_key", "usage", "delivery_try", "delivery",
                          "hook"):
                connection.execute(sa.text(f"DROP TABLE {table}"))
            connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '0001'"))
        first.close()
        second = Ledger(empty_url)
        with second.database.read() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            assert compare_metadata(context, metadata) == []
        assert len(second.nodes("film")) == 7
        second.close()

    def test_opening_again_keeps_what_is_there(self, empty_url: str) -> None:
        first = Ledger(empty_url)
        first.submit(film())
        first.close()
        second = Ledger(empty_url)
        assert len(second.nodes("film")) == 7
        second.close()


class TestRefusals:
    @pytest.mark.parametrize(("url", "said"), [
        ("nonsense", "not a SQLAlchemy URL"),
        ("sqlite://", "no file on disk"),
        ("sqlite:///:memory:", "no file on disk"),
        ("mysql://me:hunter2@host/db", "starts with 'mysql'; nearest valid: sqlite:///"),
        ("postgres://me:hunter2@host/db", r"nearest valid: postgresql\+psycopg://me:\*\*\*@host/db"),
        ("postgresql://me:hunter2@host/db", r"nearest valid: postgresql\+psycopg://me:\*\*\*@host/db"),
        ("postgresql+psycopg://me:hunter2@127.0.0.1:1/db", "cannot be used: .*check that the server runs"),
    ], ids=["text", "no-file", "memory", "mysql", "heroku", "no-driver-named", "unreachable"])
    def test_a_url_that_cannot_be_used_names_the_nearest_and_no_password(self, url: str, said: str) -> None:
        with pytest.raises(InvalidSettings, match=said) as refused:
            Database(url)
        assert "hunter2" not in str(refused.value)

    def test_a_missing_driver_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)  # type: ignore[arg-type]
        with pytest.raises(InvalidSettings, match=r'pip install "reelray\[postgres\]"'):
            Database("postgresql+psycopg://me@host/db")

    def test_a_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InvalidSettings, match=f"{tmp_path / 'file'} cannot be made"):
            Database(f"sqlite:///{tmp_path / 'file' / 'state.db'}")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights")
    def test_a_directory_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        """In a process of another user: root may write everywhere. The first file loads what that user may not."""
        program = ("import os, sys; from workflows.durable.database import Database\n"
                   "Database(f'sqlite:///{sys.argv[1]}/state.db').close(); os.setuid(65534)\n"
                   "Database('sqlite:////reelray-state.db')")
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True,
                              check=False)
        assert "InvalidSettings: database sqlite:////reelray-state.db cannot be used: unable to open database file; " \
               "check that the directory" in done.stderr


class TestTransactions:
    def test_a_write_that_raises_leaves_nothing(self, database_url: str) -> None:
        ledger = Ledger(database_url)
        ledger.submit(film())
        with contextlib.suppress(RuntimeError), ledger.database.write() as connection:
            connection.execute(sa.delete(job))
            raise RuntimeError
        assert ledger.job("film").id == "film"
        ledger.close()

    def test_a_read_does_not_wait_for_a_writer(self, database_url: str) -> None:
        ledger = Ledger(database_url)
        ledger.submit(film())
        with ledger.database.write() as connection:
            connection.execute(sa.update(job).values(title="unseen"))
            assert ledger.job("film").title == ""
        assert ledger.job("film").title == "unseen"
        ledger.close()

    def test_a_commit_is_on_disk_when_it_returns(self, tmp_path: Path) -> None:
        """SQLite: WAL with synchronous=FULL (2), and foreign keys held."""
        database = Database(f"sqlite:///{tmp_path / 'state.db'}")
        with database.read() as connection:
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                     for name in ("journal_mode", "synchronous", "foreign_keys")]
        assert found == ["wal", 2, 1]
        database.close()
