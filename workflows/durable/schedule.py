"""When a webhook is sent again: the schedule of Standard Webhooks. Pure: knows no clock, no database."""

from __future__ import annotations

from workflows.durable.verdict import Draw

MINUTE_S, HOUR_S = 60.0, 3600.0
WAITS_S = (0.0, 5.0, 5 * MINUTE_S, 30 * MINUTE_S, 2 * HOUR_S, 5 * HOUR_S, 10 * HOUR_S, 14 * HOUR_S, 20 * HOUR_S,
           24 * HOUR_S)
"""Before each attempt, from the first on."""
JITTER = 0.2
"""Waits are longer by up to this share, so that what failed together does not come back together."""
LONGEST_ASKED_S = 24 * HOUR_S
"""Longest `Retry-After` that is obeyed."""


def wait_s(attempts: int, *, draw: Draw, asked_s: float = 0.0) -> float | None:
    """Seconds until the next attempt after `attempts` failed ones (from 1); None: there is none.

    `asked_s`: what the endpoint asked for with `Retry-After`; it lengthens a wait, never shortens it.
    """
    if attempts >= len(WAITS_S):
        return None
    return max(WAITS_S[attempts] * (1 + JITTER * draw()), min(asked_s, LONGEST_ASKED_S))
