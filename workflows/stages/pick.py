"""The stage that says which take of a shot the film uses. Looks at scores that were measured; renders nothing."""

from __future__ import annotations

from workflows.errors import StageFailed
from workflows.retakes import take_of
from workflows.stages.render import number
from workflows.types import Artifact, NodeCall, NodeKind, NodeResult


async def pick(call: NodeCall) -> NodeResult:
    """The clip whose score is highest, as it is: what is made of it has the keys that it would have without a choice.

    The earliest of equals; one that was not measured comes last. Warns where no take was good enough. Raises
    StageFailed without any clip.
    """
    clips = _by_take(call, NodeKind.CLIP)
    scores = {take: made.score for take, made in _by_take(call, NodeKind.SCORE).items() if made.score is not None}
    if not clips:
        raise StageFailed(node_id=call.node_id, reason="no take of the shot was rendered")
    best = max(clips, key=lambda take: (scores.get(take, -2.0), -take))
    below = number(call.payload["below"])
    if scores.get(best, -2.0) >= below:
        return NodeResult(artifact=clips[best])
    told = ", ".join(f"take {take} {_text(scores.get(take))}" for take in sorted(clips))
    return NodeResult(artifact=clips[best], warnings=(
        f"shot {call.shot_id}: no take scores {below:g} or more ({told}); the film uses take {best}",))


def _by_take(call: NodeCall, kind: NodeKind) -> dict[int, Artifact]:
    made = {node_id: artifact for node_id, artifact in call.inputs.items() if artifact is not None}
    return {take_of(node_id): artifact for node_id, artifact in made.items() if node_id.split(".")[1] == kind.value}


def _text(score: float | None) -> str:
    return "not measured" if score is None else f"{score:.2f}"
