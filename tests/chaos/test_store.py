"""A film whose state is in Postgres and whose files are in S3; the store goes away while it is made."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest

from serve_app.client import Client
from tests.chaos.crowd import SAME, body_of, film_of
from tests.chaos.invariants import Evidence, check
from tests.chaos.monkey import resumed_at
from tests.chaos.served import Component, Served, until
from tests.postgres import PostgresServer
from tests.s3 import S3Server
from workflows.checkpoints import DIRECTORY, SUFFIX
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.store import Store
from workflows.types import JobStatus, NodeKind, NodeStatus

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.cluster, pytest.mark.postgres]

SETTINGS = (*SAME, "models.checkpoints.share=1", "models.checkpoints.interval_s=0", "engine.attempts=1")
"""A store that is away may use up no try: there is only one."""
STEPS = 150
LIMIT_S = 180.0
AWAY_S = 15.0
"""Longer than what is left of a clip."""


@pytest.fixture
def ledger(postgres_server: PostgresServer) -> Iterator[Ledger]:
    with closing(Ledger(postgres_server.create())) as ledger:
        yield ledger


def test_what_is_made_waits_for_the_store_and_a_killed_replicas_clip_goes_on_from_it(
        s3_server: S3Server, s3_url: str, ledger: Ledger, tmp_path: Path) -> None:
    store = Store(s3_url, cache_dir=tmp_path / "cache")
    told = film_of(4, 1)
    told["defaults"]["steps"] = STEPS
    with Served(tmp_path / "server", [*SETTINGS, f"database_url={ledger.database.name}",
                                      f"store_url={s3_url}"]) as served, closing(Client(served.url)) as client:
        job_id = str(client.submit(body_of(told))["id"])
        # 1. the store is away while a clip is made, and when it is to be put away
        until(lambda: checkpoints_on(s3_url), LIMIT_S, "a checkpoint in S3")
        s3_server.go_away()
        time.sleep(AWAY_S)
        s3_server.come_back()
        until(lambda: any(node.kind is NodeKind.CLIP and node.status is NodeStatus.SUCCEEDED
                          for node in ledger.nodes(job_id)), LIMIT_S, "a clip")
        # 2. a replica dies in the middle of another clip, whose checkpoint is in S3
        until(lambda: checkpoints_on(s3_url), LIMIT_S, "a checkpoint of another one")
        for victim in served.processes(Component.MODEL):
            victim.kill()
        until(lambda: ledger.job(job_id).status.is_terminal, LIMIT_S, "the film")
    nodes, events = ledger.nodes(job_id), ledger.events(job_id, limit=MAX_LIMIT)
    assert ledger.job(job_id).status is JobStatus.SUCCEEDED, [node.error for node in nodes if node.error]
    assert [node.id for node in nodes if node.failures] == []
    assert any(node.crashes and resumed_at(store, node.key) > 0 for node in nodes), "a clip goes on from its checkpoint"
    evidence = Evidence(job=ledger.job(job_id), nodes=nodes, events=events, steps=(), repeat_limit=STEPS, calm={})
    assert list(check(evidence, store)) == []
    assert not checkpoints_on(s3_url), "checkpoints go with the commit"


def checkpoints_on(url: str) -> list[str]:
    """Those in the store at this URL."""
    files, root = fsspec.url_to_fs(url)
    files.invalidate_cache()
    return list(files.glob(f"{root}/{DIRECTORY}/*/*{SUFFIX}"))
