"""One model in every way of rendering it: plain diffusers, reelray's model, a replica up to the stored file, levers.

All ways use the same weights on the same device, in turns, so that a ratio does not depend on the hour.

- diffusers: the pipeline as its documentation calls it, with the arguments that the card stands for
- reelray: the same pipeline behind the tap, with progress records and a Reporter; uint8 frames on the CPU at the end
- stored: the same asked of a `ModelReplica`, until the encoded file is in the store
- levers, which no shipped card sets: the best back end of `options.attention` that works here, for denoisers that let
  one choose; cuDNN's attention for all; and with it the repeated blocks compiled
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from actors.reporter import Reporter
from configs.model_card import Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.models import attention, pipelines
from serve_app.models.image_to_video import ImageToVideo
from serve_app.models.lifecycle import CancelToken, seeded
from serve_app.models.records import RunRecords
from serve_app.models.replica import ModelReplica
from serve_app.models.studio import Painter
from serve_app.models.takes import Dialect
from serve_app.models.tap import Watch
from serve_app.models.text_to_image import TextToImage
from serve_app.models.text_to_video import TextToVideo
from tests.bench.bench_tap import Nowhere
from tests.bench.gpu.architectures import ARCHITECTURES
from tests.bench.gpu.probe import Device, FlopCount, Marks, matmul_tflops
from tests.bench.gpu.weights import RandomWeights
from tests.bench.gpu.workload import Result, Workload, render_call
from workflows.deadline import Deadline
from workflows.media.decode import write_png
from workflows.store import Store
from workflows.types import Artifact, MediaType

log = logging.getLogger(__name__)

PAINTERS: dict[Task, Callable[..., Painter]] = {
    Task.TEXT_TO_IMAGE: TextToImage, Task.TEXT_TO_VIDEO: TextToVideo, Task.IMAGE_TO_VIDEO: ImageToVideo}
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""cuDNN's where it can, else as usual."""
BEST_FIRST = ("_flash_3", "_native_cudnn", "native")
"""As a card's `options.attention`."""

SHORT_STEPS = 2


class Stage:
    """A replica with random weights and everything that the ways of rendering share."""

    def __init__(self, workload: Workload, device: Device, *, tiny: bool, directory: Path) -> None:
        self.workload, self.device, self.tiny = workload, device, tiny
        self.rounds = workload.tiny_rounds if tiny else workload.rounds
        self.card = workload.card(tiny=tiny)
        self.take = workload.take(self.card)
        self.reporter = Reporter(Nowhere(), flush_s=0.25, on_cancelled=lambda _: None)
        self.store = Store(str(directory / "store"))
        self._load = RandomWeights(tiny=tiny)
        began_s = device.seconds(self._open)
        self.init_s, self.warm_s = self._load.seconds, began_s - self._load.seconds
        self.weights_gb = torch.cuda.memory_allocated() / 1e9 if device.is_gpu else 0.0
        self.pipe = self._load.pipes[workload.task]
        self.denoiser: torch.nn.Module = self.pipe.components[ARCHITECTURES[self.card.name].denoiser]
        self.painter = PAINTERS[workload.task](self.pipe, self.card)
        self.first_frame = self._first_frame(directory)
        self.runner = asyncio.Runner()
        self._keys = 0

    def _open(self) -> None:
        settings = ModelsSettings(torch_threads=1) if self.tiny else ModelsSettings()
        self.replica = ModelReplica(self.card, settings, MediaSettings(), self.store, self.reporter,
                                    assigned_gpus=self.device.gpus, load=self._load)

    def _first_frame(self, directory: Path) -> Artifact | None:
        if self.take.picture_HWC is None:
            return None
        write_png(self.take.picture_HWC, directory / "first.png")
        return self.store.put("f" * 32, directory / "first.png", media_type=MediaType.PNG, manifest={})

    def close(self) -> None:
        self.replica.close()
        self.runner.close()
        self.reporter.close()

    # -- ways of rendering --------------------------------------------------------------------------------------------

    def diffusers(self, marks: Marks) -> None:
        """As in the library's documentation; its own kind of output."""
        call = Dialect(self.pipe, self.card, self.workload.task).call(self.take)

        def on_step_end(_: object, step: int, timestep: object, tensors: dict[str, object]) -> dict[str, object]:
            marks()
            return {}

        self.pipe.set_progress_bar_config(disable=True)
        self.pipe(**call.kwargs(), generator=seeded(self.take.seed), callback_on_step_end=on_step_end)

    def reelray(self, marks: Marks) -> None:
        """The model class that a replica runs, with what a replica gives it."""
        call = render_call(self.card, self.take, key="0" * 32, first_frame=None)
        records = RunRecords(self.reporter, lambda: (call,), steps=call.steps)
        watch = Watch(label=call.node_id, cancel=CancelToken(), deadline=Deadline.after(call.left_s))
        # Not in the progress callback: on a GPU that comes when later kernels are queued already.
        with _marked(self.pipe.scheduler, marks):
            self.painter.generate(self.take, progress_callback=records.step, watch=watch)

    def stored(self, marks: Marks) -> None:
        """A whole call of the replica; every one under a key of its own, or it would be found in the store."""
        self._keys += 1
        call = render_call(self.card, self.take, key=f"{self._keys:032x}", first_frame=self.first_frame)
        answer = self.replica.image if self.workload.task is Task.TEXT_TO_IMAGE else self.replica.clip
        self.runner.run(answer(call))

    def compile(self) -> str:
        """Compile the denoiser's repeated blocks; returns how long the first call took. Cannot be undone."""
        # A dry run checks that the blocks can be traced, and builds no kernels.
        self.denoiser.compile_repeated_blocks(fullgraph=True, backend="eager" if self.tiny else "inductor")
        return f"its first {SHORT_STEPS} steps: {self.device.seconds(self._briefly):.1f} s"

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Inside, the denoiser uses the first back end of BEST_FIRST that works here."""
        options = self.card.options.model_copy(update={"attention": BEST_FIRST})
        attention.choose(self.card.model_copy(update={"options": options}), "denoiser", self.denoiser,
                         pipelines.DTYPES[self.card.dtype], self.denoiser.device.type)
        try:
            yield
        finally:
            self.denoiser.set_attention_backend("native")

    def attends_with(self) -> str:
        """For the note."""
        return attention.backend_of(self.denoiser)

    def flop_per_step(self) -> int:
        """Of the denoiser, guidance included; also the first run at the measured shape."""
        with FlopCount(self.denoiser) as count:
            self._briefly()
        return count.flop // SHORT_STEPS

    def _briefly(self) -> None:
        take = self.workload.take(self.card, steps=SHORT_STEPS)
        self.painter.generate(take, progress_callback=lambda *_: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of rendering."""

    name: str
    run: Callable[[Marks], None]
    around: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    prepare: Callable[[], str] | None = None
    """Called once before the first round, inside `around`; returns a note."""


@contextmanager
def _marked(scheduler: Any, marks: Marks) -> Iterator[None]:
    """Inside, every step of the scheduler is followed by a mark."""
    own = type(scheduler)

    @functools.wraps(own.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own.step(self, *args, **kwargs)
        marks()
        return output

    scheduler.__class__ = type(own.__name__, (own,), {"step": step})
    try:
        yield
    finally:
        scheduler.__class__ = own


def cudnn_first() -> AbstractContextManager[object]:
    """Inside, attention takes cuDNN's kernels where they can do it."""
    return sdpa_kernel(ATTENTION, set_priority=True)


def ways(stage: Stage) -> list[list[Way]]:
    """Groups that are measured in turns; one after the other, because compiling cannot be undone."""
    together = [Way(name="diffusers", run=stage.diffusers), Way(name="reelray", run=stage.reelray),
                Way(name="reelray, cuDNN attention", run=stage.reelray, around=cudnn_first),
                Way(name="reelray, stored", run=stage.stored)]
    if attention.is_free_to_choose(stage.denoiser):
        together.append(Way(name="reelray, options.attention", run=stage.reelray, around=stage.attending,
                            prepare=stage.attends_with))
    # SVD's class does not say which of its blocks repeat.
    if not stage.denoiser._repeated_blocks:
        return [together]
    return [together, [Way(name="reelray, cuDNN attention, compiled", run=stage.reelray, around=cudnn_first,
                           prepare=stage.compile)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything of one section."""

    results: tuple[Result, ...]
    failed: tuple[str, ...]
    facts: str


@contextmanager
def _stage(workload: Workload, device: Device, *, tiny: bool) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="reelray-bench-") as directory, ExitStack() as closing:
        stage = Stage(workload, device, tiny=tiny, directory=Path(directory))
        closing.callback(stage.close)
        yield stage


def measure(workload: Workload, device: Device, *, tiny: bool) -> Measured:
    """All ways of one workload. One that fails is logged and named; the others go on."""
    dtype = pipelines.DTYPES[workload.card(tiny=tiny).dtype]
    ceiling_tflops = matmul_tflops(device, dtype, side=256 if tiny else 8192)
    device.fresh()
    with _stage(workload, device, tiny=tiny) as stage:
        print(f"   init {stage.init_s:.1f} s, warm-up {stage.warm_s:.1f} s", flush=True)
        clock = Clock(stage, flop=stage.flop_per_step(), ceiling_tflops=ceiling_tflops)
        for group in ways(stage):
            clock.measure(group)
        facts = (f"Made in {stage.init_s:.1f} s with random weights ({stage.weights_gb:.1f} GB), warm after "
                 f"{stage.warm_s:.1f} s more. {clock.flop / 1e12:.4g} TFLOP per step; a matrix product reaches "
                 f"{ceiling_tflops:.4g} TFLOP/s in {stage.card.dtype} in the same run. Timed {stage.rounds} times "
                 "in turns, the best counts.")
        return Measured(results=tuple(clock.best.values()), failed=tuple(clock.failed), facts=facts)


class Clock:
    """Times ways of rendering in turns and keeps the best of each."""

    def __init__(self, stage: Stage, *, flop: int, ceiling_tflops: float) -> None:
        """`flop` of one step; `ceiling_tflops` is what it is compared with."""
        self._stage = stage
        self._ceiling_tflops = ceiling_tflops
        self.flop = flop
        self.best: dict[str, Result] = {}
        self.failed: list[str] = []

    def measure(self, group: list[Way]) -> None:
        """Every way once, then every way again; one that fails is left out from there on."""
        for turn in range(self._stage.rounds):
            for way in group:
                if way.name not in self.failed:
                    self._try(way, first=turn == 0)

    def _try(self, way: Way, *, first: bool) -> None:
        try:
            result = self._time(way, first=first)
        except Exception:
            log.exception("%s: failed", way.name)
            self.failed.append(way.name)
            return
        print(f"   {result.name}: {result.clip_s:.2f} s, {result.step_s:.4f} s per step, {result.peak_gb:.1f} GB, "
              f"{result.share:.3f} of the ceiling {result.note}", flush=True)
        if first or result.clip_s < self.best[way.name].clip_s:
            # What was prepared before the first turn holds for the others too.
            note = result.note if first else self.best[way.name].note
            self.best[way.name] = replace(result, note=note)

    def _time(self, way: Way, *, first: bool) -> Result:
        device, marks = self._stage.device, Marks(self._stage.device)
        with way.around():
            note = way.prepare() if first and way.prepare is not None else ""
            device.fresh()
            clip_s = device.seconds(lambda: way.run(marks))
        step_s = marks.step_s()
        return Result(name=way.name, clip_s=clip_s, step_s=step_s, peak_gb=device.peak_gb(), note=note,
                      share=self.flop / step_s / 1e12 / self._ceiling_tflops)
