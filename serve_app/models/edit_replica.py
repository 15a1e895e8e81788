"""One replica of a tracker's or an editor's card, behind the EditModel port: a chunk at a time on the GPU thread.

    call -> refuse? -> stored already? -> join a running twin, or run:
        read the chunk  |  GPU thread: find, or edit  |  saving thread: write without loss, store

While one chunk is written the next is on the GPU. Knows no Ray: `serve_app.deployments` makes it a Serve deployment.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from configs.model_card import ModelCard, Task
from configs.settings import ModelsSettings
from serve_app.models import weights
from serve_app.models.chunks import Chunks, StoredChunks
from serve_app.models.edit_saving import ChunkSaver
from serve_app.models.guarded import guarded, short
from serve_app.models.lifecycle import (
    GpuThread,
    Heartbeat,
    SerialThread,
    describe,
    free_memory,
    pick_device,
    set_torch_threads,
)
from serve_app.models.records import DECODED_SHARE, RunRecords, StepClock
from serve_app.models.runs import Run, Runs
from serve_app.models.tap import Watch
from serve_app.models.workbench import Workbench, open_workbench, warm_up
from workflows.edit_calls import ChunkCall, EditCall, TrackCall
from workflows.edit_ports import ProgressCallback, Tracked
from workflows.errors import ReelrayError, RenderRefused, StageFailed
from workflows.media.frames import UInt8Array
from workflows.ports import ArtifactStore, ProgressSink
from workflows.types import Json, NodeResult

log = logging.getLogger(__name__)

T = TypeVar("T")
_Work = Callable[[RunRecords], Awaitable[NodeResult]]
"""A run, once it is known that it has to be made."""
_Model = Callable[[ProgressCallback, Watch], T]
"""The part of it that is on the GPU."""
OpenWorkbench = Callable[[ModelCard, str], Workbench]
"""`open(card, device)`: `workbench.open_workbench`, or a test's own."""


class EditReplica:
    """Implements `workflows.edit_calls.EditModel`.

    Calls are shared, cancelled and stopped as those of `ModelReplica`: within one frame of a tracker, one denoising
    step of an editor.
    """

    def __init__(  # noqa: PLR0913 - where a replica is put together; each is one port or one branch of the settings
        self, card: ModelCard, settings: ModelsSettings, store: ArtifactStore, sink: ProgressSink,
        assigned_gpus: float, chunks: Chunks | None = None, open_: OpenWorkbench = open_workbench,
    ) -> None:
        """Load, and make one small call of everything; a replica that exists can work.

        Raises ImpossibleResources for the device, InvalidDocument for the card, and whatever the warm-up raises.
        """
        self._card = card
        self._card_digest = card.digest()
        self._store = store
        self._sink = sink
        self._chunks: Chunks = StoredChunks(store) if chunks is None else chunks
        self._runs: Runs[ChunkCall] = Runs(sink)
        self._heartbeat = Heartbeat(stall_s=settings.stall_s, step="frame or denoising step")
        self._gpu = GpuThread(self._heartbeat)
        self._saving = SerialThread("saving")
        device = pick_device(settings.device, assigned_gpus)
        set_torch_threads(settings)
        if settings.auto_download:
            weights.ensure(card, say=log.info)
        started = time.perf_counter()
        self._bench = open_(card, device)
        self._saver = ChunkSaver(card, describe(device), store, self._chunks, self._bench.used)
        loaded = time.perf_counter()
        self._gpu.run_now(functools.partial(warm_up, self._bench, card, Watch(label="warm-up",
                                                                              beat=self._heartbeat.beat)))
        log.info("%s: loaded in %.1f s on %s, warm after %.1f s more", card.name, loaded - started, device,
                 time.perf_counter() - loaded)

    # -- the EditModel port -------------------------------------------------------------------------------------------

    async def track(self, call: TrackCall) -> NodeResult:
        """See `EditModel`."""
        self._refuse(call, Task.TRACK)
        return await self._runs.answer(call, lambda run: self._produce(run, call, self._track(run, call)))

    async def edit(self, call: EditCall) -> NodeResult:
        """See `EditModel`."""
        self._refuse(call, Task(call.task))
        return await self._runs.answer(call, lambda run: self._produce(run, call, self._edit(run, call)))

    async def cancel(self, key: str) -> bool:
        """Stop the run of a key, for all who wait for it; they get RenderCancelled. Returns whether it was running."""
        return self._runs.cancel(key)

    def cancel_job(self, job_id: str) -> None:
        """Let go of every call of a job; a run that nobody else waits for is stopped. Callable from any thread."""
        self._runs.cancel_job(job_id)

    async def check_health(self) -> None:
        """Raise when this process cannot work any more: a broken GPU context, or no sign of life for too long."""
        if problem := self._heartbeat.problem():
            raise RuntimeError(f"{self._card.name}: {problem}")

    def close(self) -> None:
        """Stop what runs, end the threads, give the memory back."""
        self._runs.stop()
        self._gpu.close()
        self._saving.close()
        self._bench = Workbench()
        free_memory()

    # -- one run ------------------------------------------------------------------------------------------------------

    def _refuse(self, call: ChunkCall, task: Task) -> None:
        """Raise RenderRefused for what this replica cannot do, before anything is read."""
        mine = f"{self._card.name} ({self._card_digest})"
        if (call.card, call.card_digest) != (self._card.name, self._card_digest):
            raise RenderRefused(node_id=call.node_id, reason=f"the edit was planned with model card {call.card} "
                                f"({call.card_digest}), this replica runs {mine}; submit the edit again")
        if task not in self._bench.tasks:
            raise RenderRefused(node_id=call.node_id, reason=f"model card {mine} cannot do {task.value}, only "
                                                             f"{', '.join(self._bench.tasks)}")

    async def _produce(self, run: Run[ChunkCall], call: ChunkCall, work: _Work) -> NodeResult:
        try:
            # 1. done before, here or by another replica   2. say that it begins   3. read, work, write
            found = await asyncio.to_thread(self._store.find, call.key)
            if found is not None:
                return NodeResult(artifact=found)
            records = RunRecords(self._sink, run.calls, steps=call.frames)
            records.initialise()
            return await work(records)
        except ReelrayError:
            raise
        except Exception as error:
            # The GPU part has its own; this is a full disk, a store that is away, a bug.
            log.exception("%s: failed outside the model", call.node_id)
            raise StageFailed(node_id=call.node_id, reason=short(error)) from None

    def _track(self, run: Run[ChunkCall], call: TrackCall) -> _Work:
        async def work(records: RunRecords) -> NodeResult:
            frames_THWC, carried_HW = await asyncio.to_thread(self._chunks.to_track, call)
            tracker = self._bench.tracker
            assert tracker is not None

            def find(heard: ProgressCallback, watch: Watch) -> Tracked:
                return tracker.track(frames_THWC, call.find, carried=carried_HW, progress_callback=heard, watch=watch)

            tracked, seconds = await self._gpu.run(
                functools.partial(self._on_gpu, run, call, find, records), cancel=run.token)
            found: dict[str, Json] = {"score": round(tracked.score, 4), "instances": tracked.instances}
            warnings = () if tracked.instances else (nothing_found(call, tracked.score),)
            return await self._saving.run(functools.partial(
                self._saver.save, tracked.masks_THW, call, records, warnings=(*warnings, *run.notes), seconds=seconds,
                found=found), cancel=run.token)

        return work

    def _edit(self, run: Run[ChunkCall], call: EditCall) -> _Work:
        async def work(records: RunRecords) -> NodeResult:
            take = await asyncio.to_thread(self._chunks.to_edit, call)
            editor = self._bench.editors[Task(call.task)]
            if problems := editor.problems(take):
                raise RenderRefused(node_id=call.node_id, reason="; ".join(problem.render() for problem in problems))

            def change(heard: ProgressCallback, watch: Watch) -> UInt8Array:
                return editor.edit(take, progress_callback=heard, watch=watch)

            edited_THWC, seconds = await self._gpu.run(
                functools.partial(self._on_gpu, run, call, change, records), cancel=run.token)
            return await self._saving.run(functools.partial(
                self._saver.save, edited_THWC, call, records, warnings=tuple(run.notes), seconds=seconds),
                cancel=run.token)

        return work

    def _on_gpu(self, run: Run[ChunkCall], call: ChunkCall, model: _Model[T], records: RunRecords,
                ) -> tuple[T, dict[str, float]]:
        """On the GPU thread: the result, and how long the steps and the rest took."""
        watch = Watch(label=call.node_id, cancel=run.token, deadline_s=call.deadline_s, beat=self._heartbeat.beat,
                      note=run.notes.append, other_pixels=run.differ)
        clock = StepClock(records.step)
        result = guarded(lambda: model(lambda done, total, at: clock(done - 1, total, at), watch), label=call.node_id,
                         heartbeat=self._heartbeat, too_large=f"a chunk of {call.frames} frames does not fit the GPU "
                         f"beside {self._card.name}; a smaller edit_size or chunk_frames needs less")
        records.saving(DECODED_SHARE)
        return result, clock.seconds()


def nothing_found(call: TrackCall, score: float) -> str:
    """What to tell the user of an empty result."""
    what = f"fits {call.find.prompt!r}" if call.find.prompt else "was found where the points and boxes are"
    return f"nothing {what} in {call.frames} frames from {call.first} on; the best score was {score:.2f}"
