"""An upgrade while a job is open: a database of an earlier release is migrated and its job finished by this code.

The rows are those that the release wrote, as SQL, not through this code's tables: they must not follow it.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.fakes import FakeStore, ScriptedStep
from tests.postgres import PostgresServer
from tests.studio import Studio
from workflows.durable.ledger import Ledger
from workflows.durable.migrations.migrate import rebuild, revision_of
from workflows.durable.rows import EventType
from workflows.types import JobStatus, NodeStatus

DONE = {"s1.keyframe": "6b8e0c6a27ab499dc258c7a1fecd154f",
        "s1.clip": "b916f42321bd4c80c3dc3e9d861ad3f4",
        "s2.keyframe": "9f70bbf419306cc7dcf4fde5e9bdb7d0"}
"""With the keys that their results had: what is found again in the store must be found by the same ones."""
CLIP_OF_S2, FILM = "d950ec6aab068c8141f3a5bc4afb60df", "50e98a5c2283158437ede6d8174cdae2"
JOB = """
INSERT INTO job (id, kind, title, status, priority, weight, document, document_digest, cancel_requested, owner,
                 lease_until, created_at, started_at, warnings)
VALUES ('film', 'film', 'An old film', 'running', 'interactive', 1.0, '{"title": "film"}', :digest, false, 'a-director',
        1763800030.0, 1763800000.0, 1763800001.0, '[]')
"""
NODE = """
INSERT INTO node (job_id, id, ord, parent_id, kind, shot_id, deps, payload, lane, cost, accepts_missing, status,
                  attempt, failures, crashes, interruptions, generation, key, artifact, cached, seconds, started_at,
                  finished_at)
VALUES ('film', :id, :ord, '', :kind, :shot_id, :deps, :payload, 'cpu', 1.0, :holes, :status, :attempt, 0, 0, 0, 0,
        :key, :artifact, false, '{"diffusion": 12.5}', :started_at, :finished_at)
"""
EVENT = """
INSERT INTO event (job_id, at, type, node_id, level, line, data)
VALUES ('film', 1763800000.0, 'job.queued', '', 'info', 'job: queued, 5 nodes', '{"nodes": 5}')
"""
PLAN = (("s1.keyframe", "keyframe", "s1", "[]"), ("s1.clip", "clip", "s1", '["s1.keyframe"]'),
        ("s2.keyframe", "keyframe", "s2", "[]"), ("s2.clip", "clip", "s2", '["s2.keyframe"]'),
        ("compose", "compose", "", '["s1.clip", "s2.clip"]'))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create()


def write_old_job(url: str, revision: str) -> None:
    """A job of which three nodes are done and one was running when its Director was stopped."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        rebuild(connection, revision)
        connection.execute(sa.text(JOB), {"digest": "d" * 64})
        for ord, (node_id, kind, shot_id, deps) in enumerate(PLAN):
            key = DONE.get(node_id, "")
            running = node_id == "s2.clip"
            connection.execute(sa.text(NODE), {
                "id": node_id, "ord": ord, "kind": kind, "shot_id": shot_id, "deps": deps, "holes": kind == "compose",
                "payload": f'{{"prompt": "{shot_id}"}}' if shot_id else "{}",
                "status": "succeeded" if key else "running" if running else "pending",
                "attempt": 0 if kind == "compose" else 1, "key": CLIP_OF_S2 if running else key,
                "started_at": None if kind == "compose" else 1763800002.0, "finished_at": 1763800020.0 if key else None,
                "artifact": f'{{"key": "{key}", "uri": "memory://{key}", "sha256": "{"5" * 64}", "size_bytes": 6, '
                            '"media_type": "video/mp4"}' if key else None})
        connection.execute(sa.text(EVENT))


@pytest.mark.parametrize("revision", ["0003", pytest.param("0001", marks=pytest.mark.slow)])
async def test_a_job_that_was_open_at_an_earlier_release_is_finished_and_nothing_that_was_done_runs_again(
    revision: str, empty_url: str, tmp_path: Path,
) -> None:
    write_old_job(empty_url, revision)
    store = FakeStore(tmp_path)
    for key in DONE.values():
        store.keep(key)
    # As `reelray serve` and every command do first: opening the database migrates it.
    with closing(Ledger(empty_url)) as ledger:
        with ledger.database.read() as connection:
            assert revision_of(connection) > revision
        studio = Studio(ledger=ledger, store=store, step=ScriptedStep(store))
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert studio.step.started() == ["s2.clip", "compose"]
        nodes = {node.id: node for node in ledger.nodes("film")}
        assert {node.status for node in nodes.values()} == {NodeStatus.SUCCEEDED}
        assert {name: nodes[name].key for name in DONE} == DONE
        assert (nodes["s2.clip"].key, nodes["compose"].key) == (CLIP_OF_S2, FILM)
        assert (nodes["s2.clip"].attempt, nodes["s2.clip"].interruptions) == (2, 1)
        assert nodes["s1.clip"].finished_at_s == 1763800020.0
        assert ledger.events("film")[0].type is EventType.JOB_QUEUED
        # What came with later revisions works on rows that had none of it.
        assert ledger.rerun("film", ["s1"], force=True) == ("s1.keyframe", "s1.clip", "compose")
        assert (await studio.render()).status is JobStatus.SUCCEEDED
