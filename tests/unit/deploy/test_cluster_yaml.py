"""`cluster.yaml` is what Ray's launcher takes, and starts reelray with settings that exist and fit its machines."""

from __future__ import annotations

import copy
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.main import get_command

from configs.load import cards_in_use, load_settings
from configs.settings import Settings
from serve_app.capacity import check_resources, max_gpus
from serve_app.cli import app
from serve_app.sharing import require_shared

TEXT = (Path(__file__).resolve().parents[3] / "cluster.yaml").read_text(encoding="utf-8")


@pytest.fixture
def config() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(TEXT)
    return read


def serve_words(config: dict[str, Any]) -> list[str]:
    """The words of `reelray serve` in the head's commands, without where its output goes."""
    (command,) = [line for line in config["head_start_ray_commands"] if "reelray serve" in line]
    return shlex.split(command.partition("bin/reelray serve")[2].partition(">>")[0])


def settings_of(config: dict[str, Any]) -> Settings:
    """What `reelray serve` would read there: its own options, and the environment that the file's head describes."""
    words = serve_words(config)
    environ = dict(re.findall(r"^# +(REELRAY_\w+)=(\S+)$", TEXT, re.MULTILINE))
    assert {"REELRAY_DATABASE_URL", "REELRAY_STORE_URL"} <= environ.keys()
    given = [word for flag, word in itertools.pairwise(words) if flag == "--set"]
    return load_settings(words[words.index("--profile") + 1],
                         [*given, f"ray.address={words[words.index('--address') + 1]}"], environ)


def test_rays_own_launcher_takes_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu-spot"]["max_workers"] == 6
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**copy.deepcopy(config), "idle_timeout": 5}))


def test_the_head_has_no_gpu_and_pools_of_gpus_start_from_zero(config: dict[str, Any]) -> None:
    types = dict(config["available_node_types"])
    assert types.pop(config["head_node_type"])["resources"]["GPU"] == 0
    assert all(pool["min_workers"] == 0 and pool["resources"]["GPU"] > 0 for pool in types.values())
    assert {pool["labels"]["pool"] for pool in types.values()} == {"spot", "on-demand"}
    assert types["gpu-spot"]["priority"] > types["gpu-on-demand"].get("priority", 0)


def test_the_settings_exist_and_fit_the_machines(config: dict[str, Any]) -> None:
    settings = settings_of(config)
    require_shared(settings, machines=9)
    types = config["available_node_types"]
    assert settings.ray.service_labels == types["head"]["labels"]
    assert max_gpus(settings, {"CPU": 8.0}) == sum(
        pool["max_workers"] * pool["resources"]["GPU"] for pool in types.values()) == config["max_workers"]
    check_resources(settings, cards_in_use(settings), {"CPU": 8.0})
    assert {settings.models.replica_of(card.name).at_start for card in cards_in_use(settings)} == {0}


def test_the_command_has_only_options_that_exist(config: dict[str, Any]) -> None:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert command.make_context("serve", serve_words(config)).params["address"] == "auto"


def test_every_ray_asks_for_the_token_and_none_is_in_the_file(config: dict[str, Any]) -> None:
    starts = [line for where in ("head", "worker") for line in config[f"{where}_start_ray_commands"]
              if "ray start" in line or "reelray serve" in line]
    assert len(starts) == 3
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "RAY_AUTH_TOKEN=" not in TEXT
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_a_machine_that_is_cut_off_is_given_up_in_time_for_the_shot_to_be_elsewhere_within_ten_seconds() -> None:
    watched = {name: int(value) / (1 if name == "failure_threshold" else 1000)
               for name, value in re.findall(r"RAY_health_check_(\w+)=(\d+)", TEXT)}
    tries, period_s = watched["failure_threshold"], watched["period_ms"]
    # The last message before the cut counts as an answer for one period; then each question times out.
    given_up_s = period_s + tries * watched["timeout_ms"] + (tries - 1) * period_s
    engine = Settings().engine
    assert given_up_s + engine.backoff_s + engine.poll_s < 8
    kuberay = yaml.safe_load((Path(__file__).resolve().parents[3] / "deploy/kuberay/rayservice.yaml").read_text())
    (head,) = kuberay["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", TEXT)) == {
        one["name"]: one["value"] for one in head["env"] if one["name"].startswith("RAY_health_check_")}
