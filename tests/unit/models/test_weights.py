"""Pulling a model from a hub on loopback: only what is read, resumed, checked, and refused with what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.load import SettingsError, load_card
from configs.model_card import ModelCard, Task
from serve_app.models import chat_model, pipelines, weights
from serve_app.models.weights import RemoteFile, wanted
from tests import tiny_chat
from tests.fake_hub import COMMIT, FakeHub, fake_hub
from tests.families import BY_NAME
from workflows.errors import InvalidDocument

ROOT = Path(__file__).resolve().parents[3]
REPO = "acme/tiny"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
CARD = """
name: tiny
title: A tiny Wan
repo: {repo}
revision: "{revision}"
variant: "{variant}"
pipelines: {{text_to_video: WanPipeline}}
defaults: {{steps: 4, guidance: 3, width_px: 32, height_px: 32, frames: 5}}
frames: {{step: 4, offset: 1}}
"""
ROOMY = 10**12
CHUNK_BYTES = 10 * 2**20
"""huggingface_hub writes, and so can resume, in pieces of this size."""


@pytest.fixture
def hub(checkpoints: Path, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with one repo: a tiny Wan beside everything that must not be taken."""
    source = Path(shutil.copytree(BY_NAME["wan_t2v"].card(checkpoints).repo, tmp_path / "repo"))
    (source / "README.md").write_text("# tiny")
    (source / "all_in_one.safetensors").write_bytes(b"x" * 5000)
    (source / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"pickle" * 1000)
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(b"x" * 5000)
    with fake_hub() as hub:
        hub.repos[REPO] = source
        yield hub


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    return write_card(tmp_path)


def write_card(tmp_path: Path, *, repo: str = REPO, revision: str = "", variant: str = "") -> Path:
    path = tmp_path / "cards" / "tiny.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(CARD.format(repo=repo, revision=revision, variant=variant))
    return path


def environment(hub: FakeHub | None, tmp_path: Path, **more: str) -> dict[str, str]:
    endpoint = "http://127.0.0.1:9" if hub is None else hub.url
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def start(card: Path, hub: FakeHub | None, tmp_path: Path, *, free: int = ROOMY, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "tests.pulling", str(card), str(free)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(hub, tmp_path, **more))


def pulled(card: Path, hub: FakeHub | None, tmp_path: Path, *, free: int = ROOMY, **more: str) -> dict[str, object]:
    process = start(card, hub, tmp_path, free=free, **more)
    outcome: dict[str, object] = json.loads(process.communicate(timeout=120)[0])
    return outcome


def found(card: Path, tmp_path: Path) -> Path | None:
    return weights.find(load_card(card), cache_dir=tmp_path / "hf" / "hub")


def test_only_what_the_pipeline_reads_is_taken_and_it_loads(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    assert found(card_file, tmp_path) is None
    outcome = pulled(card_file, hub, tmp_path)
    directory = Path(str(outcome["directory"]))
    taken = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    unread = {"README.md", "all_in_one.safetensors", "transformer/diffusion_pytorch_model.bin", "onnx/model.onnx"}
    assert taken == set(hub.files(REPO)) - unread
    assert not unread & set(hub.gets)
    assert outcome["files"] == len(taken)
    assert outcome["size"] == sum((directory / path).stat().st_size for path in taken)
    assert outcome["fetched"] == outcome["size"] - (directory / "model_index.json").stat().st_size
    assert outcome["checked"] == sum((directory / path).stat().st_size >= 2000 for path in taken) > 0
    assert found(card_file, tmp_path) == directory
    assert directory.name == COMMIT
    local = load_card(card_file).model_copy(update={"repo": str(directory)})
    assert type(pipelines.load(local, Task.TEXT_TO_VIDEO, "cpu")).__name__ == "WanPipeline"


def test_of_a_language_model_the_files_at_the_top_are_taken_and_it_loads(hub: FakeHub, tmp_path: Path) -> None:
    repo = tiny_chat.build(tmp_path)
    (repo / "pytorch_model.bin").write_bytes(b"pickle" * 1000)
    (repo / "onnx").mkdir()
    (repo / "onnx" / "config.json").write_text("{}")
    hub.repos["acme/chat"] = repo
    path = tmp_path / "tiny-chat.yaml"
    path.write_text(tiny_chat.card_of("acme/chat", revision=COMMIT).model_dump_json(exclude_unset=True))
    directory = Path(str(pulled(path, hub, tmp_path)["directory"]))
    assert {path.name for path in directory.rglob("*")} == {path.name for path in repo.iterdir()} - {
        "pytorch_model.bin", "onnx"}
    assert found(path, tmp_path) == directory
    chat_model.load(tiny_chat.card_of(directory), "cpu")
    hub.repos["acme/chat"] = hub.repos[REPO]
    assert "acme/chat is not a transformers checkpoint: it has no config.json" in str(
        pulled(path, hub, tmp_path / "other")["problem"])


def test_a_second_pull_fetches_nothing(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    pulled(card_file, hub, tmp_path)
    hub.gets.clear()
    outcome = pulled(card_file, hub, tmp_path)
    assert (outcome["fetched"], sum(hub.gets.values())) == (0, 0)


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    path = hub.repos[REPO] / TRANSFORMER
    save_file({**load_file(path), "padding": torch.zeros(3 * CHUNK_BYTES // 8)}, path)
    hub.break_once = {TRANSFORMER: CHUNK_BYTES + 1000}
    assert "problem" not in pulled(card_file, hub, tmp_path)
    assert hub.ranges == [f"{TRANSFORMER} bytes={CHUNK_BYTES}-"]


def test_a_killed_pull_is_no_model_and_goes_on_with_the_rest(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    hub.stall = {TRANSFORMER}
    process = start(card_file, hub, tmp_path)
    snapshot = tmp_path / "hf" / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    rest = [path for path in hub.files(REPO) if path.startswith(("vae/", "text_encoder/"))]
    deadline_s = time.time() + 60
    while not all((snapshot / path).exists() for path in rest) and time.time() < deadline_s:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.stall.clear()
    assert found(card_file, tmp_path) is None
    hub.gets.clear()
    outcome = pulled(card_file, hub, tmp_path)
    assert "problem" not in outcome
    assert hub.gets[TRANSFORMER] == 1
    assert not set(rest) & set(hub.gets)
    assert found(card_file, tmp_path) is not None


def test_what_a_killed_pull_left_is_compared_too(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    damaged = "vae/diffusion_pytorch_model.safetensors"
    hub.stall, hub.corrupt = {TRANSFORMER}, {damaged}
    process = start(card_file, hub, tmp_path)
    snapshot = tmp_path / "hf" / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    deadline_s = time.time() + 60
    while not (snapshot / damaged).exists() and time.time() < deadline_s:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.stall.clear()
    hub.corrupt.clear()
    assert str(pulled(card_file, hub, tmp_path)["problem"]).startswith(f"{damaged} arrived damaged")


def test_a_branch_is_no_revision_of_a_card(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"revision: .*is not a commit, 40 hex digits"):
        load_card(write_card(tmp_path, revision="fp16"))


def test_a_damaged_file_is_found_removed_and_fetched_again(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    hub.corrupt = {TRANSFORMER}
    problem = str(pulled(card_file, hub, tmp_path)["problem"])
    assert problem.startswith(f"{TRANSFORMER} arrived damaged (its SHA-256 is not the hub's) and was removed")
    assert found(card_file, tmp_path) is None
    hub.corrupt.clear()
    hub.gets.clear()
    assert "problem" not in pulled(card_file, hub, tmp_path)
    assert set(hub.gets) == {TRANSFORMER}


def test_too_little_disk_is_refused_with_both_numbers_before_any_weights(hub: FakeHub, card_file: Path, tmp_path: Path,
                                                                         ) -> None:
    problem = str(pulled(card_file, hub, tmp_path, free=20_000)["problem"])
    assert "0.00 GB are to be downloaded" in problem
    assert "0.00 GB are free there; make room, or set HF_HOME" in problem
    assert not [path for path in hub.gets if path.endswith(".safetensors")]


def test_a_gated_model_says_where_to_accept_and_to_set_the_token(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    hub.gated = {REPO}
    problem = str(pulled(card_file, hub, tmp_path, HF_TOKEN="hf_secret")["problem"])
    assert f"accept them at {hub.url}/{REPO}" in problem
    assert "HF_TOKEN" in problem
    assert "hf_secret" not in problem
    assert hub.tokens == {"Bearer hf_secret"}


def test_a_missing_model_and_a_missing_revision_are_told_apart(hub: FakeHub, tmp_path: Path) -> None:
    missing = pulled(write_card(tmp_path, repo="acme/nothing"), hub, tmp_path)
    assert f"there is no {hub.url}/acme/nothing, or it is private" in str(missing["problem"])
    revision = pulled(write_card(tmp_path, revision="0" * 40), hub, tmp_path)
    assert f"{REPO} has no revision '{'0' * 40}'" in str(revision["problem"])


def test_without_a_network_the_way_by_hand_is_named(card_file: Path, tmp_path: Path) -> None:
    problem = str(pulled(card_file, None, tmp_path)["problem"])
    assert "cannot be reached" in problem
    assert f"hf download {REPO} --local-dir DIR" in problem


def test_offline_mode_downloads_nothing(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    problem = str(pulled(card_file, hub, tmp_path, HF_HUB_OFFLINE="1")["problem"])
    assert problem.startswith("HF_HUB_OFFLINE is set")
    assert not hub.gets


def test_a_repo_that_is_no_diffusers_checkpoint_is_refused(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    (hub.repos[REPO] / "model_index.json").unlink()
    problem = str(pulled(card_file, hub, tmp_path)["problem"])
    assert "is not a diffusers checkpoint: it has no model_index.json" in problem


def test_a_repo_with_pickles_only_is_refused(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    (hub.repos[REPO] / TRANSFORMER).unlink()
    assert "transformer: no safetensors" in str(pulled(card_file, hub, tmp_path)["problem"])
    assert "transformer/diffusion_pytorch_model.bin" not in hub.gets


def test_the_variant_is_taken_where_there_is_one(hub: FakeHub, tmp_path: Path) -> None:
    plain = hub.repos[REPO] / TRANSFORMER
    half = {name: tensor.half() for name, tensor in load_file(plain).items()}
    save_file(half, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    card = write_card(tmp_path, variant="fp16")
    outcome = pulled(card, hub, tmp_path)
    assert TRANSFORMER not in hub.gets
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in hub.gets
    local = load_card(card).model_copy(update={"repo": str(outcome["directory"])})
    assert pipelines.load(local, Task.TEXT_TO_VIDEO, "cpu").transformer.dtype is torch.float32


def reelray(hub: FakeHub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line itself, in an environment that names the hub."""
    script = "import sys; from serve_app.cli import main; sys.argv[0] = 'reelray'; main()"
    return subprocess.run([sys.executable, "-c", script, "models", *arguments, "--set",
                           f"models.card_dirs=[{tmp_path / 'cards'}]"], cwd=ROOT, text=True, capture_output=True,
                          check=False, timeout=120, env=environment(hub, tmp_path))


@pytest.mark.slow
def test_the_commands_pull_check_and_find_damage_on_disk(hub: FakeHub, card_file: Path, tmp_path: Path) -> None:
    pull = reelray(hub, tmp_path, "pull", card_file.stem)
    assert pull.returncode == 0, pull.stderr
    directory = Path(pull.stdout.splitlines()[-1])
    assert (directory / TRANSFORMER).is_file()
    blob = (directory / TRANSFORMER).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    check = reelray(hub, tmp_path, "check", "tiny", "--checksums", "--json")
    found_wrong = [finding["text"] for finding in json.loads(check.stdout) if finding["level"] == "fail"]
    assert (check.returncode, found_wrong) == (1, [f"damaged: {TRANSFORMER}"])
    hub.gated = {REPO}
    shutil.rmtree(tmp_path / "hf")
    refused = reelray(hub, tmp_path, "pull", "tiny")
    assert refused.returncode == 2
    assert "accept them at" in refused.stderr


def test_shards_and_variants_are_told_apart() -> None:
    names = ["model.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors",
             "model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.fp16.safetensors",
             "model.safetensors.index.json", "model.bin", "model.onnx"]
    files = [RemoteFile(path=f"unet/{name}", size_bytes=1) for name in names]

    def taken(variant: str) -> list[str]:
        return [file.path.removeprefix("unet/") for file in wanted(files, ["unet"], variant)]

    assert taken("") == ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert taken("fp16") == ["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors",
                             "model-00001-of-00002.fp16.safetensors", "model.safetensors.index.json"]
    assert taken("bf16") == taken("")


# -- what is on this machine -------------------------------------------------------------------------------------


@pytest.fixture
def local(checkpoints: Path, tmp_path: Path) -> ModelCard:
    card = BY_NAME["wan_t2v"].card(checkpoints)
    return card.model_copy(update={"repo": str(shutil.copytree(card.repo, tmp_path / "local"))})


def test_a_whole_checkpoint_has_no_gaps(local: ModelCard) -> None:
    assert weights.gaps(Path(local.repo), local) == ()


@pytest.mark.parametrize(("harm", "gap"), [
    (lambda root: (root / TRANSFORMER).unlink(), "transformer: no safetensors"),
    (lambda root: (root / TRANSFORMER).write_bytes((root / TRANSFORMER).read_bytes()[:-1]),
     "transformer/diffusion_pytorch_model.safetensors: cut short"),
    (lambda root: shutil.rmtree(root / "vae"), "vae: no configuration"),
    (lambda root: (root / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "part-2.safetensors"}})), "transformer/part-2.safetensors: missing"),
    (lambda root: (root / "model_index.json").write_text("{"), "no readable model_index.json"),
])
def test_what_is_missing_is_named(harm, gap: str, local: ModelCard) -> None:
    harm(Path(local.repo))
    assert weights.gaps(Path(local.repo), local) == (gap,)


def test_a_missing_model_is_refused_with_the_command_and_downloaded_only_when_allowed(tmp_path: Path, card_file: Path,
                                                                                      ) -> None:
    with pytest.raises(InvalidDocument, match=r"`reelray models pull tiny` first, or set models\.auto_download=true"):
        weights.require(load_card(card_file))
    with pytest.raises(InvalidDocument, match="HF_HUB_OFFLINE is set"):  # so it did try
        weights.ensure(load_card(card_file), say=lambda _: None)
