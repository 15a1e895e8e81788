"""Claim, renew, release, finish: one owner at a time, and nobody else commits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import sqlalchemy as sa

from tests.studio import film
from workflows.durable.journal import Journal
from workflows.durable.leases import Claim, Ending, Leases
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType, Level, NodeRow
from workflows.durable.tables import job
from workflows.durable.verdict import Setback
from workflows.errors import ErrorRecord, IllegalMove, LeaseLost
from workflows.types import Artifact, Done, JobStatus, MediaType, NodeResult, NodeStatus, Priority, Skipped

INTERACTIVE = Priority.INTERACTIVE
ARTIFACT = Artifact(key="k", uri="memory://k", sha256="0" * 64, size_bytes=1, media_type=MediaType.MP4)
DONE = Done(result=NodeResult(artifact=ARTIFACT))
SETBACK = Setback(error=ErrorRecord(type="ModelFailed", message="no"), failures=1, crashes=0, final=False)


@pytest.fixture
def leases(ledger: Ledger) -> Leases:
    return Leases(ledger.database, lease_s=60.0, interruption_limit=2)


@pytest.fixture
def journal(ledger: Ledger) -> Journal:
    return Journal(ledger.database)


def expire(ledger: Ledger) -> None:
    """As if every owner had been silent for long."""
    with ledger.database.write() as connection:
        connection.execute(sa.update(job).where(job.c.owner.is_not(None)).values(lease_until=1.0))


def first_node(ledger: Ledger) -> NodeRow:
    return ledger.nodes("film")[0]


class TestClaim:
    def test_a_claimed_job_is_nobody_elses(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(10, INTERACTIVE)
        assert claim.job.status is JobStatus.RUNNING
        assert claim.job.started_at_s is not None
        assert leases.claim(10, INTERACTIVE) == ()

    def test_a_class_is_claimed_by_itself_the_oldest_first(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(replace(film("old batch"), priority=Priority.BATCH))
        ledger.submit(film("first"))
        ledger.submit(film("second"))
        assert [leases.claim(1, INTERACTIVE)[0].job.id for _ in range(2)] == ["first", "second"]
        assert leases.claim(1, INTERACTIVE) == ()
        assert leases.claim(1, Priority.BATCH)[0].job.id == "old batch"

    def test_only_the_named_jobs_are_claimed(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(film("mine"))
        ledger.submit(film("other"))
        assert [claim.job.id for claim in leases.claim(10, INTERACTIVE, only=frozenset({"mine", "ghost"}))] == ["mine"]
        assert leases.claim(10, INTERACTIVE, only=frozenset()) == ()

    def test_four_threads_share_eighty_jobs_without_taking_one_twice(self, ledger: Ledger, leases: Leases) -> None:
        for number in range(80):
            ledger.submit(film(f"film-{number}", shots=1, compose=False))
        taken: list[Claim] = []
        start = threading.Barrier(4)

        def take() -> None:
            start.wait()
            while claims := leases.claim(3, INTERACTIVE):
                taken.extend(claims)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # On Postgres a row that another claim has locked is passed over, so a thread may stop a little early.
        taken.extend(leases.claim(80, INTERACTIVE))
        assert sorted(claim.job.id for claim in taken) == sorted(f"film-{number}" for number in range(80))

    def test_a_silent_owner_loses_the_job_and_its_running_nodes_are_put_back_and_counted(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        ledger.submit(film())
        (old,) = leases.claim(1, INTERACTIVE)
        journal.start(old, first_node(ledger), key="k")
        expire(ledger)
        (new,) = leases.claim(1, INTERACTIVE)
        assert new.token != old.token
        node = first_node(ledger)
        assert (node.status, node.attempt, node.interruptions) == (NodeStatus.PENDING, 1, 1)
        assert [event.node_id for event in ledger.events("film") if event.type is EventType.NODE_INTERRUPTED] == [
            "s1.keyframe"]

    def test_a_node_that_was_interrupted_too_often_is_poison(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        ledger.submit(film())
        for _ in range(2):
            (claim,) = leases.claim(1, INTERACTIVE)
            journal.start(claim, first_node(ledger), key="k")
            expire(ledger)
        leases.claim(1, INTERACTIVE)
        node = first_node(ledger)
        assert node.status is NodeStatus.FAILED
        assert node.error is not None
        assert node.error.type == "PoisonNode"
        assert "Director died 2 times" in node.error.message


class TestLease:
    def test_a_renewed_lease_outlives_the_old_one(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        expire(ledger)
        leases.renew([claim.token])
        assert leases.claim(1, INTERACTIVE) == ()

    def test_a_lease_that_nobody_took_over_is_still_its_owners(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        expire(ledger)
        journal.start(claim, first_node(ledger), key="k")
        assert leases.survey([claim.token]).held == {"film": False}

    def test_a_director_that_overslept_takes_no_job_from_itself(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        expire(ledger)
        assert leases.survey([claim.token]).waiting == frozenset()
        assert leases.claim(1, INTERACTIVE, held=[claim.token]) == ()
        assert leases.renew([claim.token]) == {"film"}

    def test_a_released_job_is_free_at_once_and_its_nodes_are_not_counted(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        journal.start(claim, first_node(ledger), key="k")
        leases.release(claim)
        assert ledger.job("film").status is JobStatus.QUEUED
        node = first_node(ledger)
        assert (node.status, node.attempt, node.interruptions) == (NodeStatus.PENDING, 1, 0)
        assert len(leases.claim(1, INTERACTIVE)) == 1
        assert first_node(ledger).interruptions == 0

    def test_a_survey_tells_of_cancels_of_lost_jobs_and_of_waiting_ones(self, ledger: Ledger, leases: Leases) -> None:
        for job_id in ("kept", "cancelled", "lost"):
            ledger.submit(film(job_id))
        claims = leases.claim(3, INTERACTIVE)
        tokens = [claim.token for claim in claims]
        ledger.cancel("cancelled")
        with ledger.database.write() as connection:
            connection.execute(sa.update(job).where(job.c.id == "lost").values(owner="another"))
        survey = leases.survey(tokens)
        assert survey.held == {"kept": False, "cancelled": True}
        assert survey.waiting == frozenset()
        ledger.submit(film("new"))
        assert leases.survey([]).waiting == {INTERACTIVE}
        assert not leases.survey([], only=frozenset({"kept"})).waiting

    def test_a_cancel_of_a_job_whose_owner_vanished_needs_no_director(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        running = journal.start(claim, first_node(ledger), key="k")
        expire(ledger)
        assert ledger.cancel("film").status is JobStatus.CANCELLED
        with pytest.raises(LeaseLost):
            journal.succeed(claim, running, DONE, key="k")

    def test_a_finished_job_leaves_no_node_open_and_no_owner(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        leases.finish(claim, Ending(status=JobStatus.FAILED, line="job: failed",
                                    error=ErrorRecord(type="X", message="why")))
        found = ledger.job("film")
        assert (found.status, found.error and found.error.message) == (JobStatus.FAILED, "why")
        assert {node.status for node in ledger.nodes("film")} == {NodeStatus.CANCELLED}
        assert leases.survey([claim.token]).held == {}


Write = Callable[[Journal, Leases, Claim, NodeRow], object]
WRITES: dict[str, Write] = {
    "start": lambda journal, _, claim, node: journal.start(
        claim, replace(node, status=NodeStatus.PENDING, attempt=0), key="k"),
    "succeed": lambda journal, _, claim, node: journal.succeed(claim, node, DONE, key="k"),
    "retry": lambda journal, _, claim, node: journal.retry(claim, node, SETBACK),
    "fail": lambda journal, _, claim, node: journal.fail(claim, node, SETBACK),
    "skip": lambda journal, _, claim, node: journal.skip(
        claim, replace(node, status=NodeStatus.PENDING), Skipped(missing=("x",))),
    "reopen": lambda journal, _, claim, node: journal.reopen(claim, replace(node, status=NodeStatus.SUCCEEDED)),
    "log": lambda journal, _, claim, node: journal.log(claim, "still here", Level.INFO),
    "release": lambda _, leases, claim, node: leases.release(claim),
    "cancel": lambda _, leases, claim, node: leases.cancel(claim),
    "finish": lambda _, leases, claim, node: leases.finish(claim, Ending(status=JobStatus.SUCCEEDED, line="job: done")),
}


class TestFence:
    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
    def test_who_lost_the_lease_commits_nothing(
            self, ledger: Ledger, leases: Leases, journal: Journal, write: Write) -> None:
        ledger.submit(film())
        (old,) = leases.claim(1, INTERACTIVE)
        running = journal.start(old, first_node(ledger), key="k")
        expire(ledger)
        leases.claim(1, INTERACTIVE)
        before = (ledger.job("film"), ledger.nodes("film"), ledger.events("film"))
        with pytest.raises(LeaseLost):
            write(journal, leases, old, running)
        assert (ledger.job("film"), ledger.nodes("film"), ledger.events("film")) == before

    def test_a_write_done_twice_changes_nothing_and_tells_nothing_twice(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        """The answer to the first was lost on the way, so the engine asked again."""
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        node = first_node(ledger)
        running = journal.start(claim, node, key="k")
        assert journal.start(claim, node, key="k").attempt == 1
        journal.succeed(claim, running, DONE, key="k")
        before = (ledger.nodes("film"), ledger.events("film"))
        journal.succeed(claim, running, DONE, key="k")
        assert (ledger.nodes("film"), ledger.events("film")) == before

    def test_a_move_from_a_state_that_the_row_is_not_in_is_an_error(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        ledger.submit(film())
        (claim,) = leases.claim(1, INTERACTIVE)
        running = journal.start(claim, first_node(ledger), key="k")
        journal.succeed(claim, running, DONE, key="k")
        with pytest.raises(IllegalMove, match="from succeeded to failed"):
            journal.fail(claim, running, SETBACK)

    def test_numbers_of_events_grow_in_the_order_of_commits_when_threads_write_at_once(
            self, ledger: Ledger, leases: Leases, journal: Journal) -> None:
        """A reader that asks for what came after the last number it saw must not miss a commit that came later."""
        ledger.submit(film(shots=10))
        (claim,) = leases.claim(1, INTERACTIVE)
        stop, seen = threading.Event(), [0]

        def write(part: int) -> None:
            for node in ledger.nodes("film")[part::4]:
                journal.start(claim, node, key="k")

        def read() -> None:
            while not stop.is_set():
                seen.extend(event.seq for event in ledger.events("film", after_seq=seen[-1]))

        reader = threading.Thread(target=read)
        writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        reader.join()
        seen.extend(event.seq for event in ledger.events("film", after_seq=seen[-1]))
        assert seen[1:] == [event.seq for event in ledger.events("film")]
