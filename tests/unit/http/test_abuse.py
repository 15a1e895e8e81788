"""Hostile input: paths that climb, text that wants to be a header, ids, ranges, hosts and cursors that are none.

Bodies are in test_hostile_bodies.py, slow clients in test_slow_clients.py.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from urllib.parse import quote

import pytest

from serve_app.service.feed import Position
from tests.desk import TWO_SHOTS, Shop

CLIMBS = ("..", "../../etc/passwd", "..\\..\\state.db", "%2e%2e%2fstate.db", "%252e%252e%252fstate.db",
          "a/../../state.db", "x\x00.mp4", "/etc/passwd", "....//state.db", "\u2025/state.db", "file:///etc/passwd",
          "~root", "con", "x" * 5000, "\udc80", "|id", "$(id)", "{job_id}", "*", "?", "#")
INJECTED = "x\r\nSet-Cookie: stolen=1\r\n\r\n<script>"
BENT = {"line feed": "a\nSet-Cookie: stolen=1", "carriage return": "a\rSet-Cookie: stolen=1",
        "both": "a\r\nSet-Cookie: stolen=1\r\n\r\nb", "a quote": 'a"; filename="b.exe',
        "a separator": "a\u2028Set-Cookie: stolen=1",
        "next line": "a\x85Set-Cookie: stolen=1", "right to left": "a\u202e4pm.exe", "a path": "../../etc/passwd"}
"""Titles."""


def quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), safe="")


def test_a_path_that_climbs_reaches_no_file_on_any_route(shop: Shop) -> None:
    """Every parameter of every path, each with all that climbs, the others with what leads to something."""
    job_id = shop.film()
    known = {"job_id": job_id, "video_id": job_id, "shot_id": "s1", "file": "clip", "model": "sketch"}
    for path, verbs in shop.client.get("/api/openapi.json").json()["paths"].items():
        for wrong in re.findall(r"{(\w+)}", path):
            for name in CLIMBS:
                parts = {part: quoted(name) if part == wrong else known.get(part, "x")
                         for part in re.findall(r"{(\w+)}", path)}
                for verb in verbs:
                    reply = shop.client.request(verb, path.format_map(parts), follow_redirects=False)
                    assert reply.status_code in {307, 400, 404, 405, 415, 422}, (verb, path, name, reply.text)
                    assert b"root:" not in reply.content
                    assert b"SQLite" not in reply.content
    assert shop.ledger.job(job_id).status.is_terminal


@pytest.mark.parametrize("path", ["/api/jobs/{}", "/api/jobs/{}/video", "/api/jobs?cursor={}", "/api/jobs?kind={}",
                                  "/api/jobs/JOB/events?last_event_id={}", "/{}", "/films/{}", "/?status={}",
                                  "/v1/models/{}", "/static/{}", "/api/films//{}"])
def test_what_is_asked_never_becomes_a_header(shop: Shop, path: str) -> None:
    job_id = shop.film()
    reply = shop.client.get(path.replace("JOB", job_id).format(quote(INJECTED, safe="")), follow_redirects=False)
    assert reply.status_code < 500
    assert "set-cookie" not in reply.headers
    assert not any(mark in value for value in reply.headers.values() for mark in "\r\n")


class TestTitles:
    @pytest.mark.parametrize("title", [
        pytest.param(title, id=name) for name, title in BENT.items() if not set(title) & set("\r\n\x85\u2028")])
    def test_one_that_wants_to_be_more_names_no_file(self, shop: Shop, title: str) -> None:
        """It is kept as it was written, and reaches no header: what names the file is the job's id, in ASCII."""
        job_id = shop.film({"title": title, "shots": [{"prompt": "a red circle"}]})
        assert shop.client.get(f"/api/jobs/{job_id}").json()["title"] == title
        assert re.fullmatch(r"[a-z0-9-]+", job_id)
        for path in ("video", "shots/s1/clip", "shots/s1/thumbnail"):
            named = shop.client.get(f"/api/jobs/{job_id}/{path}").headers["content-disposition"]
            assert re.fullmatch(r'inline; filename="[a-z0-9-]+\.(mp4|png)"', named)

    @pytest.mark.parametrize("title", [
        pytest.param(title, id=name) for name, title in BENT.items() if set(title) & set("\r\n\x85\u2028")])
    def test_lines_of_one_are_no_lines_of_a_reply_or_of_the_log(
            self, shop: Shop, title: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        job_id = shop.film({"title": title, "shots": [{"prompt": "a red circle"}]})
        for path in ("", "/video", "/events", "/log", "/shots/s1/clip"):
            reply = shop.client.get(f"/api/jobs/{job_id}{path}")
            assert reply.status_code == 200
            assert "set-cookie" not in reply.headers
            if path not in ("/video", "/shots/s1/clip"):
                assert not [line for line in re.split("[\r\n]", reply.text) if line.startswith("Set-Cookie")]
        assert not [line for line in re.split("[\r\n]", caplog.text) if line.startswith("Set-Cookie")]


def test_an_id_of_a_shot_that_wants_to_be_a_header_is_refused(shop: Shop) -> None:
    for shot_id in ("a\r\nX: y", 'a"b', "a/b", "..", "a b", "\u202e", "s1\x00"):
        reply = shop.client.post("/api/films", json={"shots": [{"id": shot_id, "prompt": "a red circle"}]})
        assert reply.status_code == 422, shot_id


@pytest.mark.parametrize("last_id", ["x", "-1", "1f0c9a2b:12.7\x7f", "1f0c9a2b:" + "9" * 18 + "." + "9" * 18, ":1.1",
                                     "a:1.1, b:2.2", "none:0.0", "é:1.1", "a" * 32 + ":1.1", "0:0.0", "a:-1.1",
                                     "a:1.1.1", "%00"])
def test_a_last_event_id_that_nobody_gave_starts_anew_or_tells_the_state(shop: Shop, last_id: str) -> None:
    job_id = shop.film()
    for reply in (shop.client.get(f"/api/jobs/{job_id}/events", headers=[(b"Last-Event-ID", last_id.encode())]),
                  shop.client.get(f"/api/jobs/{job_id}/events", params={"last_event_id": last_id})):
        assert reply.status_code == 200
        assert ("event: done" in reply.text) or ("event: snapshot" in reply.text)
    assert Position.read("1f0c9a2b:12.7") is not None


@pytest.mark.parametrize("value", [
    '["a", 1]', "[]", "{}", "null", "1", '[1e999, "x"]', '[NaN, "x"]', '[1, "\\ud800"]', '[1, "x", 2]', '["1", "x"]',
    "[true, null]", "[" * 5000, f"[{'9' * 5000}, \"x\"]", '[1.5, "\\u0000"]'])
def test_a_cursor_that_was_made_by_hand_is_refused(shop: Shop, value: str) -> None:
    for word in (base64.urlsafe_b64encode(value.encode()).decode(), value):
        reply = shop.client.get("/api/jobs", params={"cursor": word})
        assert reply.status_code == 422, (word, reply.text)
        assert shop.client.get("/", params={"cursor": word}).status_code == 422


@pytest.mark.parametrize("path", ["/api/jobs?limit=", "/api/jobs/JOB/log?offset=", "/api/jobs/JOB/log?limit=",
                                  "/api/jobs/JOB/shots/s1/clip?take=", "/v1/videos?limit="])
@pytest.mark.parametrize("number", ["-1", "1e3", "9" * 30, "9" * 5000, "0x1", "NaN", "\u0665\u0665", "1;2", "1,2",
                                    "1.5", " ", "\0", "true"])
def test_a_number_that_is_none_or_too_large_is_refused(shop: Shop, path: str, number: str) -> None:
    reply = shop.client.get(path.replace("JOB", shop.submit()) + quote(number))
    if reply.status_code == 404:
        assert "take" in path
        return
    assert reply.status_code == 422, reply.text


@pytest.mark.parametrize("key", [b"", b"k" * 256, b"k" * 60_000, b"\xff\xfe", b"\x00", b"a b", b"k,k",
                                 b"'; drop table job"])
def test_an_idempotency_key_of_odd_bytes_is_taken_as_it_is_or_refused(shop: Shop, key: bytes) -> None:
    headers = [(b"Idempotency-Key", key), (b"Content-Type", b"application/json")]
    replies = [shop.client.post("/api/films", content=json.dumps(TWO_SHOTS), headers=headers) for _ in range(2)]
    assert replies[0].status_code in (202, 422)
    assert replies[1].status_code == replies[0].status_code
    if replies[0].status_code == 202:
        assert replies[1].json() == replies[0].json()
        assert replies[1].headers["idempotency-replayed"] == "true"
    assert len(shop.ledger.jobs().jobs) == (replies[0].status_code == 202)


RANGES = {
    "bytes=0-0,-1": 200, "bytes=0-1,2-3,4-5": 200, "bytes=" + ",".join(["0-"] * 2000): 200,
    "bytes=abc": 200, "bytes": 200,
    "bytes=--1": 200, "bytes=1-0": 200, "bytes=0x0-0x1": 200, "chars=0-1": 200, "bytes=\u0661-\u0662": 200, "": 200,
    "bytes=999999999999999999-": 416, "bytes=-0": 416, "bytes=" + "9" * 5000 + "-": 200, "bytes=0-" + "9" * 18: 200,
    "bytes=-" + "9" * 18: 200, "BYTES=0-1": 206, "bytes = 0-1": 206, "bytes=0-1": 206}


@pytest.mark.parametrize(("asked", "status"), RANGES.items(), ids=[asked[:30] for asked in RANGES])
def test_a_range_is_a_part_or_none_of_the_file_or_is_ignored(shop: Shop, asked: str, status: int) -> None:
    path = f"/api/jobs/{shop.film()}/video"
    whole = shop.client.get(path).content
    reply = shop.client.get(path, headers=[(b"Range", asked.encode())])
    assert reply.status_code == status
    if status == 416:
        assert reply.headers["content-range"] == f"bytes */{len(whole)}"
        assert reply.headers["content-type"] == "application/problem+json"
    else:
        assert reply.content == (whole if status == 200 else whole[:2])
        assert int(reply.headers["content-length"]) == len(reply.content)
