"""A machine that dies takes nothing with it: its shot goes on at the checkpoint, on another one."""

from __future__ import annotations

import pytest

from tests.chaos.node_death import machines
from tests.postgres import find_binaries
from workflows.types import JobStatus

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.cluster, pytest.mark.postgres,
              pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL server programs (initdb)")]


def test_a_dead_machines_shot_goes_on_elsewhere() -> None:
    with machines("models.checkpoints.share=1", "models.checkpoints.interval_s=0") as found:
        death = found.lose_one(1)
    assert (death.status, death.violations) == (JobStatus.SUCCEEDED, ())
    assert death.resumed_after > 0
