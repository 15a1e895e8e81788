"""Somebody else's model behind the port of ours, over real HTTP: pictures, videos, and every way in which it fails."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from configs.model_card import CallDefaults, FrameRule, ModelCard, Resources, SizeRule, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models.replica import ModelReplica
from tests.fakes_models import RememberingSink, render_call
from tests.provider import KEY, Provider, hang, provider, refused
from workflows.errors import (
    DeadlineExceeded,
    InvalidDocument,
    ModelFailed,
    RenderCancelled,
    RenderRefused,
    Retry,
    StageFailed,
)
from workflows.media.decode import read_frames, read_picture
from workflows.media.encode import EncodeOptions, encode
from workflows.store import Store
from workflows.types import Json, NodeResult, Phase

IMAGES = "/images/generations"


@pytest.fixture
def server() -> Iterator[Provider]:
    with provider() as made:
        yield made


def card_of(server: Provider, **remote: Json) -> ModelCard:
    return ModelCard.model_validate({
        "name": "far", "title": "far away", "loader": "remote",
        "remote": {"api_url": server.url, "model_name": "painter-1", "timeout_s": 2.0, "poll_s": 0.05, **remote},
        "pipelines": {Task.TEXT_TO_IMAGE: "images", Task.TEXT_TO_VIDEO: "videos"},
        "defaults": CallDefaults(steps=1, guidance=0, width_px=64, height_px=32, frames=9, fps=8),
        "size": SizeRule(multiple_px=16, min_px=16, max_px=2048),
        "frames": FrameRule(step=4, offset=1, min_frames=5, max_frames=33),
        "resources": Resources(num_gpus=0, num_cpus=0.1)})


class Bench:
    """A replica of a remote card, and what a test needs to look at it."""

    def __init__(self, card: ModelCard, directory: Path) -> None:
        self.card = card
        self.sink = RememberingSink()
        self.store = Store(str(directory / "store"))
        self.replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(preset="ultrafast"),
                                    self.store, self.sink, assigned_gpus=0)

    async def image(self, key: str = "1" * 32, **changes: object) -> NodeResult:
        fields = {"node_id": "s1.keyframe", "frames": 1, "steps": 1, "guidance": 0.0, **changes}
        return await self.replica.image(render_call(self.card, key=key, **fields))  # type: ignore[arg-type]

    async def clip(self, key: str = "2" * 32, **changes: object) -> NodeResult:
        fields = {"frames": 9, "steps": 1, "guidance": 0.0, **changes}
        return await self.replica.clip(render_call(self.card, key=key, **fields))  # type: ignore[arg-type]


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench_of(server: Provider, tmp_path: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(**remote: Json) -> Bench:
        made.append(Bench(card_of(server, **remote), tmp_path))
        return made[-1]

    yield make
    for bench in made:
        bench.replica.close()


def png(width_px: int = 64, height_px: int = 32, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width_px, height_px), colour).save(file, "PNG")
    return file.getvalue()


def drawn(data: bytes) -> Response:
    return JSONResponse({"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}]})


def linked(url: str) -> Response:
    return JSONResponse({"created": 1, "data": [{"url": url}]})


def mp4(directory: Path, frames: int = 9, fps: int = 8, width_px: int = 64, height_px: int = 32) -> Response:
    """A clip that grows brighter."""
    frames_THWC = np.stack([np.full((height_px, width_px, 3), 20 + 200 * n // frames, np.uint8) for n in range(frames)])
    path = directory / "provider.mp4"
    encode(frames_THWC, fps=fps, to=path, options=EncodeOptions(threads=1, crf=5))
    return Response(path.read_bytes(), media_type="video/mp4")


def video(status: str, progress: int = 0, **more: Json) -> Response:
    return JSONResponse({"id": "video_1", "object": "video", "status": status, "progress": progress, **more})


async def failure_of(work: asyncio.Future[NodeResult] | object) -> StageFailed:
    with pytest.raises(StageFailed) as failed:
        await work  # type: ignore[misc]
    return failed.value


# -- pictures ---------------------------------------------------------------------------------------------------------


async def test_a_picture_is_asked_for_and_stored_and_starting_the_replica_asks_for_nothing(
    server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, drawn(png()))
    bench = bench_of()
    assert server.asked == [], "a warm-up would cost money"
    result = await bench.image()
    assert server.bodies(IMAGES) == [{"model": "painter-1", "prompt": "a red ball", "size": "64x32", "n": 1}]
    assert "authorization" not in server.asked[0].headers
    picture = read_picture(bench.store.fetch(result.artifact))
    assert picture.shape == (32, 64, 3)
    assert tuple(picture[0, 0]) == (200, 30, 30)
    assert result.warnings == ()
    assert next(record.phase for record in bench.sink.records) is Phase.INITIALISE
    assert {record.step for record in bench.sink.records if record.phase is Phase.DIFFUSION} == {1}


async def test_the_same_key_is_drawn_once(server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, drawn(png()))
    bench = bench_of()
    one, twin = await asyncio.gather(bench.image(), bench.image(job_id="other"))
    again = await bench.image()
    assert len(server.asked) == 1
    assert one.artifact == twin.artifact == again.artifact


async def test_what_the_api_understands_is_sent_and_the_rest_refused_by_name(
    server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, drawn(png()))
    bench = bench_of(sends=["seed", "negative_prompt", "guidance_scale"])
    await bench.image(negative_prompt="text", guidance=4.5)
    assert server.bodies(IMAGES)[0].items() >= {"seed": 11, "negative_prompt": "text", "guidance_scale": 4.5}.items()
    plain = bench_of()
    failure = await failure_of(plain.image("3" * 32, negative_prompt="text", guidance=4.5))
    assert isinstance(failure, RenderRefused)
    assert "negative_prompt: this API has no field for it; nearest valid: leave it empty" in failure.reason
    assert "guidance: this API has no field for it; nearest valid: 0" in failure.reason
    assert len(server.asked) == 1
    result = await plain.image("4" * 32, steps=20)
    assert result.warnings == ("this API takes no number of steps: it decides itself",)


@pytest.mark.parametrize(("answer", "status", "reason"), [
    (refused(400, "your prompt was rejected"), Retry.NEVER, "answers 400: your prompt was rejected"),
    (refused(401, "who are you"), Retry.NEVER, "answers 401: who are you; see that the key in remote.api_key_env"),
    (refused(429, "slow down"), Retry.COUNTED, "answers 429: slow down"),
    (refused(500, "boom"), Retry.COUNTED, "answers 500: boom"),
    (RedirectResponse("http://127.0.0.1:1/"), Retry.NEVER, "answers with a redirect (307)"),
    (Response("<html>oops"), Retry.COUNTED, "something that is no JSON"),
    (JSONResponse({"data": []}), Retry.COUNTED, "the answer has no data[0]"),
    (JSONResponse({"data": [{}]}), Retry.COUNTED, "neither b64_json nor url"),
    (JSONResponse({"data": [{"b64_json": "!!"}]}), Retry.COUNTED, "is not base64"),
    (drawn(b"<html>not a picture"), Retry.COUNTED, "something that is no picture"),
    (drawn(png()[:60]), Retry.COUNTED, "picture"),
    (drawn(png(128, 128)), Retry.NEVER, "the API drew 128x128, asked for was 64x32; name the sizes that it draws in "
                                        "card far: remote.sizes: [128x128]"),
    (hang, Retry.COUNTED, "gave no answer within 2 s (timeout_s)"),
    (Response(b" " * 80_000_000), Retry.NEVER, "answers more than 66.7667 MB"),
], ids=["400", "401", "429", "500", "redirect", "garbage", "no data", "neither", "no base64", "no picture", "cut off",
        "other size", "hangs", "huge"])
async def test_what_goes_wrong_says_what_and_whether_another_try_makes_sense(
    server: Provider, bench_of: MakeBench, answer: Response, status: Retry, reason: str) -> None:
    server.will(IMAGES, answer)
    bench = bench_of()
    failure = await failure_of(bench.image())
    assert reason in failure.reason
    assert failure.retry is status
    assert isinstance(failure, RenderRefused if status is Retry.NEVER else ModelFailed)
    assert bench.store.find("1" * 32) is None
    assert len(server.asked) == 1, "trying again is the engine's"
    await bench.replica.check_health()


async def test_a_picture_has_no_frames_and_no_rate(server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, drawn(png()))
    await bench_of(sends=["seed", "num_frames", "fps"]).image()
    assert set(server.bodies(IMAGES)[0]) == {"model", "prompt", "size", "n", "seed"}


async def test_an_api_that_is_down_may_come_back(bench_of: MakeBench) -> None:
    failure = await failure_of(bench_of(api_url="http://127.0.0.1:9/v1").image())
    assert isinstance(failure, ModelFailed)
    assert "127.0.0.1:9 cannot be asked" in failure.reason


async def test_a_try_that_was_turned_away_waits_as_long_as_the_api_asks(server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, refused(429, "slow down", Retry_After="1"))
    started_s = time.monotonic()
    await failure_of(bench_of().image())
    assert 1.0 <= time.monotonic() - started_s < 4


async def test_a_waiting_call_is_cancelled_at_once_and_past_its_deadline_given_up(server: Provider, bench_of: MakeBench,
                                                                                  ) -> None:
    server.will(IMAGES, hang)
    bench = bench_of(timeout_s=60)
    running = asyncio.create_task(bench.image())
    while not server.asked:  # noqa: ASYNC110 - the server has a thread of its own
        await asyncio.sleep(0.01)
    started_s = time.monotonic()
    bench.replica.cancel_job("job")
    assert isinstance(await failure_of(running), RenderCancelled)
    assert time.monotonic() - started_s < 2
    assert isinstance(await failure_of(bench.image("5" * 32, left_s=0.5)), DeadlineExceeded)


async def test_requests_run_side_by_side_up_to_the_cards_number(server: Provider, bench_of: MakeBench) -> None:
    now, most, lock = 0, 0, threading.Lock()

    async def slow(request: Request) -> Response:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        await asyncio.sleep(0.3)
        with lock:
            now -= 1
        return drawn(png())

    server.will(IMAGES, slow)
    bench = bench_of(parallel=3)
    await asyncio.gather(*(bench.image(str(n) * 32) for n in range(6)))
    assert most == 3


async def test_of_few_sizes_the_fitting_one_is_asked_for_and_cropped_with_a_warning(
    server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, drawn(png(192, 128)))
    bench = bench_of(sizes=["128x128", "192x128", "128x192"])
    result = await bench.image()
    assert server.bodies(IMAGES)[0]["size"] == "192x128"
    assert read_picture(bench.store.fetch(result.artifact)).shape == (32, 64, 3)
    assert result.warnings == ("drawn at 192x128, a size that this API knows; scaled, and cropped around its centre to "
                               "64x32",)


# -- pictures that lie elsewhere -------------------------------------------------------------------------------------


async def test_a_picture_by_address_is_fetched_without_the_key(server: Provider, bench_of: MakeBench, tmp_path: Path,
                                                               ) -> None:
    (tmp_path / "key").write_text(KEY)
    server.will(IMAGES, linked(f"{server.url}/files/a.png"))
    server.will("/files/a.png", Response(png(), media_type="image/png"))
    result = await bench_of(api_key_file=str(tmp_path / "key")).image()
    assert result.artifact.size_bytes > 0
    assert [(asked.path, asked.headers.get("authorization")) for asked in server.asked] == [
        (IMAGES, f"Bearer {KEY}"), ("/files/a.png", None)]


@pytest.mark.parametrize(("url", "reason"), [
    ("file:///etc/passwd", "neither http nor https"), ("ftp://example.com/a", "neither http nor https"),
    ("http://169.254.169.254/latest/meta-data", "169.254.169.254, which is no public address"),
    ("http://127.0.0.1:1/a.png", "which is no public address"), ("http://[::1]/a.png", "which is no public address"),
    ("http://user:word@example.com/a", "has a user name or password in it")])
async def test_addresses_inside_are_not_fetched(server: Provider, bench_of: MakeBench, url: str, reason: str) -> None:
    server.will(IMAGES, linked(url))
    failure = await failure_of(bench_of().image())
    assert isinstance(failure, RenderRefused)
    assert reason in failure.reason


@pytest.mark.parametrize(("file", "reason"), [
    (RedirectResponse("http://169.254.169.254/"), "answers 307 instead of the file"),
    (refused(404), "answers 404 instead of the file"), (Response(b" " * 50_000_001), "answers more than 50 MB"),
    (Response(b"<html>"), "something that is no picture")], ids=["redirect", "gone", "huge", "no picture"])
async def test_a_file_that_is_none_is_refused(server: Provider, bench_of: MakeBench, file: Response, reason: str,
                                              ) -> None:
    server.will(IMAGES, linked(f"{server.url}/a.png"))
    server.will("/a.png", file)
    assert reason in (await failure_of(bench_of().image())).reason


@pytest.mark.parametrize("status", [408, 429])
async def test_a_file_host_that_is_busy_is_tried_again(server: Provider, bench_of: MakeBench, status: int) -> None:
    server.will(IMAGES, linked(f"{server.url}/a.png"))
    server.will("/a.png", refused(status))
    failure = await failure_of(bench_of().image())
    assert isinstance(failure, ModelFailed)
    assert f"answers {status} instead of the file" in failure.reason


async def test_a_file_host_whose_name_is_not_found_is_tried_again(server: Provider, bench_of: MakeBench) -> None:
    server.will(IMAGES, linked("http://files.invalid/a.png"))
    failure = await failure_of(bench_of().image())
    assert isinstance(failure, ModelFailed)
    assert "files.invalid has no address" in failure.reason


# -- videos -----------------------------------------------------------------------------------------------------------


async def test_a_video_is_asked_for_looked_at_and_fetched_with_true_percents(server: Provider, bench_of: MakeBench,
                                                                             tmp_path: Path) -> None:
    server.will("/videos", video("queued"))
    server.will("/videos/video_1", video("in_progress", 30), refused(503), video("in_progress", 70),
                video("completed", 100))
    server.will("/videos/video_1/content", mp4(tmp_path))
    bench = bench_of()
    result = await bench.clip()
    assert server.bodies("/videos") == [
        {"model": "painter-1", "prompt": "a red ball", "size": "64x32", "seconds": "1.125"}]
    frames_THWC = read_frames(bench.store.fetch(result.artifact))
    assert frames_THWC.shape == (9, 32, 64, 3)
    assert result.warnings == ()
    told = [(record.step, record.total_steps) for record in bench.sink.records if record.phase is Phase.DIFFUSION]
    assert told == [(30, 100), (70, 100), (100, 100)]


async def test_a_made_video_whose_file_fails_is_asked_for_again_not_made_again(
    server: Provider, bench_of: MakeBench, tmp_path: Path) -> None:
    server.will("/videos", video("completed"))
    server.will("/videos/video_1/content", refused(503), refused(503), mp4(tmp_path))
    await bench_of().clip()
    assert len(server.bodies("/videos")) == 1
    server.will("/videos/video_1/content", refused(503))
    assert isinstance(await failure_of(bench_of().clip("5" * 32)), ModelFailed)
    assert len(server.bodies("/videos/video_1/content")) == 3 + 3


async def test_the_file_of_a_video_is_not_waited_for_longer_than_for_a_video(server: Provider, bench_of: MakeBench,
                                                                             ) -> None:
    server.will("/videos", video("completed"))
    server.will("/videos/video_1/content", hang)
    started_s = time.monotonic()
    assert isinstance(await failure_of(bench_of(video_timeout_s=1, timeout_s=30).clip()), ModelFailed)
    assert time.monotonic() - started_s < 4


async def test_another_rate_is_shown_at_the_films_with_a_warning(server: Provider, bench_of: MakeBench, tmp_path: Path,
                                                                 ) -> None:
    server.will("/videos", video("completed"))
    server.will("/videos/video_1/content", mp4(tmp_path, frames=36, fps=24))
    bench = bench_of(sends=["num_frames", "fps", "seed"])
    result = await bench.clip()
    assert server.bodies("/videos")[0].items() >= {"num_frames": 9, "fps": 8.0, "seed": 11}.items()
    assert "seconds" not in server.bodies("/videos")[0]
    levels = read_frames(bench.store.fetch(result.artifact)).mean(axis=(1, 2, 3))
    wanted = np.array([20 + 200 * 3 * n // 36 for n in range(9)])
    assert np.abs(levels - wanted).max() < 4, "every third frame"
    assert result.warnings == ("the API's video has 36 frames at 24 fps: shown are the 9 nearest in time at 8 fps",)


@pytest.mark.parametrize(("answers", "kind", "reason"), [
    ([video("failed", error={"message": "it burned"})], ModelFailed, "the video ended as failed: it burned"),
    ([video("in_progress"), refused(404, "gone")], RenderRefused, "answers 404: gone"),
    ([video("in_progress"), refused(500)], ModelFailed, "answers 500"),
    ([JSONResponse({"status": "queued"})], ModelFailed, "the answer has no id of a video"),
    ([refused(400, "size is wrong")], RenderRefused, "answers 400: size is wrong"),
], ids=["failed", "gone", "three looks lost", "no id", "400"])
async def test_a_video_that_fails_says_why(server: Provider, bench_of: MakeBench, answers: list[Response],
                                           kind: type[StageFailed], reason: str) -> None:
    server.will("/videos", answers[0])
    server.will("/videos/video_1", *answers[1:])
    failure = await failure_of(bench_of().clip())
    assert isinstance(failure, kind)
    assert reason in failure.reason


@pytest.mark.parametrize(("frames", "width_px", "kind", "reason"), [
    (5, 64, RenderRefused, "the API's video has 0.62 s, asked for were 1.12 s; see `frames` in card far"),
    (9, 128, RenderRefused, "the API drew 128x32, asked for was 64x32"), (0, 0, ModelFailed, "the API's video: ")])
async def test_a_video_that_is_another_is_refused(server: Provider, bench_of: MakeBench, tmp_path: Path, frames: int,
                                                  width_px: int, kind: type[StageFailed], reason: str) -> None:
    server.will("/videos", video("completed"))
    server.will("/videos/video_1/content",
                mp4(tmp_path, frames=frames, width_px=width_px) if frames else Response(b"no video"))
    failure = await failure_of(bench_of().clip())
    assert isinstance(failure, kind)
    assert reason in failure.reason


async def test_a_video_that_takes_too_long_is_given_up(server: Provider, bench_of: MakeBench) -> None:
    server.will("/videos", video("queued"))
    server.will("/videos/video_1", video("in_progress", 1))
    failure = await failure_of(bench_of(video_timeout_s=0.3).clip())
    assert "was not made within 0.3 s (remote.video_timeout_s)" in failure.reason


# -- the card and its key ---------------------------------------------------------------------------------------------


async def test_the_key_is_in_no_manifest_message_record_or_log_line(
    server: Provider, bench_of: MakeBench, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    os.environ["FAR_KEY"] = KEY
    try:
        bench = bench_of(api_key_env="FAR_KEY")
        server.will(IMAGES, drawn(png()), refused(401, f"Incorrect API key provided: {KEY}"))
        result = await bench.image()
        failure = await failure_of(bench.image("5" * 32))
    finally:
        del os.environ["FAR_KEY"]
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: [key]; see that the key in $FAR_KEY is right" in failure.reason
    manifest = json.dumps(bench.store.manifest(result.artifact.key))
    assert f'"device": "painter-1 at {server.url}"' in manifest
    assert KEY not in manifest + failure.reason + caplog.text + repr(bench.sink.records) + repr(bench.card)
    assert not [path for path in (tmp_path / "store").rglob("*.*") if KEY.encode() in path.read_bytes()]


def test_a_replica_without_its_key_does_not_start(bench_of: MakeBench) -> None:
    with pytest.raises(InvalidDocument, match=r"model card far: remote: \$NOBODY_SETS_THIS holds no key"):
        bench_of(api_key_env="NOBODY_SETS_THIS")


def test_the_digest_knows_what_draws_and_not_how_long_it_may_take(server: Provider) -> None:
    card = card_of(server)
    assert card.digest() == card_of(server, api_key_env="OTHER", timeout_s=9, parallel=1, poll_s=9).digest()
    others = [card_of(server, model_name="other"), card_of(server, sizes=["64x64"]), card_of(server, sends=["seed"]),
              card_of(server, api_url="https://example.com/v1")]
    assert len({card.digest(), *(other.digest() for other in others)}) == 5


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "story"}, "the name story is taken: it is a lane of the Director's own; nearest valid: my-story"),
    ({"remote": None}, "`loader: remote` and a `remote` part belong together"),
    ({"resources": {"num_gpus": 1}}, "a remote card uses no GPU here; nearest valid: resources: {num_gpus: 0"),
    ({"pipelines": {"image_to_video": "videos"}}, "a remote card does text_to_image and text_to_video"),
    ({"remote": {"api_url": "https://user:word@example.com/v1", "model_name": "x"}}, "holds a user, a password"),
    ({"remote": {"api_url": "https://example.com/v1?key=1", "model_name": "x"}}, "holds a user, a password or a query"),
    ({"remote": {"api_url": "example.com", "model_name": "x"}}, "is no address; nearest valid: https://"),
    ({"remote": {"api_url": "https://example.com/v1"}}, "needs api_url and model_name"),
    ({"remote": {"api_url": "https://example.com", "model_name": "x", "api_key_env": "sk-secret"}},
     "is the name of an environment variable, in capitals, never the key itself"),
])
def test_a_card_that_cannot_work_is_refused(server: Provider, changes: dict[str, Json], message: str) -> None:
    tree = card_of(server).model_dump()
    with pytest.raises(ValidationError, match="1 validation error") as refusal:
        ModelCard.model_validate({**tree, **changes})
    assert message in refusal.value.errors()[0]["msg"]

