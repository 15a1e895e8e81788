"""One replica of a tracker's or an editor's card: mask and edit nodes, a chunk at a time on the GPU thread.

    call -> refuse? -> stored already? -> join a running twin, or run:
        read the chunk  |  GPU thread: find, or edit  |  saving thread: write without loss, store

While one chunk is written the next is on the GPU. `run` is a `workflows.ports.Step`. Knows no Ray:
`serve_app.deployments` makes it a Serve deployment.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from configs.model_card import ModelCard, Task
from configs.settings import ModelsSettings
from serve_app.models import weights
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
from serve_app.models.records import DECODED_SHARE, ENCODED_SHARE, RunRecords, StepClock
from serve_app.models.runs import Run, Runs
from serve_app.models.saving import made_by
from serve_app.models.tap import Watch
from serve_app.models.workbench import Workbench, open_workbench, warm_up
from workflows.edit_ports import ProgressCallback
from workflows.errors import ReelrayError, RenderRefused, StageFailed
from workflows.ports import ArtifactStore, ProgressSink
from workflows.stages.edit_bench import Bench, Files
from workflows.stages.edit_models import edit, keep_edit, keep_masks, read_search, read_sheet, search
from workflows.types import NodeCall, NodeKind, NodeResult

log = logging.getLogger(__name__)

T = TypeVar("T")
OpenWorkbench = Callable[[ModelCard, str], Workbench]
"""`open(card, device)`: `workbench.open_workbench`, or a test's own."""
Produce = Callable[[Run[NodeCall], Bench, RunRecords], Awaitable[NodeResult]]
"""Makes a node's result, once it is known that it has to be made."""
Model = Callable[[ProgressCallback, Watch], T]
"""The part of it that is on the GPU."""


class EditReplica:
    """Runs mask nodes, or edit nodes, as its card can.

    Calls are shared, cancelled and stopped as those of `ModelReplica`: within one frame of a tracker, one denoising
    step of an editor.
    """

    def __init__(
        self, card: ModelCard, settings: ModelsSettings, store: ArtifactStore, sink: ProgressSink,
        assigned_gpus: float, open_: OpenWorkbench = open_workbench,
    ) -> None:
        """Load, and make one small call; a replica that exists can work.

        Raises ImpossibleResources for the device, InvalidDocument for the card, and whatever the warm-up raises.
        """
        self._card = card
        self._card_digest = card.digest()
        self._sink = sink
        self._store = store
        self._files = Files(store)
        self._runs: Runs[NodeCall] = Runs(sink)
        self._heartbeat = Heartbeat(stall_s=settings.stall_s, step="frame or denoising step")
        self._gpu = GpuThread(self._heartbeat)
        self._saving = SerialThread("saving")
        self._kinds: Mapping[NodeKind, Produce] = {NodeKind.MASK: self._mask, NodeKind.EDIT: self._edit}
        device = pick_device(settings.device, assigned_gpus)
        set_torch_threads(settings)
        if settings.auto_download:
            weights.ensure(card, say=log.info)
        started = time.perf_counter()
        self._bench = open_(card, device)
        self._made = made_by(card, describe(device), self._bench.used)
        loaded = time.perf_counter()
        watch = Watch(label="warm-up", beat=self._heartbeat.beat)
        self._gpu.run_now(functools.partial(warm_up, self._bench, card, watch))
        log.info("%s: loaded in %.1f s on %s, warm after %.1f s more", card.name, loaded - started, device,
                 time.perf_counter() - loaded)

    async def run(self, call: NodeCall) -> NodeResult:
        """One mask node or one edit node; lossless masks or crops.

        Raises StageFailed and its children; ArtifactMissing, ArtifactCorrupt or MediaError for the inputs.
        """
        produce = self._refuse_or_find(call)
        return await self._runs.answer(call, lambda run: self._produce(run, call, produce))

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

    def _refuse_or_find(self, call: NodeCall) -> Produce:
        """What makes this node. Raises RenderRefused for another card's and for what this card cannot do."""
        mine = f"{self._card.name} ({self._card_digest})"
        planned = str(call.payload.get("card", "")), str(call.payload.get("card_digest", ""))
        if planned != (self._card.name, self._card_digest):
            raise RenderRefused(node_id=call.node_id, reason=f"the edit was planned with model card {planned[0]} "
                                f"({planned[1]}), this replica runs {mine}; submit the edit again")
        able = NodeKind.MASK if self._card.tasks == (Task.TRACK,) else NodeKind.EDIT
        if call.kind is not able:
            raise RenderRefused(node_id=call.node_id, reason=f"model card {mine} makes {able} nodes, and this is a "
                                                             f"node of kind {call.kind}")
        return self._kinds[able]

    async def _produce(self, run: Run[NodeCall], call: NodeCall, produce: Produce) -> NodeResult:
        try:
            # 1. done before, here or by another replica   2. say that it begins   3. read, work, write
            found = await asyncio.to_thread(self._store.find, call.key)
            if found is not None:
                return NodeResult(artifact=found)
            records = RunRecords(self._sink, run.calls, steps=int(str(call.payload["frames"])))
            records.initialise()
            result = await produce(run, Bench(call, self._files, self._made), records)
            records.done()
            return replace(result, warnings=(*result.warnings, *run.notes))
        except ReelrayError:
            raise
        except Exception as error:
            # The GPU part and the store have their own; this is a full scratch disk, a bug.
            log.exception("%s: failed outside the model", call.node_id)
            raise StageFailed(node_id=call.node_id, reason=short(error)) from None

    async def _mask(self, run: Run[NodeCall], bench: Bench, records: RunRecords) -> NodeResult:
        what = await asyncio.to_thread(read_search, bench)
        tracker = self._bench.the_tracker()
        tracked = await self._on_gpu(run, bench, records, lambda heard, watch: search(
            what, tracker, progress_callback=heard, watch=watch))
        return await self._kept(run, records, lambda: keep_masks(bench, tracked))

    async def _edit(self, run: Run[NodeCall], bench: Bench, records: RunRecords) -> NodeResult:
        sheet = await asyncio.to_thread(read_sheet, bench)
        editor = self._bench.the_editor()
        edited_THWC = await self._on_gpu(run, bench, records, lambda heard, watch: edit(
            sheet, editor, progress_callback=heard, watch=watch))
        return await self._kept(run, records, lambda: keep_edit(bench, edited_THWC))

    async def _on_gpu(self, run: Run[NodeCall], bench: Bench, records: RunRecords, model: Model[T]) -> T:
        return await self._gpu.run(functools.partial(self._asked, run, bench.call, records, model), cancel=run.token)

    def _asked(self, run: Run[NodeCall], call: NodeCall, records: RunRecords, model: Model[T]) -> T:
        """On the GPU thread."""
        watch = Watch(label=call.node_id, cancel=run.token, deadline=run.deadline, beat=self._heartbeat.beat,
                      note=run.notes.append, other_pixels=run.differ)
        clock = StepClock(records.step)
        result = guarded(lambda: model(lambda done, total, at: clock(done - 1, total, at), watch), label=call.node_id,
                         heartbeat=self._heartbeat, too_large=f"a chunk of {call.payload['frames']} frames does not "
                         f"fit the GPU beside {self._card.name}; a smaller edit_size or chunk_frames needs less")
        records.saving(DECODED_SHARE)
        return result

    async def _kept(self, run: Run[NodeCall], records: RunRecords, keep: Callable[[], NodeResult]) -> NodeResult:
        result = await self._saving.run(keep, cancel=run.token)
        records.saving(ENCODED_SHARE)
        return result
