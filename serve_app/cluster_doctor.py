"""`reelray doctor` of a running cluster: a small task on every alive node. Imported after `prepare_environment`."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.load import cards_in_use
from configs.settings import Settings
from serve_app.capacity import check_resources, told_shares
from serve_app.cluster import start_ray
from serve_app.cluster_findings import NodeFacts, NodeReport, judge
from serve_app.findings import Finding
from serve_app.gpus import with_gpu_memory
from serve_app.probe import BYTES, Asked, look_around, look_at_gpu
from workflows.errors import ReelrayError
from workflows.upkeep.files import StoreFiles

ANSWER_S = 120.0
"""A node must have answered within this time; the first task there may have to load torch."""
GPU_S = 45.0
"""A GPU that is free by then is looked at."""
GPU_PART = 0.01


def examine_cluster(settings: Settings) -> list[Finding]:
    """Join the cluster that the settings name, ask every node, leave again. What fails is a finding."""
    try:
        start_ray(settings.ray)
    except ReelrayError as error:
        return [Finding(level="fail", what="cluster", text=f"{error}; is ray.address right, does it run, and is its "
                        "token the one that $RAY_AUTH_TOKEN_PATH names?")]
    try:
        return [*_resources(settings), *ask_nodes(settings)]
    finally:
        ray.shutdown()


def ask_nodes(settings: Settings, *, answer_s: float = ANSWER_S) -> list[Finding]:
    """Ask every alive node of the cluster that this process has joined."""
    files, marker = StoreFiles(settings.store), f"doctor/{uuid.uuid4().hex}"
    try:
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            (Path(scratch) / "marker").write_bytes(BYTES)
            files.write(marker, Path(scratch) / "marker")
    except Exception as error:  # noqa: BLE001 - each file system has errors of its own
        return [Finding(level="fail", what="store", text=f"{settings.store} cannot be written from here: {error}")]
    try:
        asked = Asked(database_url=settings.database, store_url=settings.store, marker=marker)
        nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
        around = [_remote(look_around, node).remote(asked, _gpus(node) > 0) for node in nodes]
        at_gpu = {node["NodeID"]: _remote(look_at_gpu, node, GPU_PART).remote() for node in nodes if _gpus(node)}
        reports = [_report(node, answer, answer_s) for node, answer in zip(nodes, around, strict=True)]
        reports = _with_gpus(reports, [at_gpu.get(node["NodeID"]) for node in nodes])
    finally:
        files.remove(marker)
        files.remove_directory("doctor")
    return judge(reports)


def _report(node: Mapping[str, Any], answer: Any, answer_s: float) -> NodeReport:
    name = f"{node['NodeManagerHostname']} {node['NodeManagerAddress']} ({str(node['NodeID'])[:6]})"
    facts: NodeFacts | None = None
    error = ""
    try:
        facts = ray.get(answer, timeout=answer_s)
    except GetTimeoutError:
        error = f"no answer within {answer_s:.0f} s"
        ray.cancel(answer, force=True)
    except RayError as failed:
        error = _last_line(failed)
    return NodeReport(name=name, gpus=_gpus(node), facts=facts, error=error)


def _with_gpus(reports: Sequence[NodeReport], answers: Sequence[Any]) -> list[NodeReport]:
    """With what was seen on GPUs that were free; those that replicas have are not to be had, which is no error."""
    asked = [answer for answer in answers if answer is not None]
    ready = ray.wait(asked, num_returns=len(asked), timeout=GPU_S)[0] if asked else []
    told: list[NodeReport] = []
    for report, answer in zip(reports, answers, strict=True):
        if answer not in ready:
            if answer is not None:
                ray.cancel(answer, force=True)
            told.append(report)
            continue
        try:
            told.append(replace(report, gpu=ray.get(answer)))
        except RayError as failed:
            told.append(replace(report, error=report.error or _last_line(failed)))
    return told


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _remote(function: Any, node: Mapping[str, Any], gpus: float = 0.0) -> Any:
    place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=place, max_retries=0)


def _gpus(node: Mapping[str, Any]) -> float:
    return float(node["Resources"].get("GPU", 0.0))


def _resources(settings: Settings) -> list[Finding]:
    cluster = ray.cluster_resources()
    settings = with_gpu_memory(settings, cluster)
    cards = cards_in_use(settings)
    try:
        check_resources(settings, cards, cluster)
    except ReelrayError as error:
        return [Finding(level="fail", what="resources", text=str(error))]
    return [Finding(level="ok", what="resources", text="; ".join([
        "the models' replicas have the GPUs that they ask for", *told_shares(settings, cards, cluster)]))]
