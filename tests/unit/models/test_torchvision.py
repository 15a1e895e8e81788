"""What needs torchvision, in a process of its own: transformers decides at its import whether there is one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers

from tests.torchvision_cpu import fetch

ROOT = Path(__file__).resolve().parents[3]
KEPT = Path(tempfile.gettempdir()) / f"reelray-torchvision-{torch.__version__}"
"""Between runs, since it is downloaded."""


@pytest.mark.slow
@pytest.mark.skipif(transformers.utils.is_torchvision_available(), reason="its file runs as it is")
def test_the_tracker_by_words_works_where_torchvision_is() -> None:
    if why_not := fetch(KEPT):
        pytest.skip(f"torchvision cannot be fetched: {why_not}")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.torchvision_cpu", "-q", "-x", "-p", "no:cacheprovider",
         str(ROOT / "tests/unit/models/test_text_tracker.py")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(KEPT)])}, capture_output=True,
        text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout
