"""Hostile input: paths that climb, and text that wants to be a header. Slow clients need a real server: not here."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.desk import Shop

CLIMBS = ("..", "../../etc/passwd", "..\\..\\state.db", "%2e%2e%2fstate.db", "a/../../state.db", "x\x00.mp4",
          "/etc/passwd")
INJECTED = "x\r\nSet-Cookie: stolen=1\r\n\r\n<script>"


@pytest.mark.parametrize("name", CLIMBS)
@pytest.mark.parametrize("pattern", [
    "/api/jobs/{}", "/api/jobs/{}/video", "/api/jobs/{}/log", "/api/jobs/{}/events", "/api/jobs/JOB/shots/{}/clip",
    "/api/jobs/JOB/shots/s1/{}"])
def test_a_path_that_climbs_reaches_no_file(shop: Shop, pattern: str, name: str) -> None:
    path = pattern.replace("JOB", shop.submit()).format(quote(name, safe=""))
    reply = shop.client.get(path)
    assert reply.status_code in {404, 422}, reply.text
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/api/jobs/{}", "/api/jobs/{}/video", "/api/jobs?cursor={}", "/api/jobs?kind={}",
                                  "/api/jobs/JOB/events?last_event_id={}"])
def test_what_is_asked_never_becomes_a_header(shop: Shop, path: str) -> None:
    job_id = shop.film()
    reply = shop.client.get(path.replace("JOB", job_id).format(quote(INJECTED, safe="")))
    assert reply.status_code < 500
    assert "set-cookie" not in reply.headers


def test_a_title_of_header_lines_names_no_file(shop: Shop) -> None:
    job_id = shop.film({"title": "a\nSet-Cookie: stolen=1", "shots": [{"prompt": "a red circle"}]})
    reply = shop.client.get(f"/api/jobs/{job_id}/video")
    assert "set-cookie" not in reply.headers
    assert reply.headers["content-disposition"] == f'inline; filename="{job_id}.mp4"'
