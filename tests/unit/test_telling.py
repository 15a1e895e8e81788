"""Rows and steps in the words of the event stream."""

from __future__ import annotations

from typing import Any

import pytest

from tests.desk import step
from workflows.durable.rows import EventRow, EventType, Level, NodeRow
from workflows.telling import Name, Teller
from workflows.types import Json, NodeKind


def node(name: str, kind: NodeKind, ord: int) -> NodeRow:
    return NodeRow(job_id="film", id=name, ord=ord, kind=kind, shot_id=name.partition(".")[0] if "." in name else "",
                   deps=(), payload={"width_px": 96, "height_px": 64}, lane="cpu", cost=1.0, accepts_missing=False)


NODES = (node("s1.keyframe", NodeKind.KEYFRAME, 0), node("s1.clip", NodeKind.CLIP, 1),
         node("s2.clip", NodeKind.CLIP, 2), node("compose", NodeKind.COMPOSE, 3))


@pytest.fixture
def teller() -> Teller:
    teller = Teller(job_id="film", url_of=lambda shot: f"/{shot}.png", warnings=("said at the door",))
    teller.plan(NODES)
    return teller


def row(type: EventType, node_id: str = "", *, line: str = "", level: Level = Level.INFO, **data: Json) -> EventRow:
    return EventRow(seq=1, job_id="film", at_s=5.0, type=type, node_id=node_id, level=level, line=line, data=data)


def told(teller: Teller, *rows: EventRow) -> list[tuple[str, Any]]:
    return [(one.name.value, one.data) for event in rows for one in teller.event(event)]


def test_warnings_of_the_plan_are_told_with_the_queued_job(teller: Teller) -> None:
    assert told(teller, row(EventType.JOB_QUEUED, line="job: queued")) == [
        ("info", {"message": "job: queued"}), ("warning", {"message": "said at the door"})]


def test_a_stage_opens_with_its_first_node_and_closes_with_its_last(teller: Teller) -> None:
    rows = [row(EventType.NODE_STARTED, "s1.clip", attempt=1), row(EventType.NODE_SUCCEEDED, "s1.clip", attempt=1),
            row(EventType.NODE_SKIPPED, "s2.clip", line="s2.clip: skipped")]
    stages = [data["stage"] for name, data in told(teller, *rows) if name == "stage_update"]
    assert [(stage["stage_type"], stage["status"], stage["started_at"]) for stage in stages] == [
        ("videos", "processing", 5.0), ("videos", "partial", 5.0)]


@pytest.mark.parametrize(("ends", "status"), [
    ((EventType.NODE_SUCCEEDED, EventType.NODE_CACHED), "completed"),
    ((EventType.NODE_SUCCEEDED, EventType.NODE_FAILED), "partial"),
    ((EventType.NODE_FAILED, EventType.NODE_SKIPPED), "failed"),
    ((EventType.NODE_CANCELLED, EventType.NODE_CANCELLED), "cancelled"),
])
def test_a_stage_ends_as_its_nodes_did(teller: Teller, ends: tuple[EventType, EventType], status: str) -> None:
    rows = [row(type, name) for type, name in zip(ends, ("s1.clip", "s2.clip"), strict=True)]
    assert [data["stage"]["status"] for name, data in told(teller, *rows) if name == "stage_update"][-1] == status


def test_images_are_counted_and_shown(teller: Teller) -> None:
    events = dict(told(teller, row(EventType.NODE_SUCCEEDED, "s1.keyframe", attempt=1, key="abc")))
    assert events["progress"] == {"current": 1, "total": 1, "message": "image 1/1", "storyboard": "s1",
                                  "stage": "images"}
    assert events["image_generated"] == {
        "storyboard_id": "s1", "image": {"id": "abc", "url": "/s1.png", "width": 96, "height": 64}}


def test_a_failure_names_its_shot_and_its_reason(teller: Teller) -> None:
    events = dict(told(teller, row(EventType.NODE_FAILED, "s2.clip", attempt=3, error={"message": "it burned"})))
    assert events["error"] == {"error": "it burned", "storyboard_id": "s2"}
    assert (events["shot_update"]["shot"]["status"], events["shot_update"]["shot"]["attempt"]) == ("failed", 3)
    assert "storyboard_id" not in dict(told(teller, row(EventType.NODE_FAILED, "compose")))["error"]


def test_lines_of_a_stack_trace_are_for_the_log_only(teller: Teller) -> None:
    assert told(teller, row(EventType.LOG, line="File x, line 1", level=Level.ERROR)) == []
    assert told(teller, row(EventType.LOG, line="odd", level=Level.WARNING)) == [("warning", {"message": "odd"})]


def test_a_step_that_comes_before_its_row_is_not_taken_back_by_it(teller: Teller) -> None:
    [first] = teller.step(step("film", "s1.clip", 4))
    assert first.data["shot"]["step"] == 4
    update = dict(told(teller, row(EventType.NODE_STARTED, "s1.clip", attempt=1)))["shot_update"]
    assert update["shot"]["step"] == 4


def test_a_step_of_an_attempt_that_is_over_is_not_told(teller: Teller) -> None:
    told(teller, row(EventType.NODE_STARTED, "s1.clip", attempt=1), row(EventType.NODE_RETRY, "s1.clip"))
    assert teller.step(step("film", "s1.clip", 5)) == []
    told(teller, row(EventType.NODE_STARTED, "s1.clip", attempt=2))
    assert teller.step(step("film", "s1.clip", 6)) == []
    assert teller.step(step("film", "s1.clip", 1, attempt=2)) != []


def test_progress_does_not_fall_when_a_shot_is_tried_again(teller: Teller) -> None:
    told(teller, row(EventType.NODE_STARTED, "s1.clip", attempt=1))
    [high] = teller.step(step("film", "s1.clip", 20))
    after = dict(told(teller, row(EventType.NODE_RETRY, "s1.clip")))["shot_update"]
    assert after["progress"] == high.data["progress"] == 0.25
    assert after["shot"]["step"] == 0


def test_steps_of_the_film_itself_are_progress(teller: Teller) -> None:
    told(teller, row(EventType.NODE_STARTED, "compose", attempt=1))
    [one] = teller.step(step("film", "compose", 3))
    assert one.name is Name.PROGRESS
    assert (one.data["current"], one.data["total"], one.data["stage"]) == (3, 20, "composition")


def test_done_counts_shots_and_a_rerun_counts_anew(teller: Teller) -> None:
    ends = [row(EventType.NODE_SUCCEEDED, "s1.keyframe", key="abc"), row(EventType.NODE_SUCCEEDED, "s1.clip"),
            row(EventType.NODE_FAILED, "s2.clip"), row(EventType.NODE_SUCCEEDED, "compose")]
    done = dict(told(teller, *ends, row(EventType.JOB_FINISHED, line="job: partial", status="partial")))["done"]
    assert done["data"] == {"total_storyboards": 2, "success_count": 1, "failed_count": 1,
                            "generated_image_ids": ["abc"]}
    assert (done["status"], done["stage"]["status"]) == ("partial", "partial")
    again = told(teller, row(EventType.JOB_RERUN, nodes=["s2.clip", "compose"]),
                 row(EventType.NODE_STARTED, "s2.clip", attempt=2), row(EventType.NODE_SUCCEEDED, "s2.clip"))
    assert [data["message"] for name, data in again if name == "progress"] == ["clip 2/2"]
    assert [data["stage"]["status"] for name, data in again if name == "stage_update"] == ["processing", "completed"]


def test_an_event_of_a_node_that_a_revision_took_away_is_passed_over(teller: Teller) -> None:
    teller.plan(NODES[1:])
    assert told(teller, row(EventType.NODE_SUCCEEDED, "s1.keyframe", key="abc")) == []
