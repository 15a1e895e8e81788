"""Edits by a server as programs and commands ask for them: uploaded once, joined, followed, downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.client import ApiError, Client
from serve_app.remote import open_remote
from tests.edit_clips import red_ball, write_source
from tests.fakes_edits import request_for
from tests.unit.http.test_remote import Recorder, Served, served  # noqa: F401 - a fixture
from workflows.errors import InvalidDocument
from workflows.types import JobStatus

WISH = {"mask_prompt": "red ball", "edit_prompt": "make it green", "edit_size": 64, "chunk_frames": 16}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(red_ball(20).frames_THWC, tmp_path_factory.mktemp("clips") / "ball.mp4")


def test_an_edit_is_made_there_shown_here_and_downloaded(
        served: Served, clip: Path, tmp_path: Path) -> None:  # noqa: F811
    site, screen = open_remote(served.url), Recorder()
    request = request_for(clip, start_s=0.25)
    plan = site.plan_edit(request)
    assert (plan["frames"], plan["chunks"]) == (14, 1)
    view = site.edit(request, screen)
    assert (view.kind, view.status, view.progress) == ("edit", JobStatus.SUCCEEDED, 1.0)
    assert screen.notes[-1] == f"job {view.id} at {served.url}"
    stored = served.shop.store.fetch(served.shop.desk.files.video(view.id))
    path = site.deliver(view, tmp_path / "out" / "edited.mp4")
    assert path is not None
    assert path.read_bytes() == stored.read_bytes()
    for what in ("mask", "report", "plot"):
        beside = site.deliver_beside(view, what, tmp_path / "out" / what)
        assert beside is not None
        assert beside.stat().st_size
    again = site.edit(request, Recorder())
    assert again.id == view.id, "the same command joins its job"
    assert len(served.shop.ledger.jobs().jobs) == 1
    with pytest.raises(InvalidDocument, match="edit_prompt: "):
        site.edit(request_for(clip, edit_prompt="a hat"), Recorder())


def test_a_program_edits_a_file_or_what_the_server_has(served: Served, clip: Path, tmp_path: Path) -> None:  # noqa: F811
    client = Client(served.url, patience_s=5)
    job = client.edit(clip, WISH)
    uri = client.upload_video(clip)
    plan = client.plan_edit(uri, WISH)
    assert plan["request"]["input_video_path"] == uri
    assert plan["document_digest"] == job["document_digest"]
    assert [event.name for event in client.events(job["id"])][-1] == "done"
    assert client.job(job["id"])["edit"]["status"] == "finished"
    assert client.download(job["id"], tmp_path / "a.mp4").stat().st_size
    assert client.download_beside(job["id"], "mask", tmp_path / "m.mp4").stat().st_size
    with pytest.raises(ApiError) as refused:
        client.edit(clip, {**WISH, "steps": 0})
    assert str(refused.value) == "#/steps: 0 is below 1 (nearest: 1)"
    (tmp_path / "no.mp4").write_text(json.dumps(WISH))
    with pytest.raises(ApiError, match="not a readable video"):
        client.upload_video(tmp_path / "no.mp4")
    with pytest.raises(FileNotFoundError):
        client.edit(tmp_path / "gone.mp4", WISH)
