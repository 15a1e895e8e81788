"""`reelray models show | pull | check`: what a card is, its weights, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.load import SettingsError, load_settings
from serve_app.cli import app
from serve_app.session import require_weights
from tests import tiny, tiny_chat
from workflows.errors import InvalidDocument

CARD = """
name: mine
title: A tiny Wan
repo: {repo}
pipelines: {{text_to_video: {pipeline}}}
defaults: {{steps: 4, guidance: 3, width_px: 32, height_px: 32, frames: 5}}
frames: {{step: 4, offset: 1}}
memory: {{weights_gb: {{transformer: {gb}}}, source: a guess}}
"""
SVD = ("models.text_to_image=sdxl", "models.text_to_video=svd-xt", "models.image_to_video=svd-xt")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["models", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def own_card(tmp_path: Path, *, pipeline: str = "WanPipeline", gb: float = 0.0001) -> tuple[str, str]:
    (tmp_path / "mine.yaml").write_text(CARD.format(repo=tiny.build("wan_t2v", tmp_path), pipeline=pipeline, gb=gb))
    return "--set", f"models.card_dirs=[{tmp_path}]"


def test_show_tells_licence_memory_gpus_and_that_the_weights_are_missing() -> None:
    code, text = run("show", "svd-xt")
    flat = " ".join(text.split())
    assert code == 0
    for part in ("stable-video-diffusion-community", "12 GB: its weights fit, the peak does not", "24 GB: fits",
                 "not here; `reelray models pull svd-xt`", "25 frames at 6 fps", "estimated",
                 "12 GB: moving layers in and out of the GPU"):
        assert part in flat


def test_show_tells_the_share_of_a_gpu_and_why() -> None:
    flat = " ".join(run("show", "svd-xt", "--set", "models.gpu_memory_gb=48")[1].split())
    assert "share 0.35 GPU per replica: 15 GB at 1024x576, 25 frames (estimated) on a GPU of 48 GB" in flat
    tree = json.loads(run("show", "svd-xt", "--json")[1])
    assert tree["share"] == {"gpus": 1.0, "why": "the GPUs' memory is not known; models.gpu_memory_gb sets it"}


def test_show_as_json_has_the_whole_card_and_what_it_fits() -> None:
    tree = json.loads(run("show", "qwen-image", "--json")[1])
    assert tree["fits_gb"] == {"12": "no", "16": "no", "24": "no", "48": "no", "80": "fits", "141": "fits"}
    assert (tree["here"], tree["gated"], tree["pipelines"]) == ("", False, {"text_to_image": "QwenImagePipeline"})


def test_show_tells_how_exact_a_card_is_and_why(tmp_path: Path) -> None:
    choice = own_card(tmp_path)
    assert "bit: no speed or memory switch is on" in " ".join(run("show", "mine", *choice)[1].split())
    card = tmp_path / "mine.yaml"
    card.write_text(card.read_text() + "options: {compile: regional, offload: model}\n")
    told = " ".join(run("show", "mine", *choice)[1].split())
    assert "tolerance, against the same weights without: offload (bit): model:" in told
    assert "compile (tolerance): regional: fused kernels round less often" in told
    assert json.loads(run("show", "mine", "--json", *choice)[1])["exactness"] == "tolerance"
    card.write_text(card.read_text().replace("compile: regional", "quantise: {transfomer: float8_storage}"))
    code, text = run("check", "mine", "--json", *choice)
    assert (code, json.loads(text)[-1]["level"]) == (1, "fail")
    assert "options.quantise.transfomer: the checkpoint has no component 'transfomer'" in text


def test_an_unknown_card_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="no card 'svd'; did you mean 'svd-xt'"):
        run("show", "svd")


def test_check_finds_a_whole_checkpoint_and_loads_it(tmp_path: Path) -> None:
    code, text = run("check", "mine", "--load", "--json", *own_card(tmp_path))
    findings = {finding["what"]: finding for finding in json.loads(text)}
    assert code == 0
    assert {what: finding["level"] for what, finding in findings.items()} == {
        "classes": "ok", "weights": "ok", "load": "ok"}
    assert " s on cpu" in findings["load"]["text"]


def test_check_notes_sizes_that_are_not_the_cards(tmp_path: Path) -> None:
    code, text = run("check", "mine", "--json", *own_card(tmp_path, gb=3))
    (note,) = [finding for finding in json.loads(text) if finding["level"] != "ok"]
    assert (code, note["level"], note["what"]) == (0, "note", "memory")
    assert note["text"].startswith("transformer: the card says 3 GB in float32, its files come to 0.00 GB")


@pytest.mark.parametrize(("pipeline", "problem"), [("WanPipelin", "has no pipeline 'WanPipelin'"), ("", "")])
def test_check_fails_for_wrong_classes_and_for_missing_weights(pipeline: str, problem: str, tmp_path: Path) -> None:
    choice = own_card(tmp_path, pipeline=pipeline or "WanPipeline")
    if not pipeline:
        (tmp_path / "wan_t2v" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
        problem = "transformer: no safetensors"
    code, text = run("check", "mine", "--json", *choice)
    assert code == 1
    assert problem in next(finding for finding in json.loads(text) if finding["level"] == "fail")["text"]


def test_pull_of_what_is_on_this_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match="is on this machine already"):
        run("pull", "mine", *own_card(tmp_path))


def test_pull_of_a_card_without_weights_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="needs no weights"):
        run("pull", "placeholder")


def test_check_says_that_a_local_directory_has_no_checksums(tmp_path: Path) -> None:
    code, text = run("check", "mine", "--checksums", "--json", *own_card(tmp_path))
    (found,) = [finding for finding in json.loads(text) if finding["what"] == "checksums"]
    assert (code, found["level"], found["text"]) == (0, "note", "no checksums known for a local directory")


def test_show_speaks_of_a_gpu_only_where_one_is_used() -> None:
    assert "at the default shape, on a large GPU" in " ".join(run("show", "sdxl")[1].split())
    text = " ".join(run("show", "placeholder")[1].split())
    assert "at the default shape" in text
    assert "GPU" not in text


def chat_card(tmp_path: Path) -> tuple[str, str]:
    card = tiny_chat.card_of(tiny_chat.build(tmp_path), memory={"weights_gb": {"model": 3}, "source": "a guess"})
    (tmp_path / "tiny-chat.yaml").write_text(card.model_dump_json(exclude_unset=True))
    return "--set", f"models.card_dirs=[{tmp_path}]"


def test_show_check_and_list_know_language_models(tmp_path: Path) -> None:
    choice = chat_card(tmp_path)
    code, text = run("check", "tiny-chat", "--load", "--json", *choice)
    findings = {finding["what"]: finding for finding in json.loads(text)}
    assert code == 0
    assert {what: finding["level"] for what, finding in findings.items()} == {
        "classes": "ok", "weights": "ok", "memory": "note", "load": "ok"}
    assert (findings["classes"]["text"], findings["load"]["text"][:7]) == ("Qwen2ForCausalLM", "chat in")
    flat = " ".join(run("show", "qwen3-4b-instruct")[1].split())
    for part in ("stories (story.card)", "Apache-2.0", "up to 16384 tokens", "16 GB: fits",
                 "not here; `reelray models pull qwen3-4b-instruct`"):
        assert part in flat
    listed = " ".join(run("list", "--set", "story.writer=llm", "--set", "story.card=tiny-chat", *choice)[1].split())
    assert "Says noise writes stories; used here" in listed
    assert {card["name"] for card in json.loads(run("list", "--json")[1])} >= {"sketch", "qwen2.5-7b-instruct"}
    (tmp_path / "qwen2" / "tokenizer.json").unlink()
    code, text = run("check", "tiny-chat", "--json", *choice)
    assert (code, json.loads(text)[-1]["level"]) == (1, "fail")
    assert "no tokenizer.json" in json.loads(text)[-1]["text"]


def test_a_session_is_refused_at_the_door_while_weights_are_missing() -> None:
    with pytest.raises(InvalidDocument) as refused:
        require_weights(load_settings("laptop", SVD, environ={}))
    assert all(f"`reelray models pull {name}`" in str(refused.value) for name in ("sdxl", "svd-xt"))
    require_weights(load_settings("laptop", (*SVD, "models.auto_download=true"), environ={}))
    require_weights(load_settings("laptop", (*SVD, "ray.address=head:6379"), environ={}))
    require_weights(load_settings("laptop", environ={}))
    with pytest.raises(InvalidDocument, match=r"model card qwen3-4b-instruct: repo: .*models pull qwen3-4b-instruct`"):
        require_weights(load_settings("laptop", ("story.writer=llm", "story.card=qwen3-4b-instruct"), environ={}))
