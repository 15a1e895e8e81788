"""Edits of videos over HTTP: what is taken and refused at the door, how far they are, and what comes back."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.desk import SLOTS, Shop, open_shop
from tests.edit_clips import ffmpeg, red_ball, write_source
from tests.fakes_edits import EditShop
from tests.studio import QUICK
from tests.unit.edits.test_request import BAD_REQUESTS
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.media.probe import probe

FRAMES = 20
WISH = {"mask_prompt": "red ball", "edit_prompt": "make it green", "edit_size": 64, "chunk_frames": 16}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(red_ball(FRAMES).frames_THWC, tmp_path_factory.mktemp("clips") / "my ball.mp4")


def form(clip: Path, **wish: object) -> dict[str, Any]:
    """What a form holds, as httpx takes it."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in {**WISH, **wish}.items()}
    return {"data": texts, "files": {"video": (clip.name, clip.read_bytes(), "video/mp4")}}


def uploaded(shop: Shop, clip: Path) -> str:
    reply = shop.client.post("/api/uploads", content=clip.read_bytes(), headers={"Content-Type": "video/mp4"})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["uri"])


def run(shop: Shop, job_id: str) -> None:
    """With the classical models, until the job is over."""
    async def work() -> None:
        engine = Engine(shop.ledger, EditShop(shop.store).steps(), store=shop.store, dispatcher=Dispatcher(SLOTS),
                        settings=QUICK.model_copy(update={"attempts": 1}))
        running = asyncio.create_task(engine.run())
        async with asyncio.timeout(60):
            while not shop.ledger.job(job_id).status.is_terminal:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the database sends no signal
        await engine.stop()
        await running

    asyncio.run(work())


def test_a_video_goes_in_and_comes_out_edited_with_all_that_belongs_to_it(shop: Shop, clip: Path) -> None:
    reply = shop.client.post("/api/edits", **form(clip))
    assert reply.status_code == 202, reply.text
    job_id = reply.json()["id"]
    assert job_id.startswith("make-it-green-")
    assert reply.headers["location"] == f"/api/jobs/{job_id}"
    waiting = shop.status(job_id)["edit"]
    assert (waiting["status"], waiting["total_frames"], waiting["video_url"]) == ("queued", FRAMES, None)
    for what in ("video", "mask", "report", "plot"):
        assert shop.client.get(f"/api/jobs/{job_id}/{what}").status_code == 404
    run(shop, job_id)
    job = shop.status(job_id)
    assert (job["kind"], job["status"], job["stage"]) == ("edit", "succeeded", "saving")
    assert job["title"] == "make it green in my ball.mp4"
    edit = job["edit"]
    assert (edit["status"], edit["current_frame"], edit["error"]) == ("finished", FRAMES, "")
    assert edit["request"]["mask_prompt"] == "red ball"
    assert not {"output_dir", "extra", "job_id"} & set(edit["request"])
    types = {"video": "video/mp4", "mask": "video/mp4", "report": "application/json", "plot": "image/png"}
    for what, media_type in types.items():
        whole = shop.client.get(edit[f"{what}_url"])
        part = shop.client.get(edit[f"{what}_url"], headers={"Range": "bytes=2-9"})
        assert (whole.status_code, whole.headers["content-type"]) == (200, media_type)
        assert (part.status_code, part.content) == (206, whole.content[2:10])
        assert shop.client.head(edit[f"{what}_url"]).headers["content-length"] == str(len(whole.content))
    (clip.parent / "out.mp4").write_bytes(shop.client.get(edit["video_url"]).content)
    assert probe(clip.parent / "out.mp4").frames == FRAMES
    assert "warp_error" in shop.client.get(edit["report_url"]).text
    assert [line["status"] for line in shop.client.get("/api/jobs?kind=edit").json()["jobs"]] == ["succeeded"]
    assert shop.client.get(f"/films/{job_id}").status_code == shop.client.get("/").status_code == 200
    told = re.findall(r'"status": ?"completed", ?"stage_type": ?"(\w+)"',
                      shop.client.get(f"/api/jobs/{job_id}/events").text)
    assert {"extracting", "masking", "propagating", "editing", "smoothing", "saving"} == set(told)
    again = shop.client.post(f"/api/jobs/{job_id}/retry", json={"shots": ["c2"]})
    assert again.status_code == 202
    assert "c2.edit" in again.json()["nodes"]
    assert shop.client.post(f"/api/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert shop.client.post(f"/api/films/{job_id}/promote").status_code == 409
    assert shop.client.delete(f"/api/jobs/{job_id}").status_code == 204


def test_a_plan_says_what_would_be_done_and_its_request_may_be_sent_as_it_is(shop: Shop, clip: Path) -> None:
    reply = shop.client.post("/api/edits?dry_run=true", **form(clip, start_s=0.25))
    assert reply.status_code == 200, reply.text
    plan = reply.json()
    assert (plan["frames"], plan["chunks"], plan["source"]["frames"]) == (FRAMES - 6, 1, FRAMES)
    assert plan["request"]["input_video_path"] == uploaded(shop, clip)
    assert shop.client.get("/api/jobs").json()["jobs"] == []
    done = shop.client.post("/api/edits", json=plan["request"])
    assert done.status_code == 202, done.text
    assert done.json()["document_digest"] == plan["document_digest"]


def test_the_same_request_under_one_key_is_one_job(shop: Shop, clip: Path) -> None:
    key = {"Idempotency-Key": "k1"}
    first = shop.client.post("/api/edits", **form(clip), headers=key)
    again = shop.client.post("/api/edits", **form(clip), headers=key)
    other = shop.client.post("/api/edits", **form(clip, seed=3), headers=key)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")


def test_an_upload_is_kept_under_the_digest_of_its_bytes(shop: Shop, clip: Path) -> None:
    uri = uploaded(shop, clip)
    by_form = shop.client.post("/api/uploads", files={"file": ("a/../b.mp4", clip.read_bytes())})
    assert by_form.json()["uri"] == uri
    assert by_form.json()["video"] == {"width_px": 192, "height_px": 128, "fps": 24.0, "frames": FRAMES,
                                       "duration_s": pytest.approx(FRAMES / 24, abs=1e-4), "has_sound": True}
    assert shop.client.get(by_form.json()["url"]).content == clip.read_bytes()
    assert shop.client.head(f"/api/uploads/{'0' * 64}").status_code == 404
    assert list((shop.settings.data_dir / "uploads").iterdir()) == []


REFUSED_UPLOADS = {
    "text": (b"not a video", "video/mp4", 422, "not a readable video"),
    "nothing": (b"", "application/octet-stream", 422, "the file is empty"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "video/mp4", 422, "not a readable video"),
    "picture": (b"\x89PNG", "image/png", 415, "a video comes as video/..."),
}


def test_what_is_no_video_is_not_kept(shop: Shop) -> None:
    for body, media_type, status, told in REFUSED_UPLOADS.values():
        reply = shop.client.post("/api/uploads", content=body, headers={"Content-Type": media_type})
        assert reply.status_code == status
        assert told in reply.json()["detail"]
        assert str(shop.settings.data_dir) not in reply.text
    assert not list((shop.settings.data_dir / "store").rglob("manifest.json"))


def test_every_error_of_the_door_reaches_the_client_at_its_field(shop: Shop) -> None:
    """In a JSON body, with the same words and the nearest valid value. A job's name is the server's, NaN no JSON."""
    cases = {name: case for name, case in BAD_REQUESTS.items() if name not in ("bad_name", "no_number")}
    cases["unknown_extra"] = ({"extra": {}}, "extra: these would name files of the server; nearest valid: leave it out")
    for name, (changes, told) in cases.items():
        body = {"input_video_path": "upload:x", "mask_prompt": "hair", "edit_prompt": "make it red", **changes}
        reply = shop.client.post("/api/edits", json={key: value for key, value in body.items() if value is not None})
        assert reply.status_code == 422, (name, reply.text)
        (error,) = reply.json()["errors"]
        field, _, problem = told.partition(": ")
        problem, _, nearest = problem.partition("; nearest valid: ")
        assert error["pointer"] == "#/" + field.replace("[", "/").replace("]", "").replace(".", "/"), name
        assert error["detail"].startswith(problem.partition(";")[0]), name
        assert error.get("nearest", "") == nearest, name
    assert len(cases) >= 18


def test_what_cannot_be_done_to_this_video_reaches_the_client_too(shop: Shop, clip: Path, tmp_path: Path) -> None:
    made = {"lines.mp4": ("-flags", "+ilme+ildct", "-x264opts", "tff=1"), "tiny.mp4": ("-vf", "scale=30:20"),
            "hdr.mp4": ("-pix_fmt", "yuv420p10le", "-x264-params", "transfer=smpte2084:colorprim=bt2020"),
            "sound.m4a": ("-vn", "-c", "copy")}
    for name, options in made.items():
        ffmpeg("-i", clip, *options, tmp_path / name)
    cases: list[tuple[Path, dict[str, object], str, str]] = [
        (tmp_path / "lines.mp4", {}, "input_video_path", "ffmpeg -i IN -vf bwdif -c:a copy OUT.mp4"),
        (tmp_path / "tiny.mp4", {}, "input_video_path", "sides of 32 to 8192 px"),
        (tmp_path / "hdr.mp4", {}, "input_video_path", "ffmpeg -i IN -vf zscale"),
        (tmp_path / "sound.m4a", {}, "input_video_path", ""),
        (clip, {"start_s": 9}, "start_s", "0.792"),
        (clip, {"points": [{"x": 500, "y": 3}], "mask_prompt": ""}, "points/0", "0 to 191 across"),
        (clip, {"points": [{"x": 5, "y": 3, "frame": 99}], "mask_prompt": ""}, "points/0/frame", "0 to 19"),
        (clip, {"edit_prompt": "a hat"}, "edit_prompt", ""), (clip, {"mask_prompt": "hair"}, "mask_prompt", ""),
        (clip, {"tracker": "sam3"}, "tracker", "classical"), (clip, {"editor": "sketch"}, "editor", "classical"),
        (clip, {"editor": "clasical"}, "editor", "classical"), (clip, {"input_video_path": "x"}, "input_video_path",
                                                                 "one of the two"),
        (clip, {"keep_audio": "yes"}, "keep_audio", ""), (clip, {"steps": "many"}, "steps", "")]
    for path, changes, field, nearest in cases:
        reply = shop.client.post("/api/edits", **form(path, **changes))
        assert reply.status_code == 422, (path.name, changes)
        (error,) = reply.json()["errors"]
        assert error["pointer"] == f"#/{field}", (path.name, changes, error)
        assert error.get("nearest", "").startswith(nearest)
        assert str(shop.settings.data_dir) not in reply.text


PLACES = ["/etc/passwd", "ball.mp4", "file:///etc/passwd", "https://elsewhere.example/a.mp4", "upload:12", "",
          "{allowed}../secret.mp4", "{allowed}%2e%2e/secret.mp4", "{allowed}a.mp4::file:///etc/passwd",
          "{allowed}missing.mp4"]


def test_no_client_reads_what_the_operator_did_not_open(tmp_path: Path, migrated_file: Path, clip: Path) -> None:
    database = shutil.copy(migrated_file, tmp_path / "state.db")
    opened = tmp_path / "open"
    opened.mkdir()
    (tmp_path / "secret.mp4").write_bytes(clip.read_bytes())
    (opened / "a.mp4").write_bytes(clip.read_bytes())
    shop = open_shop(tmp_path, database, f"http.video_sources=[{opened.as_uri()}/]")
    with shop.client:
        for place in PLACES:
            body = {**WISH, "input_video_path": place.replace("{allowed}", f"{opened.as_uri()}/")}
            refused = shop.client.post("/api/edits?dry_run=true", json=body)
            assert refused.status_code == 422, place
            assert refused.json()["errors"][0]["pointer"] == "#/input_video_path"
        body = {**WISH, "input_video_path": f"{opened.as_uri()}/a.mp4"}
        taken = shop.client.post("/api/edits?dry_run=true", json=body)
        assert taken.status_code == 200, taken.text
    shop.ledger.close()


@pytest.fixture
def narrow(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    """Takes videos up to a megabyte."""
    shop = open_shop(tmp_path, shutil.copy(migrated_file, tmp_path / "state.db"), "http.max_video_mb=1")
    with shop.client:
        yield shop
    shop.ledger.close()


def test_a_video_that_is_too_long_is_refused_whether_or_not_it_says_its_length(narrow: Shop) -> None:
    long = b"\0" * 1_100_000
    told = narrow.client.post("/api/uploads", content=long, headers={"Content-Type": "video/mp4"})
    assert (told.status_code, "http.max_video_mb" in told.text) == (413, True)
    silent = narrow.client.post("/api/uploads", content=iter([long[:600_000], long[:600_000]]),
                                headers={"Content-Type": "video/mp4"})
    assert (silent.status_code, "http.max_video_mb" in silent.text) == (413, True)
    text = narrow.client.post("/api/edits", content=b" " * 1_050_000, headers={"Content-Type": "application/json"})
    assert text.status_code in (413, 422)
    assert list((narrow.settings.data_dir / "uploads").iterdir()) == []


def test_bodies_of_other_types_are_refused(shop: Shop) -> None:
    assert shop.client.post("/api/edits", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert shop.client.post("/api/edits", json=[1]).status_code == 400
    stray = shop.client.post("/api/edits", files={"film": ("a.mp4", b"x")})
    assert (stray.status_code, stray.json()["errors"][0]["parameter"]) == (400, "film")


async def test_a_client_that_hangs_up_leaves_nothing_behind(
        closed_shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    news = iter([{"type": "http.request", "body": b"half a vi", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(news)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/uploads", "raw_path": b"/api/uploads", "query_string": b"",
             "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"video/mp4")], "http_version": "1.1",
             "scheme": "http", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1), "root_path": ""}
    await closed_shop.client.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert list((closed_shop.settings.data_dir / "uploads").iterdir()) == []
    assert not [line for line in caplog.records if line.levelname == "ERROR"]
