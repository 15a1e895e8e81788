"""What happened to a job, in the words of its event stream. Pure: rows and steps in, named events out.

The same rows in the same order give the same events, whoever tells them: any process can continue another's stream.

stage_update     stage: {id, status, stage_type, started_at}
info, warning    message
progress         current, total, message, storyboard; also stage, and of a step of the film: node, attempt, phase,
                 timestep, node_progress
image_generated  storyboard_id, image: {id, url, width, height}
shot_update      shot: {id, status, progress, step, total_steps, timestep, attempt, message, node, kind, phase,
                 node_progress}; progress (job)
error            error, and storyboard_id where one shot is meant
done             message, data: {total_storyboards, success_count, failed_count, generated_image_ids}, stage, status

`storyboard` and `storyboard_id` are ids of shots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from workflows.durable.rows import EventRow, EventType, Level, NodeRow
from workflows.progress import UNFINISHED_CEILING
from workflows.status import last_stage, shot_status
from workflows.types import JobStatus, Json, NodeKind, NodeStatus, ProgressRecord, Stage


class Name(StrEnum):
    """Events of the stream."""

    STAGE_UPDATE = "stage_update"
    INFO = "info"
    PROGRESS = "progress"
    IMAGE_GENERATED = "image_generated"
    SHOT_UPDATE = "shot_update"
    WARNING = "warning"
    ERROR = "error"
    DONE = "done"
    SNAPSHOT = "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event."""

    name: Name
    data: dict[str, Json]


@dataclass(slots=True, kw_only=True)
class _Node:
    """A node as the events so far leave it."""

    row: NodeRow
    status: NodeStatus = NodeStatus.PENDING
    attempt: int = 0
    key: str = ""
    message: str = ""
    record: ProgressRecord | None = None

    @property
    def fraction(self) -> float:
        if self.status.is_terminal:
            return 1.0
        return self.record.fraction if self.record and self.status is NodeStatus.RUNNING else 0.0


@dataclass(slots=True, kw_only=True)
class _StageState:
    status: str = "pending"
    started_at_s: float | None = None
    statuses: Counter[NodeStatus] = field(default_factory=Counter)
    """Of its nodes."""
    open: dict[str, int] = field(default_factory=dict)
    """Shot -> its nodes in this stage that are not settled."""
    told: int = 0
    """Shots of this stage that were reported as over."""


NOUNS = {Stage.STORY: "story", Stage.IMAGES: "image", Stage.VIDEOS: "clip", Stage.COMPOSITION: "film",
         Stage.EXTRACTING: "video", Stage.MASKING: "mask", Stage.PROPAGATING: "track", Stage.EDITING: "edit",
         Stage.SMOOTHING: "smoothing", Stage.SAVING: "file"}
NODE_STATUS = {
    EventType.NODE_STARTED: NodeStatus.RUNNING, EventType.NODE_SUCCEEDED: NodeStatus.SUCCEEDED,
    EventType.NODE_CACHED: NodeStatus.SUCCEEDED, EventType.NODE_RETRY: NodeStatus.PENDING,
    EventType.NODE_FAILED: NodeStatus.FAILED, EventType.NODE_SKIPPED: NodeStatus.SKIPPED,
    EventType.NODE_CANCELLED: NodeStatus.CANCELLED, EventType.NODE_INTERRUPTED: NodeStatus.PENDING,
}
STAGE_STATUS = {JobStatus.SUCCEEDED: "completed", JobStatus.PARTIAL: "partial", JobStatus.FAILED: "failed",
                JobStatus.CANCELLED: "cancelled"}


@dataclass(slots=True, kw_only=True)
class Teller:
    """One job's story so far. `url_of(shot_id)` is where a shot's keyframe is found."""

    job_id: str
    url_of: Callable[[str], str]
    warnings: Sequence[str] = ()
    """Said when the job was submitted."""
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _stages: dict[Stage, _StageState] = field(default_factory=lambda: {stage: _StageState() for stage in Stage})
    _shots: dict[str, list[_Node]] = field(default_factory=dict)
    _total_cost: float = 0.0
    _done_cost: float = 0.0
    _progress: float = 0.0

    def plan(self, nodes: Sequence[NodeRow]) -> None:
        """These are the job's nodes now; only what they are counts, what became of them is in the events."""
        known = self._nodes
        self._nodes = {row.id: known.get(row.id) or _Node(row=row) for row in nodes}
        self._shots, self._total_cost, self._done_cost = {}, 0.0, 0.0
        for state in self._stages.values():
            state.statuses, state.open = Counter(), {}
        for row in nodes:
            node = self._nodes[row.id]
            node.row = row
            self._total_cost += row.cost
            self._count(node, 1)
            if row.shot_id:
                self._shots.setdefault(row.shot_id, []).append(node)

    def knows(self, node_id: str) -> bool:
        """Whether the node is in the plan."""
        return node_id in self._nodes

    def event(self, row: EventRow) -> list[Told]:
        """What a row of the job's history means to those who watch."""
        if row.type in NODE_STATUS:
            node = self._nodes.get(row.node_id)
            return self._node_moved(node, row) if node else []  # of a plan that was replaced since
        match row.type:
            case EventType.JOB_QUEUED:
                return [_says(Name.INFO, row.line), *(_says(Name.WARNING, text) for text in self.warnings)]
            case EventType.JOB_RERUN:
                self._reopened(row)
                return [_says(Name.INFO, row.line)]
            case EventType.JOB_FINISHED:
                return self._finished(row)
            case EventType.LOG if row.level is not Level.INFO:
                # Errors of the log are lines of a stack trace; the failure itself has its own event.
                return [_says(Name.WARNING, row.line)] if row.level is Level.WARNING else []
        return [_says(Name.INFO, row.line)] if row.line else []

    def step(self, record: ProgressRecord) -> list[Told]:
        """What a step of a running node means; nothing when the node has moved on."""
        node = self._nodes.get(record.node_id)
        if node is None or record.attempt < node.attempt or (record.attempt == node.attempt and node.attempt
                                                             and node.status is not NodeStatus.RUNNING):
            return []
        # A step may arrive before the row that says that its attempt began.
        self._move(node, NodeStatus.RUNNING, record)
        node.attempt, node.message = record.attempt, record.text()
        if node.row.shot_id:
            return [self._shot_update(node)]
        told = self._progress_told(node.row.kind.stage, record.step, record.total_steps,
                                   f"{NOUNS[node.row.kind.stage]}: {node.message}", "")
        told.data.update({"node": node.row.id, "attempt": record.attempt, "phase": record.phase.value,
                          "timestep": record.timestep, "node_progress": round(record.fraction, 4)})
        return [told]

    def _node_moved(self, node: _Node, row: EventRow) -> list[Told]:
        attempt, key = row.data.get("attempt"), row.data.get("key")
        record = node.record
        begun = record and row.type is EventType.NODE_STARTED and record.attempt == attempt
        self._move(node, NODE_STATUS[row.type], record if begun else None)
        node.attempt = attempt if isinstance(attempt, int) else node.attempt
        node.key = str(key) if key and node.status is NodeStatus.SUCCEEDED else ""
        node.message = _reason(row) if node.status is NodeStatus.FAILED else node.message if begun else ""
        told = self._stage_moved(node.row.kind.stage, row.at_s)
        if row.type is EventType.NODE_FAILED:
            told.append(Told(name=Name.ERROR, data={
                "error": node.message, **({"storyboard_id": node.row.shot_id} if node.row.shot_id else {})}))
        elif row.type in (EventType.NODE_RETRY, EventType.NODE_SKIPPED):
            told.append(_says(Name.WARNING, row.line))
        if node.key and node.row.kind is NodeKind.KEYFRAME:
            told.append(self._image(node))
        told += self._counted(node)
        if node.row.shot_id:
            told.append(self._shot_update(node))
        return told

    def _stage_moved(self, stage: Stage, at_s: float) -> list[Told]:
        state = self._stages[stage]
        status = _stage_status(state.statuses)
        if status == state.status:
            return []
        if state.started_at_s is None:
            state.started_at_s = at_s
        state.status = status
        return [Told(name=Name.STAGE_UPDATE, data={"stage": self._stage_json(stage)})]

    def _counted(self, node: _Node) -> list[Told]:
        """`image 3/6` when a shot is over in its stage."""
        stage, shot_id = node.row.kind.stage, node.row.shot_id
        state = self._stages[stage]
        over = sum(not left for left in state.open.values()) if not state.open[shot_id] else state.told
        if over == state.told:
            return []
        state.told, total = over, len(state.open)
        return [self._progress_told(stage, over, total, f"{NOUNS[stage]} {over}/{total}", shot_id)]

    def _move(self, node: _Node, status: NodeStatus, record: ProgressRecord | None) -> None:
        self._count(node, -1)
        node.status, node.record = status, record
        self._count(node, 1)

    def _count(self, node: _Node, sign: int) -> None:
        """Keep the sums that every event shows; a film may have thousands of nodes."""
        state, shot_id = self._stages[node.row.kind.stage], node.row.shot_id
        self._done_cost += sign * node.row.cost * node.fraction
        state.statuses[node.status] += sign
        state.open[shot_id] = state.open.get(shot_id, 0) + (0 if node.status.is_terminal else sign)

    def _progress_told(self, stage: Stage, current: int, total: int, message: str, shot_id: str) -> Told:
        return Told(name=Name.PROGRESS, data={"current": current, "total": total, "message": message,
                                              "storyboard": shot_id, "stage": stage.value})

    def _image(self, node: _Node) -> Told:
        payload = node.row.payload
        return Told(name=Name.IMAGE_GENERATED, data={"storyboard_id": node.row.shot_id, "image": {
            "id": node.key, "url": self.url_of(node.row.shot_id), "width": payload.get("width_px"),
            "height": payload.get("height_px")}})

    def _shot_update(self, node: _Node) -> Told:
        mine = self._shots[node.row.shot_id]
        record = node.record
        return Told(name=Name.SHOT_UPDATE, data={"progress": round(self._fraction(), 4), "shot": {
            "id": node.row.shot_id, "status": shot_status([other.status for other in mine]).value,
            "progress": round(sum(other.fraction for other in mine) / len(mine), 4),
            "step": record.step if record else 0, "total_steps": record.total_steps if record else 0,
            "timestep": record.timestep if record else 0.0, "attempt": node.attempt, "message": node.message,
            "node": node.row.id, "kind": node.row.kind.value, "phase": record.phase.value if record else "",
            "node_progress": round(node.fraction, 4)}})

    def _fraction(self) -> float:
        """Of the whole job; never falls while it runs."""
        share = self._done_cost / self._total_cost if self._total_cost else 0.0
        self._progress = max(self._progress, min(share, UNFINISHED_CEILING))
        return self._progress

    def _reopened(self, row: EventRow) -> None:
        ids = row.data.get("nodes")
        for node_id in ids if isinstance(ids, list) else []:
            node = self._nodes.get(str(node_id))
            if node is not None:
                self._move(node, NodeStatus.PENDING, None)
                node.message = node.key = ""
                state = self._stages[node.row.kind.stage]
                state.status, state.started_at_s = "pending", None
        for state in self._stages.values():
            state.told = sum(not left for left in state.open.values())
        self._progress = 0.0

    def _finished(self, row: EventRow) -> list[Told]:
        status = JobStatus(str(row.data.get("status", JobStatus.FAILED.value)))
        good = sum(all(node.status is NodeStatus.SUCCEEDED for node in nodes) for nodes in self._shots.values())
        images: list[Json] = [node.key for node in self._nodes.values()
                              if node.row.kind is NodeKind.KEYFRAME and node.key]
        stage = last_stage(node.row.kind for node in self._nodes.values())
        self._stages[stage].status = STAGE_STATUS[status]
        self._progress = 1.0
        return [Told(name=Name.DONE, data={
            "message": row.line, "status": status.value, "stage": self._stage_json(stage),
            "data": {"total_storyboards": len(self._shots), "success_count": good,
                     "failed_count": len(self._shots) - good, "generated_image_ids": images}})]

    def _stage_json(self, stage: Stage) -> dict[str, Json]:
        state = self._stages[stage]
        return {"id": f"{self.job_id}:{stage.value}", "status": state.status, "stage_type": stage.value,
                "started_at": state.started_at_s}


def _says(name: Name, message: str) -> Told:
    return Told(name=name, data={"message": message})


def _reason(row: EventRow) -> str:
    error = row.data.get("error")
    return str(error["message"]) if isinstance(error, dict) and "message" in error else row.line


def _stage_status(statuses: Counter[NodeStatus]) -> str:
    """Of a stage whose nodes have these, in the words of the image stage's clients."""
    present = {status for status, count in statuses.items() if count}
    if present <= {NodeStatus.PENDING}:
        return "pending"
    if not all(status.is_terminal for status in present):
        return "processing"
    if present == {NodeStatus.SUCCEEDED}:
        return "completed"
    if NodeStatus.SUCCEEDED in present:
        return "partial"
    return "cancelled" if NodeStatus.CANCELLED in present and NodeStatus.FAILED not in present else "failed"
