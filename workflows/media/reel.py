"""Which stored pictures make the frames of an edit, and how they are turned. Knows no codec: times in, times out.

A reel is the source's part that is edited, at one constant rate. Where the source's rate is not constant, a frame shows
what a player would show in the middle of its time, so stored pictures are dropped or repeated, never mixed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from workflows.types import Json

COMMON_RATES = tuple(Fraction(rate) for rate in (
    10, 12, 15, 16, 20, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 48, 50, Fraction(60000, 1001), 60,
    100, 120))
RATE_TOLERANCE = Fraction(1, 50)
"""A mean rate this close to a common one is meant to be that one."""
LONGEST_RATIO = 1001
HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reel:
    """The frames of an edit, as places in the source."""

    fps: Fraction
    times: tuple[int, ...]
    """When the picture that each frame shows is due, in ticks of the stream's clock; equal ones repeat a picture."""
    start: int
    """The tick at which the reel's first frame begins."""
    width_px: int
    height_px: int
    """As shown; both even."""
    rotation_deg: int
    """Counterclockwise turn of the stored pictures: 0, 90, 180 or 270."""

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self.times)

    @property
    def duration_s(self) -> Fraction:
        """How long they are shown."""
        return self.frames / self.fps

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"fps": str(self.fps), "times": list(self.times), "start": self.start, "width_px": self.width_px,
                "height_px": self.height_px, "rotation_deg": self.rotation_deg}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Reel:
        """The inverse of `to_json`; ValueError for what that never writes."""
        times = data["times"]
        if not isinstance(times, list):
            raise ValueError("a reel holds no list of times")
        return cls(fps=Fraction(str(data["fps"])), times=tuple(int(str(time)) for time in times),
                   start=int(str(data["start"])), width_px=int(str(data["width_px"])),
                   height_px=int(str(data["height_px"])), rotation_deg=int(str(data["rotation_deg"])))


def steady_rate(mean: Fraction) -> Fraction:
    """The constant rate for pictures that come at this mean rate: a common one, if one is near."""
    nearest = min(COMMON_RATES, key=lambda rate: abs(rate - mean) / rate)
    if abs(nearest - mean) <= RATE_TOLERANCE * nearest:
        return nearest
    return mean.limit_denominator(LONGEST_RATIO)


def is_steady(times: Sequence[int], tick_s: Fraction, fps: Fraction) -> bool:
    """Whether pictures at these times (sorted ticks) come at this rate, but for the rounding to ticks."""
    step = 1 / (fps * tick_s)
    return all(abs(time - times[0] - number * step) <= 1 for number, time in enumerate(times))


def resampled(times: Sequence[int], tick_s: Fraction, fps: Fraction, frames: int) -> tuple[int, ...]:
    """For each of so many frames at a constant rate the picture (sorted ticks) that is shown in the middle of it."""
    step = 1 / (fps * tick_s)
    return tuple(times[max(bisect_right(times, times[0] + (number + HALF) * step) - 1, 0)] for number in range(frames))
