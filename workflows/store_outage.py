"""A store that is away or full: told apart from one that has nothing, and waited for. Knows no artifact and no job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from workflows.errors import ReelrayError, StoreAway

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
"""Between two tries while the store is away."""
TELL_EVERY_S = 60.0
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, NotImplementedError)
"""Of a program or a file's content: no waiting mends them."""


@contextmanager
def outages_of(url: str) -> Iterator[None]:
    """Inside, what a file system raises because it is away, full or refuses becomes StoreAway.

    Each file system has errors of its own (those of S3 are no OSErrors), so it is all but what is known to be something
    else. A file that is not there comes through: that is an answer.
    """
    try:
        yield
    except (ReelrayError, FileNotFoundError, *MISTAKES):
        raise
    except Exception as error:
        raise StoreAway(store=url, reason=str(error) or type(error).__name__) from error


class StorePatience:
    """Does something again while the store is away, on the caller's thread."""

    def __init__(self, limit_s: float, *, sleep: Callable[[float], object] = time.sleep,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """`limit_s`: how long; 0: not at all."""
        self._limit_s = limit_s
        self._sleep = sleep
        self._clock = clock

    def insist(self, call: Callable[[], T], what: str) -> T:
        """What `call` returns. `what` it does, for the log. Raises StoreAway when the time is over."""
        started_s, told_s, wait_s = self._clock(), float("-inf"), FIRST_WAIT_S
        while True:
            try:
                result = call()
            except StoreAway as error:
                waited_s = self._clock() - started_s
                if waited_s >= self._limit_s:
                    raise
                if self._clock() - told_s >= TELL_EVERY_S:
                    told_s = self._clock()
                    log.warning("%s waits: %s", what, error)
            else:
                if told_s > float("-inf"):
                    log.warning("%s went on after %.0f s: the store is back", what, self._clock() - started_s)
                return result
            self._sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)
