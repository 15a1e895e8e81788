"""A real model replica that can be held up at a moment of its work, so that something can be killed exactly then.

A gate is a file: whoever takes `MOMENT.armed` by renaming it to `MOMENT.held.PID.WHOSE` stands still until
`MOMENT.open` is there, or it dies.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import ray

from actors.progress import ActorTransport
from actors.reporter import Reporter
from configs.model_card import ModelCard
from configs.settings import Settings
from serve_app.cluster import scratch_dir
from serve_app.leaving import when_stopping
from workflows.checkpoints import CheckpointShelf
from workflows.ports import ProgressSink, RenderCall
from workflows.store import Store
from workflows.types import Artifact, Json, MediaType, NodeResult, Phase, ProgressRecord

LOOK_S = 0.02


class Moment(StrEnum):
    """Where in the life of a clip."""

    BEFORE_START = "before start"
    """Its replica has the call and has begun nothing; the row says that it runs."""
    DENOISING = "mid-denoise"
    """Half of the steps are made, the last checkpoint is a step or two behind."""
    ENCODING = "encode"
    """All steps are made; there is no file yet."""
    AFTER_PUT = "after put"
    """The result is in the store; the row does not say so yet."""
    AFTER_COMMIT = "after commit"
    """The row says so; the film goes on. Seen in the log, not in the replica."""


class Gate:
    """The gates of one server, as files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def arm(self, moment: Moment) -> None:
        """The next clip that comes to this moment is held up there."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for old in self._directory.iterdir():
            old.unlink()
        (self._directory / f"{moment.name}.armed").touch()

    def held(self, moment: Moment) -> tuple[int, str] | None:
        """The process that stands there, and the node's id or key."""
        for path in self._directory.glob(f"{moment.name}.held.*"):
            _, _, pid, whose = path.name.split(".", 3)
            return int(pid), whose
        return None

    def open(self, moment: Moment) -> None:
        """Let it go on, if it lives."""
        (self._directory / f"{moment.name}.open").touch()

    def stop_at(self, moment: Moment, whose: str) -> None:
        """Called at each moment of each clip, with its id or key."""
        armed = self._directory / f"{moment.name}.armed"
        try:
            armed.rename(self._directory / f"{moment.name}.held.{os.getpid()}.{whose}")
        except FileNotFoundError:
            return
        while not (self._directory / f"{moment.name}.open").exists():
            time.sleep(LOOK_S)


def gate_of(settings: Settings) -> Gate:
    """The gates of the server with these settings."""
    return Gate(settings.data_dir.expanduser() / "gates")


class GatedStore(Store):
    """Stands still when a clip has been put."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.store, cache_dir=scratch_dir(settings))
        self._gate = gate_of(settings)

    def put(self, key: str, source: Path, *, media_type: MediaType, manifest: Mapping[str, Json],
            score: float | None = None) -> Artifact:
        artifact = super().put(key, source, media_type=media_type, manifest=manifest, score=score)
        if media_type is MediaType.MP4:
            self._gate.stop_at(Moment.AFTER_PUT, key)
        return artifact


class GatedSink:
    """Stands still on the thread that tells of a step: the GPU's, or the one that encodes."""

    def __init__(self, sink: ProgressSink, gate: Gate) -> None:
        self._sink = sink
        self._gate = gate

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        self._sink.update(record, urgent=urgent)
        if not record.node_id.endswith(".clip"):
            return
        if record.phase is Phase.DIFFUSION and record.step * 2 >= record.total_steps:
            self._gate.stop_at(Moment.DENOISING, record.node_id)
        if record.phase is Phase.SAVING:
            self._gate.stop_at(Moment.ENCODING, record.node_id)

    def end(self, job_id: str, node_id: str) -> None:
        self._sink.end(job_id, node_id)


class GatedModel:
    """As `serve_app.deployments.ModelDeployment`, with gates in its store and its progress."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        from serve_app.models.replica import ModelReplica  # torch and diffusers, in this process only

        assigned = ray.get_runtime_context().get_assigned_resources()
        transport = ActorTransport(settings.progress, settings.ray.namespace)
        self._gate = gate_of(settings)
        sink = GatedSink(Reporter(transport, flush_s=settings.progress.flush_s, on_cancelled=self._cancel_job),
                         self._gate)
        self._replica: ModelReplica = ModelReplica(
            card, settings.models, settings.media, GatedStore(settings), sink, float(assigned.get("GPU", 0)),
            checkpoints=CheckpointShelf(settings.store))
        when_stopping(self._replica.leave)

    async def image(self, call: RenderCall) -> NodeResult:
        return await self._replica.image(call)

    async def clip(self, call: RenderCall) -> NodeResult:
        await asyncio.to_thread(self._gate.stop_at, Moment.BEFORE_START, call.node_id)
        return await self._replica.clip(call)

    def _cancel_job(self, job_id: str) -> None:
        self._replica.cancel_job(job_id)

    async def check_health(self) -> None:
        await self._replica.check_health()
