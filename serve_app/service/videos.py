"""A video as other services know it: a film of one shot. Blocking, no HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.edit_submit import KIND as EDIT
from serve_app.service.films import Draft, Films, Order, Sent
from serve_app.service.wishes import VideoWish
from serve_app.submit import plan_digest
from workflows.durable.ledger import Ledger, cursor_after
from workflows.durable.rows import JobRow, NewJob, NodeRow
from workflows.errors import UnknownJob
from workflows.progress import NodeShare, job_fraction
from workflows.revise import change_shot
from workflows.storyboard import dump_storyboard
from workflows.types import JobStatus, Json

VIDEO = "video"
"""Kind of the jobs that hold one."""
KINDS = (VIDEO, EDIT)
"""Edits of videos are videos to these clients, whoever made them."""
SHOT = "s1"
"""The only shot."""
STATUS = {JobStatus.QUEUED: "queued", JobStatus.RUNNING: "in_progress", JobStatus.SUCCEEDED: "completed",
          JobStatus.PARTIAL: "failed", JobStatus.FAILED: "failed", JobStatus.CANCELLED: "failed"}
"""Only the four words that clients poll for; why one failed stands in `error`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPage:
    """Some videos."""

    videos: tuple[tuple[JobRow, tuple[NodeRow, ...]], ...]
    has_more: bool


class Videos:
    """Videos of one ledger."""

    def __init__(self, ledger: Ledger, films: Films) -> None:
        """`films` plans them."""
        self._ledger = ledger
        self._films = films

    def submit(self, wish: VideoWish, order: Order, image: str = "") -> JobRow:
        """Queue it; `image` names the picture that it starts from, empty: none.

        Raises InvalidDocument with all that the model cannot do.
        """
        return self._submit(json.dumps(wish.storyboard(image)), "video.json", order, {"prompt": wish.prompt})

    def remix(self, video_id: str, prompt: str, order: Order) -> JobRow:
        """Queue a new video with all fields of this one but its prompt.

        `video_id` names a video. Raises InvalidDocument as `submit` does.
        """
        changed = change_shot(self._films.storyboard_of(video_id), SHOT, {"prompt": prompt})
        facts: dict[str, Json] = {"prompt": prompt, "remixed_from_video_id": video_id}
        return self._submit(dump_storyboard(changed), "video.yaml", order, facts)

    def find(self, video_id: str) -> JobRow:
        """Its job. Raises UnknownJob, for jobs that are no videos too."""
        row = self._ledger.job(video_id)
        if row.kind not in KINDS:
            raise UnknownJob(job_id=video_id)
        return row

    def page(self, after: str, limit: int, key_id: str, *, oldest_first: bool = False) -> VideoPage:
        """Videos behind the one called `after`, newest first unless told otherwise. Raises UnknownJob.

        `key_id`: only those of this API key; empty: all. Two queries, one more with `after`.
        """
        cursor = cursor_after(self.find(after)) if after else ""
        ask = self._ledger.jobs_from_oldest if oldest_first else self._ledger.jobs
        found = ask(kind=KINDS, limit=limit, cursor=cursor, key_id=key_id)
        nodes = self._ledger.nodes_of_jobs([row.id for row in found.jobs])
        return VideoPage(videos=tuple((row, nodes[row.id]) for row in found.jobs), has_more=bool(found.next_cursor))

    def _submit(self, text: str, file: str, order: Order, facts: dict[str, Json]) -> JobRow:
        draft = self._films.draft(Sent(text=text, file=file, is_script=False))
        return self._ledger.submit(NewJob(
            id=f"video_{order.token}", kind=VIDEO, title=str(facts["prompt"])[:80], nodes=draft.nodes,
            document={**draft.document, "video": {**facts, **_made(draft)}},
            document_digest=plan_digest(draft.nodes), key_id=order.key_id))


def rows_progress(row: JobRow, nodes: Sequence[NodeRow], floor: float) -> float:
    """How far it is by its rows alone, 0..1; `floor` was shown before."""
    shares = [NodeShare(cost=node.cost, status=node.status) for node in nodes]
    return job_fraction(shares, finished=row.status.is_terminal, floor=floor)


def video_json(row: JobRow, nodes: Sequence[NodeRow], progress: float) -> dict[str, Json]:
    """The video object; `progress` of a job that is not over, 0..1."""
    # An edit without its report is a video all the same.
    status = "completed" if row.kind == EDIT and row.status is JobStatus.PARTIAL else STATUS[row.status]
    facts = row.document["video"]
    assert isinstance(facts, dict)
    failed = status == "failed"
    code = "cancelled" if row.status is JobStatus.CANCELLED else "generation_failed"
    reasons = "; ".join(node.error.message for node in nodes if node.error)
    return {
        "id": row.id, "object": "video", "remixed_from_video_id": None, **facts, "status": status,
        "progress": 100 if status == "completed" else 99 if row.status.is_terminal else min(int(progress * 100), 99),
        "created_at": int(row.created_at_s),
        "completed_at": int(row.finished_at_s) if status == "completed" and row.finished_at_s else None,
        "expires_at": None,
        "error": {"code": code, "message": reasons or "the video was cancelled"} if failed else None,
    }


def _made(draft: Draft) -> dict[str, Json]:
    film = draft.plan.film
    return {"model": draft.plan.shots[0].card, "seconds": f"{film.duration_s:g}",
            "size": f"{film.width_px}x{film.height_px}"}
