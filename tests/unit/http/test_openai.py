"""What clients of OpenAI's API see: models, videos as jobs, and errors in the envelope that they read."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sqlalchemy as sa
from openai import BadRequestError, OpenAI

from configs.model_card import Task
from serve_app.http.wishes import VIDEO_ADVICE
from serve_app.service.wishes import VideoWish
from tests.desk import Shop
from workflows.media.decode import first_frame, read_picture
from workflows.types import Artifact, Json, NodeKind

PROMPT = "a red circle moves left over a blue background"
PNG = bytes(cv2.imencode(".png", np.random.default_rng(5).integers(0, 255, (40, 64, 3), np.uint8))[1])
DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def make(shop: Shop, **fields: Any) -> dict[str, Any]:
    reply = shop.client.post("/v1/videos", json={"prompt": PROMPT, **fields})
    assert reply.status_code == 200, reply.text
    assert int(reply.headers["openai-poll-after-ms"]) > 0
    video: dict[str, Any] = reply.json()
    return video


def picture_of(shop: Shop, video_id: str) -> Json:
    """The picture that its clip starts from, as the plan has it."""
    return shop.ledger.nodes(video_id)[0].payload["image"]


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


@pytest.mark.parametrize("as_form", [False, True], ids=["json", "form"])
@pytest.mark.parametrize("extra", ["extra_body", "extra_params"])
def test_what_other_servers_call_it_means_the_same(shop: Shop, as_form: bool, extra: str) -> None:
    inner = {"num_inference_steps": 3, "guidance_scale": 2.5}
    fields: dict[str, Any] = {"prompt": PROMPT, "width": 160, "height": 128, "num_frames": 9, "fps": 8, "user": "me"}
    if as_form:
        parts = {**{name: str(value) for name, value in fields.items()}, extra: json.dumps(inner)}
        reply = shop.client.post("/v1/videos", files={name: (None, value) for name, value in parts.items()})
    else:
        reply = shop.client.post("/v1/videos", json={**fields, extra: inner})
    assert (reply.status_code, reply.json()["size"]) == (200, "160x128"), reply.text
    clip = shop.ledger.nodes(reply.json()["id"])[0].payload
    assert (clip["frames"], clip["steps"], clip["guidance"]) == (9, 3, 2.5)


@pytest.mark.parametrize(("fields", "param"), [
    ({"width": 48}, "size"), ({"width": 48, "height": 32, "size": "48x32"}, "size"),
    ({"width": "a", "height": "b"}, "size"), ({"extra_body": 3}, "extra_body"), ({"extra_params": "{"}, "extra_params"),
    ({"seed": 1, "extra_body": {"seed": 2}}, "seed"), ({"extra_body": {"extra_params": {}}}, "extra_params"),
    ({"fps": "nan"}, "fps"),
], ids=str)
def test_what_contradicts_itself_is_refused(shop: Shop, fields: dict[str, Any], param: str) -> None:
    reply = shop.client.post("/v1/videos", json={"prompt": PROMPT, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_every_field_that_others_have_is_refused_with_what_to_do_instead(shop: Shop) -> None:
    assert not set(VIDEO_ADVICE) & set(VideoWish.model_fields), "what is taken needs no advice"
    for field, advice in VIDEO_ADVICE.items():
        error = shop.client.post("/v1/videos", json={"prompt": PROMPT, field: 1}).json()["error"]
        assert (error["param"], error["code"]) == (field, "unsupported_parameter")
        assert error["message"] == f"{field} is not supported here: {advice}"


def test_the_documents_name_every_field() -> None:
    text = Path("docs/openai.md").read_text(encoding="utf-8")
    assert [name for name in {**VideoWish.model_fields, **VIDEO_ADVICE} if f"`{name}`" not in text] == []


def test_a_field_that_nobody_has_gets_the_nearest_name(shop: Shop) -> None:
    error = shop.client.post("/v1/videos", json={"prompt": PROMPT, "negativ_promt": "x"}).json()["error"]
    assert error["message"].endswith("nearest valid: negative_prompt")


def test_of_several_wrong_fields_each_has_its_own_text_and_code(shop: Shop) -> None:
    error = shop.client.post("/v1/videos", json={"prompt": PROMPT, "seconds": "long", "lora": "x", "sed": 1}).json()[
        "error"]
    assert [(one["param"], one["code"]) for one in error["errors"]] == [
        ("seconds", "invalid_value"), ("lora", "unsupported_parameter"), ("sed", "unsupported_parameter")]
    assert all(one["message"].startswith(one["param"]) for one in error["errors"])
    assert (error["param"], error["code"]) == ("seconds", "invalid_value")
    assert error["message"].endswith("(and 2 more, see errors)")


def test_a_remix_has_everything_but_the_prompt(shop: Shop) -> None:
    first = make(shop, seed=7, size="160x128", num_frames=9, num_inference_steps=3)
    reply = shop.client.post(f"/v1/videos/{first['id']}/remix", json={"prompt": "a green star"})
    remix = reply.json()
    assert (reply.status_code, remix["status"], remix["remixed_from_video_id"]) == (200, "queued", first["id"]), remix
    assert (remix["prompt"], remix["size"], remix["seconds"]) == ("a green star", "160x128", first["seconds"])
    old, new = (shop.ledger.nodes(video["id"])[0].payload for video in (first, remix))
    assert {**old, "prompt": ""} == {**new, "prompt": ""}
    assert first["remixed_from_video_id"] is None
    again = shop.client.post(f"/v1/videos/{remix['id']}/remix", json={"prompt": "a red star"}).json()
    assert again["remixed_from_video_id"] == remix["id"]


@pytest.mark.parametrize("way", ["file", "data url", "uploaded", "extra_body"])
def test_a_picture_is_the_first_frame_and_stays_in_a_remix(shop: Shop, way: str) -> None:
    if way == "file":
        files = {"prompt": (None, PROMPT), "input_reference": ("a.png", PNG, "image/png")}
        reply = shop.client.post("/v1/videos", files=files)
    else:
        uploaded = shop.client.post("/api/pictures", content=PNG, headers={"Content-Type": "image/png"}).json()["id"]
        fields = {"input_reference": {"file_id": uploaded} if way == "uploaded" else {"image_url": DATA_URL}}
        reply = shop.client.post("/v1/videos", json={
            "prompt": PROMPT, **({"extra_body": fields} if way == "extra_body" else fields)})
    assert reply.status_code == 200, reply.text
    clip = shop.ledger.nodes(reply.json()["id"])[0]
    assert shop.store.fetch(Artifact.from_json(picture_of(shop, reply.json()["id"]))).read_bytes() == PNG
    assert (clip.kind, clip.lane) == (NodeKind.CLIP, shop.desk.cast[Task.IMAGE_TO_VIDEO].name)
    remix = shop.client.post(f"/v1/videos/{reply.json()['id']}/remix", json={"prompt": "a green star"}).json()
    assert picture_of(shop, remix["id"]) == picture_of(shop, reply.json()["id"])
    assert remix["model"] == shop.desk.cast[Task.IMAGE_TO_VIDEO].name


@pytest.mark.parametrize(("reference", "says"), [
    ({"image_url": "https://example.com/a.png"}, "the server fetches nothing"), ({"image_url": "a"}, "fetches nothing"),
    ({"image_url": "data:image/png,abc"}, "base64"), ({"image_url": "data:image/png;base64,a"}, "base64"),
    ({"image_url": "data:image/png;base64,R0lGODlh"}, "PNG or JPEG"), ({"file_id": "0" * 64}, "picture"),
    ({"file_id": "../../etc/passwd"}, "picture"), ({}, "one of the two"), ("a.png", "valid"),
    ({"image_url": "data:,", "file_id": "x"}, "one of the two"), ({"path": "x"}, "path"),
], ids=str)
def test_a_picture_that_is_none_is_refused(shop: Shop, reference: Any, says: str) -> None:
    reply = shop.client.post("/v1/videos", json={"prompt": PROMPT, "input_reference": reference})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"].partition(".")[0]) == (400, "input_reference"), error
    assert says in error["message"]
    assert shop.ledger.jobs().jobs == ()


def test_files_elsewhere_and_a_picture_twice_are_refused(shop: Shop) -> None:
    for files, param in [({"mask": ("a.png", PNG)}, "mask"),
                         ({"input_reference": ("a.png", PNG), "input_reference[image_url]": (None, DATA_URL)},
                          "input_reference")]:
        reply = shop.client.post("/v1/videos", files={"prompt": (None, PROMPT), **files})  # type: ignore[dict-item]
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    reply = shop.client.post("/v1/videos", files={
        "prompt": (None, PROMPT), "user[a]": (None, "x"), "user": (None, "y")})
    assert reply.status_code == 400


@pytest.mark.parametrize(("body", "param"), [({"prompt": ""}, "prompt"), ({}, "prompt"),
                                             ({"prompt": "x", "seed": 3}, "seed"), ({"prompt": "x", "n": 2}, "n")])
def test_a_remix_changes_the_prompt_and_nothing_else(shop: Shop, body: dict[str, Any], param: str) -> None:
    reply = shop.client.post(f"/v1/videos/{make(shop)['id']}/remix", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert shop.client.post("/v1/videos/none/remix", json={"prompt": "x"}).status_code == 404
    assert shop.client.post(f"/v1/videos/{shop.submit()}/remix", json={"prompt": "x"}).status_code == 404


def test_a_cancelled_video_is_failed_and_says_so_and_can_be_forgotten(shop: Shop) -> None:
    video = make(shop)
    assert shop.client.delete(f"/v1/videos/{video['id']}").status_code == 409
    reply = shop.client.post(f"/v1/videos/{video['id']}/cancel")
    cancelled = reply.json()
    assert (reply.status_code, cancelled["status"], cancelled["error"]["code"]) == (200, "failed", "cancelled")
    assert "openai-poll-after-ms" not in reply.headers
    assert (cancelled["progress"], cancelled["completed_at"]) == (99, None)
    assert ("cancelled", video["id"]) in shop.hints.told
    assert shop.client.post(f"/v1/videos/{video['id']}/cancel").json() == cancelled
    content = shop.client.get(f"/v1/videos/{video['id']}/content")
    assert (content.status_code, "is cancelled" in content.json()["error"]["message"]) == (404, True)
    assert shop.client.post(f"/v1/videos/{shop.submit()}/cancel").status_code == 404
    assert shop.client.delete(f"/v1/videos/{video['id']}").status_code == 200


def test_a_spritesheet_is_made_once_from_the_videos_frames(shop: Shop, tmp_path: Path) -> None:
    video = make(shop)
    url = f"/v1/videos/{video['id']}/content"
    assert shop.client.get(f"{url}?variant=spritesheet").status_code == 404
    shop.render(video["id"])
    reply = shop.client.get(f"{url}?variant=spritesheet")
    assert reply.headers["content-type"] == "image/jpeg"
    (tmp_path / "sheet.jpg").write_bytes(reply.content)
    (tmp_path / "film.mp4").write_bytes(shop.client.get(url).content)
    sheet_HWC, frame_HWC = read_picture(tmp_path / "sheet.jpg"), first_frame(tmp_path / "film.mp4")
    height_px, width_px = frame_HWC.shape[:2]
    assert sheet_HWC.shape == (4 * height_px, 4 * width_px, 3)
    # The painter's film has four frames of one colour: the first row is full, the rest is black.
    assert abs(sheet_HWC[:height_px - 8, :4 * width_px].mean((0, 1)) - frame_HWC.mean((0, 1))).max() < 6
    assert sheet_HWC[height_px + 8:].max() < 20
    again = shop.client.get(f"{url}?variant=spritesheet")
    assert (again.headers["etag"], again.content) == (reply.headers["etag"], reply.content)


@contextmanager
def counted_queries(shop: Shop) -> Iterator[list[str]]:
    """The statements that the database was sent meanwhile."""
    heard: list[str] = []

    def hear(_: object, __: object, statement: str, *___: object) -> None:
        heard.append(statement)

    engine = shop.ledger.database._engine
    sa.event.listen(engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        sa.event.remove(engine, "before_cursor_execute", hear)


@pytest.mark.parametrize("videos", [1, 12])
def test_a_list_costs_two_queries_however_long_it_is(shop: Shop, videos: int) -> None:
    made = [make(shop)["id"] for _ in range(videos)]
    with counted_queries(shop) as heard:
        listed = shop.client.get("/v1/videos?order=asc").json()
    assert [video["id"] for video in listed["data"]] == made
    assert len([text for text in heard if text.lstrip().upper().startswith("SELECT")]) == 2, heard


def test_a_list_says_what_each_video_says(shop: Shop) -> None:
    shop.painter.failing = True
    for prompt in (PROMPT, "a yellow star falls down over a black background"):
        shop.render(make(shop, prompt=prompt)["id"])
    make(shop)
    listed = shop.client.get("/v1/videos").json()
    assert [video["status"] for video in listed["data"]] == ["queued", "failed", "completed"]
    assert listed["data"] == [shop.client.get(f"/v1/videos/{video['id']}").json() for video in listed["data"]]
    assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][2]["id"])
    assert not listed["has_more"]


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
    third = client.videos.remix(first.id, prompt="a green star")
    assert third.remixed_from_video_id == first.id
    made = [first.id, second.id, third.id]
    assert [video.id for video in client.videos.list(limit=1)] == made[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == made
    shop.render(first.id)
    shop.desk.views.forget(first.id)
    assert client.videos.poll(first.id).status == "completed"
    assert client.videos.download_content(first.id).read()[4:8] == b"ftyp"
    assert client.videos.download_content(first.id, variant="thumbnail").read().startswith(b"\x89PNG")
    assert client.videos.download_content(first.id, variant="spritesheet").read().startswith(b"\xff\xd8\xff")
    assert client.videos.delete(first.id).deleted
    with pytest.raises(BadRequestError) as refused:
        client.videos.create(prompt=PROMPT, input_reference=("a.png", b"x", "image/png"))
    assert refused.value.param == "input_reference"
    uploaded = client.videos.create(prompt=PROMPT, input_reference=("a.png", PNG, "image/png"))
    sent = client.videos.create(prompt=PROMPT, extra_body={"input_reference": {"image_url": DATA_URL}})
    assert picture_of(shop, uploaded.id) == picture_of(shop, sent.id)


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
