"""How many GPUs shares of them need."""

from __future__ import annotations

from collections.abc import Sequence

ROUNDING = 1e-6
"""Shares are hundredths, and their sums only nearly."""


def gpus_taken(shares: Sequence[float]) -> float:
    """GPUs that these shares need: no part is split over two of them, however much they leave over together."""
    rooms: list[float] = []
    for share in sorted((share for share in shares if 0 < share < 1), reverse=True):
        place = next((place for place, room in enumerate(rooms) if room >= share - ROUNDING), None)
        if place is None:
            rooms.append(1 - share)
        else:
            rooms[place] -= share
    return sum(share for share in shares if share >= 1) + len(rooms)
