"""Which replica of a model a call goes to. Pure: knows no Ray.

It is asked twice. The dispatcher has a seat for each replica, decides when a call may start and at which seat, and so
knows of each whether it is idle; `serve_app.routing`, for Serve, keeps one replica to each seat, and places what comes
without a seat or what its seat's replica cannot take.

A call goes to a replica with the fewest calls, so that none waits beside an idle GPU. Before that count two things: a
call for what a replica is making already joins it there instead of being made twice, and what did not fit a replica's
memory goes to another one. Among equals a replica that has done such work before is preferred, for what it still has: a
shape that was compiled and has its memory, a source video that is on the machine. An idle replica that has it not is
better than a busy one that has, since the GPU is lost otherwise.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from workflows.types import Json

PARTIES = 100
"""Of which it is known where they meet; the latest."""
KINS = 4
"""Kinds of work that a replica, or a machine, is thought to be still prepared for; the latest."""
DOUBTED_S = 5.0
"""After a replica could not be reached, others are tried first for so long."""
FORGOTTEN_S = 60.0
"""A choice of which nothing more was heard: whoever made the call went before it was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A call, as far as its place depends on it."""

    id: str
    key: str = ""
    """Of its result; calls of one key share a run where they meet. Empty: none."""
    kin: str = ""
    """Calls of one kin leave something behind that the next of them can use; empty: nothing."""
    avoid: Collection[str] = ()
    """Replicas that had not the memory for it."""
    seat: int | None = None
    """Calls of one seat go to one replica, those of others to others, as long as there are enough of them."""
    party: str = ""
    """Calls of one party meet on one machine; empty: it meets nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A replica that could take it."""

    name: str
    machine: str = ""
    calls: int = 0
    """That it has, by what was heard of it; others may send it some, too."""
    room: int = 1
    """Calls that it takes at a time."""


@dataclass(slots=True, eq=False)
class _Given:
    """A call that was given to a replica."""

    name: str
    key: str
    since_s: float
    tried: frozenset[str] = frozenset()
    """Replicas that did not take it, this one not yet among them."""
    is_sent: bool = False


class Placement:
    """The calls of one caller to the replicas of one deployment."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = lambda: 0.0) -> None:
        """Start with no call in flight. `draw`: numbers from 0 to below 1 that order replicas which nothing else does;
        where several place calls on the same replicas they must not all begin with the same one."""
        self._clock = clock
        self._draw = draw
        self._given: dict[str, _Given] = {}
        self._kins: defaultdict[str, list[str]] = defaultdict(list)
        """By replica and by machine, the latest last."""
        self._turns: dict[str, float] = {}
        """When each replica was chosen last, as a count of choices; below 1: never."""
        self._turn = 0
        self._seats: dict[int, str] = {}
        """The replica of each seat."""
        self._parties: dict[str, str] = {}
        """The machine of each party."""
        self._doubted: dict[str, float] = {}
        """Replicas that could not be reached, and when that was."""

    def choose(self, wanted: Wanted, candidates: Sequence[Candidate]) -> Candidate | None:
        """The one to try now, which counts as having the call; None: there is none that may be asked.

        Asked again for a call, the replica that it was given to did not take it: the others come first.
        """
        tried = self._take_back(wanted.id)
        able = [one for one in candidates if one.name not in wanted.avoid]
        if not able:
            return None
        if all(one.name in tried for one in able):
            tried = frozenset()
        calls = self.calls()
        twins = {given.name for given in self._given.values() if given.key == wanted.key and wanted.key}
        # After a replica has died two seats may have one; the first keeps it when there is another again.
        owners = {name: seat for seat, name in sorted(self._seats.items(), reverse=True)}
        meets_at = self._parties.get(wanted.party, "")

        def order(one: Candidate) -> tuple[float, ...]:
            have, owner = max(calls[one.name], one.calls), owners.get(one.name)
            is_mine, is_free = wanted.seat is not None and owner == wanted.seat, owner is None
            return (one.name in tried, one.name in self._doubted, meets_at not in ("", one.machine),
                    not is_mine, not is_free, not (one.name in twins and have < one.room), have,
                    wanted.kin not in self._kins[one.name], wanted.kin not in self._kins[one.machine],
                    self._turns.setdefault(one.name, self._draw()))

        chosen = min(able, key=order)
        self._turn += 1
        self._turns[chosen.name] = self._turn
        if wanted.seat is not None:
            self._sit(wanted.seat, chosen.name, owners)
        if wanted.party:
            self._parties = dict([*self._parties.items(), (wanted.party, meets_at or chosen.machine)][-PARTIES:])
        self._given[wanted.id] = _Given(chosen.name, wanted.key, self._clock(), tried)
        return chosen

    def _sit(self, seat: int, name: str, owners: Mapping[str, int]) -> None:
        """The seat has this replica from now on; whose replica that was gets the seat's."""
        before, owner = self._seats.get(seat), owners.get(name)
        if owner not in (None, seat) and before is not None and before != name and before not in self._doubted:
            self._seats[owner] = before
        self._seats[seat] = name

    def calls(self) -> Counter[str]:
        """How many each replica has been given that are not over."""
        return Counter(given.name for given in self._given.values())

    def sent(self, wanted: Wanted, candidate: Candidate) -> None:
        """The replica has taken the call."""
        given = self._given.get(wanted.id)
        if given is not None and given.name == candidate.name:  # a quick call may be over by now
            given.is_sent = True
        self._doubted.pop(candidate.name, None)
        for holder in (candidate.name, candidate.machine):
            if wanted.kin and holder:
                kins = self._kins[holder]
                self._kins[holder] = [*(kin for kin in kins if kin != wanted.kin), wanted.kin][-KINS:]

    def over(self, call_id: str, name: str) -> None:
        """The call is no longer at this replica, whatever became of it; it may be at another one by now."""
        given = self._given.get(call_id)
        if given is not None and given.name == name:
            del self._given[call_id]

    def doubt(self, name: str) -> None:
        """The replica could not be reached just now."""
        self._doubted[name] = self._clock()

    def keep(self, candidates: Sequence[Candidate]) -> None:
        """These are left; forget what is known of others."""
        holders = {one.name for one in candidates} | {one.machine for one in candidates}
        for holder in [holder for holder in self._kins if holder not in holders]:
            del self._kins[holder]
        self._turns = {name: turn for name, turn in self._turns.items() if name in holders}
        self._seats = {seat: name for seat, name in self._seats.items() if name in holders}

    def _take_back(self, call_id: str) -> frozenset[str]:
        """Forget the last choice for a call, and what is too old; which replicas did not take it."""
        now_s = self._clock()
        self._doubted = {name: at_s for name, at_s in self._doubted.items() if now_s - at_s < DOUBTED_S}
        last = self._given.pop(call_id, None)
        self._given = {other: given for other, given in self._given.items()
                       if given.is_sent or now_s - given.since_s < FORGOTTEN_S}
        return frozenset() if last is None else last.tried | {last.name}


def kin_of(payload: Mapping[str, Json]) -> str:
    """What a node leaves at its replica: a shape that was compiled for, or a source video's file."""
    source = payload.get("source")
    if isinstance(source, dict):
        return str(source.get("key", ""))
    if "width_px" not in payload:
        return ""
    return f"{payload['width_px']}x{payload.get('height_px')}x{payload.get('frames')}"
