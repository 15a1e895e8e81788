"""The pictures of a job as a list, in the words of clients that only want pictures. Pure; knows no HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.service.files import ShotFile
from serve_app.service.links import shot_file_url
from workflows.durable.rows import NodeRow
from workflows.types import Json, NodeKind, NodeStatus

STATUS = {NodeStatus.PENDING: "pending", NodeStatus.RUNNING: "processing", NodeStatus.SUCCEEDED: "completed",
          NodeStatus.FAILED: "failed", NodeStatus.SKIPPED: "failed", NodeStatus.CANCELLED: "failed"}
PARAMETERS = ("prompt", "negative_prompt", "steps", "guidance", "cache_threshold")
"""Of a node's payload; what else there is of it is told elsewhere, or says where files lie."""


def pictures_json(job_id: str, nodes: Sequence[NodeRow]) -> dict[str, Json]:
    """Every picture that the job draws, in film order."""
    return {"images": [_picture(job_id, node) for node in nodes if node.kind is NodeKind.KEYFRAME
                       and (node.artifact or node.status is not NodeStatus.SUCCEEDED)]}


def _picture(job_id: str, node: NodeRow) -> Json:
    made = node.artifact
    url, thumbnail_url = (shot_file_url(job_id, node.shot_id, what.value) if made else None
                          for what in (ShotFile.KEYFRAME, ShotFile.THUMBNAIL))
    parameters = {name: node.payload[name] for name in PARAMETERS if name in node.payload}
    return {
        "id": node.key, "storyboard": node.shot_id, "status": STATUS[node.status], "image_url": url,
        "thumbnail_url": thumbnail_url, "width": node.payload["width_px"], "height": node.payload["height_px"],
        "file_size": made.size_bytes if made else None, "model_provider": node.payload["card"],
        "generation_params": {**parameters, "seed": _seed(node)}, "error": node.error.message if node.error else None,
    }


def _seed(node: NodeRow) -> Json:
    """The one in force: a take that was forced has another one than was planned."""
    seed = node.payload["seed"]
    return seed + node.generation if isinstance(seed, int) else seed
