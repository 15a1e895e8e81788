"""`deploy/kuberay`: the RayService is what KubeRay's CRD takes (a reduced copy of its schema), names agree between
files, and what Serve is told exists in reelray."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from configs.load import cards_in_use, load_settings
from serve_app.app import APP_NAME
from serve_app.capacity import check_resources
from serve_app.declared import Declared
from serve_app.sharing import require_shared

HERE = Path(__file__).resolve().parent
FILES = sorted((HERE.parents[2] / "deploy/kuberay").glob("*.yaml"))
TEXT = {path.name: path.read_text(encoding="utf-8") for path in FILES}
ALL = [part for text in TEXT.values() for part in yaml.safe_load_all(text)]
SCHEMA = json.loads((HERE / "rayservice.schema.json").read_text(encoding="utf-8"))


def one(kind: str) -> dict[str, Any]:
    (found,) = [part for part in ALL if part["kind"] == kind]
    return copy.deepcopy(found)


def pods() -> list[dict[str, Any]]:
    """The specification of every pod."""
    ray = one("RayService")["spec"]["rayClusterConfig"]
    groups = [ray["headGroupSpec"], *ray["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups] + [
        part["spec"]["template"]["spec"] for part in ALL if part["kind"] in {"Deployment", "Job"}]


def test_the_rayservice_is_what_the_crd_takes() -> None:
    jsonschema.validate(one("RayService"), SCHEMA)


@pytest.mark.parametrize(("path", "key", "value"), [
    ((), "rayClusterConfg", {}), (("rayClusterConfig",), "authOptions", {"mode": "tokens"}),
    (("rayClusterConfig", "workerGroupSpecs", 0), "minReplicas", "none"),
    (("rayClusterConfig", "workerGroupSpecs", 0, "template", "spec", "containers", 0), "readinessprobe", {}),
])
def test_what_the_crd_does_not_know_is_found(path: tuple[str | int, ...], key: str, value: object) -> None:
    service = one("RayService")
    place = service["spec"]
    for step in path:
        place = place[step]
    place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(service, SCHEMA)


def test_what_serve_is_told_exists_and_fits_the_machines() -> None:
    service = one("RayService")["spec"]
    config = ServeDeploySchema(**yaml.safe_load(service["serveConfigV2"]))
    (application,) = config.applications
    assert (application.name, application.import_path) == (APP_NAME, "serve_app.declared:application")
    args = Declared(**application.args)
    secret = dict(re.findall(r"--from-literal=(REELRAY_\w+)=(\S+)", TEXT["rayservice.yaml"]))
    settings = load_settings(args.profile, args.set, secret)
    require_shared(settings, machines=9)
    assert settings.http.needs_keys
    cluster = service["rayClusterConfig"]
    workers = [group["template"]["spec"]["containers"][0] for group in cluster["workerGroupSpecs"]]
    assert {worker["resources"]["limits"]["nvidia.com/gpu"] for worker in workers} == {"1"}
    assert settings.ray.max_gpus == sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert settings.ray.service_labels == cluster["headGroupSpec"]["labels"]
    check_resources(settings, cards_in_use(settings), {"CPU": 4.0})
    assert {settings.models.replica_of(card.name).at_start for card in cards_in_use(settings)} == {0}


def test_the_cluster_asks_for_a_token_and_starts_without_gpus() -> None:
    cluster = one("RayService")["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "reelray-ray-token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]


def test_names_agree_between_the_files_and_no_file_holds_a_secret() -> None:
    assert not [part for part in ALL if part["kind"] == "Secret"]
    made = set(re.findall(r"kubectl create secret (?:generic|tls) ([\w-]+)", "".join(TEXT.values())))
    text = json.dumps(ALL)
    assert set(re.findall(r'"(?:secretName|secretRef)": (?:\{"name": )?"([\w-]+)"', text)) == made
    assert set(re.findall(r'"claimName": "([\w-]+)"', text)) == {one("PersistentVolumeClaim")["metadata"]["name"]}
    assert len({container["image"] for pod in pods() for container in pod["containers"]
                if container["image"].startswith("reelray")}) == 1
    assert f"http://{one('RayService')['metadata']['name']}-serve-svc:8000" in TEXT["edge.yaml"]
    for pod in pods():
        mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
        assert mounts == {volume["name"] for volume in pod.get("volumes", ())}


def test_the_edge_is_ready_when_reelray_is_and_ray_is_ready_without_it() -> None:
    (edge,) = [pod for pod in pods() if pod["containers"][0]["name"] == "nginx"]
    assert edge["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert edge["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/healthz"
    cluster = one("RayService")["spec"]["rayClusterConfig"]
    assert "readinessProbe" not in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {group["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
            for group in cluster["workerGroupSpecs"]} == {"/api/local_raylet_healthz"}
