"""Batches over HTTP: taken whole or refused whole, steered, told of, and each key its own."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.desk import Shop, open_shop
from workflows.durable.keys import Keys, Role
from workflows.types import JobStatus

STAR = "shots:\n  - prompt: a yellow star falls down over a black background\n"
CIRCLE = {"shots": [{"prompt": "a red circle moves left over a blue background"}]}
FILMS: list[dict[str, Any]] = [{"file": "star.yaml", "text": STAR}, {"file": "circle", "storyboard": CIRCLE}]


def post(shop: Shop, films: list[dict[str, Any]] = FILMS, **more: Any) -> dict[str, Any]:
    reply = shop.client.post("/api/batches", json={"name": "two films", "films": films, **more})
    assert reply.status_code in (200, 202), reply.text
    made: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/api/batches/{made['id']}"
    return made


def look(shop: Shop, batch_id: str) -> dict[str, Any]:
    found: dict[str, Any] = shop.client.get(f"/api/batches/{batch_id}").json()
    return found


def test_many_films_become_one_unit_and_the_same_again_joins_it(shop: Shop) -> None:
    made = post(shop)
    assert (made["status"], made["new"], made["changed"]) == ("queued", ["star.yaml", "circle"], [])
    assert [film["status"] for film in made["films"]] == ["queued", "queued"]
    assert post(shop)["new"] == []
    shop.render_all()
    done = post(shop)
    assert (done["status"], done["progress"], done["jobs"]["succeeded"]) == ("succeeded", 1.0, 2)
    assert done["gpu_used_s"] > 0
    painted = len(shop.painter.made)
    changed = post(shop, [{"file": "star.yaml", "text": STAR.replace("yellow", "green")}, FILMS[1]])
    assert (changed["new"], changed["changed"]) == (["star.yaml"], ["star.yaml"])
    assert [film["status"] for film in changed["films"]] == ["queued", "succeeded"]
    shop.render_all()
    assert len(shop.painter.made) == painted + 2, "one clip and one film"


def test_one_wrong_film_refuses_all_and_every_problem_of_every_film_is_told(shop: Shop) -> None:
    bad = STAR + "    frames: 2\n    promt: x\n"
    films = [{"file": "a/good.yaml", "text": STAR}, {"file": "a/bad.yaml", "text": bad},
             {"file": "odd.json", "storyboard": {"shots": [{"prompt": "x"}, {"prompt": "y", "duration_s": -1}]}},
             {"file": "no.fountain", "text": "\n\n"}]
    reply = shop.client.post("/api/batches", json={"name": "x", "films": films})
    assert reply.status_code == 422
    errors = reply.json()["errors"]
    assert {error["file"] for error in errors} == {"a/bad.yaml", "odd.json", "no.fountain"}
    assert {(error["line"], error["pointer"]) for error in errors if error["file"] == "a/bad.yaml"} >= {
        (4, "#/films/1/text")}
    assert [error["pointer"] for error in errors if error["file"] == "odd.json"] == [
        "#/films/2/storyboard/shots/1/duration_s"]
    assert (shop.ledger.jobs().jobs, shop.client.get("/api/batches").json()["batches"]) == ((), [])


def test_no_problem_is_left_out_however_many_there_are(shop: Shop) -> None:
    films = [{"file": f"{n}.yaml", "text": "shots: 3\n"} for n in range(150)]
    errors = shop.client.post("/api/batches", json={"name": "x", "films": films}).json()["errors"]
    assert {error["file"] for error in errors} == {film["file"] for film in films}


@pytest.mark.parametrize(("body", "pointer"), [
    ({"name": "x", "films": []}, "#/films"), ({"films": FILMS}, "#/name"),
    ({"name": "x", "films": [{"file": "a.yaml"}]}, "#/films/0"),
    ({"name": "x", "films": FILMS, "concurrency": 0}, "#/concurrency"),
    ({"name": "x", "films": FILMS, "gpu_seconds": -1}, "#/gpu_seconds"),
    ({"name": "x", "films": FILMS, "gpu_seconds": False}, "#/gpu_seconds"),
    ({"name": "x", "films": FILMS, "concurrency": True}, "#/concurrency"),
])
def test_what_is_wrong_with_the_request_itself(shop: Shop, body: dict[str, Any], pointer: str) -> None:
    reply = shop.client.post("/api/batches", json=body)
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_file_that_is_there_twice_is_refused(shop: Shop) -> None:
    reply = shop.client.post("/api/batches", json={"name": "x", "films": [FILMS[0], FILMS[0]]})
    assert (reply.status_code, reply.json()["errors"][0]["file"]) == (422, "star.yaml")


def test_it_is_paused_resumed_and_given_other_limits(shop: Shop) -> None:
    batch = f"/api/batches/{post(shop, concurrency=2, gpu_seconds=50)['id']}"
    paused = shop.client.post(f"{batch}/pause").json()
    assert (paused["status"], paused["held"], paused["eta"]) == ("paused", "paused", None)
    changed = shop.client.patch(batch, json={"concurrency": None}).json()
    assert (changed["concurrency"], changed["gpu_budget_s"], changed["status"]) == (None, 50.0, "paused")
    assert shop.client.patch(batch, json={"gpu_seconds": None}).json()["gpu_budget_s"] is None
    assert shop.client.post(f"{batch}/resume").json()["status"] == "queued"
    assert ("wake", "") in shop.hints.told
    shop.render_all()
    assert shop.client.post(f"{batch}/pause").status_code == 409


def test_what_failed_runs_again_and_costs_are_told_shot_by_shot(shop: Shop) -> None:
    made = post(shop)
    shop.painter.failing = True
    shop.render_all()
    failed = look(shop, made["id"])
    assert (failed["status"], [film["status"] for film in failed["films"]]) == ("partial", ["partial", "succeeded"])
    assert "burned" in failed["films"][0]["error"]
    shop.painter.failing = False
    assert shop.client.post(f"/api/batches/{made['id']}/retry").status_code == 202
    shop.render_all()
    assert shop.client.post(f"/api/batches/{made['id']}/retry").status_code == 200
    report = shop.client.get(f"/api/batches/{made['id']}/report?price_per_gpu_hour=3.6").json()
    star = next(row for row in report["rows"] if (row["file"], row["shot"]) == ("star.yaml", "s1"))
    assert (star["models"], star["attempts"], star["status"]) == (["sketch"], 2, "succeeded")
    assert min(star["gpu_seconds_useful"], star["gpu_seconds_wasted"]) > 0
    assert star["cost"] == pytest.approx((star["gpu_seconds_useful"] + star["gpu_seconds_wasted"]) / 1000, abs=2e-6)
    used = report["total"]["gpu_seconds_useful"] + report["total"]["gpu_seconds_wasted"]
    assert used == pytest.approx(look(shop, made["id"])["gpu_used_s"], abs=0.01)
    table = shop.client.get(f"/api/batches/{made['id']}/report?format=csv&price_per_gpu_hour=3.6")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [float(row["cost"]) for row in rows] == [row["cost"] for row in report["rows"]]


def test_results_of_the_store_are_told_as_saved(shop: Shop) -> None:
    shop.film(CIRCLE)
    made = post(shop)
    shop.render_all()
    rows = shop.client.get(f"/api/batches/{made['id']}/report").json()["rows"]
    found = {row["file"]: row for row in rows if row["shot"]}
    assert found["circle"]["gpu_seconds_saved"] > 0 == found["circle"]["gpu_seconds_useful"]
    assert found["star.yaml"]["gpu_seconds_saved"] == 0 < found["star.yaml"]["gpu_seconds_useful"]


def test_time_left_is_that_of_the_whole(shop: Shop) -> None:
    shop.film(CIRCLE)
    films = [{"file": f"{n}", "storyboard": {"shots": [{**CIRCLE["shots"][0], "seed": n}]}} for n in range(40)]
    every = post(shop, films)["eta"]
    one = shop.client.patch(f"/api/batches/{post(shop, films)['id']}", json={"concurrency": 1}).json()["eta"]
    assert 0 < every["p50_s"] <= every["p90_s"]
    assert one["p50_s"] > every["p50_s"]


def test_it_is_cancelled_and_forgotten(shop: Shop) -> None:
    made = post(shop)
    batch = f"/api/batches/{made['id']}"
    assert shop.client.delete(batch).status_code == 409
    assert shop.client.post(f"{batch}/cancel").json()["status"] == "cancelled"
    assert shop.client.delete(batch).status_code == 204
    assert shop.client.get(batch).status_code == 404
    assert shop.ledger.jobs().jobs == ()


def test_replies_are_what_the_document_says(shop: Shop) -> None:
    made = post(shop)
    shop.render_all()
    document = shop.client.get("/api/openapi.json").json()
    for path in ("/api/batches", "/api/batches/{batch_id}", "/api/batches/{batch_id}/report"):
        content = document["paths"][path]["get"]["responses"]["200"]["content"]
        rule = {**content["application/json"]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(rule).validate(
            shop.client.get(path.replace("{batch_id}", made["id"])).json())
    schema = document["paths"]["/api/batches"]["post"]["responses"]["202"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(made)


def test_it_has_a_longer_body_than_others(shop: Shop) -> None:
    long = json.dumps({"name": "x", "films": FILMS, "pad": "x" * 2_000_000})
    assert shop.client.post("/api/batches", content=long, headers={"Content-Type": "application/json"},
                            ).status_code == 422
    assert shop.client.post("/api/films", content=long).status_code == 413


@pytest.fixture
def guarded(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "http.require_keys=true")
    with shop.client:
        yield shop
    shop.ledger.close()


def test_a_batch_belongs_to_its_key(guarded: Shop) -> None:
    book = Keys(guarded.ledger.database)
    keys = {name: book.create(name, role) for name, role in
            {"mine": Role.USER, "other": Role.USER, "read": Role.READ, "admin": Role.ADMIN}.items()}

    def ask(who: str, method: str, path: str, body: Any = None) -> int:
        return guarded.client.request(method, f"/api/batches{path}", json=body, headers={
            "Authorization": f"Bearer {keys[who].token}"}).status_code

    body = {"name": "two films", "films": FILMS}
    assert ask("read", "POST", "", body) == 403
    assert ask("mine", "POST", "", body) == 202
    batch_id = guarded.desk.batches.rows.page().batches[0].id
    for method, path in (("GET", ""), ("GET", "/report"), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/retry"),
                         ("PATCH", ""), ("POST", "/cancel"), ("DELETE", "")):
        assert ask("other", method, f"/{batch_id}{path}", {} if method == "PATCH" else None) == 404, (method, path)
    assert ask("other", "POST", "", body) == 202, "the same name of another key is another batch"
    assert guarded.ledger.jobs(JobStatus.QUEUED).jobs[0].key_id == keys["other"].key.id
    assert (ask("read", "GET", f"/{batch_id}"), ask("read", "POST", f"/{batch_id}/pause")) == (200, 403)
    listed = {who: len(guarded.client.get("/api/batches", headers={
        "Authorization": f"Bearer {keys[who].token}"}).json()["batches"]) for who in keys}
    assert listed == {"mine": 1, "other": 1, "read": 2, "admin": 2}
