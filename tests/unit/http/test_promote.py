"""Drafts over HTTP: a film made to be looked at, and its shots made final from their own seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.load import CARDS_DIR
from serve_app.http.edit_schemas import AnyJobReply
from serve_app.http.schemas import ChangeReply
from tests.desk import Shop, open_shop
from workflows.types import JobStatus

CHAIN: dict[str, Any] = {"title": "Chain", "shots": [
    {"prompt": "a red circle moves left over a blue background", "mode": "keyframe"},
    {"prompt": "a red circle moves right over a blue background", "continues": "s1"},
    {"prompt": "a green square grows on a black background", "caption": "Noon"}]}
SCRIPT = {"script": "A red circle moves left over a blue background.\n\nA yellow star falls down."}


def sent(shop: Shop, document: Any, **query: str) -> str:
    """Send a film and render it; its id."""
    reply = shop.client.post("/api/films", json=document, params=query)
    assert reply.status_code == 202, reply.text
    job_id = str(reply.json()["id"])
    rendered(shop, job_id)
    return job_id


def promote(shop: Shop, job_id: str, *shots: str) -> Any:
    return shop.client.post(f"/api/films/{job_id}/promote", json={"shots": list(shots)} if shots else None)


def rendered(shop: Shop, job_id: str) -> list[str]:
    """What an engine makes of the job now."""
    shop.painter.made.clear()
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    return sorted(shop.painter.made)


def keys(shop: Shop, job_id: str) -> dict[str, str]:
    return {node.id: node.key for node in shop.ledger.nodes(job_id)}


def tiers(shop: Shop, job_id: str) -> list[str]:
    job = AnyJobReply.model_validate(shop.status(job_id), strict=False)
    return [shot.tier.value for shot in job.shots]


@pytest.mark.parametrize("document", [CHAIN, SCRIPT], ids=["storyboard", "script"])
def test_a_film_promoted_shot_by_shot_is_the_final_film_and_that_renders_nothing(shop: Shop, document: Any) -> None:
    """Same keys, same bytes: the film asked for as final finds all that the promoted draft has made."""
    job_id = sent(shop, document, tier="draft")
    assert set(tiers(shop, job_id)) == {"draft"}
    draft = shop.client.get(f"/api/jobs/{job_id}/video").content
    for shots in (("s1",), ()):
        assert promote(shop, job_id, *shots).status_code == 202
        rendered(shop, job_id)
    assert set(tiers(shop, job_id)) == {"final"}
    final_id = shop.submit(document)
    assert [made for made in rendered(shop, final_id) if made != "story"] == []
    both = keys(shop, final_id), keys(shop, job_id)
    both[0].pop("story", None)  # a script's film is its storyboard once it was changed
    assert both[0] == both[1]
    films = [shop.client.get(f"/api/jobs/{one}/video").content for one in (final_id, job_id)]
    assert films[0] == films[1] != draft


def test_a_draft_is_promoted_by_the_model_that_made_it_or_not_at_all(tmp_path: Path, migrated_file: Path) -> None:
    database = tmp_path / "state.db"
    database.write_bytes(migrated_file.read_bytes())
    shop = open_shop(tmp_path, database)
    with shop.client:
        job_id = sent(shop, CHAIN, tier="draft")
    card = yaml.safe_load((CARDS_DIR / "sketch.yaml").read_text(encoding="utf-8"))
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "sketch.yaml").write_text(yaml.safe_dump({**card, "scheduler": {"flow_shift": 4.0}}))
    other = open_shop(tmp_path, database, f"models.card_dirs=[{tmp_path / 'cards'}]")
    with other.client:
        for shots in ((), ("s1",)):
            refused = promote(other, job_id, *shots)
            assert (refused.status_code, "the models were changed" in refused.json()["detail"]) == (409, True)
        assert tiers(other, job_id) == ["draft"] * 3
    for each in (shop, other):
        each.ledger.close()


def test_a_selection_that_is_empty_or_longer_than_any_film_is_refused(shop: Shop) -> None:
    job_id = sent(shop, CHAIN, tier="draft")
    for shots in ([], ["s1"] * 1001):
        reply = shop.client.post(f"/api/films/{job_id}/promote", json={"shots": shots})
        assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, "#/shots")
    many = shop.client.post(f"/api/films/{job_id}/promote", json={"shots": [f"x{number}" for number in range(900)]})
    assert (many.status_code, len(many.json()["errors"])) == (422, 100)
    assert tiers(shop, job_id) == ["draft"] * 3


def test_only_the_promoted_shots_cone_renders_and_the_draft_stays_a_take(shop: Shop) -> None:
    job_id = sent(shop, CHAIN, tier="draft")
    draft = keys(shop, job_id)
    reply = promote(shop, job_id, "s1")
    assert reply.status_code == 202, reply.text
    nodes = ["s1.keyframe", "s1.clip", "s2.clip", "compose"]
    assert list(ChangeReply.model_validate_json(reply.content).nodes) == nodes
    assert rendered(shop, job_id) == sorted(nodes)
    job: Any = shop.status(job_id)
    assert tiers(shop, job_id) == ["final", "draft", "draft"]
    assert [(take["number"], take["tier"], take["selected"]) for take in job["shots"][0]["takes"]] == [
        (1, "draft", False)]
    restored = shop.client.patch(f"/api/films/{job_id}/shots/s1", json={"restore_take": 1})
    assert restored.status_code == 202, restored.text
    assert rendered(shop, job_id) == []
    assert (keys(shop, job_id), tiers(shop, job_id)) == (draft, ["draft"] * 3)
    assert promote(shop, job_id, "s1").status_code == 202
    assert rendered(shop, job_id) == [], "both takes are in the store"


def test_another_take_of_a_draft_is_promoted_with_its_seed(shop: Shop) -> None:
    job_id = sent(shop, CHAIN, tier="draft")
    shop.client.post(f"/api/jobs/{job_id}/retry", json={"shots": ["s3"], "force": True})
    rendered(shop, job_id)
    promote(shop, job_id, "s3")
    rendered(shop, job_id)
    final_id = shop.film(CHAIN)
    assert keys(shop, job_id)["s3.clip"] != keys(shop, final_id)["s3.clip"]
    shop.client.post(f"/api/jobs/{final_id}/retry", json={"shots": ["s3"], "force": True})
    rendered(shop, final_id)
    assert keys(shop, job_id)["s3.clip"] == keys(shop, final_id)["s3.clip"]


def test_a_changed_draft_and_its_takes_keep_their_tiers(shop: Shop) -> None:
    job_id = sent(shop, {**CHAIN, "tier": "draft"})
    shop.client.patch(f"/api/films/{job_id}/shots/s3", json={"prompt": "a green star grows on a black background"})
    rendered(shop, job_id)
    assert tiers(shop, job_id) == ["draft"] * 3
    promote(shop, job_id)
    rendered(shop, job_id)
    job: Any = shop.status(job_id)
    assert [take["tier"] for take in job["shots"][2]["takes"]] == ["draft", "draft"]
    shop.client.patch(f"/api/films/{job_id}/shots/s3", json={"restore_take": 1})
    assert rendered(shop, job_id) == ["compose"]
    assert tiers(shop, job_id) == ["final", "final", "draft"]


def test_the_dry_run_of_a_draft_foretells_less_and_says_what_is_less_exact(shop: Shop) -> None:
    draft, final = (shop.client.post("/api/films", json=CHAIN, params={"dry_run": "true", "tier": tier}).json()
                    for tier in ("draft", "final"))
    assert draft["estimated_gpu_seconds"] < final["estimated_gpu_seconds"] / 2
    assert draft["document_digest"] != final["document_digest"]
    assert [text for text in draft["warnings"] if text.startswith("drafts by model sketch, 4 steps instead of 16")]
    assert final["warnings"] == []


def test_pictures_alone_are_drafts_too(shop: Shop) -> None:
    job_id = sent(shop, CHAIN, tier="draft", stages="story,images")
    promoted = promote(shop, job_id, "s1").json()["nodes"]
    assert promoted == ["s1.keyframe"]
    assert rendered(shop, job_id) == promoted
    assert tiers(shop, job_id) == ["final", "draft", "draft"]
    assert keys(shop, job_id)["s1.keyframe"] == keys(shop, shop.film(CHAIN))["s1.keyframe"]


def test_a_shot_is_made_final_or_a_draft_by_changing_it_too(shop: Shop) -> None:
    job_id = shop.film(CHAIN)
    reply = shop.client.patch(f"/api/films/{job_id}/shots/s3", json={"tier": "draft"})
    assert reply.json()["nodes"] == ["s3.clip", "s3.caption", "compose"]
    rendered(shop, job_id)
    assert tiers(shop, job_id) == ["final", "final", "draft"]
    shop.client.patch(f"/api/films/{job_id}/shots/s3", json={"tier": None})
    assert rendered(shop, job_id) == []


def test_what_is_final_already_renders_nothing(shop: Shop) -> None:
    job_id = shop.film(CHAIN)
    reply = promote(shop, job_id)
    assert (reply.status_code, reply.json()["nodes"]) == (200, [])
    assert shop.ledger.job(job_id).status is JobStatus.SUCCEEDED


def test_what_cannot_be_promoted_is_refused(shop: Shop) -> None:
    assert promote(shop, "nothing").status_code == 404
    job_id = sent(shop, CHAIN, tier="draft")
    unknown = promote(shop, job_id, "s1", "s9")
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "#/shots")
    assert unknown.json()["errors"][0]["nearest"]
    waiting = str(shop.client.post("/api/films", json=CHAIN, params={"tier": "draft"}).json()["id"])
    assert promote(shop, waiting).status_code == 409
    script = str(shop.client.post("/api/films", json=SCRIPT, params={"tier": "draft"}).json()["id"])
    assert promote(shop, script).status_code == 409
    assert shop.client.post("/api/films", json=CHAIN, params={"tier": "rough"}).status_code == 422
