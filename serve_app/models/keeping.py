"""When a run is written down, and from where the next one goes on. Knows the tap and the shelf, no Ray and no GPU.

A checkpoint costs the GPU the moment in which the latents are copied to main memory; they are packed and written on
another thread. That moment is measured, and what the other thread computes, which takes the interpreter and a core from
the loop; the next checkpoint is not before both are a small share of the time since. So the interval follows from the
model and the machine, and slow storage only makes it longer.

None are made where going on would not give the same bits, or where there is nothing to gain: pictures that share a run,
several GPUs for one call, drafts whose step cache lives in the denoiser's hooks, models that are elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from types import TracebackType

import torch

from configs.model_card import ModelCard
from configs.settings import CheckpointSettings
from serve_app.models.lifecycle import SerialThread, finish
from serve_app.models.resume import StepCheckpoint
from serve_app.models.saving import versions
from serve_app.models.tap import Asked, Watch
from workflows.checkpoints import CheckpointShelf, Kept
from workflows.errors import GpuOutOfMemory, HandedOver, ModelFailed
from workflows.ports import RenderCall
from workflows.types import Json, digest

log = logging.getLogger(__name__)

SWEEP_S = 6 * 3600.0
"""How often a replica looks for checkpoints that nobody will use."""
DAY_S = 86400.0
NOT_PIXELS = frozenset({"job_id", "node_id", "shot_id", "attempt", "left_s", "seat", "avoid", "party"})
"""Fields of a call that say who asks, not what for."""

Clock = Callable[[], float]


class Keeper:
    """The checkpoints of one replica."""

    def __init__(self, shelf: CheckpointShelf | None, settings: CheckpointSettings, card: ModelCard, *,
                 made_on: str, used: Mapping[str, Json], clock: Clock = time.perf_counter) -> None:
        """`made_on` and `used`: the device and what of the card's options is in use, as manifests have them."""
        able = card.loader == "diffusers" and card.batch == 1 and card.parallel is None and settings.share > 0
        self.shelf = shelf if able else None
        self.settings = settings
        self.clock = clock
        self.thread = SerialThread("checkpoints")
        self.held_s = 0.0
        """For how long the last checkpoint held the GPU up."""
        self.packed_s = 0.0
        """CPU time that packing and writing it took beside the GPU."""
        self.is_leaving = False
        """The replica is to end: runs are written down and handed over. Set once, from any thread."""
        # Sums of many numbers depend on how many threads share them; a GPU's do not.
        threads = torch.get_num_threads() if made_on == "cpu" else 0
        self._label: dict[str, Json] = {
            "card": card.name, "card_digest": card.digest(), "device": made_on, "threads": threads,
            "used": dict(used), "versions": dict(versions())}
        self._swept_s: float | None = None

    @property
    def wait_s(self) -> float:
        """Least time between two checkpoints."""
        return max(self.settings.interval_s, (self.held_s + self.packed_s) / self.settings.share)

    def run(self, call: RenderCall, token: Asked, unwanted: Callable[[], bool]) -> KeptRun:
        """Around one run of a call, on the event loop; `unwanted`: whether nobody will ask for its result again."""
        keeps = self.shelf is not None and call.cache_threshold is None
        return KeptRun(self, call, self.label(call), token, unwanted, keeps=keeps)

    def label(self, call: RenderCall) -> Mapping[str, Json]:
        """All that must be the same for a run to go on where another one stopped."""
        asked = {name: value for name, value in asdict(call).items() if name not in NOT_PIXELS}
        return {**self._label, "key": call.key, "call": digest(asked)}

    def forget(self, call: RenderCall) -> None:
        """The call's result was found: what an attempt left that died between its result and its end is not needed."""
        if self.shelf is not None and call.attempt > 1:
            self.behind(functools.partial(self.shelf.drop, call.key), "finished ones not removed")

    def sweep(self) -> None:
        """Remove what is left of shots that were never finished, now and then, on the thread beside the GPU's."""
        now_s = self.clock()
        if self.shelf is not None and (self._swept_s is None or now_s - self._swept_s > SWEEP_S):
            self._swept_s = now_s
            self.behind(functools.partial(self.shelf.sweep, self.settings.keep_days * DAY_S), "old ones not removed")

    def behind(self, work: Callable[[], object], trouble: str) -> Future[None]:
        """Do it on the thread beside the GPU's; what goes wrong is logged, for no shot may fail of it."""

        def tried() -> None:
            try:
                work()
            except Exception:  # whatever a disk or a store's client raises
                log.warning("checkpoints: %s", trouble, exc_info=True)

        return self.thread.submit(tried)

    def close(self) -> None:
        """Wait for what is being written."""
        self.thread.close()


class KeptRun(AbstractAsyncContextManager["KeptRun"]):
    """One run: reads where to go on, decides when to write, and removes what is not needed any more."""

    def __init__(self, keeper: Keeper, call: RenderCall, label: Mapping[str, Json], token: Asked,
                 unwanted: Callable[[], bool], *, keeps: bool) -> None:
        self._keeper = keeper
        self._shelf = keeper.shelf if keeps else None
        self.call = call
        self._label = label
        self._token = token
        self._unwanted = unwanted
        self._id = uuid.uuid4().hex[:8]
        self._from: StepCheckpoint | None = None
        self._started_s = self._last_s = self._asked_s = 0.0
        self._writing: Future[None] | None = None
        self.first_step = 0
        """Steps that earlier attempts had made."""
        self.total_steps = call.steps
        self.carried_s = 0.0
        """What those had cost."""

    async def __aenter__(self) -> KeptRun:
        if self._shelf is not None:
            await asyncio.to_thread(self._look, self._shelf)
            self._keeper.sweep()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        # What failed is made from the start next time: numbers that went wrong would go wrong again.
        failed = isinstance(error, ModelFailed) and not isinstance(error, GpuOutOfMemory)
        if self._shelf is not None and (error is None or failed or self._unwanted()):
            self._keeper.behind(functools.partial(self._shelf.drop, self.call.key), "finished ones not removed")
        elif self._writing is not None:
            # The process may end as soon as its last caller has gone.
            await finish(asyncio.wrap_future(self._writing))

    @property
    def carried(self) -> Mapping[str, float]:
        """What earlier attempts had spent on this result, as one more of its seconds; empty when it began anew."""
        return {"carried": self.carried_s} if self.first_step else {}

    def watched(self, watch: Watch) -> Watch:
        """The watch of one call of the pipeline: goes on from the newest checkpoint and makes further ones."""
        if self._shelf is None:
            return watch
        self._started_s = self._last_s = self._keeper.clock()
        return replace(watch, resume=self._from, checkpoint_due=self._due, on_checkpoint=self._take)

    # -- on the GPU thread ------------------------------------------------------------------------------------------

    def _due(self, done: int, total: int) -> bool:
        keeper, now_s = self._keeper, self._keeper.clock()
        if self._token.is_set:
            # Its callers are gone, but perhaps only the Director that called: another one will ask again.
            due = not self._unwanted() and now_s - self._started_s >= keeper.settings.interval_s
        elif keeper.is_leaving:
            due = self._left_s(done, total, now_s) >= keeper.settings.interval_s
        else:
            due = now_s - self._last_s >= keeper.wait_s and (self._writing is None or self._writing.done())
        if due:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # its steps are no part of what the checkpoint costs
            self._asked_s = keeper.clock()
        return due

    def _left_s(self, done: int, total: int, now_s: float) -> float:
        made = done - (self._from.step if self._from is not None else 0)
        return (total - done) * (now_s - self._started_s) / max(made, 1)

    def _take(self, checkpoint: StepCheckpoint) -> None:
        keeper = self._keeper
        self._last_s = keeper.clock()
        keeper.held_s = self._last_s - self._asked_s
        spent_s = self.carried_s + self._last_s - self._started_s
        self._writing = keeper.behind(functools.partial(self._write, checkpoint, spent_s), "one could not be written")
        if keeper.is_leaving and not self._token.is_set:
            raise HandedOver(node_id=self.call.node_id, reason=f"its replica is being stopped; handed over after step "
                                                                f"{checkpoint.step} of {checkpoint.total}")

    # -- on other threads -------------------------------------------------------------------------------------------

    def _write(self, checkpoint: StepCheckpoint, spent_s: float) -> None:
        assert self._shelf is not None
        if not all(bool(torch.isfinite(sample).all()) for sample in checkpoint.samples):
            log.warning("%s: step %d is not written down: NaN or infinite", self.call.node_id, checkpoint.step)
            return
        started_s = time.thread_time()
        self._shelf.put(self.call.key, self._id, Kept(
            label=self._label, step=checkpoint.step, attempt=self.call.attempt, spent_s=spent_s,
            body=checkpoint.to_bytes()))
        self._keeper.packed_s = time.thread_time() - started_s

    def _look(self, shelf: CheckpointShelf) -> None:
        """Find where to go on. Whatever goes wrong here, the run begins at its beginning."""
        try:
            kept = shelf.furthest(self.call.key, self._label)
            if kept is None:
                return
            checkpoint = StepCheckpoint.from_bytes(kept.body)
        except Exception:  # a store that is away, a file of a torch that wrote others
            log.warning("%s: its checkpoints cannot be read", self.call.node_id, exc_info=True)
            return
        self._from, self.first_step, self.total_steps = checkpoint, checkpoint.step, checkpoint.total
        self.carried_s = kept.spent_s
        log.info("%s: attempt %d goes on after step %d of %d, which attempt %d had reached", self.call.node_id,
                 self.call.attempt, checkpoint.step, checkpoint.total, kept.attempt)
