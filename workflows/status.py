"""What users see of a job: rows of the database and live steps, joined. Pure: knows neither database nor actor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflows.durable.rows import JobRow, NodeRow
from workflows.progress import NodeShare, job_fraction
from workflows.retakes import picked, scores_of, take_of
from workflows.tiers import Tier, tier_of
from workflows.types import ONLY_BELOW, Artifact, JobStatus, Json, NodeKind, NodeStatus, Priority, ProgressRecord, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node as users see it."""

    id: str
    kind: NodeKind
    stage: Stage
    status: NodeStatus
    attempt: int
    cached: bool
    step: int
    """Denoising steps finished by the running attempt."""
    total_steps: int
    timestep: float
    progress: float
    """0..1."""
    message: str
    """`diffusion step 12/50 (timestep 760.00)`, the error's text, or empty."""
    seconds: float
    """How long the node took; 0 until it is done."""
    artifact: Artifact | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotView:
    """One shot: its nodes, and the status of the whole."""

    id: str
    status: NodeStatus
    progress: float
    nodes: tuple[NodeView, ...]
    tier: Tier = Tier.FINAL
    consistency: float | None = None
    """How much its clip looks like its characters' reference pictures, -1..1, by the least alike; None: not known."""
    take: int | None = None
    """Which take the film uses, where a score decides about it; None: nothing is decided so, or not yet."""
    scores: Mapping[int, float] = field(default_factory=dict)
    """Of such a shot's takes."""

    @property
    def current(self) -> NodeView:
        """The node to show: the one that runs, else the one that failed, else the last that did anything."""
        for wanted in (NodeStatus.RUNNING, NodeStatus.FAILED):
            for node in self.nodes:
                if node.status is wanted:
                    return node
        done = [node for node in self.nodes if node.status is not NodeStatus.PENDING]
        return done[-1] if done else self.nodes[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as users see it."""

    id: str
    kind: str
    """`film`."""
    title: str
    status: JobStatus
    stage: Stage
    progress: float
    """0..1, never falls; 1.0 only when the job is over."""
    priority: Priority
    created_at_s: float
    started_at_s: float | None
    finished_at_s: float | None
    shots: tuple[ShotView, ...]
    film: tuple[NodeView, ...]
    """Nodes that belong to no shot: story, compose."""
    warnings: tuple[str, ...]
    errors: Mapping[str, str]
    """Shot or node id -> why it failed."""

    @property
    def result(self) -> Artifact | None:
        """The film once it is composed, the edited video once it is saved."""
        for node in self.film:
            if node.kind in (NodeKind.COMPOSE, NodeKind.SAVE):
                return node.artifact if node.status is NodeStatus.SUCCEEDED else None
        return None

    @property
    def drafts(self) -> tuple[str, ...]:
        """The shots that are drafts."""
        return tuple(shot.id for shot in self.shots if shot.tier is Tier.DRAFT)

    @property
    def pictures(self) -> Mapping[str, Artifact]:
        """The pictures by shot, where they are what the job is for; empty for a film."""
        of_shots = [(shot.id, node) for shot in self.shots for node in shot.nodes]
        if last_stage(node.kind for node in (*self.film, *(node for _, node in of_shots))) is not Stage.IMAGES:
            return {}
        return {shot_id: node.artifact for shot_id, node in of_shots
                if node.kind is NodeKind.KEYFRAME and node.artifact}

    def to_json(self) -> dict[str, Json]:
        """As plain data, with the field names of the status reply."""
        return {
            "id": self.id, "kind": self.kind, "title": self.title, "status": self.status.value,
            "stage": self.stage.value, "progress": round(self.progress, 4), "priority": self.priority.value,
            "created_at": self.created_at_s, "started_at": self.started_at_s, "finished_at": self.finished_at_s,
            "shots": [_shot_json(shot) for shot in self.shots], "film": [_node_json(node) for node in self.film],
            "warnings": list(self.warnings), "errors": dict(self.errors),
            "video": self.result.to_json() if self.result else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobView:
        """The inverse of `to_json`; also of a server's reply, which does not say where files lie."""
        return cls(
            id=data["id"], kind=data["kind"], title=data["title"], status=JobStatus(data["status"]),
            stage=Stage(data["stage"]), progress=data["progress"], priority=Priority(data["priority"]),
            created_at_s=data["created_at"], started_at_s=data["started_at"], finished_at_s=data["finished_at"],
            shots=tuple(map(_shot_of_json, data["shots"])),
            film=tuple(map(_node_of_json, data["film"])), warnings=tuple(data["warnings"]), errors=dict(data["errors"]))


def job_view(job: JobRow, nodes: Sequence[NodeRow], live: Mapping[str, ProgressRecord] | None = None,
             floor: float = 0.0) -> JobView:
    """Join a job's rows with the newest live record of each running node (by node id).

    `floor` is the progress shown before (0..1). Records of an attempt other than the row's are ignored.
    """
    live = live or {}
    views = {node.id: _node_view(node, live.get(node.id)) for node in nodes}
    shares = [NodeShare(cost=node.cost, status=node.status, fraction=views[node.id].progress) for node in nodes]
    shots: dict[str, list[NodeView]] = {}
    for node in nodes:
        if node.shot_id:
            shots.setdefault(node.shot_id, []).append(views[node.id])
    return JobView(
        id=job.id, kind=job.kind, title=job.title, status=job.status, priority=job.priority,
        # A take that may not be needed is no stage that the job is in.
        stage=job_stage([(node.kind, node.status) for node in nodes
                         if node.status is not NodeStatus.PENDING or ONLY_BELOW not in node.payload], job.status),
        progress=job_fraction(shares, finished=job.status.is_terminal, floor=floor),
        created_at_s=job.created_at_s, started_at_s=job.started_at_s, finished_at_s=job.finished_at_s,
        shots=tuple(_shot_view(shot_id, mine, tier_of(job.document, shot_id)) for shot_id, mine in shots.items()),
        film=tuple(views[node.id] for node in nodes if not node.shot_id),
        warnings=tuple(dict.fromkeys((*planned_warnings(job), *job.warnings))),
        errors={n.shot_id or n.id: n.error.message for n in nodes if n.status is NodeStatus.FAILED and n.error},
    )


def planned_warnings(job: JobRow) -> tuple[str, ...]:
    """What was said when the job was submitted (its document keeps it)."""
    said = job.document.get("warnings")
    return tuple(str(text) for text in said) if isinstance(said, list) else ()


def _node_view(node: NodeRow, record: ProgressRecord | None) -> NodeView:
    running = node.status is NodeStatus.RUNNING
    if record and (not running or record.attempt != node.attempt):
        record = None
    message = node.error.message if node.error and node.status is NodeStatus.FAILED else record.text() if record else ""
    ended = node.finished_at_s is not None and node.started_at_s is not None and node.status.is_terminal
    return NodeView(
        id=node.id, kind=node.kind, stage=node.kind.stage, status=node.status, attempt=node.attempt, cached=node.cached,
        step=record.step if record else 0, total_steps=record.total_steps if record else 0,
        timestep=record.timestep if record else 0.0,
        progress=1.0 if node.status.is_terminal else record.fraction if record else 0.0, message=message,
        seconds=(node.finished_at_s or 0.0) - (node.started_at_s or 0.0) if ended else 0.0, artifact=node.artifact,
    )


def shot_status(statuses: Collection[NodeStatus]) -> NodeStatus:
    """The status of a shot whose nodes have these."""
    order = (NodeStatus.RUNNING, NodeStatus.FAILED, NodeStatus.CANCELLED, NodeStatus.SKIPPED, NodeStatus.PENDING)
    status = next((status for status in order if status in statuses), NodeStatus.SUCCEEDED)
    between_two_nodes = status is NodeStatus.PENDING and NodeStatus.SUCCEEDED in statuses
    return NodeStatus.RUNNING if between_two_nodes else status


def _shot_view(shot_id: str, nodes: list[NodeView], tier: Tier) -> ShotView:
    # A score that failed takes nothing from the shot; the job tells of it.
    status = shot_status({node.status for node in nodes if node.kind is not NodeKind.SCORE})
    scores, chosen = scores_of(nodes), picked(nodes)
    decided = any(node.kind is NodeKind.PICK for node in nodes)
    take = take_of(chosen.id) if chosen else None
    newest = next(reversed(scores.values()), None)
    return ShotView(id=shot_id, status=status, nodes=tuple(nodes), tier=tier, take=take,
                    consistency=newest if take is None else scores.get(take), scores=scores if decided else {},
                    progress=sum(node.progress for node in nodes) / len(nodes))


def job_stage(nodes: Collection[tuple[NodeKind, NodeStatus]], status: JobStatus) -> Stage:
    """The earliest stage with open work; the job's last stage once it is over."""
    open_stages = [kind.stage for kind, at in nodes if not at.is_terminal]
    if status.is_terminal or not open_stages:
        return last_stage(kind for kind, _ in nodes)
    return min(open_stages, key=list(Stage).index)


def last_stage(kinds: Iterable[NodeKind]) -> Stage:
    """The stage after which a job with such nodes is over; a script that was not told yet would have become a film."""
    stages = {kind.stage for kind in kinds}
    if Stage.SAVING in stages:
        return Stage.SAVING
    return Stage.IMAGES if Stage.IMAGES in stages and Stage.COMPOSITION not in stages else Stage.COMPOSITION


def _node_json(node: NodeView) -> dict[str, Json]:
    return {
        "id": node.id, "kind": node.kind.value, "stage": node.stage.value, "status": node.status.value,
        "attempt": node.attempt, "cached": node.cached, "step": node.step, "total_steps": node.total_steps,
        "timestep": node.timestep, "progress": round(node.progress, 4), "message": node.message,
        "seconds": round(node.seconds, 3), "artifact": node.artifact.to_json() if node.artifact else None,
    }


def _node_of_json(data: Mapping[str, Any]) -> NodeView:
    artifact = data["artifact"]
    return NodeView(
        id=data["id"], kind=NodeKind(data["kind"]), stage=Stage(data["stage"]), status=NodeStatus(data["status"]),
        attempt=data["attempt"], cached=data["cached"], step=data["step"], total_steps=data["total_steps"],
        timestep=data["timestep"], progress=data["progress"], message=data["message"], seconds=data["seconds"],
        artifact=Artifact.from_json({"uri": "", **artifact}) if artifact else None)


def _shot_of_json(data: Mapping[str, Any]) -> ShotView:
    return ShotView(
        id=data["id"], status=NodeStatus(data["status"]), progress=data["progress"],
        nodes=tuple(map(_node_of_json, data["nodes"])), consistency=data.get("consistency"),
        tier=Tier(data.get("tier", Tier.FINAL)), take=data.get("take"),
        scores={int(take): score for take, score in data.get("scores", {}).items()})


def _shot_json(shot: ShotView) -> dict[str, Json]:
    current = shot.current
    return {
        "id": shot.id, "status": shot.status.value, "progress": round(shot.progress, 4), "step": current.step,
        "total_steps": current.total_steps, "timestep": current.timestep, "attempt": current.attempt,
        "message": current.message, "tier": shot.tier.value, "consistency": shot.consistency,
        "take": shot.take, "scores": {str(take): score for take, score in shot.scores.items()},
        "nodes": [_node_json(node) for node in shot.nodes],
    }
