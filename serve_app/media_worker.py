"""MediaWorker: runs the CPU stages on threads of its own, with progress, cancel and deadline. Knows no Serve."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from configs.settings import MediaSettings
from workflows.deadline import Clock, Deadline
from workflows.edit_plan import EDIT_KINDS
from workflows.errors import DeadlineExceeded, RenderCancelled
from workflows.media.encode import EncodeOptions
from workflows.ports import ArtifactStore, ProgressSink
from workflows.stages.edit_local import LocalEdits
from workflows.stages.finish import Finisher
from workflows.stages.score import Embedder, Scorer
from workflows.types import NodeCall, NodeKind, NodeResult, Phase, ProgressRecord


class MediaWorker:
    """Captions, interpolations and compositions, `slots` at a time."""

    def __init__(self, media: MediaSettings, store: ArtifactStore, sink: ProgressSink, *, slots: int,
                 embedder: Embedder | None = None, clock: Clock = time.monotonic) -> None:
        """`slots` threads; frames are decoded, changed and encoded in C, which releases the interpreter. `embedder`
        compares clips with reference pictures; `clock` counts the seconds that a call has left.
        """
        self._scorer = Scorer(store, embedder)
        options = EncodeOptions(crf=media.crf, preset=media.preset, gop_s=media.gop_s)
        self._finisher = Finisher(store, options)
        self._edits = LocalEdits(store, options)
        self._sink = sink
        self._clock = clock
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="media")
        self._running: dict[tuple[str, str], threading.Event] = {}

    async def run(self, call: NodeCall) -> NodeResult:
        """One interpolate, caption, score or compose node, or one of an edit that needs no GPU; a cancelled call stops
        at the next frame."""
        stop, deadline = threading.Event(), Deadline.after(call.left_s, self._clock)
        self._running[call.job_id, call.node_id] = stop
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._finish, call, deadline, stop)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])  # the slot stays taken until the thread is free
            raise
        finally:
            self._running.pop((call.job_id, call.node_id), None)
            self._sink.end(call.job_id, call.node_id)

    def cancel_job(self, job_id: str) -> None:
        """Stop this job's calls, also those whose caller is gone. Callable from any thread."""
        for (running_job, _), stop in list(self._running.items()):
            if running_job == job_id:
                stop.set()

    def _finish(self, call: NodeCall, deadline: Deadline, stop: threading.Event) -> NodeResult:
        watch = _Watch(call, deadline, stop, self._sink)
        watch(0, 1)
        if call.kind in EDIT_KINDS:
            return self._edits.run(call, watch)
        return (self._scorer if call.kind is NodeKind.SCORE else self._finisher).run(call, watch)


class _Watch:
    """Progress callback of one call."""

    def __init__(self, call: NodeCall, deadline: Deadline, stop: threading.Event, sink: ProgressSink) -> None:
        self._call, self._deadline, self._stop, self._sink = call, deadline, stop, sink
        self._n = 0

    def __call__(self, done: int, total: int) -> None:
        call = self._call
        if self._stop.is_set():
            raise RenderCancelled(node_id=call.node_id, reason="cancelled")
        if self._deadline.is_over:
            raise DeadlineExceeded(node_id=call.node_id, reason=f"not finished at frame {done} of {total}")
        self._n += 1
        self._sink.update(ProgressRecord(
            job_id=call.job_id, node_id=call.node_id, shot_id=call.shot_id, attempt=call.attempt, n=self._n,
            phase=Phase.SAVING, step=done, total_steps=total, timestep=0.0, fraction=done / max(total, 1),
            at_s=time.time()), urgent=self._n == 1)
