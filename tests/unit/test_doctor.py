"""`reelray doctor`: one finding per model, and what is a failure where."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_settings
from configs.settings import Settings
from serve_app.doctor import CHECKS
from serve_app.findings import Finding
from workflows.errors import ImpossibleResources, InvalidSettings

SVD = ("models.text_to_image=sdxl", "models.text_to_video=svd-xt", "models.image_to_video=svd-xt")
REMOTE = """
name: {name}
title: Far away
loader: remote
remote: {{api_url: "http://127.0.0.1:9/v1", model_name: painter-1, api_key_env: NOBODY_SETS_THIS}}
pipelines: {{text_to_image: images, text_to_video: videos}}
defaults: {{steps: 1, guidance: 0, width_px: 64, height_px: 32}}
resources: {{num_gpus: 0, num_cpus: 0.1}}
"""


def settings_of(*overrides: str) -> Settings:
    return load_settings("laptop", overrides, {})


def found(what: str, *overrides: str) -> list[Finding]:
    return list(CHECKS[what](settings_of(*overrides)))


def test_every_model_that_is_missing_is_named_with_its_command() -> None:
    findings = found("models", *SVD)
    assert [finding.level for finding in findings] == ["fail", "fail"]
    for name, finding in zip(("sdxl", "svd-xt"), findings, strict=True):
        assert f"`reelray models pull {name}`" in finding.text


@pytest.mark.parametrize(("override", "text"), [
    ("ray.address=head:6379", "sdxl: not on this machine; its replicas look on theirs"),
    ("models.auto_download=true", "is fetched from its hub at start")])
def test_weights_that_are_not_required_here_are_a_note(override: str, text: str) -> None:
    findings = found("models", *SVD, override)
    assert [finding.level for finding in findings] == ["note", "note"]
    assert text in findings[0].text


def test_a_model_that_is_here_is_said_with_its_place() -> None:
    (finding,) = found("models")
    assert finding.level == "ok"
    assert finding.text.startswith("sketch: ")


def test_a_missing_key_hides_no_other_model(tmp_path: Path) -> None:
    for name in ("near", "far"):
        (tmp_path / f"{name}.yaml").write_text(REMOTE.format(name=name))
    findings = found("models", f"models.card_dirs=[{tmp_path}]", "models.text_to_image=near",
                     "models.text_to_video=far")
    assert [finding.level for finding in findings] == ["fail", "fail", "ok"]
    assert findings[1].text.startswith("far: painter-1: $NOBODY_SETS_THIS holds no key")


def test_a_cluster_is_told_what_its_machines_do_not_share() -> None:
    assert found("shared") == []
    with pytest.raises(InvalidSettings, match="SQLite"):
        found("shared", "ray.several_machines=true")
    (fine,) = found("shared", "ray.several_machines=true", "database_url=postgresql+psycopg://db/films",
                    "store_url=s3://films/store")
    assert fine.level == "ok"


def test_more_gpus_than_there_are_is_a_finding() -> None:
    (fits,) = found("resources", "ray.num_gpus=1")
    assert fits.level == "ok"
    with pytest.raises(ImpossibleResources, match=r"the models need 1 GPUs .* but the cluster has 0"):
        found("resources", "ray.num_gpus=0", "models.device=cuda")
    assert found("resources", "ray.address=head:6379", "models.device=cuda") == []
