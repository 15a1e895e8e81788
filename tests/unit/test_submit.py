"""A file as a job: one id per plan, pictures stored first, everything wrong refused before anything is submitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.load import load_settings
from configs.settings import Settings
from serve_app.submit import film_job
from workflows.errors import InvalidDocument
from workflows.media.decode import write_png
from workflows.store import Store
from workflows.types import NodeKind

GOOD = "shots:\n  - prompt: a red circle moves left over a blue background\n"


@pytest.fixture
def settings() -> Settings:
    return load_settings("laptop", environ={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def a_file(tmp_path: Path, text: str, name: str = "My Film.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_same_file_is_the_same_job_and_another_prompt_another(
    tmp_path: Path, settings: Settings, store: Store,
) -> None:
    first = film_job(a_file(tmp_path, GOOD), settings, store).new
    again = film_job(a_file(tmp_path, GOOD + "# a comment changes nothing\n"), settings, store).new
    other = film_job(a_file(tmp_path, GOOD.replace("red", "green")), settings, store).new
    assert first.id == again.id
    assert first.id.startswith("my-film-")
    assert first.id != other.id


def test_other_steps_make_another_job(tmp_path: Path, settings: Settings, store: Store) -> None:
    one = film_job(a_file(tmp_path, GOOD), settings, store).new
    two = film_job(a_file(tmp_path, GOOD + "    steps: 7\n"), settings, store).new
    assert one.id != two.id


def test_a_script_becomes_one_story_node(tmp_path: Path, settings: Settings, store: Store) -> None:
    job = film_job(a_file(tmp_path, "A red circle moves left over a blue background.\n", "story.txt"), settings, store)
    assert [node.kind for node in job.new.nodes] == [NodeKind.STORY]


def test_a_picture_is_stored_and_part_of_the_plan(tmp_path: Path, settings: Settings, store: Store) -> None:
    write_png(np.full((64, 96, 3), 90, np.uint8), tmp_path / "start.png")
    job = film_job(a_file(tmp_path, GOOD + "    image: start.png\n"), settings, store).new
    picture = job.nodes[0].payload["image"]
    assert isinstance(picture, dict)
    assert store.find(str(picture["key"])) is not None


def test_a_hint_of_the_plan_is_told_and_kept_with_the_job(tmp_path: Path, settings: Settings, store: Store) -> None:
    job = film_job(a_file(tmp_path, "shots:\n  - prompt: a dragon over a castle\n"), settings, store)
    assert "dragon" in job.warnings[0]
    assert job.new.document["warnings"] == list(job.warnings)


@pytest.mark.parametrize(("text", "said"), [
    (GOOD + "    image: gone.png\n", "no such file (gone.png)"),
    (GOOD + "    image: notes.txt\n", "'notes.txt' is not a PNG or JPEG file"),
    (GOOD + "    image: broken.png\n", "broken.png"),
], ids=["missing", "not a picture's name", "not a picture"])
def test_a_picture_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, settings: Settings, store: Store, text: str, said: str,
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(InvalidDocument) as caught:
        film_job(a_file(tmp_path, text), settings, store)
    [problem] = caught.value.problems
    assert (problem.shot_id, problem.field, problem.line) == ("s1", "image", 3)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.yaml", "."], ids=["no such file", "a directory"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, settings: Settings, store: Store, name: str) -> None:
    with pytest.raises(InvalidDocument):
        film_job(tmp_path / name, settings, store)
