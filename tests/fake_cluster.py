"""A Ray cluster that grows and shrinks, on one machine: Ray's own autoscaler over nodes that are processes.

`ray.cluster_utils.AutoscalingCluster` does the same, but ends every Ray of the machine first (`ray stop --force`). This
one has its own ports and directory and ends only what it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

HEAD_ID = "f" * 51 + "00000"
"""The id that Ray's fake node provider expects of the head."""
HEAD_TYPE = "ray.head.default"
"""So is its type's name."""
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


class FakeCluster:
    """A head, and node types that come when they are asked for."""

    def __init__(self, types: Mapping[str, Mapping[str, Any]], *, head: Mapping[str, Any], idle_s: float,
                 environment: Mapping[str, str] | None = None) -> None:
        """Start the head. `types` and `head` as in `available_node_types`; idle nodes end after `idle_s`.

        `environment`: further variables of the head, and of all that it starts.
        """
        # Not under pytest's directory: ray's socket paths must stay below 107 characters.
        self._temp = tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True)
        port, dashboard, client = free_ports(3)
        ip = _own_ip()
        self.address = f"{ip}:{port}"
        config = {
            "cluster_name": "fake", "max_workers": sum(kind["max_workers"] for kind in types.values()),
            "head_node_type": HEAD_TYPE, "upscaling_speed": 1.0, "idle_timeout_minutes": idle_s / 60,
            "provider": {"type": "external", "module": PROVIDER, "use_node_id_as_ip": True, "launch_multiple": True,
                         "disable_node_updaters": True, "disable_launch_config_check": True,
                         "head_node_id": HEAD_ID, "gcs_address": self.address},
            "available_node_types": {**types, HEAD_TYPE: {**head, "node_config": {}, "max_workers": 0}},
            "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [],
            "rsync_filter": [], "file_mounts_sync_continuously": False, "initialization_commands": [],
            "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
            "head_start_ray_commands": [], "worker_start_ray_commands": [],
        }
        file = Path(self._temp.name) / "autoscaler.json"
        file.write_text(json.dumps(config))
        variables = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1",
                     "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                     "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
                     **(environment or {})}
        try:
            subprocess.run(
                [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--node-ip-address={ip}",
                 f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
                 f"--temp-dir={self._temp.name}", f"--autoscaling-config={file}", "--num-gpus=0",
                 f"--num-cpus={head['resources']['CPU']}", f"--labels={_written(head.get('labels', {}))}",
                 "--object-store-memory=100000000", "--disable-usage-stats"],
                env=variables, check=True, capture_output=True, text=True, timeout=180)
        except BaseException:
            self.close()
            raise

    def processes(self) -> list[psutil.Process]:
        """All processes of this cluster, workers of its nodes included."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline"]):
            if any(self._temp.name + "/" in word for word in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        found.pop(os.getpid(), None)
        return list(found.values())

    def close(self) -> None:
        """End it, and nothing else."""
        alive = self.processes()
        for how in (psutil.Process.terminate, psutil.Process.kill):
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    how(process)
            _, alive = psutil.wait_procs(alive, timeout=5)
        self._temp.cleanup()


def _written(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _own_ip() -> str:
    """What Ray's nodes call this machine."""
    from ray._private.services import get_node_ip_address

    return str(get_node_ip_address())


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
