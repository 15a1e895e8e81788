"""The verbs that any process may call: submit, cancel, rerun, look."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa

from tests.studio import film
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType, JobRow, NewJob
from workflows.durable.tables import job, node
from workflows.errors import InvalidDocument, JobConflict, UnknownJob
from workflows.types import JobStatus, NodeKind, NodeSpec, NodeStatus


def settle(ledger: Ledger, statuses: dict[str, NodeStatus], *, job_id: str = "film",
           status: JobStatus = JobStatus.PARTIAL) -> None:
    """Put a job's rows where a run would have left them."""
    with ledger.database.write() as connection:
        connection.execute(sa.update(job).where(job.c.id == job_id).values(status=status.value))
        connection.execute(sa.update(node).where(node.c.job_id == job_id).values(
            status=NodeStatus.SUCCEEDED.value, key="k", failures=2, crashes=1, interruptions=1))
        for node_id, value in statuses.items():
            connection.execute(sa.update(node).where(node.c.job_id == job_id, node.c.id == node_id).values(
                status=value.value))


class TestSubmit:
    def test_the_same_document_again_is_the_same_job(self, ledger: Ledger) -> None:
        first = ledger.submit(film())
        assert ledger.submit(film()) == first
        assert len(ledger.jobs().jobs) == 1
        assert [event.type for event in ledger.events("film")] == [EventType.JOB_QUEUED]

    def test_the_same_id_with_another_document_is_refused(self, ledger: Ledger) -> None:
        ledger.submit(film())
        with pytest.raises(JobConflict, match="another document"):
            ledger.submit(replace(film(), document={"title": "another"}))

    def test_a_digest_of_the_submitters_own_decides_when_it_gives_one(self, ledger: Ledger) -> None:
        ledger.submit(replace(film(), document={"asked_at": 1}, document_digest="d"))
        assert ledger.submit(replace(film(), document={"asked_at": 2}, document_digest="d")).document == {"asked_at": 1}

    def test_rows_say_what_was_submitted(self, ledger: Ledger) -> None:
        row = ledger.submit(replace(film(shots=1), title="Dawn", weight=2.0))
        assert (row.title, row.weight, row.status, row.document, row.warnings) == (
            "Dawn", 2.0, JobStatus.QUEUED, {"title": "film"}, ())
        keyframe, clip, compose = ledger.nodes("film")
        assert (keyframe.id, keyframe.status, keyframe.attempt, keyframe.artifact) == (
            "s1.keyframe", NodeStatus.PENDING, 0, None)
        assert (clip.deps, clip.cost, clip.shot_id) == (("s1.keyframe",), 4.0, "s1")
        assert compose.accepts_missing

    def test_ten_threads_that_submit_one_job_make_one(self, ledger: Ledger) -> None:
        found: list[JobRow] = []
        threads = [threading.Thread(target=lambda: found.append(ledger.submit(film()))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 10
        assert len(ledger.nodes("film")) == 7

    @pytest.mark.parametrize(("nodes", "problem"), [
        ([NodeSpec(id="a", kind=NodeKind.CLIP), NodeSpec(id="a", kind=NodeKind.CLIP)], "'a' exists twice"),
        ([NodeSpec(id="a", kind=NodeKind.CLIP, deps=("b",))], "'a' needs 'b', which does not exist"),
        ([NodeSpec(id="a", kind=NodeKind.CLIP, deps=("b",)), NodeSpec(id="b", kind=NodeKind.CLIP, deps=("a",))],
         "wait for each other: "),
        ([NodeSpec(id="a", kind=NodeKind.CLIP, cost=0.0)], "costs 0; nearest valid: a number above 0"),
        ([NodeSpec(id="a", kind=NodeKind.CLIP, payload={"fps": float("nan")})], "payload that is not JSON"),
        ([NodeSpec(id="a" * 201, kind=NodeKind.CLIP)], "node id of 201 characters.*nearest valid: 1 to 200"),
        ([], "at least one node"),
    ], ids=["twice", "unknown-dep", "cycle", "free", "nan", "long", "empty"])
    def test_nodes_that_cannot_be_walked_are_refused(self, ledger: Ledger, nodes: list[NodeSpec], problem: str) -> None:
        with pytest.raises(InvalidDocument, match=problem):
            ledger.submit(NewJob(id="film", document={}, nodes=tuple(nodes)))
        with pytest.raises(UnknownJob):
            ledger.job("film")


class TestCancel:
    def test_a_job_that_nobody_holds_ends_at_once(self, ledger: Ledger) -> None:
        ledger.submit(film())
        assert ledger.cancel("film").status is JobStatus.CANCELLED
        assert {row.status for row in ledger.nodes("film")} == {NodeStatus.CANCELLED}
        assert ledger.job("film").finished_at_s is not None
        assert ledger.events("film")[-1].type is EventType.JOB_FINISHED

    def test_a_finished_job_stays_as_it_is(self, ledger: Ledger) -> None:
        ledger.submit(film())
        settle(ledger, {}, status=JobStatus.SUCCEEDED)
        before = ledger.job("film")
        assert ledger.cancel("film") == before

    def test_an_unknown_job_is_named(self, ledger: Ledger) -> None:
        with pytest.raises(UnknownJob, match="'ghost'"):
            ledger.cancel("ghost")


ALL_BUT_S1 = ("s2.keyframe", "s2.clip", "s3.keyframe", "s3.clip", "compose")
S2_FAILED = {"s2.clip": NodeStatus.FAILED}


class TestRerun:
    @pytest.mark.parametrize(("statuses", "selection", "expected"), [
        ({}, (), ()),
        (S2_FAILED, (), ("s2.clip", "compose")),
        (S2_FAILED, ("s2",), ("s2.keyframe", "s2.clip", "compose")),
        (S2_FAILED, ("s2.clip",), ("s2.clip", "compose")),
        (S2_FAILED, ("s1.clip",), ("s1.clip", "compose")),
        (S2_FAILED, ("compose",), ("compose",)),
        ({"s2.keyframe": NodeStatus.FAILED, "s2.clip": NodeStatus.SKIPPED}, (), ("s2.keyframe", "s2.clip", "compose")),
        ({}, ("s2", "s3"), ALL_BUT_S1),
        ({"s3.clip": NodeStatus.CANCELLED, "compose": NodeStatus.CANCELLED}, (), ("s3.clip", "compose")),
    ], ids=["all-fine", "what-failed", "shot", "node", "a-good-node", "only-the-end", "skipped-too", "two-shots",
            "cancelled"])
    def test_exactly_the_chosen_nodes_and_what_hangs_on_them_run(
            self, ledger: Ledger, statuses: dict[str, NodeStatus], selection: tuple[str, ...],
            expected: tuple[str, ...]) -> None:
        ledger.submit(film())
        settle(ledger, statuses)
        assert ledger.rerun("film", selection) == expected
        pending = tuple(row.id for row in ledger.nodes("film") if row.status is NodeStatus.PENDING)
        assert pending == expected
        assert ledger.job("film").status is (JobStatus.QUEUED if expected else JobStatus.PARTIAL)

    def test_a_node_that_runs_again_has_all_its_tries_but_keeps_counting_attempts(self, ledger: Ledger) -> None:
        ledger.submit(film())
        settle(ledger, S2_FAILED)
        with ledger.database.write() as connection:
            connection.execute(sa.update(node).values(attempt=5))
        ledger.rerun("film")
        again = next(row for row in ledger.nodes("film") if row.id == "s2.clip")
        assert (again.attempt, again.failures, again.crashes, again.interruptions, again.key) == (5, 0, 0, 0, "")

    def test_force_asks_chosen_keyframes_and_clips_for_another_take_and_nothing_else(self, ledger: Ledger) -> None:
        ledger.submit(film())
        settle(ledger, {})
        ledger.rerun("film", ("s2",), force=True)
        assert {row.id: row.generation for row in ledger.nodes("film") if row.generation} == {
            "s2.keyframe": 1, "s2.clip": 1}

    def test_an_unknown_selection_names_the_valid_ones(self, ledger: Ledger) -> None:
        ledger.submit(film())
        settle(ledger, {})
        with pytest.raises(InvalidDocument, match="no shot or node 's9'; nearest valid: s1, s2, s3, compose"):
            ledger.rerun("film", ("s1", "s9"))
        assert ledger.job("film").status is JobStatus.PARTIAL

    def test_an_active_job_says_what_to_do_first(self, ledger: Ledger) -> None:
        ledger.submit(film())
        with pytest.raises(JobConflict, match="is queued; cancel it, or wait"):
            ledger.rerun("film")

    def test_a_chosen_node_that_would_be_skipped_again_names_what_it_needs(self, ledger: Ledger) -> None:
        ledger.submit(film())
        settle(ledger, {"s2.keyframe": NodeStatus.FAILED, "s2.clip": NodeStatus.SKIPPED})
        with pytest.raises(JobConflict, match=r"s2\.clip needs s2\.keyframe, which is failed; select s2 too"):
            ledger.rerun("film", ("s2.clip",))

    def test_an_unknown_job_is_named(self, ledger: Ledger) -> None:
        with pytest.raises(UnknownJob):
            ledger.rerun("ghost")


class TestLook:
    def test_pages_hold_every_job_once_newest_first_while_new_ones_arrive(self, ledger: Ledger) -> None:
        for number in range(7):
            ledger.submit(film(f"film-{number}", shots=1))
        seen: list[str] = []
        cursor = ""
        while True:
            page = ledger.jobs(limit=3, cursor=cursor)
            seen += [row.id for row in page.jobs]
            ledger.submit(film(f"late-{len(seen)}", shots=1))
            if not page.next_cursor:
                break
            cursor = page.next_cursor
        assert seen == [f"film-{number}" for number in reversed(range(7))]

    def test_jobs_created_in_the_same_instant_are_not_lost_between_pages(self, ledger: Ledger) -> None:
        for number in range(5):
            ledger.submit(film(f"film-{number}", shots=1))
        with ledger.database.write() as connection:
            connection.execute(sa.update(job).values(created_at=1_700_000_000.123456))
        first = ledger.jobs(limit=2)
        second = ledger.jobs(limit=5, cursor=first.next_cursor)
        assert [row.id for row in first.jobs + second.jobs] == [f"film-{number}" for number in reversed(range(5))]

    def test_the_other_way_round_it_is_the_same_jobs_and_new_ones_come_last(self, ledger: Ledger) -> None:
        for number in range(4):
            ledger.submit(film(f"film-{number}", shots=1))
        with ledger.database.write() as connection:
            connection.execute(sa.update(job).where(job.c.id != "film-3").values(created_at=1_700_000_000.123456))
        first = ledger.jobs_from_oldest(limit=2)
        ledger.submit(film("late", shots=1))
        second = ledger.jobs_from_oldest(limit=5, cursor=first.next_cursor)
        assert [row.id for row in first.jobs + second.jobs] == [*(f"film-{number}" for number in range(4)), "late"]
        assert second.next_cursor == ""

    def test_the_nodes_of_many_jobs_are_those_of_each(self, ledger: Ledger) -> None:
        for name in ("one", "two"):
            ledger.submit(film(name))
        found = ledger.nodes_of_jobs(["two", "ghost", "one"])
        assert found == {"two": ledger.nodes("two"), "ghost": (), "one": ledger.nodes("one")}
        assert ledger.nodes_of_jobs([]) == {}

    def test_jobs_can_be_asked_for_by_status(self, ledger: Ledger) -> None:
        ledger.submit(film("one"))
        ledger.submit(film("two"))
        ledger.cancel("one")
        assert [row.id for row in ledger.jobs(JobStatus.CANCELLED).jobs] == ["one"]
        assert [row.id for row in ledger.jobs(JobStatus.QUEUED).jobs] == ["two"]

    @pytest.mark.parametrize("cursor", ["x", "bm9uc2Vuc2U=", "WzFd", "é"])
    def test_a_cursor_of_somebody_elses_is_refused(self, ledger: Ledger, cursor: str) -> None:
        with pytest.raises(InvalidDocument, match="cursor"):
            ledger.jobs(cursor=cursor)

    @pytest.mark.parametrize(("limit", "nearest"), [(0, "1"), (5001, "5000")])
    def test_a_limit_out_of_range_names_the_nearest(self, ledger: Ledger, limit: int, nearest: str) -> None:
        with pytest.raises(InvalidDocument, match=f"nearest valid: {nearest}"):
            ledger.jobs(limit=limit)

    def test_the_log_is_read_on_from_an_offset_in_lines(self, ledger: Ledger) -> None:
        ledger.submit(film())
        ledger.log("film", "one\ntwo", "warning")
        page = ledger.log_lines("film", 0, 2)
        assert [line[20:] for line in page.lines] == ["info job: queued, 7 nodes", "warning one"]
        ledger.log("film", "three")
        rest = ledger.log_lines("film", page.next_offset, 10)
        assert [line[20:] for line in rest.lines] == ["warning two", "info three"]
        assert ledger.log_lines("film", rest.next_offset).lines == ()
        assert ledger.log_lines("film", rest.next_offset).next_offset == 4

    def test_a_line_that_postgres_would_refuse_is_logged_all_the_same(self, ledger: Ledger) -> None:
        ledger.submit(film())
        ledger.log("film", "NUL \0 and \ud800 in it")
        assert "NUL \ufffd and ? in it" in ledger.log_lines("film").lines[-1]

    def test_events_continue_after_the_last_number_seen(self, ledger: Ledger) -> None:
        ledger.submit(film("one"))
        ledger.submit(film("two"))
        first = ledger.events("one")
        ledger.cancel("one")
        later = ledger.events("one", after_seq=first[-1].seq)
        assert [event.type for event in later] == [
            EventType.JOB_CANCEL_REQUESTED, *[EventType.NODE_CANCELLED] * 7, EventType.JOB_FINISHED]
        assert all(one.seq < two.seq for one, two in pairwise(later))

    @pytest.mark.parametrize("verb", ["job", "nodes", "log_lines", "events"])
    def test_an_unknown_job_is_named(self, ledger: Ledger, verb: str) -> None:
        look: dict[str, Any] = {"job": ledger.job, "nodes": ledger.nodes, "log_lines": ledger.log_lines,
                                "events": ledger.events}
        with pytest.raises(UnknownJob, match="'ghost'"):
            look[verb]("ghost")
