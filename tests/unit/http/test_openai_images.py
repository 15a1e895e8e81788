"""Pictures for clients of OpenAI's API: one request, a durable job behind it."""

from __future__ import annotations

import asyncio
import base64
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, InternalServerError, OpenAI
from starlette.types import Message

from serve_app.http.api import build_api
from serve_app.http.wishes import IMAGE_ADVICE
from serve_app.service.wishes import ImageWish
from tests.desk import Shop, open_shop
from workflows.durable.keys import Keys, Role
from workflows.media.decode import read_picture
from workflows.types import JobStatus

PROMPT = "a red circle over a blue background"
URL = "/v1/images/generations"


@contextmanager
def rendering(shop: Shop) -> Iterator[None]:
    """An engine that renders whatever is asked for meanwhile."""
    stop = threading.Event()

    def render_what_comes() -> None:
        while not stop.is_set():
            for job in shop.ledger.jobs(JobStatus.QUEUED).jobs:
                shop.render(job.id)
                shop.desk.hub.nudge()
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(render_what_comes)
        try:
            yield
        finally:
            stop.set()
            done.result()


def make(shop: Shop, **fields: Any) -> dict[str, Any]:
    with rendering(shop):
        reply = shop.client.post(URL, json={"prompt": PROMPT, **fields})
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made


def sdk(shop: Shop) -> OpenAI:
    return OpenAI(api_key="none", base_url="http://127.0.0.1:8000/v1", http_client=shop.client, max_retries=0)


def test_the_sdk_gets_pictures_by_address_and_in_the_reply(shop: Shop, tmp_path: Path) -> None:
    with rendering(shop):
        by_url = sdk(shop).images.generate(prompt=PROMPT, n=2, size="auto")
        inline = sdk(shop).images.generate(prompt=PROMPT, n=2, response_format="b64_json")
    assert by_url.created > 0
    assert by_url.data
    assert inline.data
    fetched = [shop.client.get(str(image.url)) for image in by_url.data]
    assert [reply.headers["content-type"] for reply in fetched] == ["image/png"] * 2
    # No seed: the same request is the same pictures, and those of one request differ.
    assert [base64.b64decode(str(image.b64_json)) for image in inline.data] == [reply.content for reply in fetched]
    assert fetched[0].content != fetched[1].content
    (tmp_path / "a.png").write_bytes(fetched[0].content)
    assert read_picture(tmp_path / "a.png").shape == (32, 48, 3)
    assert shop.client.get(str(by_url.data[0].url).replace("index=0", "index=2")).status_code == 404


def test_each_picture_has_the_next_seed_and_the_steps_that_were_asked_for(shop: Shop) -> None:
    made = make(shop, n=3, seed=7, num_inference_steps=3, guidance_scale=1.5, size="160x128", negative_prompt="text",
                user="me", quality="standard")
    nodes = shop.ledger.nodes(made["id"])
    assert [node.payload["seed"] for node in nodes] == [7, 8, 9]
    assert {(node.payload["steps"], node.payload["guidance"], node.payload["negative_prompt"]) for node in nodes} == {
        (3, 1.5, "text")}
    assert (made["size"], made["model"], made["output_format"], len(made["data"])) == ("160x128", "sketch", "png", 3)
    assert sorted(shop.painter.made) == ["s1.keyframe", "s2.keyframe", "s3.keyframe"], "nothing else was rendered"
    job = shop.status(made["id"])
    assert (job["kind"], job["status"]) == ("image", "succeeded")


def test_a_jpeg_is_as_small_as_it_is_asked_to_be(shop: Shop) -> None:
    sizes = []
    for quality in (100, 10):
        made = make(shop, output_format="jpeg", output_compression=quality, response_format="b64_json")
        data = base64.b64decode(made["data"][0]["b64_json"])
        assert data.startswith(b"\xff\xd8\xff")
        reply = shop.client.get(f"/v1/images/{made['id']}/content")
        assert (reply.headers["content-type"], reply.content) == ("image/jpeg", data)
        sizes.append(len(data))
    assert sizes[0] > sizes[1]


def test_what_is_wrong_with_every_picture_is_said_once(shop: Shop) -> None:
    error = shop.client.post(URL, json={"prompt": PROMPT, "n": 3, "num_inference_steps": 0}).json()["error"]
    assert "errors" not in error


@pytest.mark.parametrize(("fields", "param"), [
    ({"prompt": ""}, "prompt"), ({"n": 0}, "n"), ({"n": 11}, "n"), ({"size": "97x65"}, "size"),
    ({"size": "big"}, "size"), ({"model": "dall-e-3"}, "model"), ({"output_format": "webp"}, "output_format"),
    ({"quality": "hd"}, "quality"), ({"response_format": "file"}, "response_format"),
    ({"output_compression": 50}, "output_compression"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression"), ({"seed": -1}, "seed"),
    ({"num_inference_steps": 0}, "num_inference_steps"), ({"stlye": "x"}, "stlye"),
], ids=str)
def test_what_cannot_be_done_is_refused_by_name(shop: Shop, fields: dict[str, Any], param: str) -> None:
    reply = shop.client.post(URL, json={"prompt": PROMPT, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert shop.ledger.jobs().jobs == ()


def test_every_field_that_others_have_is_refused_with_what_to_do_instead_and_documented(shop: Shop) -> None:
    assert not set(IMAGE_ADVICE) & set(ImageWish.model_fields)
    text = Path("docs/openai.md").read_text(encoding="utf-8")
    assert [name for name in {**ImageWish.model_fields, **IMAGE_ADVICE} if f"`{name}`" not in text] == []
    for field, advice in IMAGE_ADVICE.items():
        with pytest.raises(BadRequestError) as refused:
            sdk(shop).images.generate(prompt=PROMPT, extra_body={field: "x"})
        assert refused.value.param == field
        assert advice in str(refused.value)


def test_pictures_that_fail_say_why_and_need_not_be_asked_for_again(shop: Shop) -> None:
    shop.painter.failing = True
    with rendering(shop), pytest.raises(InternalServerError) as failed:
        sdk(shop).images.generate(prompt="a yellow star")
    assert "it burned" in str(failed.value)
    assert failed.value.code == "generation_failed"
    assert failed.value.response.headers["x-should-retry"] == "false"


def test_pictures_that_somebody_cancels_say_so(shop: Shop) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(shop.client.post, URL, json={"prompt": PROMPT})
        while not (jobs := shop.ledger.jobs().jobs):
            time.sleep(0.02)
        assert shop.client.post(f"/api/jobs/{jobs[0].id}/cancel").status_code == 200
        reply = asking.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "cancelled")
    assert shop.client.get(f"/v1/images/{jobs[0].id}/content").status_code == 404


def test_who_waited_long_enough_is_told_where_the_pictures_will_be(tmp_path: Path, migrated_file: Path) -> None:
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.wait_s=0.2")
    with shop.client as client:
        reply = client.post(URL, json={"prompt": PROMPT})
        job = shop.ledger.jobs().jobs[0]
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["type"]) == (504, "timeout", "server_error")
        assert reply.headers["x-should-retry"] == "false"
        assert f"/v1/images/{job.id}/content" in error["message"]
        assert not job.cancel_requested
        shop.render(job.id)
        assert client.get(f"/v1/images/{job.id}/content").content.startswith(b"\x89PNG")
    shop.ledger.close()


@pytest.mark.parametrize("way", ["a message", "a cancelled task"])
async def test_who_hangs_up_cancels_what_nobody_could_find(closed_shop: Shop, way: str) -> None:
    shop, gone = closed_shop, asyncio.Event()
    sent: list[Message] = []
    body = iter([{"type": "http.request", "body": b'{"prompt": "a red circle"}'}])

    async def receive() -> Message:
        for message in body:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "root_path": "",
             "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")], "http_version": "1.1",
             "scheme": "http", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1)}
    asking = asyncio.create_task(build_api(shop.desk)(scope, receive, send))
    while not (jobs := shop.ledger.jobs().jobs):
        assert not asking.done(), (asking.exception(), sent)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    if way == "a message":
        gone.set()
        await asyncio.wait_for(asking, 5)
    else:
        asking.cancel()
        await asyncio.wait([asking], timeout=5)
    assert shop.ledger.job(jobs[0].id).status is JobStatus.CANCELLED
    await shop.desk.close()


def test_pictures_of_others_are_not_shown(tmp_path: Path, migrated_file: Path) -> None:
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.require_keys=true")
    book = Keys(shop.ledger.database)
    keys = {name: {"Authorization": f"Bearer {book.create(name, role).token}"} for name, role in
            {"mine": Role.USER, "other": Role.USER, "read": Role.READ}.items()}
    with shop.client as client, rendering(shop):
        made = client.post(URL, json={"prompt": PROMPT}, headers=keys["mine"]).json()
        url = made["data"][0]["url"]
        looks = [client.get(url, headers=headers).status_code for headers in (*keys.values(), {})]
        assert looks == [200, 404, 200, 401]
        assert client.post(URL, json={"prompt": PROMPT}, headers=keys["read"]).status_code == 403
        assert client.post(URL, json={"prompt": PROMPT}).status_code == 401
    assert len(shop.ledger.jobs().jobs) == 1
    shop.ledger.close()


def test_a_film_is_no_picture(shop: Shop) -> None:
    film = shop.film()
    assert shop.client.get(f"/v1/images/{film}/content").status_code == 404
