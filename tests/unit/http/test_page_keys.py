"""The page where keys are asked for: a browser that was told a key once sends it as Basic with everything it loads."""

from __future__ import annotations

import base64
import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desk import Shop, open_shop
from workflows.durable.keys import Keys, Role

LINKS = re.compile(r'(?:src|href|hx-get|sse-connect|data-url)="(/[^"]*)"')
FORMS = re.compile(r'<form method="post" action="([^"]*)"')
SAME_SITE = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
HX = {"HX-Request": "true", "Accept": "*/*", **SAME_SITE}
FILM = {"form": "storyboard", "text": "shots:\n- prompt: a red circle\n"}


@pytest.fixture
def shop(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    """One that asks for keys."""
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.require_keys=true")
    with shop.client:
        yield shop
    shop.ledger.close()


def basic(shop: Shop, role: Role, name: str = "any name") -> dict[str, str]:
    """What a browser sends after its window for name and password."""
    token = Keys(shop.ledger.database).create(name, role).token
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()}


def film(shop: Shop, key: dict[str, str]) -> str:
    """A film, made on the page; where its page is."""
    reply = shop.client.post("/new", data=FILM, headers={**key, **SAME_SITE}, follow_redirects=False)
    assert reply.status_code == 303, reply.text
    return reply.headers["location"]


def test_a_browser_asks_for_the_key_where_it_opens_the_page_and_only_there(shop: Shop) -> None:
    """A window for a password that comes up amid a stream or a part of the page would be asked of nobody who looks."""
    for path in ("/", "/new", "/films/x"):
        reply = shop.client.get(path, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert (reply.status_code, reply.headers["www-authenticate"].partition(" ")[0]) == (401, "Basic")
    for path, accept in (("/films/x/now", "*/*"), ("/api/jobs/x/events", "text/event-stream"),
                         ("/static/page.js", "*/*"), ("/api/jobs/x/video", "video/*")):
        reply = shop.client.get(path, headers={"Accept": accept})
        assert (reply.status_code, reply.headers["www-authenticate"].partition(" ")[0]) == (401, "Bearer")


@pytest.mark.parametrize("role", [Role.ADMIN, Role.USER])
def test_all_that_a_page_names_comes_with_the_key_and_nothing_without(shop: Shop, role: Role) -> None:
    key = basic(shop, role)
    address = film(shop, key)
    job_id = address.rpartition("/")[2]
    waiting = shop.client.get(address, headers=key).text
    shop.render(job_id)
    shop.desk.views.forget(job_id)
    pages = [waiting, *(shop.client.get(path, headers=key).text for path in ("/", "/new", address))]
    links = {html.unescape(link) for page in pages for link in LINKS.findall(page)}
    assert {f"/api/jobs/{job_id}/events", f"{address}/log", f"{address}/now", "/static/page.js"} <= links
    assert [link for link in links if link.startswith(f"/api/jobs/{job_id}/video")]
    for link in links:
        assert shop.client.get(link, headers={**key, **HX}).status_code == 200, link
        assert shop.client.get(link, headers=HX).status_code == 401, link


def test_the_event_stream_is_told_with_the_key(shop: Shop) -> None:
    key, another = basic(shop, Role.USER), basic(shop, Role.USER, "another")
    job_id = film(shop, key).rpartition("/")[2]
    shop.ledger.cancel(job_id)
    asked = {**key, "Accept": "text/event-stream", "Sec-Fetch-Site": "same-origin", "Cache-Control": "no-cache"}
    reply = shop.client.get(f"/api/jobs/{job_id}/events", headers=asked)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert "event: done" in reply.text
    other = shop.client.get(f"/api/jobs/{job_id}/events", headers={**asked, **another})
    assert other.status_code == 404


def test_its_forms_work_with_the_key_and_say_so_to_who_only_reads(shop: Shop) -> None:
    key, reader = basic(shop, Role.USER), basic(shop, Role.READ)
    address = film(shop, key)
    page = shop.client.get(address, headers=key).text
    [cancel] = [action for action in FORMS.findall(page) if action.endswith("/cancel")]
    refused = shop.client.post(cancel, headers={**reader, **HX}, follow_redirects=False)
    assert refused.status_code == 403
    assert not shop.ledger.job(address.rpartition("/")[2]).cancel_requested
    assert shop.client.post(cancel, headers=HX, follow_redirects=False).status_code == 401
    assert shop.client.post(cancel, headers={**key, "Origin": "http://evil.example"}).status_code == 403
    assert shop.client.post(cancel, headers={**key, **HX}, follow_redirects=False).status_code == 303
    checked = shop.client.post("/new/check", data=FILM, headers={**key, **HX})
    assert checked.status_code == 200
