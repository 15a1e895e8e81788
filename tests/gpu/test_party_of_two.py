"""On two real GPUs: two replicas make one call together, and each is alone again afterwards as it was before.

    python -m pytest -m gpu tests/gpu/test_party_of_two.py
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.model_card import ModelCard
from serve_app.models.lifecycle import CancelToken
from serve_app.models.tap import Watch
from tests.families import BY_NAME
from tests.unit.models.test_party import Neighbour, furnish, is_alone, move_in, move_out
from workflows.errors import Overloaded, RenderCancelled

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

TOLERANCE = 6
"""Of 255, as for a crew."""


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    return BY_NAME["wan_t2v"].card(tmp_path, dtype="bfloat16", dtypes={"vae": "float32"}, elastic={"ulysses": 2})


@pytest.fixture
def neighbour(card: ModelCard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Neighbour]:
    """As Ray starts a replica: it sees its own GPU alone, as the first one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    neighbour = move_in(card, device="cuda:0")
    yield neighbour
    move_out(neighbour)


def test_two_replicas_make_one_call_stop_together_and_are_as_before(card: ModelCard, neighbour: Neighbour) -> None:
    room, gpus, token = furnish(card, device="cuda:0"), list[int](), CancelToken()
    before, theirs = room.render(), neighbour.alone()
    for _ in range(3):
        shared = room.render(Watch(party=neighbour.invite(), shared=gpus.append))
        assert neighbour.is_home()
        assert np.abs(shared.astype(int) - before.astype(int)).mean() <= TOLERANCE
    assert gpus == [2, 2, 2]
    assert is_alone(room)
    assert np.array_equal(room.render(), before)
    assert np.array_equal(neighbour.alone(), theirs)
    with pytest.raises(RenderCancelled):
        room.render(Watch(party=neighbour.invite(), cancel=token), lambda step, *_: token.set())
    assert neighbour.is_home()


def test_a_helper_that_is_killed_ends_the_call_and_leaves_nobody_hanging(card: ModelCard, neighbour: Neighbour) -> None:
    room = furnish(card, device="cuda:0")
    with pytest.raises(Overloaded, match="helped with this call is gone"):
        room.render(Watch(party=neighbour.invite()),
                    lambda step, *_: os.kill(neighbour.pid, signal.SIGKILL) if step == 1 else None)
    assert not torch.distributed.is_initialized()
