"""`reelray doctor`: one finding per thing a render needs, each with what to do about it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from configs.chat_card import AnyCard
from configs.endpoint import Endpoint
from configs.load import SettingsError, api_key, cards_in_use
from configs.model_card import ModelCard
from configs.settings import Settings
from serve_app.capacity import check_resources, told_shares
from serve_app.findings import Finding
from serve_app.gpus import with_gpu_memory
from serve_app.models import adapters, weights
from serve_app.sharing import require_shared
from workflows.durable.ledger import Ledger
from workflows.errors import ReelrayError
from workflows.store import Store
from workflows.types import MediaType, digest

PACKAGES = ("reelray", "ray", "torch", "diffusers", "transformers", "av", "opencv-python-headless", "sqlalchemy")
LOW_DISK_GB = 5.0


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; a check that raises becomes a finding, never a traceback."""
    findings: list[Finding] = []
    for what, check in CHECKS.items():
        try:
            findings.extend(check(settings))
        except (ReelrayError, SettingsError, OSError, RuntimeError, ValueError) as error:
            findings.append(Finding(level="fail", what=what, text=str(error)))
    return findings


def _versions(_: Settings) -> Iterator[Finding]:
    text = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    yield Finding(level="ok", what="versions", text=text)


def _gpu(settings: Settings) -> Iterator[Finding]:
    import torch  # seconds to import; only this check needs it

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory_gb = torch.cuda.get_device_properties(index).total_memory / 1e9
            name = torch.cuda.get_device_name(index)
            yield Finding(level="ok", what="GPU", text=f"{index}: {name}, {memory_gb:.0f} GB")
    elif settings.models.device == "cuda" and not settings.ray.address:
        yield Finding(level="fail", what="GPU", text="models.device is cuda but torch sees no GPU; install the driver "
                      "and a CUDA build of torch, or use --profile laptop")
    else:
        yield Finding(level="note", what="GPU", text=f"none seen by torch {torch.__version__}; models run on the CPU "
                      f"({os.cpu_count()} cores)")


def _video_tools(_: Settings) -> Iterator[Finding]:
    yield Finding(level="ok", what="ffmpeg", text=imageio_ffmpeg.get_ffmpeg_version())
    canvas = np.zeros((40, 80, 3), np.uint8)
    cv2.putText(canvas, "第一幕", (2, 30), (255, 255, 255), cv2.FontFace("uni"), 20, 400)
    if canvas.any():
        yield Finding(level="ok", what="fonts", text="captions in Latin and CJK scripts")
    else:
        yield Finding(level="fail", what="fonts", text="OpenCV carries no font for CJK captions; install "
                      "opencv-python-headless 5 and no other OpenCV")


def _state(settings: Settings) -> Iterator[Finding]:
    ledger = Ledger(settings.database)
    started = time.perf_counter()
    page = ledger.jobs(limit=1)
    took_ms = (time.perf_counter() - started) * 1000
    ledger.close()
    yield Finding(level="ok" if took_ms < 200 else "note", what="database",
                  text=f"{_without_password(settings.database)}, answered in {took_ms:.0f} ms"
                  + ("" if page.jobs else ", no jobs yet"))


def _store(settings: Settings) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "probe.json"
        source.write_text("{}")
        # Committed under a fixed key, so that a thousand examinations leave one tiny file.
        store = Store(settings.store, cache_dir=Path(scratch))
        artifact = store.put(digest("doctor")[:32], source, media_type=MediaType.JSON, manifest={})
        store.fetch(artifact)
    yield Finding(level="ok", what="store", text=f"{settings.store}: written and read back")
    free_gb = shutil.disk_usage(settings.data_dir.expanduser()).free / 1e9
    yield Finding(level="ok" if free_gb > LOW_DISK_GB else "note", what="disk", text=f"{free_gb:.0f} GB free")


def _shared(settings: Settings) -> Iterator[Finding]:
    if settings.ray.several_machines:
        require_shared(settings)
        yield Finding(level="ok", what="shared", text="database and store are such that every machine can reach them")


def _resources(settings: Settings) -> Iterator[Finding]:
    if settings.ray.address:  # the cluster's GPUs are not this machine's
        return
    import torch

    have = torch.cuda.device_count() if settings.ray.num_gpus is None else settings.ray.num_gpus
    settings, cluster = with_gpu_memory(settings), {"GPU": float(have)}
    cards = cards_in_use(settings)
    check_resources(settings, cards, cluster)
    yield Finding(level="ok", what="resources", text="; ".join([
        "the models' replicas have the GPUs that they ask for", *told_shares(settings, cards, cluster)]))


def _cards(settings: Settings) -> Iterator[Finding]:
    for card in cards_in_use(settings):
        if isinstance(card, ModelCard) and card.remote is not None:
            yield _endpoint(f"{card.name}: {card.remote.model_name}", card.remote)
        if weights.has_weights(card) or card.loader == "embedding":
            yield _weights(card, settings)


def _weights(card: AnyCard, settings: Settings) -> Finding:
    """A failure only where the session requires them here."""
    try:
        path = _place(card) if adapters.is_here(card) else None
        if path is None and settings.models.auto_download:
            return Finding(level="note", what="model",
                           text=f"{card.name}: {card.repo} is fetched from its hub at start")
        beside = adapters.require(card)
        path = path or (weights.require(card) if weights.has_weights(card) else beside or Path())
    except ReelrayError as error:
        if not settings.ray.address:
            return Finding(level="fail", what="model", text=str(error))
        return Finding(level="note", what="model",
                       text=f"{card.name}: not on this machine; its replicas look on theirs")
    size_mb = sum(file.stat().st_size for file in path.rglob("*.safetensors")) / 1e6
    return Finding(level="ok", what="model", text=f"{card.name}: {size_mb:.0f} MB of weights at {path}")


def _place(card: AnyCard) -> Path | None:
    return weights.find(card) if weights.has_weights(card) else adapters.require(card)


def _writer(settings: Settings) -> Iterator[Finding]:
    story = settings.story
    if story.asks_model and not story.card:  # a card is one of the models
        yield _endpoint(f"story: {story.model_name}", story)


def _endpoint(what: str, endpoint: Endpoint) -> Finding:
    """Where somebody else's API is and whether its key is there; nothing is asked of it."""
    try:
        key = f"key in {endpoint.key_place}" if api_key(endpoint) else "no key"
    except SettingsError as error:
        return Finding(level="fail", what="provider", text=f"{what}: {error}")
    return Finding(level="ok", what="provider", text=f"{what} at {endpoint.api_url}, {key}; not asked")


def _without_password(url: str) -> str:
    head, separator, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://...{separator}{tail}" if separator else url


CHECKS: dict[str, Callable[[Settings], Iterator[Finding]]] = {
    "versions": _versions, "GPU": _gpu, "video tools": _video_tools, "database": _state, "store": _store,
    "shared": _shared, "resources": _resources, "models": _cards, "story": _writer,
}
