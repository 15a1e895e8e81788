"""The Python client: every verb against the service, and what it does when the connection breaks."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from configs.load import client_key, load_settings
from serve_app.client import ApiError, Client, ServerAway
from tests.desk import TWO_SHOTS, Shop
from workflows.media.decode import write_png

FILM = bytes(range(256)) * 8
TAG = f'"{hashlib.sha256(FILM).hexdigest()}"'
PICTURE_HWC = np.full((40, 64, 3), 90, np.uint8)


class Broken(httpx2.SyncByteStream):
    """Some bytes, then a broken connection."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        raise httpx2.ReadError("the wire was cut")


class Server:
    """Answers in order, and keeps what it was asked."""

    def __init__(self, *replies: httpx2.Response | Exception) -> None:
        self.asked: list[httpx2.Request] = []
        self._replies = list(replies)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def client(self, patience_s: float = 20.0) -> Client:
        http = httpx2.Client(base_url="http://films", transport=httpx2.MockTransport(self))
        return Client(api_key="secret", http=http, patience_s=patience_s)


def told(event_id: str, name: str, **data: object) -> bytes:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def test_a_film_is_planned_sent_followed_fetched_changed_and_forgotten(shop: Shop, tmp_path: Path) -> None:
    client, path = Client(http=shop.client), tmp_path / "two.json"
    path.write_text(json.dumps(TWO_SHOTS), encoding="utf-8")
    assert client.plan(path)["nodes"]
    assert client.jobs()["jobs"] == []
    job_id = client.submit(path, idempotency_key="once")["id"]
    assert client.submit(path, idempotency_key="once")["id"] == job_id
    shop.render(job_id)
    assert [event.name for event in client.events(job_id)][-1] == "done"
    assert client.download(job_id, tmp_path / "film.mp4").read_bytes() == shop.client.get(
        f"/api/jobs/{job_id}/video").content
    assert client.log(job_id)["lines"]
    assert client.promote(job_id, ["s1"])["nodes"] == []
    assert client.retry(job_id, ["s1"], force=True)["id"] == job_id
    assert client.cancel(job_id)["id"] == job_id
    shop.desk.views.forget(job_id)
    assert client.job(job_id)["status"] == "cancelled"
    assert client.change_shot(job_id, "s2", {"prompt": "a green star"})["id"] == job_id
    client.cancel(job_id)
    client.delete(job_id)
    with pytest.raises(ApiError) as caught:
        client.job(job_id)
    assert caught.value.status == 404


def test_a_refusal_names_field_shot_and_nearest_value(shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "film.yaml"
    path.write_text("shots:\n  - prompt: a star\n    captoin: x\n", encoding="utf-8")
    with pytest.raises(ApiError) as caught:
        Client(http=shop.client).submit(path)
    [problem] = caught.value.problems
    assert (caught.value.status, problem.nearest, problem.line) == (422, "caption", 3)
    assert "captoin" in str(caught.value)


def test_a_broken_stream_goes_on_after_the_last_id_heard() -> None:
    server = Server(httpx2.Response(200, stream=Broken(told("e:1.0", "info"))), httpx2.ConnectError("down"),
                    httpx2.Response(503), httpx2.Response(200, content=told("e:2.0", "done")))
    events = list(server.client().events("film"))
    assert [event.id for event in events] == ["e:1.0", "e:2.0"]
    assert [request.headers.get("last-event-id") for request in server.asked] == [None, "e:1.0", "e:1.0", "e:1.0"]
    assert {request.headers["authorization"] for request in server.asked} == {"Bearer secret"}


def test_a_finished_job_of_which_all_was_heard_ends_the_stream() -> None:
    assert list(Server(httpx2.Response(204)).client().events("film", last_id="e:2.0")) == []


def test_a_server_that_stays_away_is_given_up() -> None:
    with pytest.raises(ServerAway, match="the job goes on"):
        list(Server(httpx2.ConnectError("down")).client(patience_s=0.1).events("film"))


@pytest.mark.parametrize("status", [206, 200], ids=["the same take goes on", "another take comes whole"])
def test_a_broken_download_ends_with_the_right_bytes(tmp_path: Path, status: int) -> None:
    rest = FILM[100:] if status == 206 else FILM
    server = Server(
        httpx2.Response(200, stream=Broken(FILM[:100]), headers={"etag": '"a"', "content-length": str(len(FILM))}),
        httpx2.Response(status, content=rest, headers={"etag": '"a"'}))
    (tmp_path / "film.mp4").write_bytes(b"the film of before")
    server.client().download("film", tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == FILM
    assert (server.asked[1].headers["range"], server.asked[1].headers["if-range"]) == ("bytes=100-", '"a"')
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_the_client_loads_neither_ray_nor_torch_nor_fastapi() -> None:
    code = "import sys, serve_app.client; print(sorted({'ray', 'torch', 'fastapi', 'workflows'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_key_in_the_environment_is_the_clients_and_no_setting() -> None:
    environ = {"REELRAY_API_KEY": "secret"}
    assert client_key(environ) == "secret"
    assert load_settings("laptop", (), environ) == load_settings("laptop", (), {})


ACCEPTED = httpx2.Response(202, json={"id": "film"})
BUSY = {"status": 429, "code": "too-many-requests", "detail": "slower"}


@pytest.mark.parametrize("failure", [
    httpx2.ConnectError("down"), httpx2.ReadError("cut"), httpx2.RemoteProtocolError("cut"), httpx2.ReadTimeout("late"),
    httpx2.Response(502), httpx2.Response(503, headers={"retry-after": "0"}), httpx2.Response(504),
    httpx2.Response(429, json=BUSY), httpx2.Response(409, json={"code": "request-in-flight", "detail": "wait"}),
], ids=str)
def test_a_submit_that_nobody_answered_is_sent_again_and_is_one_film(
        tmp_path: Path, failure: httpx2.Response | Exception) -> None:
    (tmp_path / "film.json").write_text(json.dumps(TWO_SHOTS))
    server = Server(failure, ACCEPTED)
    assert server.client().submit(tmp_path / "film.json") == {"id": "film"}
    first, second = server.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.content == second.content


def test_two_submits_are_two_films(tmp_path: Path) -> None:
    (tmp_path / "film.json").write_text(json.dumps(TWO_SHOTS))
    server = Server(ACCEPTED, ACCEPTED)
    client = server.client()
    client.submit(tmp_path / "film.json")
    client.submit(tmp_path / "film.json")
    assert len({request.headers["idempotency-key"] for request in server.asked}) == 2


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    server = Server(httpx2.Response(429, json=BUSY, headers={"retry-after": "1"}), httpx2.Response(200, json={"id": 1}))
    began_s = time.monotonic()
    server.client().job("film")
    assert time.monotonic() - began_s >= 1
    hour = httpx2.Response(429, json=BUSY, headers={"retry-after": "3600"})
    with pytest.raises(ApiError) as caught:
        Server(hour).client().job("film")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 3600)


@pytest.mark.parametrize("verb", ["change_shot", "retry", "delete"])
def test_what_may_not_happen_twice_is_sent_once(verb: str) -> None:
    server = Server(httpx2.ReadError("cut"))
    client = server.client()
    calls = {"change_shot": lambda: client.change_shot("film", "s1", {}), "retry": lambda: client.retry("film"),
             "delete": lambda: client.delete("film")}
    with pytest.raises(ServerAway, match="cut"):
        calls[verb]()
    assert len(server.asked) == 1


def test_tries_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "film.json").write_text(json.dumps(TWO_SHOTS))
    began_s = time.monotonic()
    server = Server(*[httpx2.ConnectError("down")] * 50)
    with pytest.raises(ServerAway, match=r"http://films/api/films: down"):
        server.client(patience_s=1.5).submit(tmp_path / "film.json")
    assert time.monotonic() - began_s < 3
    assert 2 < len(server.asked) < 8, "the pauses grow"


def test_what_may_be_sent_twice_is_sent_again_when_the_proxy_says_that_its_replica_died(tmp_path: Path) -> None:
    (tmp_path / "film.json").write_text(json.dumps(TWO_SHOTS))
    died = httpx2.Response(500, text="Internal Server Error")
    server = Server(died, httpx2.Response(202, json={"id": "film"}))
    assert server.client(patience_s=5.0).submit(tmp_path / "film.json") == {"id": "film"}
    assert len({request.headers["idempotency-key"] for request in server.asked}) == 1
    with pytest.raises(ApiError, match=r"500 not-reelray"):
        Server(died).client().retry("film")


def test_a_file_of_another_kind_is_refused_as_the_server_would(tmp_path: Path) -> None:
    (tmp_path / "film.docx").write_bytes(b"x")
    with pytest.raises(ApiError, match=r"film\.docx: a film is a file of \.json") as caught:
        Server().client().submit(tmp_path / "film.docx")
    assert (caught.value.status, caught.value.code) == (415, "unsupported-media-type")


def test_what_answers_but_is_no_reelray_is_said(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="something else than JSON"):
        Server(httpx2.Response(200, text="<html>")).client().jobs()
    with pytest.raises(ApiError, match=r"not-reelray"):
        Server(httpx2.Response(404, text="<html>")).client().jobs()


def test_a_download_goes_on_over_several_breaks_a_refusal_and_a_dead_server(tmp_path: Path) -> None:
    def piece(start: int, end: int) -> httpx2.Response:
        head = {"etag": TAG, "content-length": str(len(FILM) - start)}
        return httpx2.Response(206 if start else 200, stream=Broken(FILM[start:end]), headers=head)

    server = Server(httpx2.ConnectError("down"), piece(0, 100), httpx2.Response(503), piece(100, 900),
                    httpx2.ConnectError("down"), httpx2.Response(404, text="no route yet"), piece(900, len(FILM)),
                    httpx2.Response(416))
    server.client().download("film", tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == FILM
    assert [request.headers.get("range") for request in server.asked] == [
        None, None, "bytes=100-", "bytes=100-", "bytes=900-", "bytes=900-", "bytes=900-", f"bytes={len(FILM)}-"]
    assert {request.headers.get("if-range") for request in server.asked} == {None, TAG}
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_a_download_with_other_bytes_than_its_tag_says_is_made_anew(tmp_path: Path) -> None:
    wrong = httpx2.Response(200, content=FILM[::-1], headers={"etag": TAG})
    server = Server(wrong, httpx2.Response(200, content=FILM, headers={"etag": TAG}))
    server.client().download("film", tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes() == FILM


def test_a_refused_download_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"the film of before")
    with pytest.raises(ApiError):
        Server(httpx2.Response(404, json={"code": "unknown-part", "detail": "not made yet"})).client().download(
            "film", tmp_path / "film.mp4")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"film.mp4": b"the film of before"}


BOARDS = {
    "film.yaml": "# a comment\nshots:\n  - prompt: a red circle\n  - prompt: a star\n    image: pictures/a b.png # here"
                 "\n  - {prompt: again, image: 'pictures/a b.png'}\n",
    "film.json": '{\n\t"shots": [{"prompt": "a red circle"},\n\t{"prompt": "a star", "image":\t"pictures/a b.png"},'
                 '\n\t{"prompt": "again", "image": "pictures\\/a b.png"}]}',
    "crlf.yml": "shots:\r\n- prompt: ein K\u00e4fer \U0001f41e\r\n- prompt: a star\r\n  image: >-\r\n    no\r\n"
                "- prompt: again\r\n  image: \"pictures/a b.png\"\r\n",
}


@pytest.mark.parametrize("name", BOARDS)
def test_pictures_that_a_storyboard_names_are_uploaded_and_renamed_in_place(
        shop: Shop, tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    write_png(PICTURE_HWC, tmp_path / "pictures" / "a b.png")
    (tmp_path / name).write_bytes(BOARDS[name].encode())
    sent = Client(http=shop.client).film(tmp_path / name).content.decode()
    picture_id = hashlib.sha256((tmp_path / "pictures" / "a b.png").read_bytes()).hexdigest()
    assert sent.count(f'"picture:{picture_id}"') == (1 if name == "crlf.yml" else 2)
    assert len(sent.splitlines()) == len(BOARDS[name].splitlines())
    if name == "film.yaml":
        assert sent.splitlines()[4].endswith(" # here")
    if name != "crlf.yml":
        job_id = Client(http=shop.client).submit(tmp_path / name)["id"]
        shop.render(job_id)
        assert shop.client.get(f"/api/jobs/{job_id}/shots/s2/keyframe").content == (
            tmp_path / "pictures" / "a b.png").read_bytes()


def test_pictures_that_cannot_be_sent_are_problems_of_their_lines(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    (tmp_path / "film.yaml").write_text("shots:\n  - {prompt: a, image: missing.png}\n  - {prompt: b, image: no.png}\n")
    with pytest.raises(ApiError) as caught:
        Client(http=shop.client).submit(tmp_path / "film.yaml")
    first, second = caught.value.problems
    assert (first.line, first.pointer, first.detail) == (2, "#/shots/0/image", "missing.png: No such file or directory")
    assert (second.line, "this is no picture" in second.detail) == (3, True)
    assert shop.ledger.jobs().jobs == ()


@pytest.mark.parametrize("text", [b"image: [", b"\xff\xfeimage", b"- image: a.png", b"shots: image", b"image: a.png",
                                  b"shots: [image, [image], {image: 3}, {image: null}, {image: }, {? [image] : x}]"])
def test_a_storyboard_that_cannot_be_read_goes_as_it_is(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "film.yaml").write_bytes(text)
    assert Server().client().film(tmp_path / "film.yaml").content == text


@pytest.mark.parametrize("name", ["secret.png", "device.png", "directory.png"])
def test_what_is_no_picture_never_leaves_this_machine(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_text("-----BEGIN PRIVATE KEY-----")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "film.yaml").write_text(f"shots: [{{prompt: a, image: {name}}}]")
    server = Server()
    with pytest.raises(ApiError, match=f"{name}: this is no "):
        server.client().submit(tmp_path / "film.yaml")
    assert server.asked == []


def test_an_uploaded_picture_is_named_by_its_id(shop: Shop, tmp_path: Path) -> None:
    write_png(PICTURE_HWC, tmp_path / "a.png")
    picture = Client(http=shop.client).upload_picture(tmp_path / "a.png")
    assert (picture["width"], picture["height"], picture["media_type"]) == (64, 40, "image/png")
    assert shop.client.get(picture["url"]).content == (tmp_path / "a.png").read_bytes()


def test_a_log_is_followed_to_the_end_over_a_break() -> None:
    def page(*lines: str, offset: int) -> httpx2.Response:
        return httpx2.Response(200, json={"lines": list(lines), "next_offset": offset + len(lines)})

    running, over = (httpx2.Response(200, json={"status": status}) for status in ("running", "partial"))
    server = Server(running, page("a", "b", offset=0), httpx2.ConnectError("down"), running, page(offset=2), over,
                    page("c", offset=2), over, page(offset=3))
    assert list(server.client().log_lines("film")) == ["a", "b", "c"]


def slow(*pieces: bytes, pause_s: float) -> Iterator[bytes]:
    """A body that takes its time."""
    for piece in pieces:
        time.sleep(pause_s)
        yield piece


def test_a_stream_that_only_beats_is_alive_and_its_first_break_is_no_end() -> None:
    """A film may wait for its turn for hours; then the server is started again."""
    beats = slow(told("e:1.0", "info"), *[b": \n\n"] * 6, pause_s=0.1)
    server = Server(httpx2.Response(200, content=beats), httpx2.ConnectError("down"),
                    httpx2.Response(200, content=told("e:2.0", "done")))
    assert [event.name for event in server.client(patience_s=0.55).events("film")] == ["info", "done"]


def test_a_long_stream_that_the_server_ends_goes_on_at_once_even_without_patience() -> None:
    server = Server(*(httpx2.Response(200, content=told(f"e:{n}.0", name)) for n, name in ((1, "info"), (2, "done"))))
    assert [event.name for event in server.client(patience_s=0.0).events("film")] == ["info", "done"]
    assert server.asked[1].headers["last-event-id"] == "e:1.0"


def test_a_redirect_is_no_film(tmp_path: Path) -> None:
    server = Server(httpx2.Response(302, headers={"location": "/login"}, content=b"go away"))
    with pytest.raises(ApiError, match="answered 302, and no file"):
        server.client(patience_s=0.0).download("film", tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []
