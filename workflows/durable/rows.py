"""What the ledger hands out: frozen rows of jobs, nodes and events. Knows no SQL beyond the shape of a result row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping

from workflows.errors import ErrorRecord, Fault, Retry
from workflows.types import Artifact, JobStatus, Json, NodeKind, NodeSpec, NodeStatus, Priority, digest


class EventType(StrEnum):
    """What an event row tells."""

    JOB_QUEUED = "job.queued"
    JOB_STARTED = "job.started"
    JOB_FINISHED = "job.finished"
    JOB_CANCEL_REQUESTED = "job.cancel_requested"
    JOB_RERUN = "job.rerun"
    NODE_STARTED = "node.started"
    NODE_SUCCEEDED = "node.succeeded"
    NODE_CACHED = "node.cached"
    NODE_RETRY = "node.retry"
    NODE_FAILED = "node.failed"
    NODE_SKIPPED = "node.skipped"
    NODE_CANCELLED = "node.cancelled"
    NODE_INTERRUPTED = "node.interrupted"
    LOG = "log"


class Level(StrEnum):
    """How loud a line of the job's log is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job sets itself; None: nothing."""

    concurrency: int | None = None
    """Nodes that run, or wait for their lane, at the same time, >= 1; they are taken in the order in which they become
    ready."""
    attempt_timeout_s: float | None = None
    """Longest run of one attempt at a model, > 0, where the settings of its kind allow longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job as submitted."""

    id: str
    kind: str = "film"
    title: str = ""
    priority: Priority = Priority.INTERACTIVE
    weight: float = 1.0
    """Share of the slots among jobs of one priority, > 0."""
    document: Mapping[str, Json]
    """The resolved storyboard and whatever the submitter wants to find again."""
    document_digest: str = ""
    """What makes a second submission under the same id the same one; empty: the digest of `document`."""
    nodes: tuple[NodeSpec, ...]
    """The DAG; its last node makes the job's result, or, if it does not accept holes, all that nothing else needs."""
    key_id: str = ""
    """The API key that asks for it and pays for it; empty: nobody was asked."""
    webhook_url: str = ""
    """A webhook of this job alone, registered in the commit that queues it; empty: none."""
    limits: Limits = Limits()
    batch_id: str = ""
    """The batch that it belongs to; empty: none."""

    @property
    def identity(self) -> str:
        """The digest in force."""
        return self.document_digest or digest(self.document)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job as it stands."""

    id: str
    kind: str
    title: str
    status: JobStatus
    priority: Priority
    weight: float
    document: Mapping[str, Json]
    document_digest: str
    cancel_requested: bool
    created_at_s: float
    started_at_s: float | None
    finished_at_s: float | None
    error: ErrorRecord | None
    """Why it failed: the first node's error."""
    warnings: tuple[str, ...]
    key_id: str = ""
    """The API key whose job it is; empty: nobody's."""
    limits: Limits = Limits()
    batch_id: str = ""
    """The batch that it belongs to; empty: none."""

    @classmethod
    def of(cls, row: RowMapping) -> JobRow:
        """From a row of the `job` table."""
        return cls(
            id=row["id"], kind=row["kind"], title=row["title"], status=JobStatus(row["status"]),
            priority=Priority(row["priority"]), weight=row["weight"], document=row["document"],
            document_digest=row["document_digest"], cancel_requested=bool(row["cancel_requested"]),
            created_at_s=row["created_at"], started_at_s=row["started_at"], finished_at_s=row["finished_at"],
            error=error_from(row["error"]),
            warnings=tuple(dict.fromkeys(str(warning["text"]) for warning in row["warnings"])),
            key_id=row["key_id"] or "",
            limits=Limits(concurrency=row["concurrency"], attempt_timeout_s=row["attempt_timeout_s"]),
            batch_id=row["batch_id"] or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """A node as it stands: its plan, and what became of it."""

    job_id: str
    id: str
    ord: int
    """Place in the job; the highest is the node that makes the result."""
    parent_id: str = ""
    """The node whose result inserted this one; empty when it was planned at submission."""
    kind: NodeKind
    shot_id: str
    deps: tuple[str, ...]
    payload: Mapping[str, Json]
    lane: str
    cost: float
    accepts_missing: bool
    status: NodeStatus = NodeStatus.PENDING
    attempt: int = 0
    """Starts so far, whatever ended them; never falls."""
    failures: int = 0
    """Attempts that used up a try."""
    crashes: int = 0
    """Times a replica died under it."""
    interruptions: int = 0
    """Times the Director died or went silent while it ran."""
    generation: int = 0
    key: str = ""
    """Content key; empty until every dependency is settled."""
    artifact: Artifact | None = None
    error: ErrorRecord | None = None
    """Of the last attempt that failed."""
    cached: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    started_at_s: float | None = None
    """Start of the last attempt."""
    finished_at_s: float | None = None

    @classmethod
    def of(cls, row: RowMapping) -> NodeRow:
        """From a row of the `node` table."""
        return cls(
            job_id=row["job_id"], id=row["id"], ord=row["ord"], parent_id=row["parent_id"], kind=NodeKind(row["kind"]),
            shot_id=row["shot_id"], deps=tuple(row["deps"]), payload=row["payload"], lane=row["lane"],
            cost=row["cost"], accepts_missing=bool(row["accepts_missing"]), status=NodeStatus(row["status"]),
            attempt=row["attempt"], failures=row["failures"], crashes=row["crashes"],
            interruptions=row["interruptions"], generation=row["generation"], key=row["key"],
            artifact=Artifact.from_json(row["artifact"]) if row["artifact"] else None,
            error=error_from(row["error"]), cached=bool(row["cached"]), seconds=row["seconds"],
            started_at_s=row["started_at"], finished_at_s=row["finished_at"],
        )

    @classmethod
    def planned(cls, job_id: str, spec: NodeSpec, *, ord: int, parent_id: str = "") -> NodeRow:
        """A node that has not been touched yet."""
        return cls(
            job_id=job_id, id=spec.id, ord=ord, parent_id=parent_id, kind=spec.kind, shot_id=spec.shot_id,
            deps=spec.deps, payload=dict(spec.payload), lane=spec.lane, cost=spec.cost,
            accepts_missing=spec.accepts_missing,
        )

    def plan_columns(self) -> dict[str, object]:
        """The columns that say what it is."""
        return {"job_id": self.job_id, "id": self.id, "ord": self.ord, "parent_id": self.parent_id,
                "kind": self.kind.value, "shot_id": self.shot_id, "deps": list(self.deps),
                "payload": dict(self.payload), "lane": self.lane, "cost": self.cost,
                "accepts_missing": self.accepts_missing}

    def state_columns(self) -> dict[str, object]:
        """The columns that say what became of it."""
        return {"status": self.status.value, "attempt": self.attempt, "failures": self.failures,
                "crashes": self.crashes, "interruptions": self.interruptions, "generation": self.generation,
                "key": self.key, "artifact": self.artifact.to_json() if self.artifact else None,
                "error": error_json(self.error), "cached": self.cached, "seconds": dict(self.seconds),
                "started_at": self.started_at_s, "finished_at": self.finished_at_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One thing that happened to a job."""

    seq: int
    """Grows within a job in the order of the commits; unique in the database."""
    job_id: str
    at_s: float
    type: EventType
    node_id: str
    """Empty for what concerns the whole job."""
    level: Level
    line: str
    """For a person; may be empty."""
    data: Mapping[str, Json]

    @classmethod
    def of(cls, row: RowMapping) -> EventRow:
        """From a row of the `event` table."""
        return cls(seq=row["seq"], job_id=row["job_id"], at_s=row["at"], type=EventType(row["type"]),
                   node_id=row["node_id"], level=Level(row["level"]), line=row["line"], data=row["data"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some jobs, newest first."""

    jobs: tuple[JobRow, ...]
    next_cursor: str
    """Hand it back for the next page; empty on the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Some lines of a job's log, oldest first."""

    next_offset: int
    """How many lines are known so far; ask from here next time."""
    lines: tuple[str, ...]
    """`2026-11-22 10:21:18 info s3.clip: attempt 2 starts`, in UTC."""


def error_json(error: ErrorRecord | None) -> dict[str, Json] | None:
    """An error as plain data for a JSON column."""
    if error is None:
        return None
    return {"type": error.type, "message": error.message, "fault": error.fault.value, "retry": error.retry.value,
            "detail": dict(error.detail)}


def error_from(data: Mapping[str, Any] | None) -> ErrorRecord | None:
    """The inverse of `error_json`."""
    if not data:
        return None
    return ErrorRecord(type=data["type"], message=data["message"], fault=Fault(data["fault"]),
                       retry=Retry(data["retry"]), detail=dict(data["detail"]))
