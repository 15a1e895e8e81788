"""The GPU thread never runs two calls at once, the heartbeat stalls only when busy, the device follows Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from configs.settings import ModelsSettings, ReplicaSettings
from serve_app.models.lifecycle import (
    CancelToken,
    GpuThread,
    Heartbeat,
    choose_device,
    is_fatal,
    pick_device,
    seeded,
    torch_threads,
)
from workflows.errors import ImpossibleResources


class Stage:
    """Work that runs until its token is set or it is released; counts how many run at the same time."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()
        self.running = 0
        self.most = 0

    def work(self, token: CancelToken) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        while not token.is_set and not self.release.wait(0.002):
            pass
        self.running -= 1
        return "stopped" if token.is_set else "done"


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def gpu(stage: Stage) -> Iterator[GpuThread]:
    thread = GpuThread(Heartbeat(stall_s=60))
    yield thread
    stage.release.set()
    thread.close()


async def begun(stage: Stage) -> None:
    assert await asyncio.to_thread(stage.begun.wait, 5)


async def test_a_call_returns_what_the_work_returns(gpu: GpuThread) -> None:
    assert await gpu.run(lambda: 42, cancel=CancelToken()) == 42


async def test_a_call_raises_what_the_work_raises(gpu: GpuThread) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await gpu.run(fail, cancel=CancelToken())


async def test_a_cancelled_call_sets_its_token_and_holds_on_until_the_thread_is_free(
        gpu: GpuThread, stage: Stage) -> None:
    token = CancelToken()
    call = asyncio.create_task(gpu.run(lambda: stage.work(token), cancel=token))
    await begun(stage)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert token.is_set
    assert stage.running == 0


async def test_a_call_cancelled_again_and_again_still_holds_on(
        gpu: GpuThread, stage: Stage) -> None:
    """The work ignores its token here, as a long kernel would."""
    deaf = CancelToken()
    call = asyncio.create_task(gpu.run(lambda: stage.work(deaf), cancel=CancelToken()))
    await begun(stage)
    for _ in range(3):
        call.cancel()
        await asyncio.sleep(0.01)
        assert not call.done()
    stage.release.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert stage.running == 0


async def test_two_calls_never_run_at_once_not_even_after_a_cancel(
        gpu: GpuThread, stage: Stage) -> None:
    first, second = CancelToken(), CancelToken()
    one = asyncio.create_task(gpu.run(lambda: stage.work(first), cancel=first))
    await begun(stage)
    two = asyncio.create_task(gpu.run(lambda: stage.work(second), cancel=second))
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    stage.release.set()
    assert await two == "done"
    assert stage.most == 1


async def test_a_call_cancelled_while_it_waits_lets_go_at_once_and_never_runs(
        gpu: GpuThread, stage: Stage) -> None:
    token, ran = CancelToken(), []
    one = asyncio.create_task(gpu.run(lambda: stage.work(token), cancel=token))
    await begun(stage)
    two = asyncio.create_task(gpu.run(lambda: ran.append(1), cancel=CancelToken()))
    await asyncio.sleep(0)
    two.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(two, timeout=5)
    assert stage.running == 1
    stage.release.set()
    assert await one == "done"
    assert ran == []


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_busy_replica_without_a_step_for_too_long_has_stalled() -> None:
    clock = Clock()
    heart = Heartbeat(stall_s=300, clock=clock)
    with heart.busy():
        clock.now_s += 299
        assert heart.problem() == ""
        heart.beat()
        clock.now_s += 301
        assert heart.problem() == "no denoising step for 301 s (limit 300 s)"


def test_an_idle_replica_never_stalls() -> None:
    clock = Clock()
    heart = Heartbeat(stall_s=300, clock=clock)
    with heart.busy():
        pass
    clock.now_s += 1e6
    assert heart.problem() == ""


def test_a_new_call_starts_the_clock_again() -> None:
    clock = Clock()
    heart = Heartbeat(stall_s=300, clock=clock)
    clock.now_s += 1e6
    with heart.busy():
        assert heart.problem() == ""


FATAL = [
    (RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."), True),
    (RuntimeError("CUDA error: device-side assert triggered"), True),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
    (RuntimeError("CUDA error: out of memory"), False),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), False),
    (ValueError("wrong shape"), False),
]


@pytest.mark.parametrize(("error", "fatal"), FATAL, ids=[str(error)[:40] for error, _ in FATAL])
def test_errors_that_break_the_gpu_context_are_told_from_the_others(error: Exception, fatal: bool) -> None:
    assert is_fatal(error) is fatal


def test_a_broken_gpu_context_makes_the_replica_unhealthy_for_good() -> None:
    heart = Heartbeat(stall_s=300)
    heart.note(RuntimeError("CUDA error: an illegal memory access was encountered\nmore"))
    heart.note(ValueError("later, harmless"))
    with heart.busy():
        heart.beat()
    assert heart.problem() == (
        "the GPU context is broken: RuntimeError: CUDA error: an illegal memory access was encountered")


DEVICES = [
    # wanted, assigned, torch sees one -> device, share of its memory
    ("auto", 1.0, True, "cuda:0", 1.0),
    ("auto", 0.5, True, "cuda:0", 0.45),
    ("cuda", 2.0, True, "cuda:0", 1.0),
    ("auto", 0.0, True, "cpu", 1.0),
    ("auto", 1.0, False, "cpu", 1.0),
    ("cpu", 1.0, True, "cpu", 1.0),
]


@pytest.mark.parametrize(("wanted", "assigned", "sees", "name", "fraction"), DEVICES)
def test_the_device_follows_what_ray_assigned(wanted: str, assigned: float, sees: bool, name: str, fraction: float,
                                              ) -> None:
    choice = choose_device(wanted, assigned, torch_sees_gpu=sees)
    assert (choice.name, choice.memory_fraction) == (name, pytest.approx(fraction))


@pytest.mark.parametrize(("assigned", "sees", "says"), [(0.0, True, "assigned this replica no GPU"),
                                                        (1.0, False, "torch sees none")])
def test_cuda_without_a_gpu_refuses_to_start(assigned: float, sees: bool, says: str) -> None:
    with pytest.raises(ImpossibleResources, match=says):
        choose_device("cuda", assigned, torch_sees_gpu=sees)


def test_a_replica_without_an_assigned_gpu_picks_the_cpu() -> None:
    assert pick_device("auto", 0.0) == "cpu"


THREADS = [
    (ModelsSettings(), 8, 8),
    (ModelsSettings(torch_threads=3), 8, 3),
    (ModelsSettings(default_replicas=ReplicaSettings(replicas=2)), 8, 4),
    (ModelsSettings(text_to_image="a", text_to_video="b", by_card={"a": ReplicaSettings(replicas=3)}), 10, 2),
    (ModelsSettings(default_replicas=ReplicaSettings(replicas=16)), 2, 1),
]


@pytest.mark.parametrize(("settings", "cores", "threads"), THREADS,
                         ids=["all", "as set", "two replicas", "three cards, five replicas", "at least one"])
def test_replicas_share_the_cores_evenly(settings: ModelsSettings, cores: int, threads: int) -> None:
    assert torch_threads(settings, cores=cores) == threads


def test_a_seed_gives_the_same_noise_again() -> None:
    first, again = torch.randn(4, generator=seeded(3)), torch.randn(4, generator=seeded(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(4, generator=seeded(4)))
