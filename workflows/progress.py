"""How far a clip and a job are. Pure arithmetic: knows no actor, no clock, no database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workflows.types import NodeStatus, Phase

INITIALISE_SHARE = 0.02
DIFFUSION_SHARE = 0.88
SAVING_SHARE = 0.10
"""Of one clip's progress: start-up, diffusion steps, decode + encode + save."""


def clip_fraction(phase: Phase, *, step: int = 0, total_steps: int = 1, saved: float = 0.0) -> float:
    """Share of a clip that is done, 0..1.

    `step` of `total_steps` denoising steps are finished; `saved` (0..1) is the share of the saving phase.
    """
    match phase:
        case Phase.INITIALISE:
            return 0.0
        case Phase.DIFFUSION:
            return INITIALISE_SHARE + DIFFUSION_SHARE * step / max(total_steps, 1)
        case Phase.SAVING:
            return INITIALISE_SHARE + DIFFUSION_SHARE + SAVING_SHARE * min(max(saved, 0.0), 1.0)
        case Phase.DONE:
            return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShare:
    """What a job's progress needs to know of one node."""

    cost: float
    status: NodeStatus
    fraction: float = 0.0
    """Live share while running, 0..1."""


UNFINISHED_CEILING = 0.999
"""A job shows 1.0 only when it is over."""


def job_fraction(nodes: Iterable[NodeShare], *, finished: bool, floor: float = 0.0) -> float:
    """Cost-weighted mean of the nodes, 0..1.

    Failed, skipped and cancelled nodes count as over. `floor` is what was shown before: a retried shot starts again,
    but the bar never moves back. 1.0 only when `finished`.
    """
    if finished:
        return 1.0
    total = done = 0.0
    for node in nodes:
        total += node.cost
        done += node.cost * (1.0 if node.status.is_terminal else min(max(node.fraction, 0.0), 1.0))
    return max(floor, min(done / total, UNFINISHED_CEILING) if total else 0.0)
