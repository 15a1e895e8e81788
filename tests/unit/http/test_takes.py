"""Changing one shot of a finished film, and choosing between its takes."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.http.edit_schemas import AnyJobReply
from serve_app.http.schemas import ChangeReply
from tests.desk import TWO_SHOTS, Shop
from workflows.types import JobStatus

CHAIN: dict[str, Any] = {"shots": [
    {"prompt": "a red circle moves left over a blue background"},
    {"prompt": "a red circle moves right over a blue background", "continues": "s1"},
    {"prompt": "a green square grows on a black background"}]}
GREEN = {"prompt": "a green circle moves left over a blue background"}


def change(shop: Shop, job_id: str, shot_id: str, changes: Any) -> Any:
    return shop.client.patch(f"/api/films/{job_id}/shots/{shot_id}", json=changes)


def rendered(shop: Shop, job_id: str) -> list[str]:
    """What an engine makes of the job now."""
    shop.painter.made.clear()
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    return shop.painter.made


@pytest.mark.parametrize(("shot", "changes", "nodes"), [
    ("s1", GREEN, ["s1.clip", "s2.clip", "compose"]),
    ("s3", {"steps": 5}, ["s3.clip", "compose"]),
    ("s3", {"caption": "Noon"}, ["s3.caption", "compose"]),
    ("s2", {"continues": None}, ["s2.clip", "compose"]),
    ("s3", {"transition": "crossfade"}, ["compose"]),
    ("s3", {"takes": 2}, ["s3.clip.2"]),
    ("s3", {"mode": "keyframe"}, ["s3.keyframe", "s3.clip", "compose"]),
], ids=["and what continues it", "alone", "no model", "a field taken away", "only the film", "a second take",
        "a keyframe"])
def test_a_change_renders_exactly_its_cone(shop: Shop, shot: str, changes: dict[str, Any], nodes: list[str]) -> None:
    job_id = shop.film(CHAIN)
    reply = change(shop, job_id, shot, changes)
    assert reply.status_code == 202, reply.text
    assert list(ChangeReply.model_validate_json(reply.content).nodes) == nodes
    assert sorted(rendered(shop, job_id)) == sorted(nodes)


def test_changes_add_up(shop: Shop) -> None:
    job_id = shop.film(CHAIN)
    change(shop, job_id, "s1", GREEN)
    rendered(shop, job_id)
    change(shop, job_id, "s3", {"caption": "End"})
    assert rendered(shop, job_id) == ["s3.caption", "compose"]
    assert "green circle" in str(next(n for n in shop.ledger.nodes(job_id) if n.id == "s1.clip").payload["prompt"])


def test_an_earlier_take_is_shown_again_without_rendering(shop: Shop) -> None:
    job_id = shop.film(CHAIN)
    film = shop.client.get(f"/api/jobs/{job_id}/video").content
    clip = shop.client.get(f"/api/jobs/{job_id}/shots/s1/clip").content
    change(shop, job_id, "s1", GREEN)
    rendered(shop, job_id)
    new_clip = shop.client.get(f"/api/jobs/{job_id}/shots/s1/clip").content
    assert new_clip != clip
    assert shop.client.get(f"/api/jobs/{job_id}/shots/s1/clip?take=1").content == clip
    assert shop.client.get(f"/api/jobs/{job_id}/shots/s1/thumbnail?take=1").headers["content-type"] == "image/png"

    assert change(shop, job_id, "s1", {"restore_take": 1}).status_code == 202
    assert rendered(shop, job_id) == [], "all of it was in the store"
    assert shop.client.get(f"/api/jobs/{job_id}/video").content == film
    takes = AnyJobReply.model_validate(shop.status(job_id)).shots[0].takes
    assert [(take.number, take.selected) for take in takes] == [(1, True), (2, False)]
    change(shop, job_id, "s1", {"restore_take": 2})
    assert rendered(shop, job_id) == []
    assert shop.client.get(f"/api/jobs/{job_id}/shots/s1/clip").content == new_clip


def test_forced_takes_and_changed_shots_are_chosen_alike(shop: Shop) -> None:
    job_id = shop.film(CHAIN)
    first = shop.client.get(f"/api/jobs/{job_id}/shots/s3/clip").content
    shop.client.post(f"/api/jobs/{job_id}/retry", json={"shots": ["s3"], "force": True})
    rendered(shop, job_id)
    change(shop, job_id, "s3", {"prompt": "a white square grows on a black background"})
    rendered(shop, job_id)
    change(shop, job_id, "s3", {"restore_take": 1})
    assert rendered(shop, job_id) == []
    assert shop.client.get(f"/api/jobs/{job_id}/shots/s3/clip").content == first


def test_a_shot_of_a_script_is_changed_like_any_other(shop: Shop) -> None:
    job_id = shop.film({"script": "A red circle moves left over a blue background.\n\nA green square grows on a black "
                                  "background."})
    assert change(shop, job_id, "s2", {"caption": "Two"}).json()["nodes"] == ["s2.caption", "compose"]
    assert rendered(shop, job_id) == ["s2.caption", "compose"]
    assert change(shop, job_id, "s2", {"caption": "Too"}).json()["nodes"] == ["s2.caption", "compose"]


def test_a_change_that_changes_nothing_runs_nothing(shop: Shop) -> None:
    job_id = shop.film(CHAIN)
    for same in ({}, {"prompt": CHAIN["shots"][2]["prompt"]}, {"seed": None}):
        reply = change(shop, job_id, "s3", same)
        assert (reply.status_code, reply.json()["nodes"], reply.json()["status"]) == (200, [], "succeeded")


@pytest.mark.parametrize(("shot", "changes", "status", "pointer"), [
    ("s3", {"frames": 80}, 422, "#/frames"), ("s3", {"promt": "x"}, 422, "#/promt"),
    ("s3", {"prompt": " "}, 422, "#/prompt"),
    ("s3", {"id": "new"}, 422, "#/id"), ("s3", {"continues": "s3"}, 422, "#/continues"),
    ("s3", {"image": "/etc/passwd"}, 422, "#/image"), ("s3", {"restore_take": 1, "prompt": "x"}, 422, "#/restore_take"),
    ("s3", {"restore_take": 7}, 404, ""), ("s3", {"restore_take": True}, 404, ""), ("s9", {"prompt": "x"}, 404, ""),
    ("s3", [], 422, "#/"),
], ids=lambda value: str(value)[:30])
def test_a_change_that_cannot_be_is_refused_and_leaves_the_film_as_it_was(
        shop: Shop, shot: str, changes: Any, status: int, pointer: str) -> None:
    job_id = shop.film(CHAIN)
    before = shop.ledger.nodes(job_id)
    reply = change(shop, job_id, shot, changes)
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json"), reply.text
    assert not pointer or reply.json()["errors"][0]["pointer"] == pointer
    assert shop.ledger.nodes(job_id) == before


def test_a_film_that_is_not_over_is_not_changed(shop: Shop) -> None:
    reply = change(shop, shop.submit(TWO_SHOTS), "s1", {"caption": "x"})
    assert (reply.status_code, "cancel it, or wait" in reply.json()["detail"]) == (409, True)
    script = shop.submit({"script": "A red circle moves left over a blue background."})
    assert change(shop, script, "s1", {"caption": "x"}).status_code == 409
