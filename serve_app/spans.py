"""Spans of time and sizes, as people write them."""

from __future__ import annotations

import re

from workflows.errors import InvalidSettings

SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def span_s(text: str, option: str) -> float:
    """`7d` in seconds. Raises InvalidSettings for anything else."""
    found = SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidSettings(problem=f"{option} {text!r} is no span of time; nearest valid: 7d, 12h, 90m, 30s")
    return float(found[1]) * UNITS_S[found[2]]


def size_text(size_bytes: float) -> str:
    """`12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
