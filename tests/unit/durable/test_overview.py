"""Questions about many jobs at once."""

from __future__ import annotations

from dataclasses import replace

from tests.studio import Studio, film
from workflows.durable.events import Note, append
from workflows.durable.ledger import Ledger
from workflows.durable.overview import Overview
from workflows.durable.rows import EventType
from workflows.types import JobStatus, NodeKind, NodeStatus, Priority


def test_places_in_the_queue_count_interactive_jobs_before_batch_jobs(ledger: Ledger) -> None:
    overview = Overview(ledger.database)
    batch = ledger.submit(replace(film("batch"), priority=Priority.BATCH))
    first, second = ledger.submit(film("first")), ledger.submit(film("second"))
    assert [overview.queue_position(row) for row in (first, second, batch)] == [1, 2, 3]
    assert overview.queue_position(replace(first, status=JobStatus.RUNNING)) is None


async def test_finished_nodes_tell_their_shape_and_time_and_reused_ones_tell_nothing(studio: Studio) -> None:
    studio.ledger.submit(film("one", shots=1))
    await studio.render("one")
    studio.ledger.submit(film("two", shots=1))  # the same keys: all of it is in the store
    await studio.render("two")
    finished = Overview(studio.ledger.database).finished()
    assert {(work.job_id, work.id) for work in finished} == {
        ("one", "s1.keyframe"), ("one", "s1.clip"), ("one", "compose")}
    clip = next(work for work in finished if work.id == "s1.clip")
    assert clip.shape
    assert clip.seconds > 0
    assert next(work for work in finished if work.id == "compose").shape == ()


def test_open_work_and_load_count_active_jobs_only(ledger: Ledger) -> None:
    overview = Overview(ledger.database)
    ledger.submit(film("open", shots=1))
    ledger.submit(film("over", shots=1))
    ledger.cancel("over")
    assert {work.job_id for work, _ in overview.open_work()} == {"open"}
    load = overview.load()
    assert (load.jobs, load.waiting, load.running) == ({JobStatus.QUEUED: 1}, {"cpu": 3}, {})


def test_tallies_and_newest_events_are_by_job(ledger: Ledger) -> None:
    overview = Overview(ledger.database)
    ledger.submit(film("one", shots=2))
    ledger.submit(film("two", shots=1))
    tallies = overview.tallies(["one", "two"])
    assert (tallies["one"].shots, tallies["two"].shots) == (2, 1)
    assert tallies["one"].costs[NodeKind.CLIP, NodeStatus.PENDING] == 8.0
    newest = overview.newest_events(["one", "two", "ghost"])
    assert newest == {job_id: ledger.events(job_id)[-1].seq for job_id in ("one", "two")}


def test_jobs_can_be_asked_for_by_kind(ledger: Ledger) -> None:
    ledger.submit(film("film"))
    ledger.submit(replace(film("edit"), kind="edit"))
    assert [row.id for row in ledger.jobs(kind="edit").jobs] == ["edit"]


def test_the_history_of_all_jobs_is_one_with_the_shot_of_each_node(ledger: Ledger) -> None:
    overview = Overview(ledger.database)
    before = overview.newest()
    for name in ("one", "two"):
        ledger.submit(film(name, shots=1))
        ledger.log(name, "told")
    with ledger.database.write() as connection:
        append(connection, "one", [Note(type=EventType.NODE_STARTED, node_id="s1.clip", line="starts")])
    told = [(row.event.job_id, row.event.type, row.shot_id) for row in overview.happened(before, 10)]
    assert told == [("one", EventType.JOB_QUEUED, ""), ("one", EventType.LOG, ""), ("two", EventType.JOB_QUEUED, ""),
                    ("two", EventType.LOG, ""), ("one", EventType.NODE_STARTED, "s1")]
    assert overview.newest() == overview.happened(before, 10)[-1].event.seq
    assert len(overview.happened(before, 2)) == 2


async def test_the_first_picture_of_a_job_is_of_its_first_shot_that_has_one(studio: Studio) -> None:
    overview = Overview(studio.ledger.database)
    studio.ledger.submit(film("made", shots=2))
    await studio.render("made")
    studio.ledger.submit(film("waiting", shots=2))
    assert overview.first_pictures(["made", "waiting", "none"]) == {"made": "s1"}
    assert overview.first_pictures([]) == {}
