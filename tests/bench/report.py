"""One table per question: printed, and written with versions and hardware beside it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

REPORTS = Path(__file__).parent / "reports"
PACKAGES = ("reelray", "ray", "torch", "diffusers", "transformers", "sqlalchemy", "av", "opencv-python-headless")


def write_report(name: str, question: str, header: Sequence[str], rows: Sequence[Sequence[object]],
                 conclusion: str, *, directory: Path = REPORTS, device: str = "no GPU") -> Path:
    """Print a Markdown table and write it to `<name>.md` in a directory; `device` is what was measured, in words."""
    table = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    table += [f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows]
    text = "\n".join([f"# {question}", "", *table, "", conclusion, "", *_conditions(device), ""])
    print(text)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    return path


def _conditions(device: str) -> list[str]:
    versions = ", ".join(f"{package} {_version(package)}" for package in PACKAGES)
    return [f"- {time.strftime('%Y-%m-%d')}, commit {_commit()}, Python {platform.python_version()}, {versions}",
            f"- {os.cpu_count()} cores, {_processor()}, {device}; load average at the end {os.getloadavg()[0]:.1f}"]


def _version(package: str) -> str:
    """A table must not be lost because one package is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Of this checkout; a copy of the tree on a measuring machine may have none."""
    if shutil.which("git") is None:
        return "unknown"
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False,
                           cwd=Path(__file__).parent)
    return asked.stdout.strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
