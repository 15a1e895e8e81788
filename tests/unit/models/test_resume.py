"""A run that is continued from a checkpoint, in a pipeline fresh from disk, ends bit for bit as the whole run did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from configs.memory import Placement
from serve_app.models.ladder import lift, place
from serve_app.models.lifecycle import CancelToken
from serve_app.models.resume import StepCheckpoint
from serve_app.models.tap import Watch
from tests.families import BY_NAME, STEPS, Family, every_family
from workflows.errors import ModelFailed, RenderCancelled

PipeOf = Callable[[str], DiffusionPipeline]
ReferenceOf = Callable[[str], torch.Tensor]


def checkpoint_after(step: int, family: Family, pipe: DiffusionPipeline, checkpoints: Path) -> StepCheckpoint:
    """Render until `step` steps are done, then stop; what was recorded there."""
    token, taken = CancelToken(), []

    def take(checkpoint: StepCheckpoint) -> None:
        taken.append(checkpoint)
        token.set()

    with pytest.raises(RenderCancelled):
        family.render(pipe, checkpoints, callback=lambda *_: None,
                      watch=Watch(cancel=token, checkpoint_every=step, on_checkpoint=take))
    (checkpoint,) = taken
    return checkpoint


@every_family
def test_a_stopped_run_continues_from_a_file_in_a_fresh_pipeline(
        family: Family, pipe_of: PipeOf, reference_of: ReferenceOf, checkpoints: Path) -> None:
    content = checkpoint_after(2, family, pipe_of(family.name), checkpoints).to_bytes()
    heard: list[int] = []
    output = family.render(family.load(checkpoints), checkpoints, callback=lambda step, *_: heard.append(step),
                           watch=Watch(resume=StepCheckpoint.from_bytes(content)))
    assert torch.equal(output, reference_of(family.name))
    assert heard == [2, 3]


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("name", ["wan_t2v", "sdxl_turbo", pytest.param("ltx2", marks=pytest.mark.slow)])
def test_any_step_will_do(name: str, step: int, pipe_of: PipeOf, reference_of: ReferenceOf, checkpoints: Path) -> None:
    family = BY_NAME[name]
    checkpoint = checkpoint_after(step, family, pipe_of(name), checkpoints)
    output = family.render(pipe_of(name), checkpoints, callback=lambda *_: None, watch=Watch(resume=checkpoint))
    assert torch.equal(output, reference_of(name))


@pytest.mark.parametrize("name", ["wan_t2v", "sdxl_turbo"])
def test_a_checkpoint_keeps_its_moment_while_the_run_goes_on(name: str, pipe_of: PipeOf, reference_of: ReferenceOf,
                                                             checkpoints: Path) -> None:
    """Multistep schedulers change what they remember in place."""
    family, taken = BY_NAME[name], []
    family.render(pipe_of(name), checkpoints, callback=lambda *_: None,
                  watch=Watch(checkpoint_every=2, on_checkpoint=taken.append))
    output = family.render(pipe_of(name), checkpoints, callback=lambda *_: None, watch=Watch(resume=taken[0]))
    assert torch.equal(output, reference_of(name))


def test_the_denoiser_is_not_run_for_steps_that_were_done(pipe_of: PipeOf, checkpoints: Path) -> None:
    family, pipe, calls = BY_NAME["wan_t2v"], pipe_of("wan_t2v"), []
    checkpoint = checkpoint_after(3, family, pipe, checkpoints)
    hook = pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    family.render(pipe, checkpoints, callback=lambda *_: None, watch=Watch(resume=checkpoint))
    hook.remove()
    assert len(calls) == 2  # one step, with and without the prompt


def test_checkpoints_come_at_the_interval_and_not_after_the_last_step(pipe_of: PipeOf, checkpoints: Path) -> None:
    taken: list[int] = []
    BY_NAME["wan_t2v"].render(pipe_of("wan_t2v"), checkpoints, callback=lambda *_: None, watch=Watch(
        checkpoint_every=1, on_checkpoint=lambda checkpoint: taken.append(checkpoint.step)))
    assert taken == [1, 2, 3]


def test_recording_changes_nothing_and_leaves_nothing(pipe_of: PipeOf, reference_of: ReferenceOf, checkpoints: Path,
                                                      ) -> None:
    pipe = pipe_of("wan_t2v")
    output = BY_NAME["wan_t2v"].render(pipe, checkpoints, callback=lambda *_: None,
                                       watch=Watch(checkpoint_every=1, on_checkpoint=lambda _: None))
    assert torch.equal(output, reference_of("wan_t2v"))
    assert "forward" not in vars(pipe.transformer)


def test_a_checkpoint_of_another_number_of_steps_is_refused(pipe_of: PipeOf, checkpoints: Path) -> None:
    family, pipe = BY_NAME["wan_t2v"], pipe_of("wan_t2v")
    checkpoint = checkpoint_after(2, family, pipe, checkpoints)
    with pytest.raises(ModelFailed, match=f"of a run of {STEPS} steps, this one has 6"):
        family.render(pipe, checkpoints, callback=lambda *_: None, watch=Watch(resume=checkpoint), steps=6)


@pytest.mark.parametrize("placement", [Placement.PARTS, Placement.LAYERS])
def test_weights_that_come_and_go_are_moved_as_before_when_steps_are_recorded(
        placement: Placement, checkpoints: Path) -> None:
    """What moves them also stands before the denoiser's `forward`, and puts itself there anew at the end of a call."""
    family = BY_NAME["wan_t2v"]
    pipe = family.load(checkpoints)
    place(pipe, [pipe], placement, "cpu")

    def render(watch: Watch) -> torch.Tensor:
        return family.render(pipe, checkpoints, callback=lambda *_: None, watch=watch)

    taken: list[StepCheckpoint] = []
    recorded = Watch(checkpoint_due=lambda done, total: done == 2, on_checkpoint=taken.append)
    plain = render(Watch())
    outputs = [render(recorded), render(recorded), render(Watch(resume=taken[-1])), render(Watch())]
    assert [checkpoint.step for checkpoint in taken] == [2, 2]
    assert all(torch.equal(output, plain) for output in outputs)
    lift(pipe)
    assert torch.allclose(render(Watch()), plain)
