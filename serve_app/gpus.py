"""How much memory the GPUs have, found out where a session starts. Imports no torch: it is asked before models load.

Of GPUs of different sizes the smallest counts, since a replica may get any of them.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

from configs.settings import Settings

KINDS_GB: Mapping[str, float] = {
    "T4": 16, "P4": 8, "L4": 24, "A10G": 24, "L40S": 48, "H200": 141, "RTX-PRO-6000": 96,
}
"""Ray's names of kinds that come with one size of memory; A100, H100, H20, V100 and others come with several."""
KIND = "accelerator_type:"
TOOL = "nvidia-smi"
TIMEOUT_S = 10.0

Ask = Callable[[], str]
"""What `nvidia-smi` says of this machine: MiB of each GPU and whether it is cut up (MIG), one GPU a line; empty where
there is none."""


def ask_tool() -> str:
    """Ask the driver's own tool; a machine without it has no NVIDIA GPU that anything here could use."""
    path = shutil.which(TOOL)
    if path is None:
        return ""
    command = [path, "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def local_gb(ask: Ask = ask_tool) -> float | None:
    """Memory of the smallest GPU of this machine, in 10^9 bytes; None when there is none or it does not say.

    A GPU that is cut up (MIG) does not: its parts may have any size.
    """
    lines = [[cell.strip() for cell in line.split(",")] for line in ask().splitlines() if line.strip()]
    if not lines or not all(line[0].isdecimal() and "Enabled" not in line for line in lines):
        return None
    return min(int(line[0]) for line in lines) * 2**20 / 1e9


def cluster_gb(cluster: Mapping[str, float]) -> float | None:
    """The same of a cluster, by the kinds of GPU that Ray names; None unless each of them comes with one size only."""
    kinds = [name.removeprefix(KIND) for name in cluster if name.startswith(KIND)]
    sizes = [KINDS_GB.get(kind) for kind in kinds]
    known = [size for size in sizes if size is not None]
    return min(known) if known and len(known) == len(sizes) else None


def with_gpu_memory(settings: Settings, cluster: Mapping[str, float] | None = None, ask: Ask = ask_tool) -> Settings:
    """The settings with `models.gpu_memory_gb` found out where it is not set and can be; else as they are.

    Without `cluster` only this machine is asked, and only if the session starts on it.
    """
    models = settings.models
    if models.gpu_memory_gb is not None or models.device == "cpu":
        return settings
    if not settings.ray.address:
        found = local_gb(ask) if cluster is None or cluster.get("GPU") else None
    else:
        found = None if cluster is None else cluster_gb(cluster)
    if found is None:
        return settings
    return settings.model_copy(update={"models": models.model_copy(update={"gpu_memory_gb": found})})
