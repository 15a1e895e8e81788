"""Step progress: the arithmetic of shares, the board, and the reporter that feeds it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from actors.progress import Poll, ProgressBoard, Receipt
from actors.reporter import Reporter
from workflows.progress import NodeShare, clip_fraction, job_fraction
from workflows.types import NodeStatus, Phase, ProgressRecord


def record(n: int, *, job: str = "job", node: str = "s1.clip", attempt: int = 1, total: int = 10,
           phase: Phase = Phase.DIFFUSION) -> ProgressRecord:
    return ProgressRecord(job_id=job, node_id=node, shot_id="s1", attempt=attempt, n=n, phase=phase, step=n,
                          total_steps=total, timestep=1000.0 - n, fraction=n / total, at_s=0.0)


def steps(poll: Poll) -> list[int]:
    return [event.record.step for event in poll.events]


# -- shares ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "step", "saved", "share"), [
    (Phase.INITIALISE, 0, 0.0, 0.0), (Phase.DIFFUSION, 0, 0.0, 0.02), (Phase.DIFFUSION, 25, 0.0, 0.46),
    (Phase.DIFFUSION, 50, 0.0, 0.90), (Phase.SAVING, 50, 0.5, 0.95), (Phase.DONE, 50, 1.0, 1.0),
])
def test_a_clip_is_2_percent_start_88_diffusion_10_saving(phase: Phase, step: int, saved: float, share: float) -> None:
    assert clip_fraction(phase, step=step, total_steps=50, saved=saved) == pytest.approx(share)


def test_a_job_is_the_cost_weighted_mean_of_its_nodes() -> None:
    nodes = [NodeShare(cost=3, status=NodeStatus.SUCCEEDED), NodeShare(cost=1, status=NodeStatus.RUNNING, fraction=0.5),
             NodeShare(cost=1, status=NodeStatus.PENDING)]
    assert job_fraction(nodes, finished=False) == pytest.approx(3.5 / 5)


def test_a_job_shows_one_only_when_it_is_over_and_never_moves_back() -> None:
    nodes = [NodeShare(cost=1, status=NodeStatus.SUCCEEDED)]
    assert job_fraction(nodes, finished=False) < 1.0
    assert job_fraction(nodes, finished=True) == 1.0
    assert job_fraction([NodeShare(cost=1, status=NodeStatus.PENDING)], finished=False, floor=0.4) == 0.4


def test_text_form_is_the_documented_one() -> None:
    moment = ProgressRecord(job_id="j", node_id="s1.clip", shot_id="s1", attempt=1, n=12, phase=Phase.DIFFUSION,
                            step=12, total_steps=50, timestep=760.0, fraction=0.2312, at_s=0.0)
    assert moment.text() == "diffusion step 12/50 (timestep 760.00)"


# -- the board ---------------------------------------------------------------------------------------------------


async def test_a_history_is_all_that_is_kept_and_says_from_where_on_it_is_whole() -> None:
    board = ProgressBoard(ring=5)
    await board.report([record(n) for n in range(3)])
    whole = await board.history("job")
    assert (steps(whole), whole.since, whole.seq, whole.epoch) == ([0, 1, 2], 0, 3, board.epoch)
    await board.report([record(n) for n in range(3, 8)])
    rest = await board.history("job")
    assert (steps(rest), rest.since) == ([3, 4, 5, 6, 7], 3)
    assert steps(await board.history("another")) == []


async def test_an_observer_sees_every_step_in_order() -> None:
    board = ProgressBoard(ring=100)
    await board.report([record(1), record(2)])
    first = await board.poll("job", board.epoch, 0, 0)
    await board.report([record(3)])
    second = await board.poll("job", first.epoch, first.seq, 0)
    assert (steps(first), steps(second)) == ([1, 2], [3])


async def test_late_and_repeated_records_are_dropped_and_a_new_attempt_wins() -> None:
    board = ProgressBoard(ring=100)
    await board.report([record(5), record(3), record(5), record(1, attempt=2), record(9)])
    poll = await board.poll("job", board.epoch, 0, 0)
    assert [(event.record.attempt, event.record.n) for event in poll.events] == [(1, 5), (2, 1)]


async def test_a_poll_waits_for_the_next_event_of_its_job_only() -> None:
    board = ProgressBoard(ring=100)
    waiting = asyncio.create_task(board.poll("job", board.epoch, 0, 5))
    await asyncio.sleep(0)
    await board.report([record(1, job="other")])
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await board.report([record(1)])
    assert steps(await waiting) == [1]


async def test_an_observer_that_missed_events_gets_a_snapshot() -> None:
    board = ProgressBoard(ring=3)
    await board.report([record(n) for n in range(1, 8)] + [record(1, node="s2.clip")])
    poll = await board.poll("job", board.epoch, 1, 0)
    assert poll.is_snapshot
    assert [(event.record.node_id, event.record.n) for event in poll.events] == [("s1.clip", 7), ("s2.clip", 1)]
    assert not (await board.poll("job", poll.epoch, poll.seq, 0)).events


async def test_another_epoch_means_a_snapshot() -> None:
    board = ProgressBoard(ring=10)
    await board.report([record(4)])
    assert (await board.poll("job", "before", 99, 0)).is_snapshot


async def test_reporters_of_a_cancelled_job_are_told_until_it_is_forgotten() -> None:
    board = ProgressBoard(ring=10)
    await board.cancel("job")
    assert (await board.report([record(1)])).cancelled == ("job",)
    assert (await board.report([record(1, job="other")])).cancelled == ()
    await board.forget("job")
    assert (await board.report([record(2)])).cancelled == ()


async def test_an_idle_poll_leaves_no_waiter_behind() -> None:
    board = ProgressBoard(ring=10)
    for _ in range(3):
        await board.poll("job", board.epoch, 0, 0.001)
    assert board._waiters == {"job": []}


# -- the reporter ------------------------------------------------------------------------------------------------


class BoardTransport:
    """Delivers to a board in this process; can be made to fail or to restart empty."""

    def __init__(self) -> None:
        self.board = ProgressBoard(ring=1000)
        self.broken = False
        self.sends = 0
        self.delivered = threading.Event()

    def send(self, records: list[ProgressRecord]) -> Receipt:
        self.sends += 1
        if self.broken:
            raise ConnectionError("the board is gone")
        receipt = asyncio.run(self.board.report(records))
        self.delivered.set()
        return receipt

    def seen(self, job: str = "job") -> list[int]:
        return steps(asyncio.run(self.board.poll(job, self.board.epoch, 0, 0)))


def until(condition: object, timeout_s: float = 5.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "the reporter did not get there"
        time.sleep(0.005)


def test_every_step_arrives_though_sends_are_few() -> None:
    transport = BoardTransport()
    reporter = Reporter(transport, flush_s=0.05, on_cancelled=lambda _: None)
    for n in range(1, 101):
        reporter.update(record(n, total=100))
    reporter.close()
    assert transport.seen() == list(range(1, 101))
    assert transport.sends <= 5


def test_a_broken_board_never_reaches_the_render_and_is_refilled_when_it_is_back() -> None:
    transport = BoardTransport()
    reporter = Reporter(transport, flush_s=0.01, on_cancelled=lambda _: None)
    reporter.update(record(1))
    until(lambda: transport.seen() == [1])
    transport.broken = True
    reporter.update(record(2), urgent=True)
    until(lambda: transport.sends >= 3)
    transport.board = ProgressBoard(ring=1000)
    transport.broken = False
    until(lambda: transport.seen() == [2])
    reporter.close()


def test_an_urgent_record_does_not_wait_for_the_tick() -> None:
    transport = BoardTransport()
    reporter = Reporter(transport, flush_s=60, on_cancelled=lambda _: None)
    reporter.update(record(1), urgent=True)
    assert transport.delivered.wait(5)
    reporter.close()


def test_a_cancelled_job_is_told_to_the_replica_even_between_steps() -> None:
    transport = BoardTransport()
    told: list[str] = []
    reporter = Reporter(transport, flush_s=0.01, on_cancelled=told.append)
    reporter.update(record(1))
    until(lambda: transport.seen() == [1])
    asyncio.run(transport.board.cancel("job"))
    until(lambda: bool(told))
    reporter.close()
    assert set(told) == {"job"}


def test_a_finished_node_is_not_sent_again() -> None:
    transport = BoardTransport()
    reporter = Reporter(transport, flush_s=0.01, on_cancelled=lambda _: None)
    reporter.update(record(10, phase=Phase.DONE), urgent=True)
    until(lambda: transport.seen() == [10])
    before = transport.sends
    time.sleep(0.05)
    reporter.close()
    assert transport.sends == before


async def test_the_board_says_how_long_ago_work_was_counted() -> None:
    board = ProgressBoard(ring=4)
    assert (await board.backlog("sketch"))[1] == {}
    await board.tell_backlogs({"sketch": {"ready": 3.0}})
    age_s, numbers = await board.backlog("sketch")
    assert numbers == {"ready": 3.0}
    assert 0 <= age_s < 60
