"""A torchvision built for CUDA beside a CPU build of torch: imports, and does what needs no compiled code.

torchvision is published for one build of torch alone. Its compiled part does not load beside another one, and then the
import fails over operators that nobody declared. Declared first, the rest of it, which is Python, works. Only for a
process of its own: transformers decides at its import whether there is a torchvision.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def install() -> None:
    """Make `import torchvision` work in this process; call it before transformers is imported."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def pytest_load_initial_conftests() -> None:
    """As a plugin (`pytest -p tests.torchvision_cpu`): before anything else is imported."""
    install()


def fetch(directory: Path) -> str:
    """Bring torchvision for this torch into a directory, and nothing that it depends on.

    Why it could not be brought, or empty. Kept when there.
    """
    if (directory / "torchvision").is_dir():
        return ""
    minor = int(torch.__version__.split(".")[1])
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target",
         str(directory), f"torchvision==0.{minor + 15}.*"], capture_output=True, text=True, check=False, timeout=300)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
