"""What one node of a cluster sees, found out there, in a small task of Ray."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from serve_app.cluster_findings import GpuFacts, NodeFacts, StoreTimes
from workflows.durable.database import Database
from workflows.upkeep.files import StoreFiles

PACKAGES = ("reelray", "ray", "torch", "diffusers", "transformers")
QUESTIONS = 5
BYTES = b"reelray doctor\n" * 1000
TRIED_SHARE = 0.05
"""Of a GPU, while the cap on torch's allocator is tried."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every node is asked about."""

    database_url: str
    store_url: str
    marker: str
    """Path of a file in the store that this command's machine wrote."""


def look_around(asked: Asked, has_gpus: bool) -> NodeFacts:
    """Look at versions, store, database, clock and ffmpeg; an error of one is a part of the answer."""
    times, shared, store_error = None, False, ""
    try:
        shared, times = _store(asked)
    except Exception as error:  # noqa: BLE001 - each file system has errors of its own
        store_error = _told(error)
    took_ms, skew_s, skew_error_s, database_error = None, None, 0.0, ""
    try:
        took_ms, skew_s, skew_error_s = _database(asked.database_url)
    except Exception as error:  # noqa: BLE001 - told, not raised
        database_error = _told(error)
    ffmpeg, ffmpeg_error = "", ""
    try:
        import imageio_ffmpeg

        ffmpeg = str(imageio_ffmpeg.get_ffmpeg_version())
    except Exception as error:  # noqa: BLE001 - told, not raised
        ffmpeg_error = _told(error)
    return NodeFacts(versions=_versions(), seen_without_gpu=_seen() if has_gpus else None, store=times,
                     store_error=store_error, store_is_shared=shared, database_ms=took_ms,
                     database_error=database_error, skew_s=skew_s, skew_error_s=skew_error_s, ffmpeg=ffmpeg,
                     ffmpeg_error=ffmpeg_error)


def look_at_gpu() -> GpuFacts:
    """Look at the GPU that this task was given a part of; `seen` is 0 where torch has none."""
    import ray
    import torch

    assigned = tuple(str(one) for one in ray.get_gpu_ids())
    if not torch.cuda.is_available():
        return GpuFacts(assigned=assigned, seen=0, name="", total_gb=0.0, free_gb=0.0, cap_holds=None)
    free, total = torch.cuda.mem_get_info(0)
    return GpuFacts(assigned=assigned, seen=torch.cuda.device_count(), name=torch.cuda.get_device_name(0),
                    total_gb=total / 1e9, free_gb=free / 1e9,
                    cap_holds=_cap_holds(total) if free > 4 * TRIED_SHARE * total else None)


def _cap_holds(total: int) -> bool:
    """Whether torch refuses to take twice a share that it was held to."""
    import torch

    torch.cuda.set_per_process_memory_fraction(TRIED_SHARE, 0)
    try:
        torch.empty(int(2 * TRIED_SHARE * total), dtype=torch.uint8, device="cuda:0")
    except torch.OutOfMemoryError:
        return True
    return False


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _seen() -> int:
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def _store(asked: Asked) -> tuple[bool, StoreTimes]:
    files, path = StoreFiles(asked.store_url), f"doctor/{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
        source = Path(scratch) / "probe"
        source.write_bytes(BYTES)
        _, write_ms = _timed(lambda: files.write(path, source))
    try:
        read, read_ms = _timed(lambda: _read(files, path))
    finally:
        _, delete_ms = _timed(lambda: files.remove(path))
    if read != BYTES:
        raise OSError(f"{path} was read back as something else")
    try:
        shared = _read(files, asked.marker) == BYTES
    except OSError:
        shared = False
    return shared, StoreTimes(write_ms=write_ms, read_ms=read_ms, delete_ms=delete_ms)


def _read(files: StoreFiles, path: str) -> bytes:
    with files.open(path) as stream:
        return stream.read()


def _database(url: str) -> tuple[float, float | None, float]:
    """Milliseconds per question, this clock less the database's, and how wrong that may be."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        # Opening it would make one.
        raise FileNotFoundError(f"{parsed.database} is not on this node, and SQLite is for one machine")
    database = Database(url)
    try:
        with database.read() as connection:
            took_ms = [_timed(lambda: connection.scalar(sa.text("SELECT 1")))[1] for _ in range(QUESTIONS)]
            if not database.is_postgres:
                return statistics.median(took_ms), None, 0.0
            before_s = time.time()
            theirs_s = float(connection.scalar(sa.select(database.now_s())) or 0.0)
            after_s = time.time()
    finally:
        database.close()
    return statistics.median(took_ms), (before_s + after_s) / 2 - theirs_s, (after_s - before_s) / 2


def _timed(act: Callable[[], T]) -> tuple[T, float]:
    started_s = time.perf_counter()
    result = act()
    return result, (time.perf_counter() - started_s) * 1000


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no more is said'}"
