"""A batch as users see it, here and over the wire. Pure: knows no database and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workflows.durable.batch_rules import BatchStatus, Held
from workflows.estimate import Eta
from workflows.types import JobStatus, Json


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmView:
    """A file of a batch."""

    file: str
    job_id: str
    title: str
    status: JobStatus
    progress: float
    """0..1."""
    error: str
    """Why a shot of it failed, the first one's reason, or the whole; empty: nothing did."""

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"file": self.file, "job_id": self.job_id, "title": self.title, "status": self.status.value,
                "progress": round(self.progress, 4), "error": self.error or None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FilmView:
        """The inverse."""
        return cls(file=data["file"], job_id=data["job_id"], title=data["title"], status=JobStatus(data["status"]),
                   progress=data["progress"], error=data["error"] or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchView:
    """A batch as it is."""

    id: str
    name: str
    status: BatchStatus
    held: Held
    """Why it starts nothing."""
    progress: float
    """0..1, by planned seconds; 1.0 only when it is over."""
    eta: Eta | None
    jobs: Mapping[JobStatus, int]
    """How many are in which status; those of files that came back changed do not count."""
    running_nodes: int
    concurrency: int | None
    gpu_budget_s: float | None
    gpu_used_s: float
    created_at_s: float
    films: tuple[FilmView, ...] = ()
    """In the order of the files; empty in lists."""

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {
            "id": self.id, "name": self.name, "status": self.status.value, "held": self.held.value or None,
            "progress": round(self.progress, 4), "eta": self.eta.to_json() if self.eta else None,
            "jobs": {status.value: self.jobs.get(status, 0) for status in JobStatus},
            "running_nodes": self.running_nodes, "concurrency": self.concurrency, "gpu_budget_s": self.gpu_budget_s,
            "gpu_used_s": round(self.gpu_used_s, 3), "created_at": self.created_at_s,
            "films": [film.to_json() for film in self.films]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BatchView:
        """The inverse."""
        eta = data["eta"]
        return cls(
            id=data["id"], name=data["name"], status=BatchStatus(data["status"]), held=Held(data["held"] or ""),
            progress=data["progress"], eta=Eta(p50_s=eta["p50_s"], p90_s=eta["p90_s"]) if eta else None,
            jobs={JobStatus(name): count for name, count in data["jobs"].items()},
            running_nodes=data["running_nodes"], concurrency=data["concurrency"], gpu_budget_s=data["gpu_budget_s"],
            gpu_used_s=data["gpu_used_s"], created_at_s=data["created_at"],
            films=tuple(map(FilmView.from_json, data["films"])))
