"""Making films over HTTP: what is taken in which form, what is refused and where it points, what a plan says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from serve_app.http.films import SCOPE, read_film
from serve_app.http.idempotency import fingerprint
from serve_app.http.schemas import Accepted, PlanReply, Problem
from serve_app.service.films import Order
from tests.desk import TWO_SHOTS, Shop
from workflows.durable.replies import Reserved
from workflows.durable.tables import reply as table
from workflows.types import JobStatus, Priority

PROMPT = "a red circle moves left over a blue background"
YAML = f"title: From YAML\nshots:\n  - prompt: {PROMPT}\n"
FOUNTAIN = f"INT. STUDIO - DAY\n\n{PROMPT.capitalize()}.\n"


@pytest.mark.parametrize(("content_type", "body", "nodes"), [
    ("application/json", json.dumps(TWO_SHOTS), ["s1.keyframe", "s1.clip", "s2.clip", "compose"]),
    ("application/json; charset=utf-8", json.dumps({"shots": [{"prompt": PROMPT}]}), ["s1.clip", "compose"]),
    ("application/yaml", YAML, ["s1.clip", "compose"]),
    ("text/x-yaml", YAML, ["s1.clip", "compose"]),
    ("text/plain", PROMPT, ["story"]),
    ("text/fountain", FOUNTAIN, ["story"]),
    ("application/json", json.dumps({"script": PROMPT}), ["story"]),
    ("application/json", json.dumps({"script": FOUNTAIN, "format": "fountain", "film": {"seed": 3}}), ["story"]),
], ids=["json", "charset", "yaml", "old-yaml", "text", "fountain", "script-json", "script-options"])
def test_a_film_is_taken_in_every_form(shop: Shop, content_type: str, body: str, nodes: list[str]) -> None:
    reply = shop.client.post("/api/films", content=body, headers={"content-type": content_type})
    assert reply.status_code == 202, reply.text
    accepted = Accepted.model_validate_json(reply.content)
    assert reply.headers["location"] == f"/api/jobs/{accepted.id}" == accepted.links.self
    assert [node.id for node in shop.ledger.nodes(accepted.id)] == nodes
    assert ("wake", "") in shop.hints.told


def test_a_script_becomes_a_film_with_its_options(shop: Shop) -> None:
    reply = shop.client.post("/api/films", json={"script": PROMPT, "title": "Told", "film": {"seed": 11}})
    job_id = reply.json()["id"]
    assert job_id.startswith("told-")
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    assert {node.id for node in shop.ledger.nodes(job_id)} == {"story", "s1.clip", "compose"}


def test_each_post_is_a_film_of_its_own_and_has_its_priority(shop: Shop) -> None:
    first, second = shop.submit(), shop.submit()
    assert first != second
    batch = shop.client.post("/api/films?priority=batch", json=TWO_SHOTS).json()["id"]
    assert shop.ledger.job(batch).priority is Priority.BATCH


@pytest.mark.parametrize(("document", "pointer", "nearest"), [
    ({"shots": [{"prompt": "x"}, {"promt": "y"}]}, "#/shots/1/promt", "prompt"),
    ({"shots": [{"prompt": "x", "frames": 80}]}, "#/shots/0/frames", "17"),
    ({"shots": [{"prompt": "x", "id": "a"}, {"prompt": "y", "continues": "b"}]}, "#/shots/1/continues", "a"),
    ({"shots": [{"prompt": "x"}], "seed": -1}, "#/seed", "0"),
    ({"shots": [{"prompt": "x", "image": "/etc/passwd"}]}, "#/shots/0/image", "mode: keyframe"),
    ({"script": "x", "film": {"fps": "many"}}, "#/film/fps", None),
    ({"script": "x", "shots": []}, "#/shots", None),
], ids=["typo", "length", "reference", "film field", "a path of the server", "script option", "both"])
def test_a_wrong_document_is_refused_with_a_pointer_and_the_nearest_value(
        shop: Shop, document: dict[str, Any], pointer: str, nearest: str | None) -> None:
    reply = shop.client.post("/api/films", json=document)
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    problem = Problem.model_validate_json(reply.content)
    assert problem.errors is not None
    found = {error.pointer: error for error in problem.errors}
    assert pointer in found, reply.text
    assert found[pointer].nearest == nearest
    assert shop.ledger.jobs().jobs == ()


@pytest.mark.parametrize(("content_type", "body", "status"), [
    ("application/json", b"{", 422), ("application/json", b"\xff\xfe", 422), ("application/json", b"", 422),
    ("application/json", b'{"shots": [{"prompt": "\\ud800"}]}', 422), ("application/json", b"[1]", 422),
    ("application/json", b'{"shots": [{"prompt": "x", "guidance": NaN}]}', 422),
    ("application/yaml", b"shots: &a [*a]", 422), ("text/plain", b"  ", 422),
    ("application/x-www-form-urlencoded", b"a=b", 415), ("", b"{}", 415),
], ids=["cut-json", "not-utf8", "empty", "surrogate", "list", "nan", "alias", "no-script", "form", "no-type"])
def test_what_is_no_film_at_all_is_refused_as_a_problem(
        shop: Shop, content_type: str, body: bytes, status: int) -> None:
    reply = shop.client.post("/api/films", content=body, headers={"content-type": content_type} if content_type else {})
    assert reply.status_code == status
    Problem.model_validate_json(reply.content)


def test_a_problem_in_yaml_names_the_line(shop: Shop) -> None:
    reply = shop.client.post("/api/films", content=YAML + "    frames: 80\n",
                             headers={"content-type": "application/yaml"})
    [error] = reply.json()["errors"]
    assert (error["line"], error["pointer"], error["shot"]) == (4, "#/shots/0/frames", "s1")


def test_a_dry_run_plans_and_does_nothing(shop: Shop) -> None:
    reply = shop.client.post("/api/films?dry_run=true", json=TWO_SHOTS)
    plan = PlanReply.model_validate_json(reply.content)
    assert (reply.status_code, plan.cache_hits) == (200, 0)
    assert [node.id for node in plan.nodes] == ["s1.keyframe", "s1.clip", "s2.clip", "compose"]
    assert plan.estimated_gpu_seconds == pytest.approx(sum(n.estimated_seconds for n in plan.nodes if n.lane != "cpu"))
    assert plan.estimated_gpu_seconds > plan.estimated_cpu_seconds > 0
    assert shop.ledger.jobs().jobs == ()


def test_a_dry_run_counts_what_the_store_has_and_learns_how_long_the_rest_takes(shop: Shop) -> None:
    shop.film()
    again = PlanReply.model_validate_json(shop.client.post("/api/films?dry_run=true", json=TWO_SHOTS).content)
    assert (again.cache_hits, again.estimated_gpu_seconds) == (4, 0)
    other: dict[str, Any] = {"shots": [{"prompt": "a green star moves up over a black background"}]}
    fresh = PlanReply.model_validate_json(shop.client.post("/api/films?dry_run=true", json=other).content)
    assert 0 < fresh.estimated_gpu_seconds < 1, "the card says two seconds; the painter took less"


def test_a_dry_run_of_a_script_shows_the_whole_film(shop: Shop) -> None:
    reply = shop.client.post("/api/films?dry_run=1", content=PROMPT, headers={"content-type": "text/plain"})
    assert [node["id"] for node in reply.json()["nodes"]] == ["s1.clip", "compose"]


KEY = {"Idempotency-Key": "k-1"}


class TestIdempotency:
    def test_the_same_request_again_gets_the_same_reply_and_makes_nothing(self, shop: Shop) -> None:
        first = shop.client.post("/api/films", json=TWO_SHOTS, headers=KEY)
        again = shop.client.post("/api/films", json=TWO_SHOTS, headers=KEY)
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["location"] == first.headers["location"]
        assert (again.headers["idempotency-replayed"], "idempotency-replayed" in first.headers) == ("true", False)
        assert len(shop.ledger.jobs().jobs) == 1

    def test_another_request_with_the_key_is_refused(self, shop: Shop) -> None:
        shop.client.post("/api/films", json=TWO_SHOTS, headers=KEY)
        for url, body in (("/api/films", {**TWO_SHOTS, "seed": 4}), ("/api/films?priority=batch", TWO_SHOTS)):
            reply = shop.client.post(url, json=body, headers=KEY)
            assert (reply.status_code, reply.json()["code"]) == (422, "idempotency-key-reused")
        assert len(shop.ledger.jobs().jobs) == 1

    def test_while_the_first_is_answered_the_second_is_told_to_wait(self, shop: Shop) -> None:
        body = json.dumps(TWO_SHOTS).encode()
        digest = fingerprint(b"application/json", b"interactive", body)
        assert isinstance(shop.desk.replies.begin(SCOPE, "k-1", digest), Reserved)
        reply = shop.client.post("/api/films", content=body, headers={**KEY, "content-type": "application/json"})
        assert (reply.status_code, reply.json()["code"]) == (409, "request-in-flight")
        assert reply.headers["retry-after"] == "1"

    def test_what_a_dead_process_had_submitted_is_found_and_not_made_again(self, shop: Shop) -> None:
        body = json.dumps(TWO_SHOTS).encode()
        reserved = shop.desk.replies.begin(SCOPE, "k-1", fingerprint(b"application/json", b"interactive", body))
        assert isinstance(reserved, Reserved)
        draft = shop.desk.films.draft(read_film(body, "application/json"))
        made = shop.desk.films.submit(draft, Order(token=reserved.token, key_id=""))
        with shop.ledger.database.write() as connection:  # it died here, a while ago
            connection.execute(sa.update(table).values(touched_at=0.0))
        reply = shop.client.post("/api/films", content=body, headers={**KEY, "content-type": "application/json"})
        assert (reply.status_code, reply.json()["id"]) == (202, made.id)
        assert len(shop.ledger.jobs().jobs) == 1

    def test_a_refused_request_leaves_the_key_free(self, shop: Shop) -> None:
        assert shop.client.post("/api/films", json={"shots": []}, headers=KEY).status_code == 422
        assert shop.client.post("/api/films", json=TWO_SHOTS, headers=KEY).status_code == 202

    @pytest.mark.parametrize("key", ["", "k" * 256], ids=["empty", "long"])
    def test_a_key_that_is_none_is_refused_by_name(self, shop: Shop, key: str) -> None:
        reply = shop.client.post("/api/films", json=TWO_SHOTS, headers={"Idempotency-Key": key})
        assert reply.status_code == 422
        assert reply.json()["errors"][0]["parameter"].lower() == "idempotency-key"


def test_no_reply_shows_where_files_lie(shop: Shop, tmp_path: Path) -> None:
    job_id = shop.film()
    assert str(tmp_path) not in shop.client.get(f"/api/jobs/{job_id}").text
