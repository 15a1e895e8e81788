"""Tiny checkpoints once per session, and one loaded pipeline per family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from tests.families import BY_NAME


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Two threads on a busy two-core machine are ten times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def pipe_of(checkpoints: Path) -> Callable[[str], DiffusionPipeline]:
    """The session's own pipeline of a family; tests that change one load theirs."""
    pipes: dict[str, DiffusionPipeline] = {}

    def get(name: str) -> DiffusionPipeline:
        if name not in pipes:
            pipes[name] = BY_NAME[name].load(checkpoints)
        return pipes[name]

    return get


@pytest.fixture(scope="session")
def reference_of(checkpoints: Path, pipe_of: Callable[[str], DiffusionPipeline]) -> Callable[[str], torch.Tensor]:
    """What the bare pipeline gives, without tap or callback."""
    outputs: dict[str, torch.Tensor] = {}

    def get(name: str) -> torch.Tensor:
        if name not in outputs:
            family, pipe = BY_NAME[name], pipe_of(name)
            dialect = family.dialect(pipe, checkpoints)
            dialect.guide(pipe, family.take())
            call = dialect.call(family.take())
            pipe.set_progress_bar_config(disable=True)
            output = pipe(**call.kwargs(), generator=torch.Generator("cpu").manual_seed(7), output_type="pt")
            outputs[name] = output.frames if "frames" in output else output.images
        return outputs[name]

    return get
