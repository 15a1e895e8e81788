"""Jobs that stop after their pictures, over HTTP: what is made, told and listed, and what a change draws again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.http.edit_schemas import AnyJobReply
from serve_app.http.image_schemas import ImageList
from serve_app.http.schemas import PlanReply
from serve_app.submit import film_job
from tests.desk import Shop
from workflows.durable.rows import Limits
from workflows.media.decode import write_png
from workflows.types import JobStatus, Stage

BOARD = {"title": "Stills", "shots": [
    {"prompt": "a red circle moves left over a blue background"},
    {"prompt": "a yellow star falls down over a black background"},
    {"prompt": "a green square grows over a white background"}]}
URL = "/api/films?stages=story,images"


def drawn(shop: Shop, board: Any = None, url: str = URL) -> str:
    reply = shop.client.post(url, json=board or BOARD)
    assert reply.status_code == 202, reply.text
    job_id = str(reply.json()["id"])
    shop.render(job_id)
    return job_id


def events(shop: Shop, job_id: str) -> list[dict[str, Any]]:
    text = shop.client.get(f"/api/jobs/{job_id}/events").text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_every_shot_has_its_picture_and_there_is_no_film(shop: Shop) -> None:
    job_id = drawn(shop)
    job = AnyJobReply.model_validate(shop.status(job_id))
    assert (job.status, job.stage, job.progress, job.video) == (JobStatus.SUCCEEDED, "images", 1.0, None)
    assert [node.id for shot in job.shots for node in shot.nodes] == ["s1.keyframe", "s2.keyframe", "s3.keyframe"]
    for shot in job.shots:
        assert shot.files.clip is None
        assert shop.client.get(str(shot.files.keyframe)).headers["content-type"] == "image/png"
    assert shop.client.get(f"/api/jobs/{job_id}/video").status_code == 404


def test_the_stream_ends_with_what_was_generated(shop: Shop) -> None:
    shop.painter.failing = True
    job_id = drawn(shop)
    told = events(shop, job_id)
    images = [event for event in told if event["type"] == "image_generated"]
    assert {event["storyboard_id"] for event in images} == {"s1", "s3"}
    assert all(event["image"]["width"] == 192 for event in images)
    assert [event["storyboard_id"] for event in told if event["type"] == "error"] == ["s2"]
    done = told[-1]
    assert (done["type"], done["status"]) == ("done", "partial")
    assert (done["stage"]["stage_type"], done["stage"]["status"]) == ("images", "partial")
    assert sorted(done["data"].pop("generated_image_ids")) == sorted(event["image"]["id"] for event in images)
    assert done["data"] == {"total_storyboards": 3, "success_count": 2, "failed_count": 1}


def test_a_failed_picture_is_drawn_again_alone_and_all_failed_is_failed(shop: Shop) -> None:
    shop.painter.failing = True
    job_id = drawn(shop)
    shop.painter.failing = False
    assert shop.client.post(f"/api/jobs/{job_id}/retry").json()["nodes"] == ["s2.keyframe"]
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    shop.painter.failing = True
    alone = drawn(shop, {"shots": [{"prompt": "a yellow star falls down", "seed": 77}]})
    assert shop.ledger.job(alone).status is JobStatus.FAILED


def test_pictures_are_listed_with_what_they_were_made_from(shop: Shop) -> None:
    job_id = drawn(shop)
    first, second, _ = ImageList.model_validate_json(shop.client.get(f"/api/jobs/{job_id}/images").content).images
    assert (first.storyboard, first.status, first.model_provider, first.width, first.height) == (
        "s1", "completed", "sketch", 192, 128)
    assert first.generation_params["prompt"] == BOARD["shots"][0]["prompt"]  # type: ignore[index]
    assert first.generation_params["seed"] != second.generation_params["seed"]
    assert len(shop.client.get(str(first.image_url)).content) == first.file_size
    assert shop.client.get(str(first.thumbnail_url)).status_code == 200
    assert shop.client.get("/api/jobs/none/images").status_code == 404


def test_a_changed_prompt_and_a_forced_take_draw_that_picture_alone(shop: Shop) -> None:
    job_id = drawn(shop)
    before = shop.client.get(f"/api/jobs/{job_id}/images").json()["images"]
    changed = shop.client.patch(f"/api/films/{job_id}/shots/s1", json={"prompt": "a white circle moves left"})
    assert changed.json()["nodes"] == ["s1.keyframe"], changed.text
    shop.render(job_id)
    forced = shop.client.post(f"/api/jobs/{job_id}/retry", json={"shots": ["s3"], "force": True})
    assert forced.json()["nodes"] == ["s3.keyframe"], forced.text
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    after = shop.client.get(f"/api/jobs/{job_id}/images").json()["images"]
    assert [old["id"] == new["id"] for old, new in zip(before, after, strict=True)] == [False, True, False]
    assert before[2]["generation_params"]["seed"] != after[2]["generation_params"]["seed"]


def test_a_job_of_the_command_line_that_names_a_file_can_be_changed(shop: Shop, tmp_path: Path) -> None:
    write_png(np.zeros((128, 192, 3), np.uint8), tmp_path / "a.png")
    (tmp_path / "film.yaml").write_text("shots:\n- {prompt: a star, image: a.png}\n- prompt: a red circle moves left\n")
    job = film_job(tmp_path / "film.yaml", shop.settings, shop.store, last_stage=Stage.IMAGES)
    shop.ledger.submit(job.new)
    shop.render(job.new.id)
    changed = shop.client.patch(f"/api/films/{job.new.id}/shots/s2", json={"prompt": "a white circle moves left"})
    assert changed.json()["nodes"] == ["s2.keyframe"], changed.text


def test_a_film_made_later_draws_no_picture_again(shop: Shop) -> None:
    board = {**BOARD, "defaults": {"mode": "keyframe"}}
    drawn(shop, board)
    shop.painter.made.clear()
    shop.film(board)
    assert {name.rpartition(".")[2] for name in shop.painter.made} == {"clip", "compose"}


def test_equal_pictures_are_drawn_once(shop: Shop) -> None:
    shot = {"prompt": "a red circle moves left over a blue background", "seed": 5}
    job_id = drawn(shop, {"shots": [shot, shot, shot]})
    assert len([name for name in shop.painter.made if name.endswith(".keyframe")]) == 1
    images = shop.client.get(f"/api/jobs/{job_id}/images").json()["images"]
    assert len({image["id"] for image in images}) == 1
    drawn(shop, {"title": "another", "shots": [shot]})
    assert len(shop.painter.made) == 1


def test_a_script_may_stop_after_its_pictures(shop: Shop) -> None:
    job_id = drawn(shop, {"script": "A red circle moves left over a blue background."})
    assert shop.ledger.job(job_id).status is JobStatus.SUCCEEDED
    assert [node.id for node in shop.ledger.nodes(job_id)] == ["story", "s1.keyframe"]


def test_the_plan_says_what_would_be_drawn(shop: Shop) -> None:
    plan = PlanReply.model_validate(shop.client.post(f"{URL}&dry_run=true", json=BOARD).json())
    assert ([node.id for node in plan.nodes], plan.film.frames) == (["s1.keyframe", "s2.keyframe", "s3.keyframe"], 0)


@pytest.mark.parametrize(("ratio", "size"), [("1:1", (160, 160)), ("3:2", (192, 128)), ("2:3", (128, 192))])
def test_a_ratio_is_a_size_that_the_model_takes(shop: Shop, ratio: str, size: tuple[int, int]) -> None:
    plan = PlanReply.model_validate(shop.client.post(f"{URL}&dry_run=true", json={**BOARD, "ratio": ratio}).json())
    assert (plan.film.width_px, plan.film.height_px) == size


@pytest.mark.parametrize(("fields", "pointer", "nearest"), [
    ({"resolution": "4k"}, "#/resolution", "leave it out for 192x128"),
    ({"ratio": "16:9"}, "#/ratio", "1:1 or 4:3 or 3:4 or 3:2 or 2:3"),
    ({"ratio": "16:90"}, "#/ratio", "16:9"),
    ({"ratio": "1:1", "size": "192x128"}, "#/ratio", None),
])
def test_a_shape_that_cannot_be_is_refused(shop: Shop, fields: dict[str, str], pointer: str, nearest: str | None,
                                           ) -> None:
    reply = shop.client.post(URL, json={**BOARD, **fields})
    assert reply.status_code == 422
    (problem,) = reply.json()["errors"]
    assert (problem["pointer"], problem.get("nearest")) == (pointer, nearest)


@pytest.mark.parametrize("stages", ["", "videos", "images,story", "story,images,videos", "story,composition"])
def test_stages_with_a_hole_are_refused(shop: Shop, stages: str) -> None:
    reply = shop.client.post(f"/api/films?stages={stages}", json=BOARD)
    assert reply.status_code == 422, reply.text
    (problem,) = reply.json()["errors"]
    assert problem["parameter"] == "stages"
    assert problem["nearest"] == "story,images or story,images,videos,composition"


def test_limits_are_kept_with_the_job(shop: Shop) -> None:
    job_id = shop.client.post(f"{URL}&concurrency=2&timeout_s=60", json=BOARD).json()["id"]
    assert shop.ledger.job(job_id).limits == Limits(concurrency=2, attempt_timeout_s=60.0)
    assert shop.client.post(f"{URL}&concurrency=0", json=BOARD).status_code == 422
    assert shop.client.post(f"{URL}&timeout_s=0", json=BOARD).status_code == 422


def test_a_reply_is_not_replayed_for_other_limits(shop: Shop) -> None:
    key = {"Idempotency-Key": "once"}
    first = shop.client.post(URL, json=BOARD, headers=key)
    assert shop.client.post(URL, json=BOARD, headers=key).json()["id"] == first.json()["id"]
    assert shop.client.post(f"{URL}&concurrency=2", json=BOARD, headers=key).status_code == 422
