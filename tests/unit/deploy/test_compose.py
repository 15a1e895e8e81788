"""`deploy/compose.yaml`: every file, volume, service and setting that it names exists; checked without Docker, by a
model of the part of the Compose specification that it uses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from configs.load import cards_in_use, load_settings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Build(Strict):
    context: str
    dockerfile: str


class Check(Strict):
    test: list[str]
    interval: str
    timeout: str = ""
    start_period: str = ""


class Service(Strict):
    image: str
    build: Build | None = None
    command: list[str] = []
    environment: dict[str, str] = {}
    ports: list[str] = []
    volumes: list[str] = []
    depends_on: dict[str, dict[str, str]] = {}
    deploy: dict[str, Any] = {}
    shm_size: str = ""
    init: bool = False
    stop_grace_period: str = ""
    restart: str
    healthcheck: Check | None = None


class Compose(Strict):
    name: str
    services: dict[str, Service]
    volumes: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def compose() -> Compose:
    return Compose(**yaml.safe_load(TEXT))


def test_files_volumes_and_services_that_are_named_exist(compose: Compose) -> None:
    used: set[str] = set()
    for service in compose.services.values():
        assert service.depends_on.keys() <= compose.services.keys()
        for volume in service.volumes:
            source = volume.split(":")[0]
            # The key is made by a command at the top of the file; the rest is here.
            if source.startswith("./") and source != "./prometheus_key":
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("."):
                used.add(source)
        if service.build is not None:
            assert (DEPLOY / service.build.context / service.build.dockerfile).is_file()
    assert used == compose.volumes.keys()
    assert "deploy/prometheus_key" in (DEPLOY.parent / ".gitignore").read_text()


def test_nothing_is_published_beyond_this_machine(compose: Compose) -> None:
    assert all(port.startswith("127.0.0.1:") for service in compose.services.values() for port in service.ports)


def test_the_settings_of_reelray_exist(compose: Compose) -> None:
    environ = {name: re.sub(r"\$\{(\w+):\?[^}]*\}", "secret", value)
               for name, value in compose.services["reelray"].environment.items()}
    assert all(name.startswith("REELRAY_") for name in environ)
    settings = load_settings(environ=environ)
    assert settings.database == "postgresql+psycopg://reelray:secret@postgres/reelray"
    assert settings.http.needs_keys
    assert {card.name for card in cards_in_use(settings)} == {"wan2.1-t2v-1.3b", "placeholder"}
    assert f"models pull {settings.models.text_to_video}\n" in TEXT


def test_every_variable_that_is_asked_for_is_in_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", TEXT))
    assert asked == set(re.findall(r"^(\w+)=$", (DEPLOY / "example.env").read_text(), re.MULTILINE))


def test_prometheus_scrapes_reelray_and_grafana_shows_its_dashboard(compose: Compose) -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    port = load_settings(environ={}).http.port
    assert job["static_configs"] == [{"targets": [f"reelray:{port}"]}]
    mounts = dict(volume.split(":")[:2] for volume in compose.services["prometheus"].volumes)
    assert mounts["./prometheus_key"] == job["authorization"]["credentials_file"]
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    variables = json.loads((DEPLOY / "grafana/reelray.json").read_text())["templating"]["list"]
    assert source["isDefault"]
    assert [variable["query"] for variable in variables] == [source["type"]]
    (place,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/reelray.yaml").read_text())["providers"]
    assert f"./grafana/reelray.json:{place['options']['path']}/reelray.json:ro" in compose.services["grafana"].volumes


def test_the_image_takes_what_the_wheel_needs() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()}
    allowed = set(re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert copied == allowed
    assert all((DEPLOY.parent / name).exists() for name in copied)
    assert {"actors", "configs", "serve_app", "workflows", "pyproject.toml", "LICENSE"} <= copied
    settings = load_settings(environ=dict(re.findall(r"(REELRAY_\w+)=(\S+)", dockerfile)))
    assert settings.data_dir == Path("/var/lib/reelray")
