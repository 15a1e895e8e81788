"""What the processes of one replica say to each other, over a socket pair that nobody else holds. Knows no pipeline.

    rank 0                                          rank k
    Enlist ─────────────────────────────────────►   loads; Report(LOADED)
    Meet ───────────────────────────────────────►   joins the group; Report(MET)
    Call 1 ─────────────────────────────────────►   makes the same call
    Go 1, Go 1, ... at each point where the call may be stopped
    Go 1 (stop or free) ────────────────────────►   Report(1)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch

from configs.model_card import ModelCard, Task
from serve_app.models.lifecycle import CancelToken
from serve_app.models.takes import Take
from workflows.errors import ReelrayError

LOADED, MET = -1, 0
"""Numbers of the reports before the first call, which is 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Enlist:
    """What a process is to be. The first message."""

    card: ModelCard
    rank: int
    device: str
    threads: int
    """CPU threads."""
    stall_s: float
    """A single exchange between the processes that takes longer fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meet:
    """All have loaded: join the group."""

    meeting: str
    """File through which the processes find each other."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """Make this call, as rank 0 does at the same time."""

    number: int
    task: Task
    take: Take
    label: str


class Verdict(StrEnum):
    """What rank 0 has decided at a point where a call may be stopped."""

    ON = "on"
    STOP = "stop"
    FREE = "free"
    """Rank 0 has its result; do not wait for it any more in this call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """The decision, for one such point."""

    number: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """How something ended on one rank; without an error also when it was stopped because rank 0 said so."""

    number: int
    error: Exception | None = None


class Orders(CancelToken):
    """Asks rank 0 instead of a flag: all stop at the same point, or none does."""

    __slots__ = ("_ask", "_free")

    def __init__(self, ask: Callable[[], Verdict]) -> None:
        """`ask`: waits for what rank 0 says at this point."""
        super().__init__()
        self._ask = ask
        self._free = False

    @property
    def is_set(self) -> bool:
        """Blocks until rank 0 has come to the same point."""
        if self._free:
            return False
        verdict = self._ask()
        self._free = verdict is Verdict.FREE
        return verdict is Verdict.STOP


def portable(error: Exception, rank: int) -> Exception:
    """The error as another process can read it: ours as they are, out of memory as that, the rest as text."""
    if isinstance(error, ReelrayError):
        return error
    text = (str(error).strip().splitlines() or [""])[0][:300]
    if isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(f"process {rank}: {text}")
    return RuntimeError(f"process {rank}: {type(error).__name__}: {text}")
