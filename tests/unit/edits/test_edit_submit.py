"""A request as a job: where the video may come from, and what is refused before it is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.edit_submit import edit_job
from tests.edit_clips import red_ball, write_source
from tests.fakes_edits import request_for
from workflows.errors import InvalidDocument
from workflows.store import Store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(red_ball(12).frames_THWC, tmp_path / "ball.mp4")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_uri_is_the_same_job_as_its_path(source: Path, store: Store) -> None:
    by_path = edit_job(request_for(source), store)
    by_uri = edit_job(request_for(source, input_video_path=source.as_uri()), store)
    assert by_uri.new.document_digest == by_path.new.document_digest
    assert by_path.new.document["frames"] == by_path.part.frames == 12
    with pytest.raises(InvalidDocument, match=r"input_video_path: nosuch://x/y\.mp4 cannot be read"):
        edit_job(request_for(source, input_video_path="nosuch://x/y.mp4"), store)


def test_everything_that_the_classical_models_cannot_do_is_said_at_once(source: Path, store: Store) -> None:
    with pytest.raises(InvalidDocument) as refused:
        edit_job(request_for(source, mask_prompt="hair", edit_prompt="a hat", negative_prompt="ugly",
                             extra={"SAM3_MODEL_PATH": "/models/sam3"}), store)
    assert [problem.field for problem in refused.value.problems] == [
        "extra", "mask_prompt", "edit_prompt", "negative_prompt"]


def test_what_is_changed_of_the_source_is_in_the_document_of_the_job(tmp_path: Path, store: Store) -> None:
    odd = write_source(red_ball(8, width_px=97, height_px=65).frames_THWC, tmp_path / "odd.mkv", "-c:v", "ffv1",
                       sound=False)
    made = edit_job(request_for(odd), store)
    assert [text.split(";")[0] for text in made.new.document["warnings"]] == [
        "the source has 97x65 px", "the source's colours are stored as bgr0, the result's as yuv420p"]
