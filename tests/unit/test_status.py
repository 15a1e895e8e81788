"""What users see: rows and live steps joined, and how the three screens show it."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from serve_app.screen import Clock, JsonScreen, PlainScreen, eta_text, summary
from workflows.durable.rows import JobRow, NodeRow
from workflows.errors import ErrorRecord
from workflows.status import JobView, job_view
from workflows.types import (
    Artifact,
    JobStatus,
    MediaType,
    NodeKind,
    NodeStatus,
    Phase,
    Priority,
    ProgressRecord,
    Stage,
)

FILM = Artifact(key="k", uri="/f.mp4", sha256="0" * 64, size_bytes=1, media_type=MediaType.MP4)


def job(status: JobStatus = JobStatus.RUNNING, **changes: object) -> JobRow:
    values = {"id": "film", "kind": "film", "title": "Film", "status": status, "priority": Priority.INTERACTIVE,
              "weight": 1.0, "document": {"warnings": ["said at the door"]}, "document_digest": "", "created_at_s": 1.0,
              "cancel_requested": False, "started_at_s": 2.0, "finished_at_s": None, "error": None,
              "warnings": ("said later",)}
    return JobRow(**{**values, **changes})  # type: ignore[arg-type]


def node(name: str, kind: NodeKind, status: NodeStatus, **changes: object) -> NodeRow:
    values = {"job_id": "film", "id": name, "ord": 0, "kind": kind, "shot_id": name.partition(".")[0] if "." in name
              else "", "deps": (), "payload": {}, "lane": "cpu", "cost": 1.0, "accepts_missing": False,
              "status": status, "attempt": 1}
    return NodeRow(**{**values, **changes})  # type: ignore[arg-type]


def step(name: str, number: int, attempt: int = 1) -> ProgressRecord:
    return ProgressRecord(job_id="film", node_id=name, shot_id="s1", attempt=attempt, n=number, phase=Phase.DIFFUSION,
                          step=number, total_steps=10, timestep=500.0, fraction=number / 10, at_s=0.0)


NODES = (
    node("s1.keyframe", NodeKind.KEYFRAME, NodeStatus.SUCCEEDED, artifact=FILM, cached=True),
    node("s1.clip", NodeKind.CLIP, NodeStatus.RUNNING),
    node("s2.clip", NodeKind.CLIP, NodeStatus.FAILED, error=ErrorRecord(type="ModelFailed", message="it burned")),
    node("compose", NodeKind.COMPOSE, NodeStatus.PENDING),
)


def test_a_running_node_shows_its_live_step() -> None:
    view = job_view(job(), NODES, {"s1.clip": step("s1.clip", 5)})
    clip = view.shots[0].current
    assert (clip.step, clip.total_steps, clip.timestep, clip.progress) == (5, 10, 500.0, 0.5)
    assert clip.message == "diffusion step 5/10 (timestep 500.00)"
    assert view.progress == pytest.approx((1 + 0.5 + 1) / 4)


def test_a_record_of_an_older_attempt_is_not_shown() -> None:
    nodes = (node("s1.clip", NodeKind.CLIP, NodeStatus.RUNNING, attempt=2),)
    assert job_view(job(), nodes, {"s1.clip": step("s1.clip", 9, attempt=1)}).shots[0].current.step == 0


def test_progress_never_falls_below_what_was_shown() -> None:
    nodes = (node("s1.clip", NodeKind.CLIP, NodeStatus.RUNNING, attempt=2),)
    assert job_view(job(), nodes, floor=0.7).progress == 0.7


def test_warnings_of_the_plan_and_of_the_nodes_are_both_shown_and_errors_by_shot() -> None:
    view = job_view(job(), NODES)
    assert view.warnings == ("said at the door", "said later")
    assert view.errors == {"s2": "it burned"}


@pytest.mark.parametrize(("statuses", "shot"), [
    (["succeeded", "running"], "running"), (["succeeded", "pending"], "running"), (["pending", "pending"], "pending"),
    (["succeeded", "failed"], "failed"), (["succeeded", "succeeded"], "succeeded"), (["failed", "skipped"], "failed"),
], ids="-".join)
def test_a_shot_is_as_far_as_its_nodes(statuses: list[str], shot: str) -> None:
    nodes = tuple(node(f"s1.{number}", NodeKind.CLIP, NodeStatus(status)) for number, status in enumerate(statuses))
    assert job_view(job(), nodes).shots[0].status.value == shot


def test_the_stage_is_the_earliest_with_open_work() -> None:
    assert job_view(job(), NODES).stage is Stage.VIDEOS
    assert job_view(job(), NODES[:1] + NODES[3:]).stage is Stage.COMPOSITION
    assert job_view(job(JobStatus.PARTIAL), NODES).stage is Stage.COMPOSITION


def test_the_film_is_the_result_only_when_it_was_composed() -> None:
    made = node("compose", NodeKind.COMPOSE, NodeStatus.SUCCEEDED, artifact=FILM)
    assert job_view(job(), (*NODES[:3], made)).result == FILM
    assert job_view(job(), NODES).result is None


def test_pictures_are_what_a_job_is_for_only_where_there_is_no_film() -> None:
    picture = Artifact(key="p", uri="/p.png", sha256="1" * 64, size_bytes=1, media_type=MediaType.PNG)
    keyframe = node("s1.keyframe", NodeKind.KEYFRAME, NodeStatus.SUCCEEDED, artifact=picture)
    compose = node("compose", NodeKind.COMPOSE, NodeStatus.SUCCEEDED, artifact=FILM)
    film = view_of(keyframe, node("s1.clip", NodeKind.CLIP, NodeStatus.SUCCEEDED), compose, status=JobStatus.SUCCEEDED)
    assert (dict(film.pictures), film.result) == ({}, FILM)
    assert summary(film).startswith("film of 1 shots")
    assert dict(view_of(keyframe, status=JobStatus.SUCCEEDED).pictures) == {"s1": picture}


def test_a_view_is_plain_data_for_machines() -> None:
    data = json.loads(json.dumps(job_view(job(), NODES, {"s1.clip": step("s1.clip", 5)}).to_json()))
    assert data["status"] == "running"
    assert data["shots"][0]["step"] == 5
    assert data["shots"][1]["message"] == "it burned"


# -- screens -----------------------------------------------------------------------------------------------------


def view_of(*nodes: NodeRow, status: JobStatus = JobStatus.RUNNING) -> JobView:
    return job_view(job(status, finished_at_s=9.0), nodes)


def test_a_plain_log_gets_a_line_per_change_and_none_without() -> None:
    stream = io.StringIO()
    screen = PlainScreen(stream)
    screen.show(view_of(*NODES))
    first = stream.getvalue()
    screen.show(view_of(*NODES))
    assert stream.getvalue() == first
    assert "s2: clip: it burned" in first
    assert "compose" not in first


def test_json_lines_are_objects_and_unchanged_views_are_not_repeated() -> None:
    stream = io.StringIO()
    screen = JsonScreen(stream)
    screen.note("hello")
    screen.show(view_of(*NODES))
    screen.show(view_of(*NODES))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["note", "job"]


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (5.2, "~ 0:05 left"), (125, "~ 2:05 left")])
def test_time_left_reads_as_minutes_and_seconds(seconds: float | None, text: str) -> None:
    assert eta_text(seconds) == text


def test_no_time_left_is_claimed_before_anything_moved() -> None:
    assert Clock().remaining_s("s1", 1, 0.0) is None


def test_the_last_sentence_counts_shots_and_what_was_reused() -> None:
    good = node("s1.clip", NodeKind.CLIP, NodeStatus.SUCCEEDED, cached=True)
    bad = node("s2.clip", NodeKind.CLIP, NodeStatus.FAILED)
    text = summary(view_of(good, bad, status=JobStatus.PARTIAL))
    assert text == "film with 1 of 2 shots, 7.0 s, 1 steps of the plan reused"


SCORE = Artifact(key="s", uri="/s.json", sha256="1" * 64, size_bytes=1, media_type=MediaType.JSON, score=0.874)


def test_a_score_that_failed_takes_nothing_from_its_shot() -> None:
    nodes = (node("s1.clip", NodeKind.CLIP, NodeStatus.SUCCEEDED, artifact=FILM),
             node("s1.score", NodeKind.SCORE, NodeStatus.FAILED))
    (shot,) = job_view(job(status=JobStatus.PARTIAL), nodes).shots
    assert (shot.status, shot.consistency) == (NodeStatus.SUCCEEDED, None)


def test_how_much_a_shot_looks_like_its_pictures_is_shown_and_travels() -> None:
    nodes = (node("s1.clip", NodeKind.CLIP, NodeStatus.SUCCEEDED, artifact=FILM),
             node("s1.score", NodeKind.SCORE, NodeStatus.SUCCEEDED, artifact=SCORE, cached=True),
             node("s2.clip", NodeKind.CLIP, NodeStatus.SUCCEEDED, artifact=FILM))
    view = job_view(job(), nodes)
    assert [shot.consistency for shot in view.shots] == [0.874, None]
    again = JobView.from_json(json.loads(json.dumps(view.to_json())))
    assert again == view
    lines = io.StringIO()
    screen = PlainScreen(lines)
    screen.show(job_view(job(), nodes[::2]))  # the shot is there before its score is
    screen.show(again)
    screen.show(again)
    assert "s1: reused, consistency 0.87" in lines.getvalue()
    assert lines.getvalue().count("consistency") == 1


def test_the_take_that_scores_decided_for_is_shown_with_its_own_score() -> None:
    best = replace(FILM, key="l")
    takes = (node("s1.clip", NodeKind.CLIP, NodeStatus.SUCCEEDED, artifact=FILM),
             node("s1.score", NodeKind.SCORE, NodeStatus.SUCCEEDED, artifact=replace(SCORE, score=0.5)),
             node("s1.clip.2", NodeKind.CLIP, NodeStatus.SUCCEEDED, artifact=best),
             node("s1.score.2", NodeKind.SCORE, NodeStatus.SUCCEEDED, artifact=SCORE),
             node("s1.keyframe.3", NodeKind.KEYFRAME, NodeStatus.SUCCEEDED, attempt=0),
             node("s1.clip.3", NodeKind.CLIP, NodeStatus.SUCCEEDED, attempt=0))
    pick = node("s1.pick", NodeKind.PICK, NodeStatus.SUCCEEDED, artifact=best)
    view = job_view(job(), (*takes, pick))
    shot = view.shots[0]
    assert (shot.status, shot.take, shot.consistency) == (NodeStatus.SUCCEEDED, 2, 0.874)
    assert shot.scores == {1: 0.5, 2: 0.874}
    assert JobView.from_json(json.loads(json.dumps(view.to_json()))) == view
    lines = io.StringIO()
    PlainScreen(lines).show(view)
    assert "consistency 0.87 (take 2 of 2)" in lines.getvalue()
    undecided = job_view(job(), (*takes, replace(pick, status=NodeStatus.PENDING, artifact=None))).shots[0]
    assert (undecided.status, undecided.take, undecided.consistency) == (NodeStatus.RUNNING, None, 0.874)


def test_a_take_that_may_not_be_needed_is_no_stage_that_the_film_is_in() -> None:
    maybe = node("s1.keyframe.2", NodeKind.KEYFRAME, NodeStatus.PENDING, payload={"only_below": {}})
    assert job_view(job(), (node("s1.clip", NodeKind.CLIP, NodeStatus.RUNNING), maybe)).stage is Stage.VIDEOS
