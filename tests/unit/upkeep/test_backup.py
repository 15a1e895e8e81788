"""A backup and its restore: all rows, all files, elsewhere; refused where something is wrong; no shot again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.postgres import PostgresServer
from tests.studio import Studio, film
from tests.upkeep import StoringStep, stored
from workflows.durable.dump import lines
from workflows.durable.keys import Keys, Role
from workflows.durable.ledger import Ledger
from workflows.durable.migrations.migrate import rebuild, revision_of
from workflows.durable.rows import NewJob
from workflows.durable.tables import metadata
from workflows.errors import ArtifactCorrupt, InvalidSettings
from workflows.store import Store
from workflows.types import JobStatus, NodeCall, NodeKind, NodeResult, NodeSpec
from workflows.upkeep.backup import BackedUp, back_up
from workflows.upkeep.files import StoreFiles
from workflows.upkeep.restore import restore
from workflows.upkeep.shelf import read_lines, write_lines, write_manifest

KEY = "3f" + "0" * 30


MOVES = ["sqlite to sqlite", *(pytest.param(move, marks=[pytest.mark.postgres, pytest.mark.slow])
                               for move in ("sqlite to postgres", "postgres to sqlite"))]


def opened(kind: str, path: Path, request: pytest.FixtureRequest) -> Ledger:
    """An empty database of that kind."""
    if kind == "sqlite":
        path.write_bytes(request.getfixturevalue("migrated_file").read_bytes())
        return Ledger(f"sqlite:///{path}")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return Ledger(server.create())


@pytest.fixture(params=MOVES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Ledger, Ledger]]:
    """A database to be backed up and an empty one elsewhere."""
    old, _, new = request.param.split()
    with (closing(opened(old, tmp_path / "state.db", request)) as ledger,
          closing(opened(new, tmp_path / "target.db", request)) as target):
        yield ledger, target


@pytest.fixture
def local(tmp_path: Path, migrated_file: Path) -> Iterator[Ledger]:
    (tmp_path / "state.db").write_bytes(migrated_file.read_bytes())
    with closing(Ledger(f"sqlite:///{tmp_path / 'state.db'}")) as ledger:
        yield ledger


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make(ledger: Ledger, store: Store, to: Path) -> BackedUp:
    return back_up(ledger, StoreFiles(store.url), to, version="1.2.3")


def rows_of(ledger: Ledger) -> list[str]:
    with ledger.database.snapshot() as connection:
        return list(lines(connection))


def with_all_sorts(ledger: Ledger, store: Store, scratch: Path) -> None:
    """Rows in most tables, with every type of column."""
    artifact = stored(store, KEY, scratch)
    ledger.submit(NewJob(id="film", title="Ein Film über Öl\nund \"Zeit\"", key_id="me",
                         document={"prompt": "第一幕", "n": 0.1, "none": None, "list": [1, True]},
                         webhook_url="https://example.org/hook", nodes=(
                             NodeSpec(id="s1.clip", kind=NodeKind.CLIP, payload={"image": artifact.to_json()}),)))
    Keys(ledger.database).create("me", Role.USER, gpu_budget_s=float("inf"))
    for number in range(3):
        ledger.log("film", f"line {number}")
    ledger.submit(film("short-lived"))
    ledger.cancel("short-lived")
    ledger.delete("short-lived")


async def test_a_job_that_was_half_done_is_finished_elsewhere_and_no_finished_shot_is_rendered_twice(
    pair: tuple[Ledger, Ledger], store: Store, tmp_path: Path,
) -> None:
    ledger, target = pair
    step, scratch = StoringStep(store, tmp_path), tmp_path
    studio = Studio(ledger=ledger, store=store, step=step)  # type: ignore[arg-type] - a store for a fake one
    reached, backed_up = asyncio.Event(), asyncio.Event()

    async def wait(call: NodeCall) -> NodeResult:
        reached.set()
        await backed_up.wait()
        return step.result(call)

    ledger.submit(film("film", shots=4))
    step.script = {"s3.clip": [wait], "s4.keyframe": [wait]}
    async with studio.running():
        await reached.wait()
        await studio.until(lambda: sum(one.is_terminal for one in studio.statuses().values()), lambda done: done >= 5)
        await asyncio.to_thread(make, ledger, store, tmp_path / "backup")
        backed_up.set()
        await studio.finish()
    elsewhere = Store(str(tmp_path / "elsewhere"))
    restore(tmp_path / "backup", target, StoreFiles(elsewhere.url))
    done = {node.id: node for node in target.nodes("film") if node.status.is_terminal}
    assert {"s1.keyframe", "s1.clip", "s2.clip", "s3.keyframe"} <= set(done) < set(studio.statuses())
    assert all(elsewhere.find(node.key) == node.artifact for node in done.values())
    there = StoringStep(elsewhere, scratch)
    new = Studio(ledger=target, store=elsewhere, step=there)  # type: ignore[arg-type]
    # The lease of the Director that was alive then runs out first.
    assert (await new.render()).status is JobStatus.SUCCEEDED
    assert not set(there.started()) & set(done)
    assert {"s3.clip", "s4.keyframe", "compose"} <= set(there.started())


def test_every_row_comes_back_as_it_was_and_numbers_are_never_given_twice(
    pair: tuple[Ledger, Ledger], store: Store, tmp_path: Path,
) -> None:
    ledger, target = pair
    with_all_sorts(ledger, store, tmp_path)
    manifest = make(ledger, store, tmp_path / "backup").manifest
    restore(tmp_path / "backup", target, StoreFiles(store.url))
    assert rows_of(target) == rows_of(ledger)
    assert manifest.rows["hook"] == 1
    last = ledger.events("film")[-1].seq
    target.log("film", "after the restore")
    # The events of the deleted job had numbers too.
    assert target.events("film")[-1].seq > manifest.sequences["event"] > last


def tables_of(revision: str, scratch: Path) -> dict[str, set[str]]:
    """Columns by table, as that revision had them."""
    engine = sa.create_engine(f"sqlite:///{scratch / revision}.db", poolclass=sa.NullPool)
    tables = sa.MetaData()
    with engine.begin() as connection:
        rebuild(connection, revision)
        tables.reflect(connection)
    return {table.name: set(table.c.keys()) for table in tables.sorted_tables}


def test_a_backup_of_an_earlier_release_is_restored_and_migrated(
    pair: tuple[Ledger, Ledger], store: Store, tmp_path: Path,
) -> None:
    """As revision 0003 had made it: without the tables and columns that came later."""
    tables = tables_of("0003", tmp_path)
    local, target = pair
    local.submit(film())
    manifest = make(local, store, tmp_path / "backup").manifest
    kept: list[str] = []
    places: list[int] = []
    for line in read_lines(tmp_path / "backup" / manifest.state):
        value = json.loads(line)
        if isinstance(value, dict):
            is_old = value["table"] in tables
            places = [at for at, name in enumerate(value["columns"]) if name in tables.get(value["table"], ())]
            value["columns"] = [value["columns"][at] for at in places]
        else:
            value = [value[at] for at in places]
        kept += [json.dumps(value)] if is_old else []
    sha256 = write_lines(tmp_path / "backup" / manifest.state, kept)
    write_manifest(tmp_path / "backup", replace(manifest, revision="0003", state_sha256=sha256, sequences={"event": 1}))
    restore(tmp_path / "backup", target, StoreFiles(store.url))
    assert rows_of(target) == rows_of(local)
    with target.database.read() as connection:
        assert revision_of(connection) == manifest.revision


def test_addresses_in_rows_become_those_of_the_new_store(
        local: Ledger, store: Store, tmp_path: Path, s3_url: str) -> None:
    with_all_sorts(local, store, tmp_path)
    make(local, store, tmp_path / "backup")
    elsewhere = Store(s3_url, cache_dir=tmp_path / "cache")
    with closing(Ledger(f"sqlite:///{tmp_path / 'target.db'}")) as target:
        assert restore(tmp_path / "backup", target, StoreFiles(elsewhere.url)).written == 2
        (clip,) = target.nodes("film")
        found = elsewhere.find(KEY)
        assert found is not None
        assert clip.payload["image"] == found.to_json()
        assert elsewhere.fetch(found).read_text() == f"bytes of {KEY}"


def test_the_next_backup_copies_only_what_is_new_and_forgets_what_no_row_needs(
    local: Ledger, store: Store, tmp_path: Path,
) -> None:
    local.submit(film())
    for key in (KEY, "3f" + "1" * 30, "3f" + "2" * 30):
        stored(store, key, tmp_path)
    local.log("film", f"{KEY} is there")
    assert make(local, store, tmp_path / "backup").copied == 2
    local.log("film", f"{'3f' + '1' * 30} too")
    again = make(local, store, tmp_path / "backup")
    assert (again.copied, again.manifest.object_count) == (2, 4)
    names = {path.name.partition("-")[0] for path in (tmp_path / "backup").iterdir()}
    assert names == {"backup.json", "state", "objects", "store"}
    assert len(list((tmp_path / "backup").glob("state-*"))) == 1


def test_results_that_are_missing_or_damaged_are_named_and_not_copied(
    local: Ledger, store: Store, tmp_path: Path,
) -> None:
    local.submit(film())
    artifact, other = stored(store, KEY, tmp_path), stored(store, "3f" + "1" * 30, tmp_path)
    with local.database.write() as connection:
        for node_id, made in (("s1.clip", artifact), ("s2.clip", other)):
            connection.execute(sa.update(metadata.tables["node"]).where(metadata.tables["node"].c.id == node_id)
                               .values(artifact=made.to_json()))
    Path(artifact.uri).write_bytes(b"x" * artifact.size_bytes)
    made = make(local, store, tmp_path / "backup").manifest
    assert made.missing == [KEY]
    assert made.object_count == 2


def test_what_is_not_empty_not_whole_or_newer_is_refused_and_nothing_is_written(
    local: Ledger, store: Store, tmp_path: Path,
) -> None:
    with_all_sorts(local, store, tmp_path)
    backup = tmp_path / "backup"
    make(local, store, backup)
    with pytest.raises(InvalidSettings, match="is not empty; restore into a new one"):
        restore(backup, local, StoreFiles(str(tmp_path / "new")))
    with closing(Ledger(f"sqlite:///{tmp_path / 'target.db'}")) as target:
        used = Store(str(tmp_path / "used"))
        stored(used, "3f" + "9" * 30, tmp_path)
        with pytest.raises(InvalidSettings, match="the store holds 2 files that are not in the backup"):
            restore(backup, target, StoreFiles(used.url))
        said = json.loads((backup / "backup.json").read_text())
        (backup / "backup.json").write_text(json.dumps({**said, "revision": "9999"}))
        with pytest.raises(InvalidSettings, match=r"made by reelray 1\.2\.3 at revision 9999, newer than this one"):
            restore(backup, target, StoreFiles(str(tmp_path / "new")))
        (backup / "backup.json").write_text(json.dumps({**said, "state_sha256": "0" * 64}))
        with pytest.raises(InvalidSettings, match="is missing or damaged: its SHA-256"):
            restore(backup, target, StoreFiles(str(tmp_path / "new")))
        (backup / "backup.json").write_text(json.dumps(said))
        victim = next((backup / "store").rglob("*.mp4"))
        whole = victim.read_bytes()
        victim.write_bytes(b"x" * victim.stat().st_size)
        with pytest.raises(ArtifactCorrupt):
            restore(backup, target, StoreFiles(str(tmp_path / "new")))
        assert rows_of(target) == [line for line in rows_of(local) if line.startswith("{")]
        # One that stopped half-way is run again, to the same places.
        victim.write_bytes(whole)
        restore(backup, target, StoreFiles(str(tmp_path / "new")))
        assert len(rows_of(target)) == len(rows_of(local))
    with closing(Ledger(f"sqlite:///{tmp_path / 'nothing.db'}")) as target, pytest.raises(
            InvalidSettings, match="is no whole backup"):
        restore(tmp_path, target, StoreFiles(store.url))
