"""`reelray doctor --address` on a real cluster of two nodes: each is asked, over there, and what is wrong is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A head, and a node that says it has a GPU; torch sees none there."""
    # Together with the other tests' cluster in one process there would be two of them.
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0,
                                                            "object_store_memory": 80_000_000})
    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80_000_000)
    yield cluster
    cluster.shutdown()


def doctor(cluster: Cluster, place: Path, *overrides: str) -> tuple[int, list[dict[str, Any]], str]:
    sets = [f"data_dir={place}", "models.text_to_image=placeholder", "models.text_to_video=placeholder",
            "models.image_to_video=placeholder", *overrides]
    command = [sys.executable, "-c", "from serve_app.cli import main; main()", "doctor", "--address",
               cluster.address, "--json", *(word for one in sets for word in ("--set", one))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    return done.returncode, json.loads(done.stdout) if done.stdout else [], done.stderr


def test_every_node_is_asked_and_a_gpu_that_is_none_is_found(two_nodes: Cluster, tmp_path: Path) -> None:
    code, findings, said = doctor(two_nodes, tmp_path)
    nodes = [one for one in findings if one["what"].startswith("node ")]
    assert len(nodes) == 2, said
    for node in nodes:
        assert node["level"] == "ok"
        assert "ms write/read/delete" in node["text"]
        assert "database " in node["text"]
    bad = [one for one in findings if one["level"] == "fail"]
    assert [one["what"] for one in bad] == ["GPU"], findings
    assert "Ray gave 0 and torch sees 0" in bad[0]["text"]
    assert code == 1
    assert {"level": "ok", "what": "versions", "text": "the same on all 2 nodes"} in findings
    assert not list((tmp_path / "artifacts").glob("doctor*")), "the probes are removed"


def test_a_store_that_cannot_be_written_is_a_finding(two_nodes: Cluster, tmp_path: Path) -> None:
    code, findings, _ = doctor(two_nodes, tmp_path, "store_url=/proc/none")
    assert code == 1
    assert any(one["level"] == "fail" and one["what"] == "store" for one in findings)
