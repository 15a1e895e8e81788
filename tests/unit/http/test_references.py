"""Reference pictures from outside: uploaded, named by characters, kept for shots that change, refused by field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.load import CARDS_DIR, casting, load_cards, load_settings
from serve_app.client import ApiError, Client
from serve_app.http.edit_schemas import AnyJobReply
from serve_app.service.films import local_films
from serve_app.submit import film_job, storyboard_document
from tests.desk import Shop, open_shop
from workflows.durable.rows import NewJob
from workflows.errors import InvalidDocument
from workflows.media.decode import write_png
from workflows.plan import plan_film, plan_keys
from workflows.storyboard import parse_storyboard
from workflows.tiers import Tier
from workflows.types import JobStatus, Json, MediaType

FILM = """
characters:
  - id: rex
    description: a red circle
    reference: rex.png
  - {id: mia, description: a blue star, reference: "mia.png"}  # used by no shot yet
shots:
  - {id: a, prompt: rex moves left, characters: [rex]}
  - {id: b, prompt: it falls down, continues: a}
"""


@pytest.fixture
def shop(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    """Its model for all tasks takes two reference pictures; two of them lie beside the film."""
    card = yaml.safe_load((CARDS_DIR / "sketch.yaml").read_text(encoding="utf-8"))
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "sketch.yaml").write_text(yaml.safe_dump(
        {**card, "references": {"kind": "native", "max_pictures": 2}}))
    for number, name in enumerate(("rex", "mia")):
        write_png(np.full((64, 80, 3), 90 + number, np.uint8), tmp_path / f"{name}.png")
    (tmp_path / "film.yaml").write_text(FILM)
    (tmp_path / "state.db").write_bytes(migrated_file.read_bytes())
    shop = open_shop(tmp_path, tmp_path / "state.db", f"models.card_dirs=[{tmp_path / 'cards'}]")
    with shop.client:
        yield shop
    shop.ledger.close()


def pictures_of(shop: Shop, job_id: str, node_id: str) -> list[str]:
    """SHA-256 of what a node is drawn from."""
    (node,) = [node for node in shop.ledger.nodes(job_id) if node.id == node_id]
    return [picture["sha256"] for picture in node.payload["references"]]  # type: ignore[index,union-attr,call-overload]


def test_a_films_references_are_uploaded_with_it_and_drawn_from(shop: Shop, tmp_path: Path) -> None:
    client = Client(http=shop.client)
    job_id = client.submit(tmp_path / "film.yaml")["id"]
    rex, mia = (client.upload_picture(tmp_path / f"{name}.png")["id"] for name in ("rex", "mia"))
    assert pictures_of(shop, job_id, "a.keyframe") == [rex]
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    changed = shop.client.patch(f"/api/films/{job_id}/shots/a", json={"characters": ["mia", "rex"]})
    assert (changed.status_code, changed.json()["nodes"]) == (202, ["a.keyframe", "a.clip", "b.clip", "compose"])
    assert pictures_of(shop, job_id, "a.keyframe") == [mia, rex]


def test_a_list_of_pictures_says_how_they_were_drawn_and_not_where_anything_lies(shop: Shop, tmp_path: Path) -> None:
    job_id = Client(http=shop.client).submit(tmp_path / "film.yaml")["id"]
    shop.render(job_id)
    reply = shop.client.get(f"/api/jobs/{job_id}/images")
    (picture,) = reply.json()["images"]
    assert set(picture["generation_params"]) == {"prompt", "negative_prompt", "steps", "guidance", "seed"}
    assert str(tmp_path) not in reply.text


def test_the_command_line_promotes_with_the_scorer_and_the_writer_of_its_settings(shop: Shop, tmp_path: Path) -> None:
    settings = load_settings("laptop", [
        f"models.card_dirs=[{tmp_path / 'cards'}]", "models.scorer=dinov2-base", "story.writer=llm",
        "story.card=qwen3-4b-instruct"], {})
    job = film_job(tmp_path / "film.yaml", settings, shop.store, tier=Tier.DRAFT).new
    shop.ledger.submit(job)
    shop.render(job.id)
    nodes = local_films(settings, shop.ledger, shop.store).promote(job.id)
    assert {"a.clip", "a.score"} <= set(nodes)
    assert "a.score" in {node.id for node in shop.ledger.nodes(job.id)}


def test_a_scorer_that_was_switched_on_later_keeps_nobody_from_changing_a_shot(shop: Shop, tmp_path: Path) -> None:
    job_id = Client(http=shop.client).submit(tmp_path / "film.yaml")["id"]
    shop.render(job_id)
    scoring = load_settings("laptop", [f"models.card_dirs=[{tmp_path / 'cards'}]", "models.scorer=dinov2-base"], {})
    nodes = local_films(scoring, shop.ledger, shop.store).change_shot(job_id, "b", {"caption": "Noon"})
    assert {"b.caption", "compose"} <= set(nodes)
    assert not [node for node in nodes if node.endswith((".clip", ".keyframe"))]


def test_a_film_of_this_machine_finds_its_references_again_when_a_shot_changes(shop: Shop, tmp_path: Path) -> None:
    new: NewJob = film_job(tmp_path / "film.yaml", shop.settings, shop.store).new
    shop.ledger.submit(new)
    shop.render(new.id)
    (tmp_path / "mia.png").unlink()
    changed = shop.client.patch(f"/api/films/{new.id}/shots/a", json={"characters": ["mia"]})
    assert changed.status_code == 202, changed.text
    assert len(pictures_of(shop, new.id, "a.keyframe")) == 1
    assert shop.render(new.id).status is JobStatus.SUCCEEDED


def test_pictures_alone_find_them_again_too(shop: Shop, tmp_path: Path) -> None:
    job_id = Client(http=shop.client).submit(tmp_path / "film.yaml", stages="images")["id"]
    shop.render(job_id)
    changed = shop.client.patch(f"/api/films/{job_id}/shots/b", json={"characters": ["mia"]})
    assert (changed.status_code, changed.json()["nodes"]) == (202, ["b.keyframe"]), changed.text


@pytest.mark.parametrize(("reference", "said"), [
    ("rex.png", "write `reference: picture:ID`"), ("picture:" + "0" * 64, "POST /api/pictures takes it")])
def test_a_reference_that_was_not_uploaded_is_a_problem_of_its_field(shop: Shop, reference: str, said: str) -> None:
    film: dict[str, Json] = {"characters": [{"id": "rex", "description": "a red circle", "reference": reference}],
                             "shots": [{"prompt": "it moves", "characters": ["rex"]}]}
    reply = shop.client.post("/api/films", json=film)
    [error] = reply.json()["errors"]
    assert (reply.status_code, error["pointer"]) == (422, "#/characters/0/reference")
    assert said in error["detail"]


def test_a_reference_in_which_nobody_can_be_recognised_is_refused(shop: Shop, tmp_path: Path) -> None:
    write_png(np.full((40, 80, 3), 7, np.uint8), tmp_path / "rex.png")
    with pytest.raises(InvalidDocument) as caught:
        film_job(tmp_path / "film.yaml", shop.settings, shop.store)
    said = "a reference picture of 80x40 px"
    assert [(problem.line, problem.problem) for problem in caught.value.problems] == [(5, f"{said} (rex.png)")]
    with pytest.raises(ApiError) as refused:
        Client(http=shop.client).submit(tmp_path / "film.yaml")
    [problem] = refused.value.problems
    assert (problem.line, problem.detail, "64 px" in problem.nearest) == (5, said, True)


def test_a_score_is_shown_in_the_reply_and_on_the_page(shop: Shop, tmp_path: Path) -> None:
    board = parse_storyboard(FILM)
    cast = casting(shop.settings, load_cards(shop.settings))
    pictures = {f"{name}.png": shop.store.put(name, tmp_path / f"{name}.png", media_type=MediaType.PNG, manifest={})
                for name in ("rex", "mia")}
    nodes = plan_film(board, cards=cast, assets=pictures, scorer=load_cards(shop.settings)["dinov2-base"]).nodes
    (tmp_path / "score.json").write_text("{}")
    shop.store.put(plan_keys(nodes)["a.score"], tmp_path / "score.json", media_type=MediaType.JSON, manifest={},
                   score=0.874)
    shop.ledger.submit(NewJob(id="film", title="Rex", document={"storyboard": FILM}, nodes=nodes))
    shop.render("film")
    first, second = shop.status("film")["shots"]  # type: ignore[misc]
    assert (first["consistency"], second["consistency"]) == (0.874, None)  # type: ignore[index,call-overload]
    assert AnyJobReply.model_validate(shop.status("film")).shots[0].consistency == 0.874
    assert "consistency 0.87" in shop.client.get("/films/film").text


def test_a_reference_that_cannot_be_read_is_told_with_its_line(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "rex.png").write_text("no picture")
    with pytest.raises(InvalidDocument) as caught:
        film_job(tmp_path / "film.yaml", shop.settings, shop.store)
    assert [(problem.field, problem.line) for problem in caught.value.problems] == [("characters[0].reference", 5)]


@pytest.fixture
def measuring(shop: Shop, tmp_path: Path) -> Iterator[Shop]:
    """The same one, with a scorer."""
    measuring = open_shop(tmp_path, tmp_path / "state.db", f"models.card_dirs=[{tmp_path / 'cards'}]",
                          "models.scorer=dinov2-base")
    with measuring.client:
        yield measuring
    measuring.ledger.close()


def film_with_retakes(shop: Shop, directory: Path, tier: str = "final") -> None:
    """Render a film whose first shot has two takes, the second better, neither good enough."""
    text = f"tier: {tier}" + FILM.replace("characters: [rex]}", "characters: [rex], retake: {below: 0.6, takes: 2}}")
    pictures = {f"{name}.png": shop.store.put(name, directory / f"{name}.png", media_type=MediaType.PNG, manifest={})
                for name in ("rex", "mia")}
    nodes = plan_film(parse_storyboard(text), cards=casting(shop.settings, load_cards(shop.settings)), assets=pictures,
                      scorer=load_cards(shop.settings)["dinov2-base"]).nodes
    keys = plan_keys(nodes)
    (directory / "score.json").write_text("{}")
    for name, score in (("a.score", 0.41), ("a.score.2", 0.55)):
        shop.store.put(keys[name], directory / "score.json", media_type=MediaType.JSON, manifest={}, score=score)
    shop.ledger.submit(NewJob(id="film", title="Rex", nodes=nodes, document={
        **storyboard_document(parse_storyboard(text)),
        "references": {name: picture.to_json() for name, picture in pictures.items()}}))
    assert shop.render("film").status is JobStatus.SUCCEEDED


def test_takes_that_scores_decide_about_are_shown_and_chosen_by_hand(measuring: Shop, tmp_path: Path) -> None:
    shop = measuring
    film_with_retakes(shop, tmp_path)
    reply = AnyJobReply.model_validate(shop.status("film"))
    first = reply.shots[0]
    assert (first.take, first.consistency, first.scores) == (2, 0.55, {"1": 0.41, "2": 0.55})
    assert reply.warnings == ("shot a: no take scores 0.6 or more (take 1 0.41, take 2 0.55); the film uses take 2",)
    assert "consistency 0.55, take 2 of 2" in shop.client.get("/films/film").text
    keyframe, clip = (shop.client.get(f"/api/jobs/film/shots/a/{what}").content for what in ("keyframe", "clip"))
    by_id = {node.id: node for node in shop.ledger.nodes("film")}
    for made, name in ((keyframe, "a.keyframe.2"), (clip, "a.clip.2")):
        artifact = by_id[name].artifact
        assert artifact is not None
        assert made == shop.store.fetch(artifact).read_bytes()

    changed = shop.client.patch("/api/films/film/shots/a", json={"take": 1})
    assert changed.status_code == 202, changed.text
    shop.painter.made.clear()
    assert shop.render("film").status is JobStatus.SUCCEEDED
    assert shop.painter.made == ["b.clip", "compose"], "take 1 was in the store; what continues it was not"
    [shown] = [node for node in shop.ledger.nodes("film") if node.id == "a.clip"]
    assert shown.artifact == by_id["a.clip"].artifact
    assert [take.number for take in AnyJobReply.model_validate(shop.status("film")).shots[0].takes] == [1]
    shop.client.patch("/api/films/film/shots/a", json={"restore_take": 1})
    shop.painter.made.clear()
    shop.render("film")
    assert shop.painter.made == []
    assert AnyJobReply.model_validate(shop.status("film")).shots[0].take == 2
    shop.client.patch("/api/films/film/shots/a", json={"take": 1})
    shop.render("film")
    shop.client.patch("/api/films/film/shots/a", json={"take": None})
    shop.render("film")
    assert shop.painter.made == []
    assert AnyJobReply.model_validate(shop.status("film")).shots[0].take == 2


def test_promoting_makes_the_take_final_that_was_chosen_and_no_other(measuring: Shop, tmp_path: Path) -> None:
    film_with_retakes(measuring, tmp_path, tier="draft")
    reply = measuring.client.post("/api/films/film/promote")
    assert (reply.status_code, reply.json()["nodes"]) == (202, [
        "a.keyframe.2", "a.clip.2", "a.score.2", "b.clip", "compose"]), reply.text
    assert measuring.render("film").status is JobStatus.SUCCEEDED
    assert {node.id for node in measuring.ledger.nodes("film")} == set(reply.json()["nodes"])
