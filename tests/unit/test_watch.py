"""Whoever watches a job sees every step from the moment of entering, and no board can keep a film from being made."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.progress import Poll, ProgressBoard
from serve_app import watch
from serve_app.watch import Watcher
from tests.studio import film
from workflows.durable.ledger import Ledger
from workflows.types import Phase, ProgressRecord


def step(n: int) -> ProgressRecord:
    return ProgressRecord(job_id="film", node_id="s1.clip", shot_id="s1", attempt=1, n=n, phase=Phase.DIFFUSION, step=n,
                          total_steps=50, timestep=0.0, fraction=n / 50, at_s=0.0)


class DirectObserver:
    """Polls a board in this process; fails as often as told first."""

    def __init__(self, board: ProgressBoard, failures: int = 0) -> None:
        self.board = board
        self.failures = failures

    async def poll(self, job_id: str, epoch: str, after: int) -> Poll:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the actor is gone")
        return await self.board.poll(job_id, epoch, after, timeout_s=1.0)


class MuteObserver:
    """A board that never answers."""

    async def poll(self, job_id: str, epoch: str, after: int) -> Poll:
        await asyncio.Event().wait()
        raise AssertionError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'state.db'}")


@pytest.mark.parametrize("failures", [0, 1])
async def test_every_step_after_entering_is_handed_over_once_and_in_order(
        ledger: Ledger, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RETRY_S", 0.01)
    board = ProgressBoard(ring=100)
    seen: list[int] = []
    done = asyncio.Event()

    def take(record: ProgressRecord) -> None:
        seen.append(record.n)
        if record.n == 50:
            done.set()

    async with Watcher(ledger, "film", DirectObserver(board, failures), on_record=take):
        for first in range(1, 51, 5):  # in batches, faster than anybody could draw them
            await board.report([step(n) for n in range(first, first + 5)])
        await asyncio.wait_for(done.wait(), 5)
    assert seen == [*range(1, 51)]


async def test_a_board_that_does_not_answer_keeps_nobody_out(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_ANSWER_S", 0.05)
    ledger.submit(film(shots=1))
    async with asyncio.timeout(5), Watcher(ledger, "film", MuteObserver()) as watcher:
        async for view in watcher.views():
            assert view.id == "film"
            break
