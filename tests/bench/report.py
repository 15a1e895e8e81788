"""One table per question: printed, and written with versions and hardware beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

REPORTS = Path(__file__).parent / "reports"
PACKAGES = ("reelray", "ray", "torch", "diffusers", "sqlalchemy", "av", "opencv-python-headless")


def write_report(name: str, question: str, header: Sequence[str], rows: Sequence[Sequence[object]],
                 conclusion: str) -> Path:
    """Print a Markdown table and write it to `reports/<name>.md`."""
    table = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    table += [f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows]
    text = "\n".join([f"# {question}", "", *table, "", conclusion, "", *_conditions(), ""])
    print(text)
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    return path


def _conditions() -> list[str]:
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = asked.stdout.strip()
    return [f"- {time.strftime('%Y-%m-%d')}, commit {commit}, Python {platform.python_version()}, {versions}",
            f"- {os.cpu_count()} cores, {_processor()}, no GPU; load average at the end {os.getloadavg()[0]:.1f}"]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _text(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
