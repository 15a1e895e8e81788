"""A machine that is lost takes nothing with it: its shot goes on at the checkpoint, on another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.node_death import How, machines
from tests.chaos.partition import is_possible
from tests.postgres import find_binaries
from workflows.types import JobStatus

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.cluster, pytest.mark.postgres,
              pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL server programs (initdb)")]
FAR_TOO_LONG_S = 40.0
"""Ray by itself needs 65 s to give up a machine that answers nothing; as `cluster.yaml` sets it, about 6."""


@pytest.mark.parametrize("how", [How.KILLED, How.STOPPED])
def test_a_lost_machines_shot_goes_on_elsewhere(how: How) -> None:
    with machines("models.checkpoints.share=1", "models.checkpoints.interval_s=0") as found:
        death = found.lose_one(1, how)
    assert (death.status, death.violations, death.crashes) == (JobStatus.SUCCEEDED, (), 1)
    assert death.resumed_after > 0
    assert death.elsewhere_s < FAR_TOO_LONG_S
    assert how is How.KILLED or death.gone_s is not None


@pytest.mark.skipif(not is_possible(), reason="this user may not make network namespaces")
def test_a_machine_that_is_cut_off_and_computes_on_commits_nothing_when_it_is_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.chaos", "nodes", "--how", "cut-off", "--kills", "1",
                           "--out", str(tmp_path)], check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Violations: none." in done.stdout
