"""One replica's process: device, seeds, CPU threads, the one GPU thread, health. Knows no pipeline and no job."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from configs.memory import TORCH_SHARE, room_gb
from configs.settings import ModelsSettings
from workflows.errors import ImpossibleResources

log = logging.getLogger(__name__)

T = TypeVar("T")


# -- device ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """Where a replica computes."""

    name: str
    """A torch device: `cpu` or `cuda:0` (Ray narrows CUDA_VISIBLE_DEVICES, so the first one is ours)."""
    memory_fraction: float = 1.0
    """Share of that GPU's memory torch may allocate, 0..1."""

    def claim(self) -> None:
        """Tell torch's allocator the share; Ray itself enforces none."""
        if self.name != "cpu" and self.memory_fraction < 1:
            torch.cuda.set_per_process_memory_fraction(self.memory_fraction, 0)


def choose_device(wanted: Literal["auto", "cpu", "cuda"], assigned_gpus: float, *, torch_sees_gpu: bool,
                  ) -> DeviceChoice:
    """Decide from what Ray assigned, not from what torch can see: a replica with no GPU of its own stays off them all.

    `auto` with an assigned GPU that torch does not see takes the CPU: those are the logical GPUs of a laptop or a test.
    Raises ImpossibleResources when `cuda` is asked for and there is none.
    """
    if wanted == "cuda" and assigned_gpus <= 0:
        raise ImpossibleResources(problem="models.device is cuda but Ray assigned this replica no GPU; "
                                          "give its card num_gpus > 0, or set models.device to auto or cpu")
    if wanted == "cuda" and not torch_sees_gpu:
        raise ImpossibleResources(problem=f"Ray assigned this replica {assigned_gpus:g} GPU but torch sees none; "
                                          "install a CUDA build of torch, or set models.device to auto or cpu")
    if wanted == "cpu" or assigned_gpus <= 0 or not torch_sees_gpu:
        return DeviceChoice(name="cpu")
    fraction = assigned_gpus * TORCH_SHARE if assigned_gpus < 1 else 1.0
    return DeviceChoice(name="cuda:0", memory_fraction=fraction)


def pick_device(wanted: Literal["auto", "cpu", "cuda"], assigned_gpus: float) -> str:
    """The torch device of this process, its share of memory claimed. Raises as `choose_device` does."""
    choice = choose_device(wanted, assigned_gpus, torch_sees_gpu=torch.cuda.is_available())
    choice.claim()
    return choice.name


def gpu_room_gb(device: str, assigned_gpus: float) -> float | None:
    """What a call may take of the GPU that this process was given, in 10^9 bytes; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    return room_gb(torch.cuda.get_device_properties(device).total_memory / 1e9, assigned_gpus)


def describe(device: str) -> str:
    """The device for a manifest, e.g. `cuda:0 (NVIDIA H200)`."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


# -- CPU threads, seeds, memory ----------------------------------------------------------------------------------


def torch_threads(settings: ModelsSettings, *, cores: int) -> int:
    """CPU threads for one replica: the setting, or an even share of `cores` among the replicas of cards that draw."""
    if settings.torch_threads:
        return settings.torch_threads
    cards = {settings.text_to_image, settings.text_to_video, settings.image_to_video}
    replicas = sum(settings.replica_of(card).replicas for card in cards)
    return max(cores // max(replicas, 1), 1)


def set_torch_threads(settings: ModelsSettings) -> None:
    """Apply `torch_threads` to this process. Ray sets OMP_NUM_THREADS to the replica's num_cpus; this overrides it."""
    torch.set_num_threads(torch_threads(settings, cores=len(os.sched_getaffinity(0))))


def seeded(seed: int) -> torch.Generator:
    """A generator for one render. On the CPU, so that a seed gives the same first noise on every kind of device.

    The global generators are seeded too, for pipelines that draw from them besides.
    """
    torch.manual_seed(seed)
    return torch.Generator("cpu").manual_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU had no room: torch's own error, or that of a library which allocates beside torch."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and (
        "CUDA error: out of memory" in text or "_STATUS_ALLOC_FAILED" in text))


def free_memory() -> None:
    """Give cached GPU memory back, where a GPU is in use. Call it where no traceback holds tensors any more."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


# -- health ------------------------------------------------------------------------------------------------------


def is_fatal(error: BaseException) -> bool:
    """Whether the error leaves this process's CUDA context broken for good (illegal access, ECC, device assert ...).

    Running out of memory does not. torch reports the others as `CUDA error: ...`.
    """
    text = str(error)
    return "CUDA error:" in text and "out of memory" not in text


class Heartbeat:
    """When the running call last made a step, and whether that is too long ago. An idle replica never stalls."""

    def __init__(self, *, stall_s: float, clock: Callable[[], float] = time.monotonic, step: str = "denoising step",
                 ) -> None:
        """`step`: what is expected of a running call, for people."""
        self._stall_s = stall_s
        self._step = step
        self._clock = clock
        self._last_s = clock()
        self._busy = 0
        self._counting = threading.Lock()
        self._fatal = ""

    def beat(self) -> None:
        """A step was made."""
        self._last_s = self._clock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Inside, steps are expected."""
        self.beat()
        with self._counting:
            self._busy += 1
        try:
            yield
        finally:
            with self._counting:
                self._busy -= 1

    def note(self, error: BaseException) -> None:
        """Remember an error that no later call on this process can survive."""
        if is_fatal(error) and not self._fatal:
            self._fatal = f"{type(error).__name__}: {error}".splitlines()[0][:300]

    def problem(self) -> str:
        """Why the replica should be replaced; empty when it is well."""
        if self._fatal:
            return f"the GPU context is broken: {self._fatal}"
        silent_s = self._clock() - self._last_s
        if self._busy and silent_s > self._stall_s:
            return f"no {self._step} for {silent_s:.0f} s (limit {self._stall_s:.0f} s)"
        return ""


# -- threads -----------------------------------------------------------------------------------------------------


class CancelToken:
    """Asks one running call to stop; read between two denoising steps."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask. From any thread; more than once is harmless."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether it was asked."""
        return self._event.is_set()


async def finish(future: asyncio.Future[Any]) -> None:
    """Wait until `future` is over, however often the waiting task is cancelled; the cancellation is raised after that.

    The future's own error, if any, is left in it (and counts as seen).
    """
    interrupted: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            interrupted = error
    if not future.cancelled():
        future.exception()
    if interrupted is not None:
        raise interrupted


class SerialThread:
    """One thread that runs one call at a time, in the order they came."""

    def __init__(self, name: str, *, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], T], *, cancel: CancelToken) -> T:
        """Run `work()` on the thread and return its result.

        When the awaiting task is cancelled: work that has not begun never does; for work that has, `cancel` is set
        and the cancellation is raised only when the thread is free again. So whoever counts this call as one of
        its slots (Ray Serve does) never starts another on a busy GPU.
        """
        running = self.submit(work)
        future = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel.set()
            if not running.cancel():
                await finish(future)
            raise

    def run_now(self, work: Callable[[], T]) -> T:
        """The same for a caller without an event loop (a constructor): block until the result is there."""
        return self.submit(work).result()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue `work()` and return at once."""
        return self._pool.submit(self._call, work)

    def close(self) -> None:
        """Wait for the running call and end the thread; calls still queued are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _call(self, work: Callable[[], T]) -> T:
        return work()


class GpuThread(SerialThread):
    """The one thread of a replica on which its pipelines run; keeps the heartbeat busy meanwhile.

    An executor of our own, not `asyncio.to_thread`: pipelines keep request state on themselves, so two calls at once
    would share it, and CUDA keeps per-thread handles that the warm-up has made on this very thread.
    """

    def __init__(self, heartbeat: Heartbeat, *, threads: int = 1) -> None:
        """More than one thread only where nothing runs on them: a remote model's calls do nothing but wait."""
        super().__init__("gpu", threads=threads)
        self._heartbeat = heartbeat

    def _call(self, work: Callable[[], T]) -> T:
        with self._heartbeat.busy():
            return work()
