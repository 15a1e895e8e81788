"""The measured machine: its clock, its memory, its ceilings; steps and floating-point operations of a render."""

from __future__ import annotations

import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode

from serve_app.models.lifecycle import free_memory


class Device:
    """The first GPU, or the CPU of a dry run."""

    def __init__(self, *, tiny: bool) -> None:
        self.name = "cpu" if tiny else "cuda:0"
        self.gpus = 0.0 if tiny else 1.0
        """As Ray would assign them."""

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"

    def sync(self) -> None:
        """Wait until everything queued is done."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def fresh(self) -> None:
        """Cached memory given back, the peak forgotten."""
        free_memory()
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Most memory that tensors held since `fresh`, in 10^9 bytes; NaN on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.is_gpu else math.nan

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of `work()` until the device has done it."""
        self.sync()
        started = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - started

    def describe(self) -> str:
        """For the report."""
        if not self.is_gpu:
            return "dry run on the CPU with tiny models: the figures mean nothing"
        facts = torch.cuda.get_device_properties(0)
        return (f"{facts.name}, {facts.total_memory / 1e9:.0f} GB, driver {_driver()}, CUDA {torch.version.cuda}, "
                f"cuDNN {torch.backends.cudnn.version()}")


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    asked = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader", "--id=0"],
                           capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def matmul_tflops(device: Device, dtype: torch.dtype, *, side: int, rounds: int = 20) -> float:
    """What a square matrix product reaches, in 10^12 operations per second: the ceiling for everything else."""
    a, b = (torch.randn(side, side, device=device.name, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.matmul(a, b)

    def products() -> None:
        for _ in range(rounds):
            product()

    for _ in range(3):
        products()  # clocks rise, kernels are chosen
    return 2 * side**3 * rounds / statistics.median(device.seconds(products) for _ in range(5)) / 1e12


def copy_tb_per_s(device: Device, *, mib: int) -> float:
    """Bytes read and written per second by a copy within the device's memory, in 10^12."""
    source = torch.empty(mib * 2**20, device=device.name, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)
    spent_s = statistics.median(device.seconds(lambda: target.copy_(source)) for _ in range(10))
    return 2 * source.numel() / spent_s / 1e12


class Marks:
    """Called after every step: when that was on the device, without waiting for it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times_s: list[float] = []

    def __call__(self) -> None:
        if self._device.is_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times_s.append(time.perf_counter())

    def step_s(self) -> float:
        """Median time between two marks; call it when the device is done. NaN for fewer than two."""
        if self._device.is_gpu:
            between = [a.elapsed_time(b) / 1e3 for a, b in zip(self._events, self._events[1:], strict=False)]
        else:
            between = [b - a for a, b in zip(self._times_s, self._times_s[1:], strict=False)]
        return statistics.median(between) if between else math.nan


class FlopCount:
    """Context manager: floating-point operations of every forward pass of one module (1 multiply-add = 2)."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._counter = FlopCounterMode(display=False)
        self._hooks: list[Any] = []
        self.flop = 0

    def __enter__(self) -> Self:
        self._hooks = [self._module.register_forward_pre_hook(self._begin),
                       self._module.register_forward_hook(self._end)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: torch.nn.Module, inputs: object) -> None:
        self._counter.__enter__()

    def _end(self, module: torch.nn.Module, inputs: object, output: object) -> None:
        self._counter.__exit__(None, None, None)
        self.flop += self._counter.get_total_flops()
