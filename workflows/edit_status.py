"""How far an edit is, as its users see it. Pure: rows and live records in, one value out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workflows.durable.rows import JobRow, NodeRow
from workflows.status import job_view
from workflows.types import JobStatus, Json, NodeKind, ProgressRecord, Stage


class EditState(StrEnum):
    """Where an edit stands."""

    QUEUED = "queued"
    EXTRACTING = "extracting"
    MASKING = "masking"
    PROPAGATING = "propagating"
    EDITING = "editing"
    SMOOTHING = "smoothing"
    SAVING = "saving"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Nothing more happens by itself."""
        return self in (EditState.FINISHED, EditState.FAILED, EditState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoEditStatus:
    """What `status.json` holds."""

    status: EditState
    progress: float
    """0..1, never falls while the job runs; 1.0 only when it is over."""
    current_frame: int = 0
    """Frames done in the stage that runs."""
    total_frames: int = 0
    message: str = ""
    error: str = ""
    """Why it failed; empty otherwise."""
    output_video_path: str = ""
    """Empty until the file is there; so are the next two."""
    mask_preview_path: str = ""
    logs_path: str = ""

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {"status": self.status.value, "progress": round(self.progress, 4), "current_frame": self.current_frame,
                "total_frames": self.total_frames, "message": self.message, "error": self.error,
                "output_video_path": self.output_video_path, "mask_preview_path": self.mask_preview_path,
                "logs_path": self.logs_path}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> VideoEditStatus:
        """The inverse of `to_json`; ValueError or KeyError for what that never writes."""
        texts = {name: str(data[name]) for name in (
            "message", "error", "output_video_path", "mask_preview_path", "logs_path")}
        return cls(status=EditState(str(data["status"])), progress=float(str(data["progress"])),
                   current_frame=int(str(data["current_frame"])), total_frames=int(str(data["total_frames"])),
                   message=texts["message"], error=texts["error"], output_video_path=texts["output_video_path"],
                   mask_preview_path=texts["mask_preview_path"], logs_path=texts["logs_path"])


DOING = {
    Stage.EXTRACTING: "reading the video", Stage.MASKING: "finding the region",
    Stage.PROPAGATING: "following the region", Stage.EDITING: "editing", Stage.SMOOTHING: "smoothing",
    Stage.SAVING: "saving"}
ENDED = {JobStatus.SUCCEEDED: EditState.FINISHED, JobStatus.PARTIAL: EditState.FINISHED,
         JobStatus.FAILED: EditState.FAILED, JobStatus.CANCELLED: EditState.CANCELLED}


def edit_status(job: JobRow, nodes: Sequence[NodeRow], live: Mapping[str, ProgressRecord], *, frames: int,
                floor: float = 0.0) -> VideoEditStatus:
    """Of an edit of so many frames; `live`: the newest record of each running node, `floor`: the progress shown before.

    Paths are left empty: only who writes the files knows them.
    """
    view = job_view(job, nodes, live, floor)
    if job.status is JobStatus.QUEUED:
        return VideoEditStatus(status=EditState.QUEUED, progress=view.progress, total_frames=frames,
                               message="waiting for a place")
    if job.status.is_terminal:
        done = job.status in (JobStatus.SUCCEEDED, JobStatus.PARTIAL)
        return VideoEditStatus(
            status=ENDED[job.status], progress=1.0, current_frame=frames if done else 0, total_frames=frames,
            message="; ".join(view.warnings) if done else ENDED[job.status].value,
            error=job.error.message if job.error is not None else "; ".join(view.errors.values()))
    mine = [node for shot in view.shots for node in shot.nodes if node.stage is view.stage]
    mine = mine or [node for node in view.film if node.stage is view.stage and node.kind is not NodeKind.PREVIEW]
    share = sum(node.progress for node in mine) / len(mine) if mine else 0.0
    current = int(share * frames)
    return VideoEditStatus(status=EditState(view.stage.value), progress=view.progress, current_frame=current,
                           total_frames=frames, message=f"{DOING[view.stage]}: frame {current} of {frames}")
