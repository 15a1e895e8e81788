"""Looking at jobs and steering them over HTTP."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest

from serve_app.http.edit_schemas import AnyJobReply
from serve_app.http.health_schemas import ReadyReply
from serve_app.http.schemas import (
    CapacityReply,
    ChangeReply,
    JobList,
    LogReply,
    ModelList,
    Problem,
)
from tests.desk import TWO_SHOTS, Shop
from workflows.types import JobStatus, NodeStatus, Stage


def test_a_queued_job_tells_its_place_and_nothing_it_cannot_know(shop: Shop) -> None:
    first, second = shop.submit(), shop.submit()
    assert [shop.status(job_id)["queue_position"] for job_id in (first, second)] == [1, 2]
    job = AnyJobReply.model_validate(shop.status(first))
    assert (job.status, job.stage, job.progress, job.eta, job.video) == (
        JobStatus.QUEUED, Stage.IMAGES, 0, None, None)
    assert [(shot.id, shot.status, shot.files.clip) for shot in job.shots] == [
        ("s1", NodeStatus.PENDING, None), ("s2", NodeStatus.PENDING, None)]


def test_a_finished_job_shows_its_shots_and_where_its_files_are(shop: Shop) -> None:
    job_id = shop.film()
    job = AnyJobReply.model_validate(shop.status(job_id))
    assert (job.kind, job.status, job.progress, job.queue_position) == ("film", JobStatus.SUCCEEDED, 1.0, None)
    assert job.video is not None
    assert job.video.url == f"/api/jobs/{job_id}/video"
    base = f"/api/jobs/{job_id}/shots/s1"
    files = job.shots[0].files
    assert (files.keyframe, files.clip, files.thumbnail) == (f"{base}/keyframe", f"{base}/clip", f"{base}/thumbnail")
    assert job.shots[1].files.keyframe is None


def test_a_second_job_of_known_shapes_has_an_estimate(shop: Shop) -> None:
    shop.film()
    other = shop.submit({**TWO_SHOTS, "seed": 99})
    eta = AnyJobReply.model_validate(shop.status(other)).eta
    assert eta is not None
    assert 0 <= eta.p50_s <= eta.p90_s  # in tenths of a second, and these shots take none


def test_a_shot_that_failed_shows_why_and_retry_runs_exactly_it(shop: Shop) -> None:
    shop.painter.failing = True
    job_id = shop.film()
    job = AnyJobReply.model_validate(shop.status(job_id))
    assert (job.status, job.errors) == (JobStatus.PARTIAL, {"s2": "s2.clip: it burned"})
    shop.painter.failing = False
    reply = shop.client.post(f"/api/jobs/{job_id}/retry")
    assert (reply.status_code, ChangeReply.model_validate_json(reply.content).nodes) == (202, ("s2.clip", "compose"))
    assert shop.hints.told[-2:] == [("reopened", job_id), ("wake", "")]
    assert shop.render(job_id).status is JobStatus.SUCCEEDED


def test_retry_takes_a_selection_and_new_takes_and_says_when_there_is_nothing_to_do(shop: Shop) -> None:
    job_id = shop.film()
    nothing = shop.client.post(f"/api/jobs/{job_id}/retry")
    assert (nothing.status_code, nothing.json()["nodes"], nothing.json()["status"]) == (200, [], "succeeded")
    shop.painter.made.clear()
    forced = shop.client.post(f"/api/jobs/{job_id}/retry", json={"shots": ["s1"], "force": True})
    assert forced.json()["nodes"] == ["s1.keyframe", "s1.clip", "compose"]
    shop.render(job_id)
    assert shop.painter.made == ["s1.keyframe", "s1.clip", "compose"]
    [take] = AnyJobReply.model_validate(shop.status(job_id)).shots[0].takes
    assert (take.number, take.selected, take.clip) == (1, False, f"/api/jobs/{job_id}/shots/s1/clip?take=1")


@pytest.mark.parametrize(("body", "pointer"), [
    ({"force": True}, "#/shots"), ({"shots": ["s9"]}, "#/shots"), ({"shots": "s1"}, "#/shots"),
    ({"shot": ["s1"]}, "#/shot"), ([], "#/"),
], ids=["force-alone", "unknown-shot", "no-list", "typo", "no-object"])
def test_a_retry_that_makes_no_sense_is_refused_with_a_pointer(shop: Shop, body: Any, pointer: str) -> None:
    reply = shop.client.post(f"/api/jobs/{shop.film()}/retry", json=body)
    problem = Problem.model_validate_json(reply.content)
    assert reply.status_code == 422
    assert problem.errors is not None
    assert problem.errors[0].pointer == pointer


@pytest.mark.parametrize("verb", ["retry", "delete"])
def test_an_active_job_is_not_opened_again_nor_deleted(shop: Shop, verb: str) -> None:
    job_id = shop.submit()
    url = f"/api/jobs/{job_id}"
    reply = shop.client.delete(url) if verb == "delete" else shop.client.post(f"{url}/retry")
    assert (reply.status_code, reply.json()["code"]) == (409, "job-conflict")
    assert "cancel it" in reply.json()["detail"]


def test_cancel_ends_a_waiting_job_and_leaves_a_finished_one(shop: Shop) -> None:
    job_id = shop.submit()
    shop.status(job_id)
    reply = shop.client.post(f"/api/jobs/{job_id}/cancel")
    assert reply.json()["status"] == "cancelled"
    assert ("cancelled", job_id) in shop.hints.told
    assert shop.client.get(f"/api/jobs/{job_id}").json()["status"] == "cancelled", "not the reply from before"
    done = shop.film({**TWO_SHOTS, "seed": 5})
    assert shop.client.post(f"/api/jobs/{done}/cancel").json()["status"] == "succeeded"


def test_a_deleted_job_is_gone(shop: Shop) -> None:
    job_id = shop.film()
    reply = shop.client.delete(f"/api/jobs/{job_id}")
    assert (reply.status_code, reply.content) == (204, b"")
    for url in ("", "/log", "/events", "/video", "/shots/s1/clip"):
        assert shop.client.get(f"/api/jobs/{job_id}{url}").status_code == 404, url
    assert shop.client.delete(f"/api/jobs/{job_id}").status_code == 404


def test_the_list_has_filters_and_pages(shop: Shop) -> None:
    ids = [shop.submit() for _ in range(3)]
    shop.client.post(f"/api/jobs/{ids[0]}/cancel")
    first = JobList.model_validate_json(shop.client.get("/api/jobs?limit=2").content)
    rest = JobList.model_validate_json(shop.client.get(f"/api/jobs?limit=2&cursor={first.next_cursor}").content)
    assert [job.id for job in first.jobs + rest.jobs] == ids[::-1]
    assert rest.next_cursor == ""
    listed = {job.id: job for job in first.jobs + rest.jobs}
    assert (listed[ids[0]].status, listed[ids[1]].shots, listed[ids[1]].stage) == (JobStatus.CANCELLED, 2, Stage.IMAGES)
    assert [job["id"] for job in shop.client.get("/api/jobs?status=cancelled").json()["jobs"]] == [ids[0]]
    assert shop.client.get("/api/jobs?kind=edit").json()["jobs"] == []


@pytest.mark.parametrize(("query", "parameter"), [
    ("limit=0", "limit"), ("limit=x", "limit"), ("status=done", "status"), ("kind=%00", "kind"),
])
def test_a_wrong_parameter_is_named(shop: Shop, query: str, parameter: str) -> None:
    reply = shop.client.get(f"/api/jobs?{query}")
    assert (reply.status_code, reply.json()["errors"][0]["parameter"]) == (422, parameter)


@pytest.mark.parametrize("cursor", ["x", "bm9uc2Vuc2U=", "WzEsICJcdTAwMDAiXQ=="], ids=["text", "no-json", "nul"])
def test_a_cursor_of_somebody_elses_is_refused(shop: Shop, cursor: str) -> None:
    assert shop.client.get("/api/jobs", params={"cursor": cursor}).status_code == 422


def test_the_log_is_read_on_from_an_offset_and_followed_to_the_end(shop: Shop) -> None:
    job_id = shop.film()
    page = LogReply.model_validate_json(shop.client.get(f"/api/jobs/{job_id}/log?limit=2").content)
    assert (page.offset, page.next_offset, len(page.lines)) == (0, 2, 2)
    assert page.lines[0].endswith("info job: queued, 4 nodes")
    followed = shop.client.get(f"/api/jobs/{job_id}/log?offset=2&follow=true")
    assert followed.headers["content-type"] == "text/plain; charset=utf-8"
    whole = LogReply.model_validate_json(shop.client.get(f"/api/jobs/{job_id}/log").content)
    assert tuple(followed.text.splitlines()) == whole.lines[2:]
    assert "job: succeeded" in followed.text


@pytest.mark.parametrize(("method", "path"), [
    ("GET", ""), ("GET", "/log"), ("GET", "/log?follow=1"), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"),
    ("DELETE", ""), ("GET", "/video"), ("GET", "/shots/s1/clip"),
])
@pytest.mark.parametrize("job_id", ["ghost", "%2e%2e%2f%2e%2e%2fetc", "a%0ab"], ids=["unknown", "path", "newline"])
def test_an_unknown_job_is_not_found(shop: Shop, method: str, path: str, job_id: str) -> None:
    reply = shop.client.request(method, f"/api/jobs/{job_id}{path}")
    assert reply.status_code == 404
    assert Problem.model_validate_json(reply.content).status == 404


class TestSystem:
    def test_models_are_listed_with_what_they_are_used_for(self, shop: Shop) -> None:
        models = ModelList.model_validate_json(shop.client.get("/api/models").content).models
        sketch = next(model for model in models if model.name == "sketch")
        assert set(sketch.used_for) == {"text_to_image", "text_to_video", "image_to_video"}
        assert sketch.vocabulary is not None
        assert next(model for model in models if model.name == "placeholder").used_for == ()

    def test_capacity_counts_slots_and_what_waits(self, shop: Shop) -> None:
        shop.submit()
        capacity = CapacityReply.model_validate_json(shop.client.get("/api/capacity").content)
        assert {lane.lane: (lane.slots, lane.waiting) for lane in capacity.lanes} == {"sketch": (4, 3), "cpu": (2, 1)}
        assert (capacity.jobs_queued, capacity.cluster, capacity.available["GPU"]) == (1, {"GPU": 2.0, "CPU": 8.0}, 0.5)

    def test_ready_means_that_every_part_is(self, shop: Shop) -> None:
        assert shop.client.get("/readyz").status_code == 200
        shop.cluster.states["model-sketch"] = "UPSCALING"  # its replicas come and go
        assert shop.client.get("/readyz").status_code == 200
        shop.cluster.states["model-sketch"] = "UPDATING"
        reply = shop.client.get("/readyz")
        assert (reply.status_code, ReadyReply.model_validate_json(reply.content).status) == (503, "starting")
        assert shop.client.get("/healthz").json() == {"status": "ok", "version": version("reelray")}


@pytest.mark.parametrize("force", [0, 1, "true", None])
def test_force_is_true_or_false_and_nothing_that_could_be_taken_for_it(shop: Shop, force: object) -> None:
    reply = shop.client.post(f"/api/jobs/{shop.submit()}/retry", json={"shots": ["s1"], "force": force})
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "#/force")
