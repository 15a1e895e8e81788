"""When something must be over, inside one process.

No machine's clock is compared with another's: a call that goes to another process says how many seconds are left
(`left_s` of NodeCall, RenderCall and Question), and whoever receives it counts them by a clock of its own. So machines
whose clocks are hours apart work together. What is not counted is the way there, with any queue on it; the Director
waits no longer than the limit for the answer (`asyncio.timeout`), and cancels the call then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

Clock = Callable[[], float]
"""Seconds since a moment of its own; never set back or forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """A moment by this process's own clock."""

    at_s: float
    """By `clock`; infinite: never."""
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, left_s: float, clock: Clock = time.monotonic) -> Deadline:
        """So many seconds from now."""
        return cls(at_s=clock() + left_s, clock=clock)

    @property
    def left_s(self) -> float:
        """Seconds until then; negative: it has passed."""
        return self.at_s - self.clock()

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return self.left_s < 0

    def __reduce__(self) -> NoReturn:
        """Refused: elsewhere the same number is another moment. Send `left_s`."""
        raise TypeError("a Deadline is of one process's clock; send the seconds that are left")


NEVER = Deadline(at_s=math.inf)
