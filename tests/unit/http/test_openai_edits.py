"""Edits for clients of OpenAI's API: the unmodified SDK edits a file, and what was made; every wrong field is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types import Video

from serve_app.http.wishes import EDIT_ADVICE
from serve_app.service.video_edits import VideoEditWish
from tests.desk import Shop
from tests.edit_clips import red_ball, write_source
from tests.unit.http.test_edits import FRAMES, run
from workflows.edit import EditRequest
from workflows.media.probe import probe

FOUND = {"mask_prompt": "red ball", "edit_size": 64, "chunk_frames": 16}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_source(red_ball(FRAMES).frames_THWC, tmp_path_factory.mktemp("clips") / "ball.mp4").read_bytes()


def error_of(shop: Shop, status: int = 400, **fields: Any) -> dict[str, Any]:
    """What is said of this JSON."""
    reply = shop.client.post("/v1/videos/edits", json=fields)
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_the_sdk_edits_a_file_then_its_result_and_downloads_both(shop: Shop, clip: bytes, tmp_path: Path) -> None:
    client = OpenAI(api_key="none", base_url="http://127.0.0.1:8000/v1", http_client=shop.client, max_retries=0)
    first = client.videos.edit(prompt="make it green", video=("ball.mp4", clip, "video/mp4"), extra_body=FOUND)
    assert (first.status, first.model, first.size, first.prompt) == ("queued", "classical", "192x128", "make it green")
    assert float(first.seconds) == pytest.approx(FRAMES / 24, abs=1e-3)
    run(shop, first.id)
    shop.desk.views.forget(first.id)
    done = client.videos.poll(first.id)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    (tmp_path / "first.mp4").write_bytes(client.videos.download_content(first.id).read())
    assert probe(tmp_path / "first.mp4").frames == FRAMES
    assert client.videos.download_content(first.id, variant="thumbnail").read().startswith(b"\x89PNG")
    assert client.videos.download_content(first.id, variant="spritesheet").read()[:2] == b"\xff\xd8"

    # `edit(video={"id": ...})` is in the SDK's types, and refused by its own check for files before anything is sent.
    second = client.post("/videos/edits", cast_to=Video, body={
        **FOUND, "prompt": "make it blue", "video": {"id": first.id}, "mask_prompt": "green ball"})
    third = client.videos.remix(first.id, prompt="make it darker")
    assert third.remixed_from_video_id == first.id
    asked: Any = shop.status(third.id)["edit"]
    assert (asked["request"]["mask_prompt"], asked["request"]["edit_prompt"]) == ("red ball", "make it darker")
    assert [video.id for video in client.videos.list()] == [third.id, second.id, first.id]
    assert shop.client.get(f"/api/jobs/{second.id}/source").content == (tmp_path / "first.mp4").read_bytes()
    assert shop.client.post(f"/v1/videos/{third.id}/cancel").json()["error"]["code"] == "cancelled"
    assert client.videos.delete(third.id).deleted
    with pytest.raises(BadRequestError, match="mask_prompt") as raised:
        client.videos.edit(prompt="make it green", video=clip)
    assert raised.value.param == "mask_prompt"


def test_json_names_uploads_and_everything_an_edit_takes_may_be_said(shop: Shop, clip: bytes) -> None:
    upload = shop.client.post("/api/uploads", content=clip, headers={"Content-Type": "video/mp4"}).json()
    said = {"seed": 3, "num_inference_steps": 7, "guidance_scale": 2, "keep_audio": False, "start_s": 0.25,
            "points": [{"x": 20, "y": 60}], "user": "me"}
    reply = shop.client.post("/v1/videos/edits", json={
        "prompt": "make it green", "video": {"file_id": upload["id"]}, "extra_body": said})
    assert reply.status_code == 200, reply.text
    request: Any = shop.status(reply.json()["id"])["edit"]
    asked = request["request"]
    assert (asked["seed"], asked["steps"], asked["guidance_scale"], asked["keep_audio"]) == (3, 7, 2.0, False)
    assert asked["points"][0]["x"] == 20
    form = shop.client.post("/v1/videos/edits", data={
        "prompt": "make it green", "points": json.dumps(said["points"]), "keep_audio": "false", "seed": "3"},
        files={"video": ("a.mp4", clip)})
    assert form.status_code == 200, form.text
    taken = {name for name in EditRequest.model_fields if name not in ("job_id", "output_dir", "extra")}
    theirs = {"edit_prompt": "prompt", "input_video_path": "video", "editor": "model", "steps": "num_inference_steps"}
    assert {theirs.get(name, name) for name in taken} | {"user"} == set(VideoEditWish.model_fields)


def test_what_cannot_be_done_is_refused_by_the_name_that_was_sent(shop: Shop, clip: bytes) -> None:
    upload = shop.client.post("/api/uploads", content=clip, headers={"Content-Type": "video/mp4"}).json()
    video = {"file_id": upload["id"]}
    good = {"prompt": "make it green", "video": video, "mask_prompt": "red ball"}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"prompt": "a hat"}, "prompt", ""), ({"num_inference_steps": 900}, "num_inference_steps", "200"),
        ({"model": "sora-2"}, "model", "classical"), ({"video": {"id": "none"}}, "video", ""),
        ({"video": {"id": "a", "file_id": "b"}}, "video", "one of the two"), ({"video": None}, "video", '{"id"'),
        ({"video": {"file_id": "../etc"}}, "video", ""), ({"mask_prompt": "hair"}, "mask_prompt", ""),
        ({"points": "[{"}, "points", ""), ({"start_s": 99}, "start_s", "")]
    for changes, param, told in cases:
        error = error_of(shop, **{**good, **changes})
        assert error["param"] == param, (changes, error)
        assert told in error["message"], (changes, error)
    assert not set(EDIT_ADVICE) & set(VideoEditWish.model_fields), "what is taken needs no advice"
    for field, advice in EDIT_ADVICE.items():
        error = error_of(shop, **{**good, field: 1})
        assert (error["param"], error["code"]) == (field, "unsupported_parameter")
        assert error["message"] == f"{field} is not supported here: {advice}"
    twice = shop.client.post("/v1/videos/edits", files={"video": ("a.mp4", clip), "prompt": (None, "make it green"),
                                                        "video[id]": (None, "x")})
    assert (twice.status_code, twice.json()["error"]["param"]) == (400, "video")
    none = shop.client.post("/v1/videos/edits", files={"video": ("a.mp4", b"text"), "prompt": (None, "make it green")})
    assert (none.status_code, none.json()["error"]["param"]) == (400, "video")
    assert shop.client.get("/api/jobs").json()["jobs"] == []


def test_the_documents_name_every_field() -> None:
    text = Path("docs/openai.md").read_text(encoding="utf-8")
    assert [name for name in {**VideoEditWish.model_fields, **EDIT_ADVICE} if f"`{name}`" not in text] == []
