"""Draws what test_autoscaling saw (TIMELINE_FILE) as the picture in docs/cluster.md, lines on two charts.

`python -m tests.cluster.timeline LOOKS.json docs/cluster_timeline.svg`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT, HEIGHT, GAP, TOP = 860, 44, 14, 130, 46, 34
Look = dict[str, Any]
Line = tuple[str, str, Callable[[Look], float]]
CHARTS: list[tuple[str, list[Line]]] = [
    ("shots in the database", [("waiting", "#c2571a", lambda look: look["ready"]),
                               ("running", "#1a6fc2", lambda look: look["running"])]),
    ("machines with a GPU, and replicas of the model", [
        ("nodes", "#777777", lambda look: max(look["nodes"], 0)),
        ("replicas", "#1c8f4d", lambda look: look["replicas"].get("RUNNING", 0))]),
]


def steps(points: Sequence[tuple[float, float]]) -> str:
    """An SVG path that keeps each value until the next one."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for x, y in points[1:]:
        parts.append(f"H{x:.1f}V{y:.1f}")
    return "".join(parts)


def chart(looks: Sequence[Look], title: str, lines: Sequence[Line], top: float, long_s: float) -> list[str]:
    """One chart with its axes."""
    most = max(value(look) for _, _, value in lines for look in looks) or 1
    start_s = looks[0]["at_s"]

    def place(at_s: float, value: float) -> tuple[float, float]:
        return LEFT + (at_s - start_s) / long_s * (WIDTH - LEFT - RIGHT), top + HEIGHT * (1 - value / most)

    found = [f'<text x="{LEFT}" y="{top - 9}" font-weight="bold">{title}</text>']
    for value in range(0, int(most) + 1, max(int(most) // 3, 1)):
        y = place(start_s, value)[1]
        found.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
                     f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>')
    for second in range(0, int(long_s) + 1, 20):
        x = place(start_s + second, 0)[0]
        found.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{second} s</text>')
    for number, (name, colour, value_of) in enumerate(lines):
        path = steps([place(look["at_s"], value_of(look)) for look in looks])
        found.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        found.append(f'<text x="{WIDTH - RIGHT - 90 * (len(lines) - number) + 90}" y="{top - 9}" text-anchor="end" '
                     f'fill="{colour}">{name}</text>')
    return found


def main(source: str, target: str) -> None:
    looks: list[Look] = json.loads(Path(source).read_text())
    # From a moment before the films were submitted.
    first = next(number for number, look in enumerate(looks) if look["ready"])
    looks = looks[max(first - 4, 0):]
    long_s = looks[-1]["at_s"] - looks[0]["at_s"]
    tall = TOP + len(CHARTS) * (HEIGHT + GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" font-family="sans-serif" '
             f'font-size="12"><rect width="{WIDTH}" height="{tall}" fill="#ffffff"/>']
    for number, (title, lines) in enumerate(CHARTS):
        parts += chart(looks, title, lines, TOP + number * (HEIGHT + GAP), long_s)
    Path(target).write_text("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
