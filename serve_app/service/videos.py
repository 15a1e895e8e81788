"""A video as other services know it: a film of one shot. Blocking, no HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.service.films import Draft, Films, Sent
from serve_app.submit import plan_digest
from workflows.durable.ledger import Ledger, cursor_after
from workflows.durable.rows import JobRow, NewJob
from workflows.errors import UnknownJob
from workflows.types import JobStatus, Json

VIDEO = "video"
"""Kind of the jobs that hold one."""
STATUS = {JobStatus.QUEUED: "queued", JobStatus.RUNNING: "in_progress", JobStatus.SUCCEEDED: "completed",
          JobStatus.PARTIAL: "failed", JobStatus.FAILED: "failed", JobStatus.CANCELLED: "failed"}
"""Only the four words that clients poll for; why one failed stands in `error`."""
FIELD_OF = {"duration_s": "seconds", "frames": "num_frames", "steps": "num_inference_steps",
            "guidance": "guidance_scale"}
"""A storyboard's fields as the request names them; all others have the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A video that somebody asks for; None: the model card's default."""

    prompt: str
    seconds: float | None = None
    size: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None

    def storyboard(self) -> dict[str, Json]:
        """The film of one shot."""
        shot: dict[str, Json] = {
            "prompt": self.prompt, "duration_s": self.seconds, "frames": self.num_frames, "seed": self.seed,
            "steps": self.num_inference_steps, "guidance": self.guidance_scale,
            "negative_prompt": self.negative_prompt}
        film: dict[str, Json] = {"size": self.size, "fps": self.fps}
        given: dict[str, Json] = {name: value for name, value in film.items() if value is not None}
        return {**given, "shots": [{name: value for name, value in shot.items() if value is not None}]}


class Videos:
    """Videos of one ledger."""

    def __init__(self, ledger: Ledger, films: Films) -> None:
        """`films` plans them."""
        self._ledger = ledger
        self._films = films

    def submit(self, wish: Wish, model: str, token: str, key_id: str) -> JobRow:
        """Queue it; `key_id` pays, empty where nobody is asked. Raises InvalidDocument with all the model cannot do."""
        draft = self._films.draft(Sent(text=json.dumps(wish.storyboard()), file="video.json", is_script=False))
        return self._ledger.submit(NewJob(
            id=f"video_{token}", kind=VIDEO, title=wish.prompt[:80], nodes=draft.nodes,
            document={**draft.document, "video": {**_facts(draft, wish, model)}},
            document_digest=plan_digest(draft.nodes), key_id=key_id))

    def find(self, video_id: str) -> JobRow:
        """Its job. Raises UnknownJob, for jobs that are no videos too."""
        row = self._ledger.job(video_id)
        if row.kind != VIDEO:
            raise UnknownJob(job_id=video_id)
        return row

    def page(self, after: str, limit: int, key_id: str) -> tuple[tuple[JobRow, ...], bool]:
        """Videos, newest first, behind the one called `after`; whether there are more. Raises UnknownJob.

        `key_id`: only those of this API key; empty: all.
        """
        cursor = cursor_after(self.find(after)) if after else ""
        found = self._ledger.jobs(kind=VIDEO, limit=limit, cursor=cursor, key_id=key_id)
        return found.jobs, bool(found.next_cursor)

    def reasons(self, row: JobRow) -> str:
        """Why it failed; empty when nothing did."""
        return "; ".join(node.error.message for node in self._ledger.nodes(row.id) if node.error)


def video_json(row: JobRow, progress: float, reasons: str) -> dict[str, Json]:
    """The video object; `progress` of the job, 0..1."""
    status = STATUS[row.status]
    facts = row.document["video"]
    assert isinstance(facts, dict)
    is_over = row.status.is_terminal
    failed = status == "failed"
    code = "cancelled" if row.status is JobStatus.CANCELLED else "generation_failed"
    return {
        "id": row.id, "object": "video", **facts, "status": status,
        "progress": 100 if status == "completed" else min(int(progress * 100), 99),
        "created_at": int(row.created_at_s),
        "completed_at": int(row.finished_at_s) if is_over and row.finished_at_s and not failed else None,
        "expires_at": None, "remixed_from_video_id": None,
        "error": {"code": code, "message": reasons or "the video was cancelled"} if failed else None,
    }


def _facts(draft: Draft, wish: Wish, model: str) -> Mapping[str, Json]:
    film = draft.plan.film
    return {"model": model, "prompt": wish.prompt, "seconds": f"{film.duration_s:g}",
            "size": f"{film.width_px}x{film.height_px}"}
