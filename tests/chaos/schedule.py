"""Who is struck how, in which order: drawn from a seed, the same for the same seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.served import Component


class Blow(StrEnum):
    """What is done to a process."""

    KILL = "SIGKILL"
    FREEZE = "SIGSTOP+SIGCONT"


WEIGHTS = {
    (Component.DIRECTOR, Blow.KILL): 8, (Component.MODEL, Blow.KILL): 6, (Component.BOARD, Blow.KILL): 6,
    (Component.INGRESS, Blow.KILL): 6, (Component.MEDIA, Blow.KILL): 4, (Component.DIRECTOR, Blow.FREEZE): 4,
    (Component.MODEL, Blow.FREEZE): 3, (Component.BOARD, Blow.FREEZE): 2, (Component.INGRESS, Blow.FREEZE): 2,
    (Component.SERVER, Blow.KILL): 1, (Component.DATABASE, Blow.KILL): 4,
}
"""How often, relative to each other. Starting the whole server again takes the time of ten other strikes."""
LONGEST_FREEZE_S = 5.0
"""Past the lease of the profile `ci`, well below Serve's patience with a replica that does not answer."""
LONGEST_GAP_S = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One entry of the schedule."""

    number: int
    component: Component
    blow: Blow
    which: float
    """0..1: where in the list of the component's processes the victim is."""
    gap_s: float
    """Wait before it, after the last one."""
    after_commit: bool
    """Wait besides until a node was committed since the last strike; else it may hit in the midst of a recovery."""
    freeze_s: float = 0.0

    def __str__(self) -> str:
        frozen = f" for {self.freeze_s:.1f} s" if self.blow is Blow.FREEZE else ""
        return (f"{self.number:3d} {self.blow.value} {self.component.value}{frozen}, {self.gap_s:.1f} s after the last"
                f"{' and a commit' if self.after_commit else ''}")


def schedule(seed: int, strikes: int, components: Iterable[Component]) -> tuple[Strike, ...]:
    """So many strikes at these components."""
    chance = random.Random(seed)
    wanted = set(components)
    kinds = [kind for kind in WEIGHTS if kind[0] in wanted]
    weights = [WEIGHTS[kind] for kind in kinds]
    drawn = []
    for number in range(1, strikes + 1):
        component, blow = chance.choices(kinds, weights)[0]
        drawn.append(Strike(number=number, component=component, blow=blow, which=chance.random(),
                            gap_s=chance.uniform(0.0, LONGEST_GAP_S), after_commit=chance.random() < 0.6,
                            freeze_s=chance.uniform(1.0, LONGEST_FREEZE_S)))
    return tuple(drawn)
