"""Ray on this machine for the life of one command, or a running cluster joined by address. Imports ray only when asked.

`RAY_AUTH_MODE` counts at import time, so `prepare_environment` runs before ray is imported for the first time.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.settings import RaySettings, Settings
from workflows.errors import StartFailed

TOKEN_FILE = "ray_token"


def prepare_environment(settings: Settings) -> None:
    """Set what ray reads while it is imported. Token authentication is on: a cluster without it runs anybody's code."""
    if "ray" in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        raise RuntimeError("ray was imported before its environment was prepared; import it later")
    data_dir = settings.data_dir.expanduser()
    data_dir.mkdir(parents=True, exist_ok=True)
    token = data_dir / TOKEN_FILE
    if not token.exists():
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(token))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without this a replica with num_gpus=0 still sees every GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")


def start_ray(settings: RaySettings) -> str:
    """Start or join the cluster; returns the dashboard's address (`127.0.0.1:8265`), empty without one."""
    import ray  # after prepare_environment, and never for `reelray --help`

    try:
        context = _init(settings, ray)
    except Exception as error:  # a node that does not come up in time is a plain Exception of Ray's
        what = f"joined at {settings.address}" if settings.address else "started on this machine"
        raise StartFailed(problem=f"Ray could not be {what}", detail=str(error)) from error
    return str(context.dashboard_url or "")


def _init(settings: RaySettings, ray: ModuleType) -> Any:
    if settings.address:
        return ray.init(address=settings.address, namespace=settings.namespace, log_to_driver=False)
    return ray.init(
        address="local", namespace=settings.namespace, num_gpus=settings.num_gpus,
        num_cpus=settings.num_cpus or max(4, os.cpu_count() or 1), include_dashboard=settings.dashboard,
        dashboard_port=settings.dashboard_port, log_to_driver=False, logging_level="ERROR",
        object_store_memory=settings.object_store_mb * 10**6,
        _temp_dir=str(settings.temp_dir) if settings.temp_dir else None,
    )


def scratch_dir(settings: Settings) -> Path:
    """Where local copies of remote artifacts are kept."""
    return settings.data_dir.expanduser() / "cache"
