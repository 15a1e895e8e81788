"""A film of a script by a language model, from request to result: the key is in no row, file, reply or log line."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.writers.model import story_writer
from tests.desk import Shop, open_shop
from tests.provider import KEY, Provider, refused, said
from workflows.types import JobStatus

SCRIPT = "A red circle moves left over a blue background."
STORY = {"title": "By a model", "characters": [], "shots": [
    {"id": "s1", "prompt": "a yellow star falls down over a black background"},
    {"id": "s2", "prompt": "a red circle moves left over a blue background"}]}
TEXT = {"Content-Type": "text/plain"}
CHAT = "/chat/completions"
ADVICE = "`reelray retry ID --shots story` asks it again"


@pytest.fixture
def shop(tmp_path: Path, migrated_file: Path, server: Provider, caplog: pytest.LogCaptureFixture) -> Iterator[Shop]:
    caplog.set_level(logging.DEBUG)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "key").write_text(KEY)
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(migrated_file, state / "state.db")
    shop = open_shop(state, state / "state.db", "story.writer=llm", f"story.api_url={server.url}",
                     "story.model_name=chatty", f"story.api_key_file={secrets / 'key'}", "story.retries=0")
    shop.writer = story_writer(shop.settings.story)
    with shop.client:
        yield shop
    shop.ledger.close()


def holders(directory: Path, wanted: bytes = KEY.encode()) -> list[str]:
    """Files of database and store with this in them."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.name == "state.db" for path in files)
    return [str(path) for path in files if wanted in path.read_bytes()]


def test_a_script_becomes_the_models_film(shop: Shop, server: Provider, tmp_path: Path,
                                          caplog: pytest.LogCaptureFixture) -> None:
    server.will(CHAT, said(STORY))
    foretold = shop.client.post("/api/films?dry_run=true", content=SCRIPT, headers=TEXT).json()
    assert foretold["warnings"][0].startswith("a language model will break this script into shots or write their")
    job_id = shop.client.post("/api/films", content=SCRIPT, headers=TEXT).json()["id"]
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    assert [shot["id"] for shot in shop.status(job_id)["shots"]] == ["s1", "s2"]
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert holders(tmp_path / "state") == []
    assert KEY not in caplog.text
    assert holders(tmp_path / "state", b"chatty"), "the scan would have found it"


def test_prompts_that_will_be_written_anew_are_foretold_as_such(tmp_path: Path, migrated_file: Path) -> None:
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db", "story.enhance_prompts=true",
                     "story.api_url=http://127.0.0.1:9/v1", "story.model_name=chatty")
    with shop.client:
        foretold = shop.client.post("/api/films?dry_run=true", content=SCRIPT, headers=TEXT).json()
    shop.ledger.close()
    assert foretold["warnings"][0].startswith("a language model will break this script into shots or write their")


def test_a_server_that_repeats_the_key_is_not_repeated(shop: Shop, server: Provider, tmp_path: Path,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    server.will(CHAT, refused(401, f"Incorrect API key provided: {KEY}"))
    job_id = shop.client.post("/api/films", content=SCRIPT, headers=TEXT).json()["id"]
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    seen = str(shop.status(job_id)) + shop.client.get(f"/api/jobs/{job_id}/log").text
    assert "Incorrect API key provided: [key]" in seen
    assert KEY not in seen + caplog.text
    shop.ledger.close()
    assert holders(tmp_path / "state") == []


def test_the_advice_of_the_warning_works(shop: Shop, server: Provider) -> None:
    server.will(CHAT, refused(500), said(STORY), said({**STORY, "shots": STORY["shots"][:1]}))
    job_id = shop.client.post("/api/films", content=SCRIPT, headers=TEXT).json()["id"]
    shop.render(job_id)
    assert any(ADVICE in warning for warning in shop.ledger.job(job_id).warnings)
    assert [shot["id"] for shot in shop.status(job_id)["shots"]] == ["s1"]
    assert "story" in shop.ledger.rerun(job_id, ["story"])
    assert shop.render(job_id).status is JobStatus.SUCCEEDED
    assert [shot["id"] for shot in shop.status(job_id)["shots"]] == ["s1", "s2"]
    assert not any(ADVICE in warning for warning in shop.ledger.job(job_id).warnings)
    shop.ledger.rerun(job_id, ["story"])
    shop.render(job_id)
    assert len(server.asked) == 2, "a good story comes from the store"
    shop.ledger.rerun(job_id, ["story"], force=True)
    shop.render(job_id)
    assert len(server.asked) == 3
    assert [shot["id"] for shot in shop.status(job_id)["shots"]] == ["s1"]
