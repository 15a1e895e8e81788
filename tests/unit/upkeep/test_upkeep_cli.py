"""`reelray gc`, `backup` and `restore` on the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli import app
from serve_app.spans import size_text, span_s
from tests.studio import film
from workflows.durable.ledger import Ledger
from workflows.errors import InvalidSettings
from workflows.store import Store
from workflows.types import MediaType


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_shows_what_would_go_and_deletes_with_yes(tmp_path: Path, migrated_file: Path) -> None:
    shutil.copy(migrated_file, tmp_path / "state.db")
    store = Store(str(tmp_path / "artifacts"))
    (tmp_path / "source").write_bytes(b"pixels")
    artifact = store.put("3f" + "0" * 30, tmp_path / "source", media_type=MediaType.VIDEO, manifest={})
    for path in Path(artifact.uri).parent.iterdir():
        os.utime(path, (0, 0))
    ledger = Ledger(f"sqlite:///{tmp_path / 'state.db'}")
    ledger.submit(film("other"))
    ledger.close()
    place = ("--set", f"data_dir={tmp_path}")
    assert "uploaded videos" in run("gc", *place)
    told = json.loads(run("gc", "--json", *place))
    assert told["deleted"] is False
    assert told["kinds"]["uploaded videos"]["count"] == 1
    assert store.find(artifact.key)
    told = json.loads(run("gc", "--yes", "--settle", "0s", "--json", *place))
    assert (told["deleted"], told["count"]) == (True, 1)
    assert not Path(artifact.uri).parent.exists()


def test_a_backup_goes_to_one_file_and_comes_back(tmp_path: Path, migrated_file: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        shutil.copy(migrated_file, tmp_path / place / "state.db")
    ledger = Ledger(f"sqlite:///{tmp_path / 'here' / 'state.db'}")
    ledger.submit(film("kept"))
    ledger.log("kept", "needs " + "3f" + "0" * 30)
    ledger.close()
    (tmp_path / "source").write_bytes(b"pixels")
    store = Store(str(tmp_path / "here" / "artifacts"))
    store.put("3f" + "0" * 30, tmp_path / "source", media_type=MediaType.PNG, manifest={})
    here, there = ("--set", f"data_dir={tmp_path / 'here'}"), ("--set", f"data_dir={tmp_path / 'there'}")
    told = json.loads(run("backup", str(tmp_path / "backup.tar"), "--json", *here))
    assert (told["files"], told["copied"], told["missing"]) == (2, 2, [])
    assert json.loads(run("restore", str(tmp_path / "backup.tar"), "--json", *there))["written"] == 2
    assert "kept" in run("jobs", *there)
    assert Store(str(tmp_path / "there" / "artifacts")).find("3f" + "0" * 30)


def test_spans_and_sizes_are_words() -> None:
    assert [span_s(text, "--x") for text in ("7d", "1.5h", "30s")] == [604_800, 5400, 30]
    assert [size_text(size) for size in (12, 34_560, 7.8e12)] == ["12 bytes", "34.6 kB", "7.8 TB"]
    with pytest.raises(InvalidSettings, match="--older-than 'soon' is no span of time; nearest valid: 7d"):
        span_s("soon", "--older-than")
