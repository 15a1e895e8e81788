"""One replica of one model card, behind the Model port: one run at a time on the GPU, the next already waiting.

    call -> refuse? -> stored already? -> join a running twin, or run:
        prepare (first frame)  |  GPU thread: text, denoise, decode  |  saving thread: encode, store

While one run is encoded the next denoises. Knows no Ray: `serve_app.deployments` makes it a Serve deployment.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from configs.memory import Shape
from configs.model_card import ModelCard, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import adapters, pipelines, weights
from serve_app.models.batching import Item, batcher_of
from serve_app.models.crew import crew_of
from serve_app.models.keeping import Keeper, KeptRun
from serve_app.models.ladder import Ladder
from serve_app.models.lifecycle import (
    CancelToken,
    GpuThread,
    Heartbeat,
    SerialThread,
    describe,
    free_memory,
    gpu_room_gb,
    pick_device,
    set_torch_threads,
)
from serve_app.models.party import Parties
from serve_app.models.party_member import assist
from serve_app.models.records import DECODED_SHARE, RunRecords, StepClock
from serve_app.models.runs import Run, Runs
from serve_app.models.saving import Saver, picture_of, references_of
from serve_app.models.studio import open_studio, warm_up
from serve_app.models.takes import Take
from serve_app.models.tap import Watch
from workflows.checkpoints import CheckpointShelf
from workflows.deadline import Clock
from workflows.errors import (
    GpuOutOfMemory,
    HandedOver,
    ModelFailed,
    ReelrayError,
    RenderRefused,
    StageFailed,
)
from workflows.media.encode import EncodeOptions
from workflows.media.frames import UInt8Array
from workflows.ports import ArtifactStore, ProgressSink, RenderCall
from workflows.types import NodeResult, substitute_key

log = logging.getLogger(__name__)

LEAVING = "its replica is being stopped; nothing was begun"


class ModelReplica:
    """Implements `workflows.ports.Model`.

    Several calls may be in flight; the GPU runs one at a time. Calls with the same key share one run. A caller that is
    cancelled leaves; when the last one has left, the run is stopped within one denoising step and `image` or `clip`
    only then lets go, so that a slot counted outside is never free while the GPU is not.
    """

    def __init__(  # noqa: PLR0913 - where a replica is put together; each is one port or one branch of the settings
        self, card: ModelCard, settings: ModelsSettings, media: MediaSettings, store: ArtifactStore,
        sink: ProgressSink, assigned_gpus: float, load: pipelines.LoadPipeline = pipelines.load,
        room_gb: Callable[[str, float], float | None] = gpu_room_gb, checkpoints: CheckpointShelf | None = None,
        clock: Clock = time.monotonic, name: str = "",
    ) -> None:
        """Load every task of the card and make one tiny call with each; a replica that exists can render.

        `name`: what whoever sends the calls knows it by; `clock`: what the seconds that a call has left are counted by.

        Raises ImpossibleResources for the device, InvalidDocument for the card, and whatever the warm-up raises.
        """
        self._card = card
        self._card_digest = card.digest()
        self.name = name
        """Calls that did not fit here name it."""
        self._store = store
        self._sink = sink
        self._runs: Runs[RenderCall] = Runs(sink, clock=clock)
        self._heartbeat = Heartbeat(stall_s=settings.stall_s)
        self._gpu = GpuThread(self._heartbeat, threads=card.remote.parallel if card.remote else 1)
        self._saving = SerialThread("saving")
        device = "cpu" if card.loader != "diffusers" else pick_device(settings.device, assigned_gpus)
        made_on = f"{card.remote.model_name} at {card.remote.api_url}" if card.remote else describe(device)
        made_on = f"{card.parallel.degree} x {made_on}" if card.parallel else made_on
        self._saver = Saver(card, made_on, store,
                            EncodeOptions(crf=media.crf, preset=media.preset, gop_s=media.gop_s))
        set_torch_threads(settings)
        if settings.auto_download:
            weights.ensure(card, say=log.info)
            adapters.ensure(card, say=log.info)
        started = time.perf_counter()
        self._crew = crew_of(card, device, stall_s=settings.stall_s)
        self._ladder = Ladder(card, device, room_gb(device, assigned_gpus))
        studio = open_studio(card, device, self._crew.keeping(self._ladder.keeping(load)))
        self._saver.used = studio.used
        self._keeper = Keeper(checkpoints, settings.checkpoints, card, made_on=made_on, used=studio.used)
        self._studio = self._crew.joined(studio)
        self._batcher = batcher_of(card, self._studio, self._ladder, self._gpu, self._heartbeat)
        loaded = time.perf_counter()
        self._gpu.run_now(functools.partial(warm_up, self._studio, card, self._ladder))
        log.info("%s: loaded in %.1f s on %s, warm after %.1f s more", card.name, loaded - started, device,
                 time.perf_counter() - loaded)

    # -- the Model port ---------------------------------------------------------------------------------------------

    async def image(self, call: RenderCall) -> NodeResult:
        """Text to one picture (PNG)."""
        return await self._answer(call, Task.TEXT_TO_IMAGE)

    async def clip(self, call: RenderCall) -> NodeResult:
        """Text, or text and first frame, to one clip (MP4)."""
        return await self._answer(call, Task.TEXT_TO_VIDEO if call.first_frame is None else Task.IMAGE_TO_VIDEO)

    async def assist(self, call: RenderCall) -> None:
        """Help the replica that makes the call; returns when it is not, or no longer, needed."""
        parties, token = self._crew, CancelToken()
        self._refuse_other_card(call, next(iter(self._studio)))
        if not isinstance(parties, Parties) or call.party is None or self._keeper.is_leaving:
            return
        help_out = functools.partial(assist, call.party, self._studio, parties, cancel=token, beat=self._heartbeat.beat)
        await self._gpu.run(lambda: help_out() if self._stands(call) else None, cancel=token)

    async def cancel(self, key: str) -> bool:
        """Stop the run of a key, for all who wait for it; they get RenderCancelled. Returns whether it was running."""
        return self._runs.cancel(key)

    def cancel_job(self, job_id: str) -> None:
        """Let go of every call of a job; a run that nobody else waits for is stopped. Callable from any thread."""
        self._runs.cancel_job(job_id)

    def leave(self) -> None:
        """This replica is to end: what can go on elsewhere is handed over, the rest is finished. From any thread.

        A call that has not begun is given back at once, one that is being denoised at its next step, unless it is
        nearly done.
        """
        self._keeper.is_leaving = True
        self._runs.hand_back(LEAVING)

    async def check_health(self) -> None:
        """Raise when this process cannot render any more: a broken GPU context, or no step for too long."""
        if problem := self._heartbeat.problem() or self._crew.problem():
            raise RuntimeError(f"{self._card.name}: {problem}")

    def close(self) -> None:
        """Stop what runs, end the threads, give the memory back."""
        self._runs.stop()
        self._gpu.close()
        self._saving.close()
        self._keeper.close()
        self._crew.close()
        self._studio, self._batcher = {}, None
        self._ladder.close()
        free_memory()

    def _stands(self, call: RenderCall) -> bool:
        """Whether all weights are on the GPU, as a call in company needs them. On the GPU thread."""
        shape = Shape(width_px=call.width_px, height_px=call.height_px, frames=call.frames,
                      pictures=len(call.references))
        return all(self._ladder.stand(task, shape) for task in self._studio)

    # -- runs and those who wait for them -----------------------------------------------------------------------------

    async def _answer(self, call: RenderCall, task: Task) -> NodeResult:
        self._refuse_other_card(call, task)
        if self._keeper.is_leaving:
            raise HandedOver(node_id=call.node_id, reason=LEAVING)
        return await self._runs.answer(call, lambda run: self._produce(run, call, task))

    def _refuse_other_card(self, call: RenderCall, task: Task) -> None:
        mine = f"{self._card.name} ({self._card_digest})"
        if (call.card, call.card_digest) != (self._card.name, self._card_digest):
            raise RenderRefused(node_id=call.node_id, reason=f"the film was planned with model card {call.card} "
                                f"({call.card_digest}), this replica runs {mine}; submit the film again")
        if task not in self._studio:
            hint = ("; it needs a first frame" if task is Task.TEXT_TO_VIDEO and Task.IMAGE_TO_VIDEO in self._studio
                    else "")
            raise RenderRefused(node_id=call.node_id, reason=f"model card {mine} cannot do {task.value}, only "
                                f"{', '.join(self._studio)}{hint}")

    # -- one run ------------------------------------------------------------------------------------------------------

    async def _produce(self, run: Run[RenderCall], call: RenderCall, task: Task) -> NodeResult:
        try:
            # 1. done before, here or by another replica   2. begun before: go on there
            found = await asyncio.to_thread(self._found, call, task)
            if found is not None:
                self._keeper.forget(call)
                return found
            async with self._keeper.run(call, run.token, run.is_unwanted) as kept:
                # 3. say where it begins   4. read the first frame
                records = RunRecords(self._sink, run.calls, steps=kept.total_steps, first_step=kept.first_step)
                records.initialise()
                take, warnings = await asyncio.to_thread(self._take, call, task)
                # 5. render   6. encode and store, beside the next render
                queued = time.perf_counter()
                render = functools.partial(self._render, run, kept, task, take, records)
                if self._batcher is None:
                    frames, seconds = await self._gpu.run(render, cancel=run.token)
                else:
                    frames, seconds = await self._batcher.run(
                        Item(take, call, run.token, records, render, deadline=run.deadline))
                seconds["wait"] = time.perf_counter() - queued - sum(seconds.values())
                target = replace(call, key=substitute_key(call.key)) if run.differs else call
                save = functools.partial(self._saver.save, frames, target, records, seconds={**seconds, **kept.carried},
                                         warnings=(*warnings, *run.notes), gpus=run.gpus)
                return await self._saving.run(save, cancel=run.token)
        except ReelrayError:
            raise
        except Exception as error:
            # The GPU part and the store have their own; this is a full scratch disk, a bug.
            log.exception("%s: failed outside the model", call.node_id)
            raise StageFailed(node_id=call.node_id, reason=_short(error)) from None

    def _found(self, call: RenderCall, task: Task) -> NodeResult | None:
        """What the call's key stands for, or what would be made here in place of it."""
        found = self._store.find(call.key)
        shape = Shape(width_px=call.width_px, height_px=call.height_px, frames=call.frames,
                      pictures=len(call.references))
        if found is not None or not self._ladder.foothold(task, shape).tiles:
            return None if found is None else NodeResult(artifact=found)
        substitute = self._store.find(substitute_key(call.key))
        return None if substitute is None else NodeResult(artifact=substitute, warnings=(
            "found as it was made before, in tiles: it does not fit this GPU otherwise",))

    def _take(self, call: RenderCall, task: Task) -> tuple[Take, tuple[str, ...]]:
        """What to ask of the model, and what to tell the user about it. Raises RenderRefused."""
        picture_HWC: UInt8Array | None = None
        warnings: tuple[str, ...] = ()
        if call.first_frame is not None:
            picture_HWC, warnings = picture_of(call, self._store)
        take = Take(prompt=call.prompt, negative_prompt=call.negative_prompt, width_px=call.width_px,
                    height_px=call.height_px, frames=call.frames, fps=call.fps, steps=call.steps,
                    guidance=call.guidance, seed=call.seed, picture_HWC=picture_HWC,
                    cache_threshold=call.cache_threshold, references_HWC=references_of(call, self._store))
        painter = self._studio[task]
        wrong, too_large = painter.problems(take), self._ladder.problems(task, take.shape)
        reason = "; ".join(problem.render() for problem in (*wrong, *too_large))
        if reason and call.may_shrink and not wrong:
            raise GpuOutOfMemory(node_id=call.node_id, reason=reason, replica=self.name)
        if reason:
            raise RenderRefused(node_id=call.node_id, reason=reason)
        return take, (*warnings, *painter.warnings(take))

    def _render(self, run: Run[RenderCall], kept: KeptRun, task: Task, take: Take, records: RunRecords,
                ) -> tuple[UInt8Array, dict[str, float]]:
        """On the GPU thread: frames, and how long the steps and the rest took."""
        run.begun, call = True, kept.call
        watch = Watch(label=call.node_id, cancel=run.token, deadline=run.deadline, beat=self._heartbeat.beat,
                      note=run.notes.append, other_pixels=run.differ, shared=run.share)
        failure: StageFailed
        try:
            clock, watch = StepClock(records.step), kept.watched(watch)
            if call.party is not None and not kept.first_step and self._stands(call):
                watch = replace(watch, party=call.party)
            for attempt in self._ladder.attempts(task, take.shape, watch):
                with attempt:
                    frames = self._studio[task].generate(take, progress_callback=clock, watch=watch)
            records.saving(DECODED_SHARE)
            return frames, clock.seconds()
        except ReelrayError:
            raise
        except torch.OutOfMemoryError as error:
            failure = GpuOutOfMemory(
                node_id=call.node_id, replica=self.name,
                reason=f"{take.width_px}x{take.height_px}, {take.frames} frames do not fit the GPU: {_short(error)}")
        except Exception as error:
            log.exception("%s: the model failed", call.node_id)
            self._heartbeat.note(error)
            failure = ModelFailed(node_id=call.node_id, reason=_short(error))
        # Raised out here because the handled exception's traceback holds the tensors that are to be freed.
        free_memory()
        raise failure


def _short(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]
