"""What every request passes first: names, other sites' pages, long bodies, and what nobody raised on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from configs.load import SettingsError, load_settings
from serve_app.http.schemas import Problem
from tests.desk import TWO_SHOTS, Shop, open_shop
from tests.disks import Disk
from workflows.errors import StoreAway


@pytest.mark.parametrize(("headers", "status"), [
    ({}, 202), ({"Origin": "http://127.0.0.1:8000"}, 202), ({"Sec-Fetch-Site": "same-origin"}, 202),
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://127.0.0.1:9000"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Origin": "http://["}, 403),
], ids=["a program", "our page", "our page, told otherwise", "another site", "a sandbox", "another port", "cross-site",
        "no origin at all"])
def test_a_page_of_another_site_changes_nothing(shop: Shop, headers: dict[str, str], status: int) -> None:
    reply = shop.client.post("/api/films", json=TWO_SHOTS, headers=headers)
    assert reply.status_code == status
    assert len(shop.ledger.jobs().jobs) == (status == 202)
    assert shop.client.get("/api/jobs", headers=headers).status_code == 200, "reading is not for this door to refuse"


@pytest.mark.parametrize(("host", "status"), [
    ("127.0.0.1:8000", 200), ("localhost", 200), ("LocalHost:8000", 200), ("[::1]:8000", 200),
    ("evil.example", 421), ("", 421),
    ("127.0.0.1.evil.example", 421), ("127.0.0.1:8000, evil", 421), ("127.0.0.1@evil.example", 421), ("[", 421),
])
def test_a_name_that_was_bent_to_loopback_is_refused(shop: Shop, host: str, status: int) -> None:
    assert shop.client.get("/api/jobs", headers={"Host": host}).status_code == status


def test_of_two_names_none_is_taken(shop: Shop) -> None:
    """What stands before us might have looked at the other."""
    reply = shop.client.get("/api/jobs", headers=[(b"Host", b"127.0.0.1:8000"), (b"Host", b"evil.example")])
    assert (reply.status_code, reply.json()["code"]) == (400, "two-hosts")


def test_a_proxys_name_is_ours_when_we_are_told(shop: Shop, tmp_path: Path) -> None:
    other = open_shop(tmp_path, tmp_path / "state.db", "http.allowed_hosts=[films.example]")
    assert other.client.get("/healthz", headers={"Host": "films.example"}).status_code == 200
    other.ledger.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "studio", "::"])
def test_another_address_than_loopback_asks_for_keys_unless_told_otherwise_in_so_many_words(host: str) -> None:
    assert load_settings("laptop", [f"http.host='{host}'"], {}).http.needs_keys
    with pytest.raises(SettingsError, match=r"nearest 127\.0\.0\.1, or say http\.allow_unauthenticated=true"):
        load_settings("laptop", [f"http.host='{host}'", "http.require_keys=false"], {})
    with pytest.raises(SettingsError, match="contradict"):
        load_settings("laptop", [f"http.host='{host}'", "http.require_keys=true", "http.allow_unauthenticated=true"],
                      {})
    assert not load_settings("laptop", [f"http.host='{host}'", "http.allow_unauthenticated=true"], {}).http.needs_keys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    http = load_settings("laptop", [f"http.host='{host}'"], {}).http
    assert http.is_loopback
    assert not http.needs_keys


class TestLongBodies:
    def test_one_that_says_so_is_refused_unread(self, shop: Shop) -> None:
        reply = shop.client.post("/api/films", content=b"x" * 1_100_001, headers={"content-type": "text/plain"})
        assert (reply.status_code, Problem.model_validate_json(reply.content).code) == (413, "too-large")

    @pytest.mark.parametrize("path", ["/api/films", "/api/jobs/x/retry"])
    def test_one_that_does_not_is_cut_off(self, shop: Shop, path: str) -> None:
        def pieces() -> Iterator[bytes]:
            for _ in range(12):
                yield b"x" * 100_000

        reply = shop.client.post(path, content=pieces(), headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["code"]) == (413, "too-large")


class TestSurprises:
    def test_what_nobody_raised_on_purpose_keeps_its_text_to_itself(self, shop: Shop) -> None:
        shop.cluster.error = ValueError("secret of the house")
        reply = shop.client.get("/api/capacity")
        assert (reply.status_code, reply.headers["content-type"]) == (500, "application/problem+json")
        assert "secret" not in reply.text

    def test_a_database_that_is_away_is_said_so(self, shop: Shop) -> None:
        shop.cluster.error = sqlite3.OperationalError("unable to open database file")
        reply = shop.client.get("/api/capacity")
        assert (reply.status_code, reply.headers["retry-after"], reply.json()["code"]) == (503, "5", "database-away")

    def test_a_store_that_is_away_too(self, shop: Shop) -> None:
        shop.cluster.error = StoreAway(store="s3://films", reason="could not connect")
        reply = shop.client.get("/api/capacity")
        assert (reply.status_code, reply.headers["retry-after"], reply.json()["code"]) == (503, "5", "store-away")
    def test_a_full_disk_under_it_is_said_so_until_there_is_room(self, shop: Shop) -> None:
        disk, shots = Disk(shop.ledger), [{"prompt": f"{number} stars " + "x" * 500} for number in range(40)]
        disk.is_full = True
        reply = shop.client.post("/api/films", json={"shots": shots})
        assert (reply.status_code, reply.headers["retry-after"], reply.json()["code"]) == (503, "5", "database-away")
        assert reply.headers["content-type"] == "application/problem+json"
        assert shop.client.get("/api/jobs").json()["jobs"] == [], "reading goes on"
        disk.is_full = False
        assert shop.client.post("/api/films", json={"shots": shots}).status_code == 202

    @pytest.mark.parametrize("path", ["/nothing", "/api", "/api/nothing", "/docs", "/api/jobs/%00", "/api/films"])
    def test_a_path_or_method_that_is_none_is_a_problem_too(self, shop: Shop, path: str) -> None:
        reply = shop.client.get(path)
        assert reply.status_code in (404, 405)
        Problem.model_validate_json(reply.content)


def test_other_origins_are_given_no_leave_to_read(shop: Shop) -> None:
    client: TestClient = shop.client
    reply = client.get("/api/jobs", headers={"Origin": "http://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
