"""How long is left, learned from what finished lately. Pure arithmetic: knows no clock and no database.

A model node is compared only with nodes of the same card and shape; without one there is no estimate. CPU nodes have no
shape that repeats: theirs is the plan's cost in seconds, corrected by how much longer such nodes really took.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from workflows.fair_queue import path_ranks
from workflows.types import Json, NodeKind, Priority

MODEL_KINDS = frozenset({NodeKind.KEYFRAME, NodeKind.CLIP})
SHAPE_FIELDS = ("card", "card_digest", "width_px", "height_px", "frames", "steps")
NEWEST = 50
"""Samples per shape that count; older ones were made on another day's machine."""

Shape = tuple[Json, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A node, finished or not, as far as its duration is concerned."""

    job_id: str
    id: str
    kind: NodeKind
    lane: str
    cost: float
    """Planned seconds."""
    shape: Shape = ()
    """Empty for CPU nodes."""
    deps: tuple[str, ...] = ()
    seconds: float = 0.0
    """What it took; 0 while it is open."""
    fraction: float = 0.0
    """Done so far, 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """Seconds until the job is over."""

    p50_s: float
    p90_s: float

    def to_json(self) -> dict[str, Json]:
        """Rounded to tenths."""
        return {"p50_s": round(self.p50_s, 1), "p90_s": round(self.p90_s, 1)}


def shape_of(kind: NodeKind, payload: Mapping[str, Json]) -> Shape:
    """What nodes must share for one to tell how long the other takes."""
    if kind not in MODEL_KINDS:
        return ()
    guidance, cache, pictures = payload.get("guidance"), payload.get("cache"), payload.get("references")
    # Guidance runs the model twice per step; a cache leaves out parts of it; each reference picture makes it longer.
    guided = isinstance(guidance, int | float) and guidance > 1
    threshold = cache["threshold"] if isinstance(cache, dict) else None
    looked_at = len(pictures) if isinstance(pictures, list) else 0
    return (*(payload.get(name) for name in SHAPE_FIELDS), guided, threshold, looked_at)


class Pace:
    """Durations of finished nodes."""

    def __init__(self, finished: Iterable[Work]) -> None:
        """`finished`: newest first."""
        self._by_shape: dict[Shape, list[float]] = defaultdict(list)
        self._ratios: dict[NodeKind, list[float]] = defaultdict(list)
        for work in finished:
            samples = self._by_shape[work.shape] if work.shape else self._ratios[work.kind]
            if len(samples) < NEWEST:
                samples.append(work.seconds if work.shape else work.seconds / work.cost)

    def seconds(self, work: Work, share: float) -> float | None:
        """How long such a node takes at most in `share` (0..1) of the cases; None when none of its shape was seen."""
        if work.shape:
            samples = self._by_shape.get(work.shape)
            return quantile(samples, share) if samples else None
        ratios = self._ratios.get(work.kind)
        return work.cost * (quantile(ratios, share) if ratios else 1.0)

    def expected_s(self, work: Work) -> float:
        """The median, or the planned cost where nothing like it was seen."""
        known = self.seconds(work, 0.5)
        return work.cost if known is None else known


def quantile(samples: Sequence[float], share: float) -> float:
    """Smallest sample that at least `share` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def estimate(
    mine: Sequence[Work], others: Sequence[tuple[Work, Priority]], *, priority: Priority, pace: Pace,
    slots: Mapping[str, int],
) -> Eta | None:
    """When the open nodes `mine` will be done; None when one of them is of a shape never seen.

    `others` are the open nodes of other jobs, which share the lanes: jobs of a higher class go first, jobs of the same
    class take turns. `slots` are the calls in flight that each lane has room for.
    """
    def left(share: float) -> float | None:
        known = {work.id: pace.seconds(work, share) for work in mine}
        if any(seconds is None for seconds in known.values()):
            return None
        own = {work.id: (known[work.id] or 0.0) * (1 - work.fraction) for work in mine}
        lanes: dict[str, float] = defaultdict(float)
        for work in mine:
            lanes[work.lane] += own[work.id]
        ahead = _ahead(lanes, others, priority, lambda work: pace.expected_s(work) * (1 - work.fraction))
        queues = [(lanes[lane] + ahead[lane]) / max(slots.get(lane, 1), 1) for lane in lanes]
        return max([_longest_path(mine, own), *queues])

    p50_s, p90_s = left(0.5), left(0.9)
    if p50_s is None or p90_s is None:
        return None
    return Eta(p50_s=p50_s, p90_s=max(p50_s, p90_s))


def _ahead(lanes: Mapping[str, float], others: Sequence[tuple[Work, Priority]], priority: Priority,
           seconds: Callable[[Work], float]) -> dict[str, float]:
    """Work of other jobs that each lane does before this job's last node; `lanes` is this job's own."""
    theirs: dict[tuple[str, str, Priority], float] = defaultdict(float)
    for work, rank in others:
        theirs[work.lane, work.job_id, rank] += seconds(work)
    ahead: dict[str, float] = defaultdict(float)
    for (lane, _, rank), total in theirs.items():
        if rank is priority:
            ahead[lane] += min(total, lanes.get(lane, 0.0))
        elif rank is Priority.INTERACTIVE:
            ahead[lane] += total
    return ahead


def _longest_path(mine: Sequence[Work], own: Mapping[str, float]) -> float:
    """Seconds of the longest chain of nodes that wait for each other."""
    left = [replace(work, cost=own[work.id], deps=tuple(dep for dep in work.deps if dep in own)) for work in mine]
    return max(path_ranks(left).values(), default=0.0)
