"""The shelf of step checkpoints: whole or absent, for its own label only, furthest first, gone when it is told to."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.s3 import store_url
from workflows.checkpoints import CheckpointShelf, Kept
from workflows.errors import InvalidSettings
from workflows.store import Store
from workflows.types import Json

KEY = "3f" * 16
LABEL: Mapping[str, Json] = {"card": "wan", "versions": {"torch": "2.9"}}
TWELVE = Kept(label=LABEL, step=12, attempt=1, spent_s=30.5, body=b"latents" * 1000)


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return store_url(request, tmp_path)


def file_of(directory: Path) -> Path:
    (path,) = directory.glob("checkpoints/*/*.ckpt")
    return path


def test_what_was_put_is_found_on_another_shelf_of_the_same_place(url: str) -> None:
    CheckpointShelf(url).put(KEY, "run", TWELVE)
    assert CheckpointShelf(url).furthest(KEY, LABEL) == TWELVE
    assert CheckpointShelf(url).furthest("4f" * 16, LABEL) is None


def test_a_run_has_one_and_of_several_runs_the_furthest_counts(url: str) -> None:
    """An attempt that was taken over writes late; that hurts nobody, whether it is behind or ahead."""
    shelf = CheckpointShelf(url)
    shelf.put(KEY, "old", TWELVE)
    shelf.put(KEY, "new", replace(TWELVE, attempt=2, step=20))
    shelf.put(KEY, "old", replace(TWELVE, step=13))
    found = shelf.furthest(KEY, LABEL)
    assert found is not None
    assert (found.attempt, found.step) == (2, 20)
    shelf.put(KEY, "old", replace(TWELVE, step=30))
    found = shelf.furthest(KEY, LABEL)
    assert found is not None
    assert (found.attempt, found.step) == (1, 30)


@pytest.mark.parametrize("other", [{**LABEL, "versions": {"torch": "2.8"}}, {"card": "wan"}, {**LABEL, "more": 1}])
def test_one_with_another_label_is_not_used_and_not_removed(other: Mapping[str, Json], url: str) -> None:
    shelf = CheckpointShelf(url)
    shelf.put(KEY, "run", TWELVE)
    assert shelf.furthest(KEY, other) is None
    assert shelf.furthest(KEY, LABEL) == TWELVE


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1], lambda content: content[:40], lambda content: b"", lambda content: b"x" + content[1:],
    lambda content: content[:-1] + b"x", lambda content: content[:30] + b"{" + content[31:]],
    ids=["end missing", "only the head", "empty", "other file", "bit flipped", "header damaged"])
def test_a_damaged_one_is_as_good_as_absent(damage: object, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert callable(damage)
    shelf = CheckpointShelf(str(tmp_path))
    shelf.put(KEY, "run", TWELVE)
    path = file_of(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    shelf.put(KEY, "before", replace(TWELVE, step=6))
    found = shelf.furthest(KEY, LABEL)
    assert found is not None
    assert found.step == 6
    assert f"{path.name} is ignored" in caplog.text


def test_dropping_leaves_nothing_and_may_be_repeated(url: str, tmp_path: Path) -> None:
    shelf = CheckpointShelf(url)
    shelf.put(KEY, "one", TWELVE)
    shelf.put(KEY, "two", TWELVE)
    shelf.put("4f" * 16, "run", TWELVE)
    Store(url).discard(KEY)
    shelf.drop(KEY)
    assert shelf.furthest(KEY, LABEL) is None
    assert shelf.furthest("4f" * 16, LABEL) == TWELVE
    assert not (tmp_path / "store" / "checkpoints" / KEY).exists()


def test_what_nobody_has_touched_for_long_is_swept_up(tmp_path: Path) -> None:
    shelf = CheckpointShelf(str(tmp_path))
    shelf.put(KEY, "orphan", TWELVE)
    orphan = file_of(tmp_path)
    half_written = orphan.with_name(".half.tmp")
    half_written.write_bytes(b"")
    os.utime(orphan, (0, time.time() - 100))
    os.utime(half_written, (0, time.time() - 100))
    shelf.put("4f" * 16, "run", TWELVE)
    assert shelf.sweep(older_than_s=50) == 2
    assert shelf.furthest("4f" * 16, LABEL) == TWELVE
    assert not orphan.parent.exists()


def test_a_place_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    shelf = CheckpointShelf(str(tmp_path / "nowhere"))
    assert shelf.furthest(KEY, LABEL) is None
    shelf.drop(KEY)
    assert shelf.sweep(0) == 0


def test_a_kind_of_place_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="nofs://"):
        CheckpointShelf("nofs://bucket")
