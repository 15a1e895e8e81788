"""Joins a cluster and writes one JSON line per look: GPU nodes alive, replicas of one deployment by state.

A process of its own, since a process can be in one Ray only: `python -m tests.cluster.look_at_cluster ADDRESS NAME`.
"""

from __future__ import annotations

import json
import sys
import time

import ray
from ray import serve

APP = "reelray"
LOOK_S = 0.5


def main(address: str, deployment: str) -> None:
    ray.init(address=address, namespace="reelray", log_to_driver=False, logging_level="ERROR")
    while True:
        found = serve.status().applications.get(APP)
        part = None if found is None else found.deployments.get(deployment)
        print(json.dumps({
            "at_s": time.time(),
            "serves": found is not None and found.status != "DELETING",
            "nodes": sum(bool(node["Alive"]) and node["Resources"].get("GPU", 0) > 0 for node in ray.nodes()),
            "replicas": {} if part is None else {str(state): count for state, count in part.replica_states.items()},
        }), flush=True)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
