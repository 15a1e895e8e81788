"""What clients of OpenAI's API see: models, videos as jobs, and errors in the envelope that they read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.desk import Shop

PROMPT = "a red circle moves left over a blue background"


def make(shop: Shop, **fields: Any) -> dict[str, Any]:
    reply = shop.client.post("/v1/videos", json={"prompt": PROMPT, **fields})
    assert reply.status_code == 200, reply.text
    assert int(reply.headers["openai-poll-after-ms"]) > 0
    video: dict[str, Any] = reply.json()
    return video


def test_models_are_listed_and_one_is_shown(shop: Shop) -> None:
    listed = shop.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} == set(shop.desk.cards)
    assert shop.client.get("/v1/models/sketch").json() in listed["data"]


def test_a_video_is_queued_made_downloaded_and_forgotten(shop: Shop) -> None:
    video = make(shop, seed=7)
    assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
    assert (video["prompt"], video["model"], video["error"]) == (PROMPT, "sketch", None)
    early = shop.client.get(f"/v1/videos/{video['id']}/content")
    assert (early.status_code, early.json()["error"]["type"]) == (404, "invalid_request_error")
    shop.render(video["id"])
    shop.desk.views.forget(video["id"])
    reply = shop.client.get(f"/v1/videos/{video['id']}")
    assert "openai-poll-after-ms" not in reply.headers
    assert (reply.json()["status"], reply.json()["progress"]) == ("completed", 100)
    assert reply.json()["completed_at"] >= reply.json()["created_at"]
    content = shop.client.get(f"/v1/videos/{video['id']}/content")
    assert (content.headers["content-type"], content.content[4:8]) == ("video/mp4", b"ftyp")
    small = shop.client.get(f"/v1/videos/{video['id']}/content?variant=thumbnail")
    assert small.headers["content-type"] == "image/png"
    assert shop.client.delete(f"/v1/videos/{video['id']}").json() == {
        "id": video["id"], "object": "video.deleted", "deleted": True}
    assert shop.client.get(f"/v1/videos/{video['id']}").status_code == 404


def test_a_video_that_fails_says_why(shop: Shop) -> None:
    shop.painter.failing = True
    video = make(shop, prompt="a yellow star falls down over a black background")
    shop.render(video["id"])
    shop.desk.views.forget(video["id"])
    shown = shop.client.get(f"/v1/videos/{video['id']}").json()
    assert (shown["status"], shown["completed_at"]) == ("failed", None)
    assert "it burned" in shown["error"]["message"]


@pytest.mark.parametrize(("fields", "param"), [
    ({"size": "97x65"}, "size"), ({"num_frames": 2}, "num_frames"), ({"seconds": "999"}, "seconds"),
    ({"seconds": "long"}, "seconds"), ({"model": "sora-2"}, "model"), ({"flow_shift": 3}, "flow_shift"),
    ({"prompt": ""}, "prompt"),
], ids=str)
def test_what_cannot_be_done_is_refused_by_name(shop: Shop, fields: dict[str, Any], param: str) -> None:
    reply = shop.client.post("/v1/videos", json={"prompt": PROMPT, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    if param in ("size", "num_frames", "model") or fields == {"seconds": "999"}:
        assert "nearest valid: " in error["message"]


def test_every_error_below_v1_has_the_envelope_and_no_other_has(shop: Shop) -> None:
    film = shop.submit()
    for path in ("/v1/nothing", "/v1/models/none", f"/v1/videos/{film}", "/v1/videos/x/content?variant=gif"):
        reply = shop.client.get(path)
        assert 400 <= reply.status_code < 500, path
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}, path
    assert shop.client.get("/api/nothing").headers["content-type"] == "application/problem+json"


# OpenAI's own service for videos ends; its API lives on in the SDK and in servers like this one.
@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_sdk_makes_lists_and_downloads(shop: Shop) -> None:
    client = OpenAI(api_key="none", base_url="http://127.0.0.1:8000/v1", http_client=shop.client, max_retries=0)
    assert {model.id for model in client.models.list()} == set(shop.desk.cards)
    first, second = client.videos.create(prompt=PROMPT), client.videos.create(prompt=PROMPT)
    assert [video.id for video in client.videos.list(limit=1)] == [second.id, first.id]
    shop.render(first.id)
    shop.desk.views.forget(first.id)
    assert client.videos.poll(first.id).status == "completed"
    assert client.videos.download_content(first.id).read()[4:8] == b"ftyp"
    with pytest.raises(BadRequestError) as refused:
        client.videos.create(prompt=PROMPT, input_reference=("a.png", b"x", "image/png"))
    assert refused.value.param == "input_reference"


@pytest.mark.parametrize("body", [b"", b"--x\r\n", b"--x\r\nnonsense", b"--x--\r\n"], ids=repr)
def test_a_form_that_cannot_be_read_is_refused(shop: Shop, body: bytes) -> None:
    reply = shop.client.post("/v1/videos", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_sdk_waits_for_its_video(shop: Shop) -> None:
    def render_what_comes() -> None:
        while not (jobs := shop.ledger.jobs().jobs):
            time.sleep(0.02)
        shop.render(jobs[0].id)

    client = OpenAI(api_key="none", base_url="http://127.0.0.1:8000/v1", http_client=shop.client, max_retries=0)
    with ThreadPoolExecutor(1) as pool:
        rendering = pool.submit(render_what_comes)
        video = client.videos.create_and_poll(prompt=PROMPT)
        rendering.result()
    assert (video.status, video.progress) == ("completed", 100)
