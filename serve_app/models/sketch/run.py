"""What every stage of the sketch model's training shares: the plan, the clock, the learning rate and the curve."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

log = logging.getLogger("sketch.train")

LOG_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, where and from which seed a stage trains; resumed parts count in its minutes."""

    out: Path
    minutes: float
    learning_rate: float
    seed: int = 0
    save_every_minutes: float = 5.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(slots=True)
class Progress:
    """Where a stage is; saved with the weights."""

    step: int = 0
    elapsed_s: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, seconds, smoothed loss), one row per LOG_EVERY steps."""
    smooth: float = math.nan

    def note(self, loss: float, label: str, detail: str = "") -> None:
        """Count one step and log now and then."""
        self.smooth = loss if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * loss
        if self.step % LOG_EVERY == 0:
            self.curve.append((self.step, round(self.elapsed_s, 1), round(self.smooth, 6)))
            log.info("%s step %d  %.0f s  loss %.5f %s", label, self.step, self.elapsed_s, self.smooth, detail)
        self.step += 1

    def state(self) -> dict[str, object]:
        """Plain data for `from_state`."""
        return {"step": self.step, "elapsed_s": self.elapsed_s, "curve": self.curve, "smooth": self.smooth}

    @classmethod
    def from_state(cls, step: int, elapsed_s: float, curve: list[list[float]], smooth: float) -> Progress:
        """What `state` gave."""
        return cls(step=step, elapsed_s=elapsed_s, smooth=smooth,
                   curve=[(int(row[0]), row[1], row[2]) for row in curve])

    def save_curve(self, path: Path) -> None:
        """One JSON row per noted step, a line each."""
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in self.curve) + "\n]\n", encoding="utf-8")


class Clock:
    """Counts a stage's seconds on from those of an earlier run."""

    def __init__(self, progress: Progress) -> None:
        self._before_s, self._start = progress.elapsed_s, time.monotonic()

    def elapsed_s(self) -> float:
        """Seconds of the stage, earlier runs included."""
        return self._before_s + time.monotonic() - self._start


def save_state(state: dict[str, object], path: Path) -> None:
    """Write a state whole or not at all: a run is stopped at any moment."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def rate(plan: Plan, progress: Progress, warm_up_steps: int = 50) -> float:
    """Learning rate now: a linear warm-up, level for half of the stage's time, then a straight fall to 2 %."""
    done = progress.elapsed_s / (60 * plan.minutes)
    fall = 1.0 if done < 0.5 else max(0.02, 2 * (1 - done))
    return plan.learning_rate * min(1.0, (progress.step + 1) / warm_up_steps) * fall
