"""The Python client: every verb against the service, and what it does when the connection breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from configs.load import client_key, load_settings
from serve_app.client import ApiError, Client, ServerAway
from tests.desk import TWO_SHOTS, Shop

FILM = bytes(range(256)) * 8


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


def told(event_id: str, name: str) -> bytes:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps({'type': name})}\n\n".encode()


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
