"""On two real GPUs: one call shared out is the call of one GPU within rounding, and stops on both.

    python -m pytest -m gpu tests/gpu/test_two_gpus.py
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.model_card import ModelCard, SizeRule, Task
from serve_app.models import pipelines
from serve_app.models.crew import Alone, Crew, crew_of
from serve_app.models.lifecycle import CancelToken
from serve_app.models.party import Parties
from serve_app.models.studio import Painter, open_studio
from serve_app.models.tap import Watch
from tests.families import BY_NAME
from workflows.errors import RenderCancelled, ReplicaLost

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

WAN = BY_NAME["wan_t2v"]
TOLERANCE = 6
"""Of 255: other kernels sum in another order, four steps long."""
WAYS = [{"ulysses": 2}, {"ring": 2}, {"ulysses": 2, "uneven": True}]


def opened(card: ModelCard) -> tuple[Mapping[Task, Painter], Crew | Alone]:
    crew = crew_of(card, "cuda:0", stall_s=120)
    assert not isinstance(crew, Parties)
    return crew.joined(open_studio(card, "cuda:0", crew.keeping(pipelines.load))), crew


def quiet(step: int, total_steps_count: int, current_timestep: float) -> None:
    """Hears nothing."""


@pytest.mark.parametrize("parallel", WAYS, ids=str)
def test_two_gpus_render_what_one_does_and_stop_together(parallel: dict[str, object], tmp_path: Path) -> None:
    rule = SizeRule(multiple_px=16, min_px=32, max_px=128)
    odd = {"width_px": 48, "height_px": 48, "frames": 9} if "uneven" in parallel else {}
    # Flash attention takes no float32.
    plain = WAN.card(tmp_path, dtype="bfloat16", dtypes={"vae": "float32"}, size=rule)
    card = WAN.card(tmp_path, dtype="bfloat16", dtypes={"vae": "float32"}, size=rule, parallel=parallel)
    alone = opened(plain)[0][WAN.task].generate(WAN.take(**odd), progress_callback=quiet)
    studio, crew = opened(card)
    try:
        painter, told = studio[WAN.task], list[int]()
        shared = painter.generate(WAN.take(**odd), progress_callback=lambda step, *_: told.append(step))
        assert np.abs(shared.astype(int) - alone.astype(int)).mean() <= TOLERANCE
        assert told == [0, 1, 2, 3]
        token = CancelToken()
        token.set()
        with pytest.raises(RenderCancelled):
            painter.generate(WAN.take(), progress_callback=quiet, watch=Watch(cancel=token))
        painter.generate(WAN.take(), progress_callback=quiet)
        assert crew.problem() == ""
    finally:
        crew.close()


def test_a_killed_process_does_not_leave_the_gpu_waiting(tmp_path: Path) -> None:
    """NCCL's kernels would wait for the dead for ever."""
    studio, crew = opened(WAN.card(tmp_path, parallel={"ulysses": 2}))
    assert isinstance(crew, Crew)
    try:
        started = time.monotonic()
        with pytest.raises(ReplicaLost):
            studio[WAN.task].generate(WAN.take(steps=400), progress_callback=lambda step, *_: (
                crew._members[0].process.kill() if step == 3 else None))
        assert time.monotonic() - started < 60
    finally:
        crew.close()
