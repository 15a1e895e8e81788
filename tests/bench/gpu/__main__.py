"""Measurements on one GPU; no checkpoint and no network needed.

    python -m tests.bench gpu                       every section, each in a process of its own
    python -m tests.bench gpu --section sdxl        one of them
    python -m tests.bench gpu --dry-run             every section at tiny size on the CPU: does it still run?

Tables go to `tests/bench/reports`, or to `--out`. A section that fails does not stop the others. `wan` renders five
clips of 50 steps and takes longest; `load` writes 15 GB below TMPDIR.

For a machine without a network: on one of the same system with it, in the checkout,
`pip wheel -w wheels -c constraints.txt .` (torch 2.13 brings CUDA 13, which needs driver 580 or later); there
`pip install --no-index --find-links wheels reelray`, and run in a copy of the checkout.
For the compiled way the machine needs a C compiler (Triton builds its launcher).
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Read while the libraries are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch

from tests.bench.gpu.probe import Device
from tests.bench.gpu.sections import SECTIONS, Run
from tests.bench.report import REPORTS


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="directory for the tables")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU")
    return parser.parse_args()


def main() -> None:
    asked = options()
    if not asked.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --dry-run runs every section at tiny size on the CPU")
    out = asked.out or (Path(tempfile.mkdtemp(prefix="reelray-bench-")) if asked.dry_run else REPORTS)
    out.mkdir(parents=True, exist_ok=True)
    if asked.section:
        logging.basicConfig(level=logging.WARNING)
        diffusers.utils.logging.set_verbosity_error()  # SDXL's VAE says something at every change of its dtype
        if asked.dry_run:
            torch.set_num_threads(1)  # two threads wait for each other where the cores are busy
        run = Run(device=Device(tiny=asked.dry_run), tiny=asked.dry_run, out=out)
        if failed := SECTIONS[asked.section](run):
            raise SystemExit(f"{asked.section}: failed: {', '.join(failed)}")
        return
    broken = []
    for section in SECTIONS:
        print(f"== gpu {section}", flush=True)
        command = [sys.executable, "-m", "tests.bench.gpu", "--section", section, "--out", str(out)]
        if subprocess.run([*command, *(["--dry-run"] if asked.dry_run else [])], check=False).returncode:
            broken.append(section)
    if broken:
        raise SystemExit(f"failed: {', '.join(broken)}")


if __name__ == "__main__":
    main()
