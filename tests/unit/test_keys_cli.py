"""`reelray keys`: made, listed, changed, revoked, and shown once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.keys_cli import keys_app


@pytest.fixture
def place(tmp_path: Path, migrated_file: Path) -> str:
    shutil.copy(migrated_file, tmp_path / "state.db")
    return f"data_dir={tmp_path}"


def run(place: str, *words: str) -> str:
    done = CliRunner().invoke(keys_app, [*words, "--set", place])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_key_is_printed_alone_once_and_never_again(place: str) -> None:
    token = run(place, "create", "me", "--role", "admin").strip()
    assert len(token) > 50
    assert "\n" not in token
    listed = run(place, "list") + run(place, "list", "--json")
    assert token.split("_")[1] in listed
    assert token.split("_", 2)[2] not in listed


def test_limits_and_what_was_used_are_listed(place: str) -> None:
    made = json.loads(run(place, "create", "me", "--gpu-seconds", "50", "--requests-per-min", "7", "--json"))
    run(place, "change", made["id"], "--gpu-seconds", "80")
    (row,) = json.loads(run(place, "list", "--json"))
    assert (row["role"], row["requests_per_min"], row["gpu_budget_s"], row["gpu_used_s"]) == ("user", 7, 80.0, 0.0)
    run(place, "revoke", made["id"])
    (row,) = json.loads(run(place, "list", "--json"))
    assert row["revoked_at"]
    assert "revoked" in run(place, "list")


@pytest.mark.parametrize("words", [("create", "me", "--role", "king"), ("create", "me", "--gpu-seconds", "-1"),
                                   ("create", "me", "--requests-per-min", "0"), ("revoke", "nobody")])
def test_what_cannot_be_is_refused(place: str, words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(keys_app, [*words, "--set", place]).exit_code != 0
