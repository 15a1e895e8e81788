"""Which card gets how many replicas where the GPUs are too few for all that has work. Pure: knows no clock.

Each card's own rule (`workflows.scaling`) sees its own work only. Where all that the cards want or hold fits the GPUs,
nothing is said here and those rules hold. Where it does not:

- What a card holds beyond its work goes to work that waits: at once, or after `yield_s` where more for it is coming.
- A card with work keeps its GPUs for a turn, which is long against a load; then they are divided anew: one replica for
  each card with work, first for who has had none for longest, and the rest in proportion to the seconds of work
  (D'Hondt's highest averages). So on one GPU the cards take turns, and no card with work waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from configs.sharing import ROUNDING, gpus_taken
from workflows.scaling import Backlog, Rule, enough

TURN_LOADS = 6
"""The shortest turn, in loads: more often, and loading would take more than a seventh of the time."""
LONGEST = 3.0
"""The longest turn, in shortest ones: of a card that has so many times more work than those who wait."""
PATIENCE_LOADS = 20
"""A card whose model is not there after so many loads has had its turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One card, as it is now."""

    card: str
    backlog: Backlog
    rule: Rule
    gpus: float
    """Per replica; > 0."""
    running: int
    """Replicas that take calls."""
    held: int
    """Those, and what is being started."""

    @property
    def wanted(self) -> int:
        """Replicas that its own rule asks for."""
        return enough(self.backlog, self.rule)

    @property
    def has_work(self) -> bool:
        """Whether anything could run now."""
        return self.backlog.ready + self.backlog.running > 0

    @property
    def work_s(self) -> float:
        """GPU-seconds of what is ready or running."""
        return (self.backlog.ready + self.backlog.running) * max(self.backlog.seconds, ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The GPUs there are, or can be."""

    gpus: float
    taken: tuple[float, ...] = ()
    """By replicas that neither come nor go: the share of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast models may be swapped."""

    load_s: float
    """What it takes until another card's replica works in the place of one."""
    yield_s: float
    """So long a replica without work keeps a GPU that others wait for, while more work for it is coming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one card has, and what must be remembered of it."""

    replicas: int
    asked_s: float
    """Since when, at any clock."""
    ran_s: float | None
    """When the first of them was seen to work; None: not yet."""
    held_s: float
    """When it was last seen to have any; minus infinity: never."""
    idle_s: float | None
    """Since when they are more than its work needs; None: they are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """Replicas by card."""

    shares: Mapping[str, Share] = field(default_factory=dict)
    is_scarce: bool = False
    """The shares are to be followed; otherwise they only say what there was."""

    @property
    def wanted(self) -> dict[str, int]:
        """Replicas that cards are to have; empty where each may follow its own rule."""
        return {card: share.replicas for card, share in self.shares.items()} if self.is_scarce else {}


def divide(claims: Sequence[Claim], before: Division, *, room: Room, pace: Pace, at_s: float) -> Division:
    """The division at the time `at_s`, given what was returned the last time."""
    shares = {claim.card: _seen(claim, before, at_s) for claim in claims}
    most = {claim.card: max(claim.wanted, claim.held, shares[claim.card].replicas) for claim in claims}
    deal = _Deal(claims, room)
    if sum(number > 0 for number in most.values()) < 2 or deal.fits(most):
        return Division(shares=shares)
    busy = [claim for claim in claims if claim.has_work]
    for claim in sorted(claims, key=lambda one: -one.running):
        deal.give(claim, _kept(claim, shares, busy, pace, at_s))
    for claim in sorted(busy, key=lambda one: (shares[one.card].replicas > 0, shares[one.card].held_s)):
        deal.give(claim, 1)
    deal.give_in_proportion(busy)
    # What nobody with work can use stays where it is, longest where it will be of use.
    for claim in sorted(claims, key=lambda one: not one.backlog.coming):
        deal.give(claim, min(shares[claim.card].replicas, claim.rule.most))
    is_taken = any(deal.replicas[claim.card] < min(shares[claim.card].replicas, claim.wanted) for claim in busy)
    return Division(is_scarce=True, shares={
        card: _changed(share, deal.replicas[card], at_s, is_new_turn=is_taken) for card, share in shares.items()})


class _Deal:
    """Replicas given out one by one, as long as there are GPUs."""

    def __init__(self, claims: Sequence[Claim], room: Room) -> None:
        self._claims = claims
        self._room = room
        self.replicas = {claim.card: claim.rule.least for claim in claims}

    def fits(self, replicas: Mapping[str, int]) -> bool:
        """Whether so many have room beside what is taken for good."""
        shares = [claim.gpus for claim in self._claims for _ in range(replicas[claim.card])]
        return gpus_taken([*self._room.taken, *shares]) <= self._room.gpus + ROUNDING

    def give(self, claim: Claim, up_to: int) -> None:
        """As many as fit."""
        while self.replicas[claim.card] < up_to and self._one_more_fits(claim):
            self.replicas[claim.card] += 1

    def give_in_proportion(self, busy: Sequence[Claim]) -> None:
        """One by one to who then has most seconds of work per replica, until nobody wants or can have more."""
        while open_to := [claim for claim in busy
                          if self.replicas[claim.card] < claim.wanted and self._one_more_fits(claim)]:
            most = max(open_to, key=lambda one: one.work_s / (self.replicas[one.card] + 1))
            self.replicas[most.card] += 1

    def _one_more_fits(self, claim: Claim) -> bool:
        return self.fits(self.replicas | {claim.card: self.replicas[claim.card] + 1})


def _seen(claim: Claim, before: Division, at_s: float) -> Share:
    """What the card has before anything is decided."""
    last = before.shares.get(claim.card)
    # What is being started beside others that run may wait for a GPU that it will not get.
    replicas = last.replicas if last and before.is_scarce else claim.running or claim.held
    if last is None or (replicas and not last.replicas):
        last = Share(replicas=replicas, asked_s=at_s, ran_s=None, held_s=last.held_s if last else -math.inf,
                     idle_s=None)
    ran_s = (at_s if last.ran_s is None and claim.running else last.ran_s) if replicas else None
    idle_s = None if replicas <= claim.wanted else at_s if last.idle_s is None else last.idle_s
    return replace(last, replicas=replicas, ran_s=ran_s, held_s=at_s if replicas else last.held_s, idle_s=idle_s)


def _kept(claim: Claim, shares: Mapping[str, Share], busy: Sequence[Claim], pace: Pace, at_s: float) -> int:
    """Replicas that are not to be taken from the card yet."""
    share = shares[claim.card]
    if share.idle_s is not None and claim.backlog.coming and at_s - share.idle_s < pace.yield_s:
        return share.replicas
    waiting = [one for one in busy if one is not claim and not shares[one.card].replicas]
    if not claim.has_work or _is_over(claim, share, waiting, pace, at_s):
        return 0
    kept = min(share.replicas, claim.wanted)
    # The first replica of a card is worth more than one of several.
    return min(kept, 1) if waiting and at_s - share.asked_s >= pace.load_s else kept


def _is_over(claim: Claim, share: Share, waiting: Sequence[Claim], pace: Pace, at_s: float) -> bool:
    """Whether the card's turn is; one that is nearly done with its work may finish it."""
    if share.ran_s is None:
        return at_s - share.asked_s >= PATIENCE_LOADS * pace.load_s
    over_s = at_s - share.ran_s - TURN_LOADS * pace.load_s * _length(claim, waiting)
    is_nearly_done = claim.work_s / max(share.replicas, 1) <= pace.load_s
    return over_s >= (pace.load_s if is_nearly_done else 0.0)


def _length(claim: Claim, waiting: Sequence[Claim]) -> float:
    """Of the card's turn, in shortest ones: by its work beside that of who waits; interactive work beats batch work."""
    if not waiting:
        return 1.0
    is_urgent, others = claim.backlog.interactive > 0, any(one.backlog.interactive for one in waiting)
    if is_urgent != others:
        return LONGEST if is_urgent else 1.0
    return min(max(claim.work_s / sum(one.work_s for one in waiting), 1.0), LONGEST)


def _changed(share: Share, replicas: int, at_s: float, *, is_new_turn: bool) -> Share:
    if replicas == share.replicas:
        return share
    if is_new_turn or not share.replicas or not replicas:
        return replace(share, replicas=replicas, asked_s=at_s, ran_s=None)
    return replace(share, replicas=replicas)
