"""Every family: progress that counts, output that does not change, and a stop that leaves nothing behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from torch.testing._internal.distributed.fake_pg import FakeStore

from serve_app.models.lifecycle import CancelToken
from serve_app.models.tap import SchedulerTap, Watch
from tests.families import BY_NAME, STEPS, Family, every_family
from workflows.deadline import Deadline
from workflows.errors import DeadlineExceeded, RenderCancelled

PipeOf = Callable[[str], DiffusionPipeline]
ReferenceOf = Callable[[str], torch.Tensor]

@every_family
def test_the_callback_hears_each_step_once_with_total_and_timestep(family: Family, pipe_of: PipeOf,
                                                                   checkpoints: Path) -> None:
    heard: list[tuple[int, int, float]] = []
    pipe = pipe_of(family.name)
    family.render(pipe, checkpoints, callback=lambda *step: heard.append(step))
    assert [(step, total) for step, total, _ in heard] == [(step, STEPS) for step in range(STEPS)]
    assert [timestep for *_, timestep in heard] == [float(t) for t in pipe.scheduler.timesteps]
    assert {type(timestep) for *_, timestep in heard} == {float}


@every_family
def test_the_output_is_the_bare_pipelines_bit_for_bit(family: Family, pipe_of: PipeOf, reference_of: ReferenceOf,
                                                      checkpoints: Path) -> None:
    tapped = family.render(pipe_of(family.name), checkpoints, callback=lambda *_: None)
    assert torch.equal(tapped, reference_of(family.name))


@every_family
def test_another_seed_gives_another_output(family: Family, pipe_of: PipeOf, reference_of: ReferenceOf,
                                           checkpoints: Path) -> None:
    """So that the equalities above can fail."""
    other = family.render(pipe_of(family.name), checkpoints, callback=lambda *_: None, seed=8)
    assert not torch.equal(other, reference_of(family.name))


@every_family
def test_a_cancel_stops_within_a_step_and_the_pipe_renders_the_same_afterwards(
        family: Family, pipe_of: PipeOf, reference_of: ReferenceOf, checkpoints: Path) -> None:
    pipe, token, heard = pipe_of(family.name), CancelToken(), []

    def cancel_at_step_1(step: int, total: int, timestep: float) -> None:
        heard.append(step)
        if step == 1:
            token.set()

    scheduler_class = type(pipe.scheduler)
    with pytest.raises(RenderCancelled) as stopped:
        family.render(pipe, checkpoints, callback=cancel_at_step_1, watch=Watch(label="s1.clip", cancel=token))
    assert stopped.value.node_id == "s1.clip"
    assert heard == [0, 1]
    assert type(pipe.scheduler) is scheduler_class
    assert torch.equal(family.render(pipe, checkpoints, callback=lambda *_: None), reference_of(family.name))


@pytest.fixture
def wan() -> Family:
    return BY_NAME["wan_t2v"]


def test_a_callback_that_raises_is_logged_once_and_never_called_again(
        wan: Family, pipe_of: PipeOf, reference_of: ReferenceOf, checkpoints: Path,
        caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def broken(*step: object) -> None:
        calls.append(step)
        raise ValueError("the bar has burst")

    with caplog.at_level(logging.WARNING, logger="serve_app.models.tap"):
        output = wan.render(pipe_of("wan_t2v"), checkpoints, callback=broken)
    assert len(calls) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the bar has burst" in caplog.text
    assert torch.equal(output, reference_of("wan_t2v"))


def test_without_a_callback_the_pipelines_bar_is_shown(wan: Family, pipe_of: PipeOf, checkpoints: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    wan.render(pipe_of("wan_t2v"), checkpoints)
    assert f"{STEPS}/{STEPS}" in capsys.readouterr().err


def test_with_a_callback_no_bar_is_shown(wan: Family, pipe_of: PipeOf, checkpoints: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    wan.render(pipe_of("wan_t2v"), checkpoints, callback=lambda *_: None)
    assert capsys.readouterr().err == ""


def test_a_render_past_its_deadline_stops_at_the_next_step(wan: Family, pipe_of: PipeOf, checkpoints: Path) -> None:
    heard: list[int] = []

    def slow(step: int, total: int, timestep: float) -> None:
        heard.append(step)
        while not deadline.is_over:
            time.sleep(0.01)

    deadline = Deadline.after(1.0)
    with pytest.raises(DeadlineExceeded):
        wan.render(pipe_of("wan_t2v"), checkpoints, callback=slow, watch=Watch(deadline=deadline))
    assert heard == [0]


def test_a_render_whose_deadline_has_passed_does_not_start(wan: Family, pipe_of: PipeOf, checkpoints: Path) -> None:
    heard: list[object] = []
    with pytest.raises(DeadlineExceeded):
        wan.render(pipe_of("wan_t2v"), checkpoints, callback=lambda *step: heard.append(step),
                   watch=Watch(deadline=Deadline.after(-1)))
    assert heard == []


def test_a_cancel_during_decoding_stops_it(wan: Family, pipe_of: PipeOf, reference_of: ReferenceOf,
                                           checkpoints: Path) -> None:
    """Two latent frames: the decoder is called twice and stopped after the first."""
    token, beats = CancelToken(), []

    def beat() -> None:
        beats.append(1)
        if len(beats) == STEPS + 1:
            token.set()

    with pytest.raises(RenderCancelled):
        wan.render(pipe_of("wan_t2v"), checkpoints, callback=lambda *_: None, watch=Watch(cancel=token, beat=beat))
    assert len(beats) == STEPS + 1
    assert torch.equal(wan.render(pipe_of("wan_t2v"), checkpoints), reference_of("wan_t2v"))


def test_a_cancel_clears_what_a_residual_cache_remembers(wan: Family, checkpoints: Path) -> None:
    pipe = wan.load(checkpoints)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    whole = wan.render(pipe, checkpoints, callback=lambda *_: None)
    token = CancelToken()
    with pytest.raises(RenderCancelled):
        wan.render(pipe, checkpoints, callback=lambda *_: token.set(), watch=Watch(cancel=token), seed=8)
    assert torch.equal(wan.render(pipe, checkpoints, callback=lambda *_: None), whole)


def test_decoding_gives_signs_of_life(wan: Family, pipe_of: PipeOf, checkpoints: Path) -> None:
    """5 frames are 2 latent frames: 2 decoder calls after the steps."""
    beats: list[int] = []
    wan.render(pipe_of("wan_t2v"), checkpoints, callback=lambda *_: None, watch=Watch(beat=lambda: beats.append(1)))
    assert len(beats) == STEPS + 2


def test_only_the_first_rank_of_a_group_calls_back(wan: Family, pipe_of: PipeOf, reference_of: ReferenceOf,
                                                   checkpoints: Path) -> None:
    heard: list[object] = []
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        output = wan.render(pipe_of("wan_t2v"), checkpoints, callback=lambda *step: heard.append(step))
    finally:
        torch.distributed.destroy_process_group()
    assert heard == []
    assert torch.equal(output, reference_of("wan_t2v"))


class _Sections(DiffusionPipeline):
    """A loop that runs twice, as long videos are made."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self) -> torch.Tensor:
        sample = torch.ones(1, 1, 2, 2)
        for _ in range(2):
            self.scheduler.set_timesteps(2)
            for t in self.scheduler.timesteps:
                sample = self.scheduler.step(sample, t, sample, return_dict=False)[0]
        return sample


def test_a_pipeline_that_loops_twice_counts_twice() -> None:
    pipe, heard = _Sections(FlowMatchEulerDiscreteScheduler()), []
    with SchedulerTap(pipe, callback=lambda step, total, _: heard.append((step, total)), watch=Watch(),
                      generator=torch.Generator()):
        pipe()
    assert heard == [(0, 2), (1, 2), (0, 2), (1, 2)]


def test_the_tap_is_off_after_a_pipeline_raised() -> None:
    pipe = _Sections(FlowMatchEulerDiscreteScheduler())
    tap = SchedulerTap(pipe, callback=None, watch=Watch(), generator=torch.Generator())
    with pytest.raises(ZeroDivisionError), tap:
        raise ZeroDivisionError
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    pipe()
