"""An edit as commands show it: a row per stage, however many chunks there are. Knows JobViews only."""

from __future__ import annotations

from collections.abc import Sequence

from workflows.status import JobView, NodeView, shot_status
from workflows.types import NodeStatus, Stage

EDIT = "edit"
"""Kind of the jobs that are shown so."""
STAGES = (Stage.EXTRACTING, Stage.MASKING, Stage.PROPAGATING, Stage.EDITING, Stage.SMOOTHING, Stage.SAVING)


def edit_rows(view: JobView) -> list[tuple[str, NodeView, NodeStatus, float, str]]:
    """Stage, all its nodes as one, its status, its progress (0..1), and nothing more to say."""
    nodes = [*(node for shot in view.shots for node in shot.nodes), *view.film]
    rows = [_summed(stage, [node for node in nodes if node.stage is stage]) for stage in STAGES]
    return [(node.id, node, node.status, node.progress, "") for node in rows if node is not None]


def _summed(stage: Stage, nodes: Sequence[NodeView]) -> NodeView | None:
    if not nodes:
        return None
    status = shot_status({node.status for node in nodes})
    shown = next((node for node in nodes if node.status is status), nodes[-1])
    return NodeView(
        id=stage.value, kind=shown.kind, stage=stage, status=status, attempt=shown.attempt,
        cached=all(node.cached for node in nodes), step=shown.step, total_steps=shown.total_steps,
        timestep=shown.timestep, progress=sum(node.progress for node in nodes) / len(nodes),
        message=_message(status, shown, nodes), seconds=sum(node.seconds for node in nodes), artifact=None)


def _message(status: NodeStatus, shown: NodeView, nodes: Sequence[NodeView]) -> str:
    if status is NodeStatus.FAILED:
        return shown.message
    if status is not NodeStatus.RUNNING:
        return ""
    done = sum(node.status is NodeStatus.SUCCEEDED for node in nodes)
    many = f"{done} of {len(nodes)} done" if len(nodes) > 1 else ""
    step = shown.message if "step" in shown.message else (
        f"frame {shown.step} of {shown.total_steps}" if shown.total_steps > 1 else "")
    return ", ".join(part for part in (many, step) if part)
