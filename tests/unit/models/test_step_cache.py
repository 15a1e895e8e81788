"""A draft's step cache, on tiny real checkpoints: it works for one call, and is refused by name where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from configs.draft import DraftCall, StepCache
from configs.model_card import ModelCard
from serve_app.models.ladder import Ladder
from serve_app.models.lifecycle import CancelToken
from serve_app.models.step_cache import cacheable, step_cache
from serve_app.models.studio import warm_up
from serve_app.models.takes import Dialect
from serve_app.models.tap import Watch
from serve_app.models.text_to_video import TextToVideo
from tests.families import BY_NAME, STEPS
from workflows.errors import InvalidDocument, RenderCancelled

PipeOf = Callable[[str], DiffusionPipeline]
DRAFT = DraftCall(cache=StepCache(threshold=1.0), approximations="rough")


def quiet(step: int, total: int, timestep: float) -> None:
    """No bar in the output of the tests."""


class Blocks:
    """Counts runs of the blocks after the first: those that a guessed step leaves out."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.runs = 0
        self.handles = [denoiser.blocks[-1].attn1.register_forward_hook(self._count) for denoiser in cacheable(pipe)]

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _count(self, *_: object) -> None:
        self.runs += 1


def drafting(checkpoints: Path, name: str) -> ModelCard:
    return BY_NAME[name].card(checkpoints, draft=DRAFT)


@pytest.mark.parametrize("name", ["wan_t2v", "wan22_t2v"])
def test_a_draft_guesses_steps_and_the_next_call_is_as_if_there_had_been_none(
        name: str, checkpoints: Path, pipe_of: PipeOf) -> None:
    family, pipe = BY_NAME[name], pipe_of(name)
    model, blocks = TextToVideo(pipe, family.card(checkpoints)), Blocks(pipe)
    final = model.generate(family.take(), progress_callback=quiet)
    whole, blocks.runs = blocks.runs, 0
    draft = model.generate(family.take(cache_threshold=1.0), progress_callback=quiet)
    guessed, blocks.runs = blocks.runs, 0
    blocks.close()
    assert whole == 2 * STEPS  # with and without the prompt
    assert 0 < guessed < whole
    assert not np.array_equal(draft, final)
    assert np.array_equal(draft, model.generate(family.take(cache_threshold=1.0), progress_callback=quiet))
    assert np.array_equal(final, model.generate(family.take(), progress_callback=quiet))
    assert not any(denoiser.is_cache_enabled for denoiser in cacheable(pipe))


def test_a_draft_that_is_broken_off_leaves_no_cache_behind(checkpoints: Path, pipe_of: PipeOf) -> None:
    family, pipe, token = BY_NAME["wan_t2v"], pipe_of("wan_t2v"), CancelToken()
    token.set()
    with pytest.raises(RenderCancelled):
        TextToVideo(pipe, family.card(checkpoints)).generate(
            family.take(cache_threshold=1.0), progress_callback=quiet, watch=Watch(cancel=token))
    assert not any(denoiser.is_cache_enabled for denoiser in cacheable(pipe))


def test_without_a_threshold_nothing_is_hooked(pipe_of: PipeOf) -> None:
    pipe = pipe_of("wan_t2v")
    with step_cache(pipe, None):
        assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("name", ["sdxl", "svd"])
def test_a_pipeline_without_a_cache_refuses_the_card_and_the_take_by_name(
        name: str, checkpoints: Path, pipe_of: PipeOf) -> None:
    family, pipe = BY_NAME[name], pipe_of(name)
    with pytest.raises(InvalidDocument) as refusal:
        Dialect(pipe, drafting(checkpoints, name), family.task)
    assert [problem.field for problem in refusal.value.problems] == ["draft.cache"]
    assert type(pipe).__name__ in refusal.value.problems[0].problem
    problems = family.dialect(pipe, checkpoints).problems(family.take(cache_threshold=0.1))
    assert [problem.field for problem in problems] == ["cache_threshold"]


def test_a_cache_that_breaks_the_model_keeps_the_replica_down(checkpoints: Path, pipe_of: PipeOf) -> None:
    """HunyuanVideo 1.5 has a cache, and its blocks return what the cache does not expect."""
    card, pipe = drafting(checkpoints, "hv15"), pipe_of("hv15")
    with pytest.raises(InvalidDocument, match=r"draft\.cache.*IndexError"):
        warm_up({BY_NAME["hv15"].task: TextToVideo(pipe, card)}, card, Ladder(card, "cpu", None))
    assert not pipe.transformer.is_cache_enabled
