"""The HTTP benchmark still runs: a little of everything, against the real thing."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_short_run_measures_every_part() -> None:
    run = subprocess.run([sys.executable, "-m", "tests.bench", "http", "--quick"], capture_output=True, text=True,
                         timeout=400, check=False)
    assert run.returncode == 0, run.stderr
    for part in ("film, first event", "film, first step", "20/s answered", "watchers, 5", "held 1 long poll open"):
        assert part in run.stdout
