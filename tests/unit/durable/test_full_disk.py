"""A full disk under the database is an outage: jobs in hand wait for room, and nothing is lost or made twice."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from tests.disks import Disk
from tests.fakes import FakeStore, ScriptedStep
from tests.studio import Studio, film
from workflows.durable.database import is_down
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType
from workflows.types import JobStatus, NodeCall, NodeResult, NodeStatus

LONG = "x" * 20_000
"""More than what is left of a page."""


@pytest.fixture
def studio(tmp_path: Path, migrated_file: Path) -> Iterator[Studio]:
    shutil.copy(migrated_file, tmp_path / "state.db")
    ledger, store = Ledger(f"sqlite:///{tmp_path / 'state.db'}"), FakeStore(tmp_path)
    yield Studio(ledger=ledger, store=store, step=ScriptedStep(store))
    ledger.close()


async def test_jobs_in_hand_wait_for_room_and_every_node_runs_once(studio: Studio) -> None:
    disk, started, go_on = Disk(studio.ledger), asyncio.Event(), asyncio.Event()

    async def slow(call: NodeCall) -> NodeResult:
        started.set()
        await go_on.wait()
        return replace(studio.step.result(call), warnings=(LONG,))

    studio.step.script["s1.keyframe"] = [slow]
    studio.ledger.submit(film())
    async with studio.running():
        await started.wait()
        await studio.until(lambda: studio.node("s3.clip").status, lambda status: status.is_terminal)
        disk.is_full = True
        go_on.set()
        await studio.until(lambda: disk.refused, lambda refused: refused >= 3)
        with pytest.raises(OperationalError, match="database or disk is full") as refused:
            studio.ledger.submit(replace(film("other"), document={"title": LONG}))
        assert is_down(refused.value)
        assert studio.ledger.job("film").status is JobStatus.RUNNING
        assert studio.node("s1.keyframe").status is NodeStatus.RUNNING
        disk.is_full = False
        assert (await studio.finish()).status is JobStatus.SUCCEEDED
    assert sorted(studio.step.started()) == sorted(studio.statuses())
    assert len(studio.events(EventType.NODE_SUCCEEDED)) == 7
    assert LONG in studio.ledger.job("film").warnings[0]
    assert [job.id for job in studio.ledger.jobs().jobs] == ["film"], "nothing is left of the refused one"
