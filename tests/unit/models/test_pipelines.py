"""From a card to a pipeline: what is loaded, what is shared, and what exactly is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from configs.model_card import Task
from serve_app.models.pipelines import load
from serve_app.models.repo import resolve_repo
from tests.families import BY_NAME
from workflows.errors import InvalidDocument


def problem_of(refusal: pytest.ExceptionInfo[InvalidDocument]) -> tuple[str, str, str]:
    (problem,) = refusal.value.problems
    return problem.field, problem.problem, problem.nearest


def test_two_tasks_of_one_card_share_what_both_have(checkpoints: Path) -> None:
    card = BY_NAME["wan_ti2v"].card(checkpoints, pipelines={
        Task.TEXT_TO_VIDEO: "WanPipeline", Task.IMAGE_TO_VIDEO: "WanImageToVideoPipeline"})
    first = load(card, Task.TEXT_TO_VIDEO, "cpu")
    second = load(card, Task.IMAGE_TO_VIDEO, "cpu", first.components)
    assert type(second).__name__ == "WanImageToVideoPipeline"
    assert second.transformer is first.transformer
    assert second.vae is first.vae
    assert second.config.expand_timesteps is True


def test_weights_are_loaded_in_the_cards_dtype(checkpoints: Path) -> None:
    card = BY_NAME["sdxl"].card(checkpoints, dtype="bfloat16")
    assert load(card, Task.TEXT_TO_IMAGE, "cpu").unet.dtype is torch.bfloat16


def test_a_wrong_class_name_is_refused_with_the_nearest_right_one(checkpoints: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, pipelines={Task.TEXT_TO_VIDEO: "WanPipelin"})
    with pytest.raises(InvalidDocument) as refusal:
        load(card, Task.TEXT_TO_VIDEO, "cpu")
    field, problem, nearest = problem_of(refusal)
    assert (field, nearest) == ("pipelines.text_to_video", "WanPipeline")
    assert "has no pipeline 'WanPipelin'" in problem


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "load_image"])
def test_what_is_in_diffusers_but_no_pipeline_is_refused(name: str, checkpoints: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, pipelines={Task.TEXT_TO_VIDEO: name})
    with pytest.raises(InvalidDocument, match=f"has no pipeline '{name}'"):
        load(card, Task.TEXT_TO_VIDEO, "cpu")


def test_a_task_the_card_does_not_have_is_refused(checkpoints: Path) -> None:
    with pytest.raises(InvalidDocument, match="no pipeline for image_to_video; it has text_to_video"):
        load(BY_NAME["wan_t2v"].card(checkpoints), Task.IMAGE_TO_VIDEO, "cpu")


def test_a_missing_directory_is_named(checkpoints: Path, tmp_path: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, repo=str(tmp_path / "nowhere"))
    with pytest.raises(InvalidDocument) as refusal:
        load(card, Task.TEXT_TO_VIDEO, "cpu")
    assert problem_of(refusal)[:2] == ("repo", f"the weights are not there: {tmp_path / 'nowhere'} is not a directory")


def test_a_directory_without_a_checkpoint_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, repo=str(tmp_path))
    with pytest.raises(InvalidDocument, match=r"not a diffusers checkpoint: it has no model_index\.json"):
        load(card, Task.TEXT_TO_VIDEO, "cpu")


def test_a_checkpoint_without_its_weights_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints)
    broken = shutil.copytree(card.repo, tmp_path / "broken")
    (broken / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InvalidDocument, match=r"cannot be loaded: .*safetensors"):
        load(card.model_copy(update={"repo": str(broken)}), Task.TEXT_TO_VIDEO, "cpu")


def test_pickled_weights_are_not_read(checkpoints: Path, tmp_path: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints)
    pickled = shutil.copytree(card.repo, tmp_path / "pickled")
    weights = pickled / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InvalidDocument, match="cannot be loaded"):
        load(card.model_copy(update={"repo": str(pickled)}), Task.TEXT_TO_VIDEO, "cpu")


def test_a_hub_model_that_is_not_here_names_the_command_and_the_way_by_hand(checkpoints: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, repo="reelray-tests/no-such-model", revision="0" * 40)
    with pytest.raises(InvalidDocument) as refusal:
        load(card, Task.TEXT_TO_VIDEO, "cpu")
    problem = problem_of(refusal)[1]
    assert "`reelray models pull wan-t2v`" in problem
    assert f"hf download reelray-tests/no-such-model --revision {'0' * 40} --local-dir DIR" in problem
    assert "set `repo: DIR`" in problem


def test_a_package_repo_is_found_where_the_package_is_installed(checkpoints: Path, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_models"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(BY_NAME["wan_t2v"].card(checkpoints).repo, package / "tiny")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    card = BY_NAME["wan_t2v"].card(checkpoints, repo="package:some_models/tiny")
    assert resolve_repo(card) == package / "tiny"


def test_a_package_that_is_not_installed_is_named(checkpoints: Path) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, repo="package:no_such_package/x")
    with pytest.raises(InvalidDocument, match="no installed package 'no_such_package'"):
        resolve_repo(card)
