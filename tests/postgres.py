"""A private Postgres server for the tests, and `database_url`: each test once on SQLite and once on Postgres."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.tables import api_key, batch, hook, job, reply, usage

USER = "postgres"
_numbers = itertools.count(1)


def find_binaries() -> Path | None:
    """The directory of the newest server's programs, or None."""
    on_path = shutil.which("initdb")
    found = [Path(on_path)] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class PostgresServer:
    """A server in a directory of its own, reached over a Unix socket there; nothing else on the machine sees it."""

    def __init__(self, binaries: Path, *, fsync: bool = False) -> None:
        """Make and start it. `fsync` off is faster and safe as long as the machine itself stays up."""
        self._binaries = binaries
        self._fsync = "on" if fsync else "off"
        # Not under pytest's directory: only its owner may enter that, and the server refuses to run as root.
        self._root = Path(tempfile.mkdtemp(prefix="reelray-pg-", dir="/tmp"))
        if os.geteuid() == 0:
            shutil.chown(self._root, USER, USER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", f"{self._root}/data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = (f"-c listen_addresses='' -k {self._root} -p {self.port} -c fsync={self._fsync} "
                   "-c max_connections=60 -c shared_buffers=16MB")
        self._run("pg_ctl", "-D", f"{self._root}/data", "-l", f"{self._root}/log", "-o", options, "-w", "start")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._run("pg_ctl", "-D", f"{self._root}/data", "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        """End it and delete its files."""
        self.kill()
        shutil.rmtree(self._root, ignore_errors=True)

    def url(self, name: str) -> str:
        """The SQLAlchemy URL of one database."""
        return f"postgresql+psycopg://{USER}@/{name}?host={self._root}&port={self.port}"

    def create(self) -> str:
        """A new, empty database; its URL."""
        name = f"reelray_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str) -> None:
        """Run one statement as the administrator."""
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def _run(self, program: str, *arguments: str) -> None:
        as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        # Not captured through pipes: the server would inherit them and keep them open.
        with (self._root / "commands").open("a") as out:
            subprocess.run([*as_user, str(self._binaries / program), *arguments], check=True, stdout=out, stderr=out,
                           stdin=subprocess.DEVNULL, cwd=self._root)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole run; skips where no server is installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server programs (initdb) on PATH or in /usr/lib/postgresql")
    server = PostgresServer(binaries)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def shared_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database that tests use one after the other; emptying it is quicker than making another."""
    database = Database(postgres_server.create())
    yield database
    database.close()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "state.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database that no other test uses meanwhile."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "state.db")
        return f"sqlite:///{tmp_path / 'state.db'}"
    database: Database = request.getfixturevalue("shared_database")
    with database.write() as connection:
        for table in (job, batch, reply, hook, api_key, usage):
            connection.execute(sa.delete(table))
    return str(request.getfixturevalue("postgres_server").url(sa.make_url(database.name).database))
