"""Paths of the service, for links in replies. Knows no request: clients resolve them against where they asked."""

from __future__ import annotations

from urllib.parse import quote


def job_url(job_id: str) -> str:
    """A job's status."""
    return f"/api/jobs/{quote(job_id, safe='')}"


def job_links(job_id: str) -> dict[str, str]:
    """Where to go from a job."""
    url = job_url(job_id)
    return {"self": url, "events": f"{url}/events", "log": f"{url}/log"}


def batch_url(batch_id: str) -> str:
    """A batch's status."""
    return f"/api/batches/{quote(batch_id, safe='')}"


def batch_links(batch_id: str) -> dict[str, str]:
    """Where to go from a batch."""
    url = batch_url(batch_id)
    return {"self": url, "report": f"{url}/report"}


def video_url(job_id: str) -> str:
    """A job's film."""
    return f"{job_url(job_id)}/video"


def shot_file_url(job_id: str, shot_id: str, what: str, *, take: int | None = None) -> str:
    """A shot's `keyframe`, `clip` or `thumbnail`; `take` names an earlier one's clip."""
    url = f"{job_url(job_id)}/shots/{quote(shot_id, safe='')}/{what}"
    return url if take is None else f"{url}?take={take}"


def thumbnail_url(job_id: str) -> str:
    """A small picture of a job's video."""
    return f"{job_url(job_id)}/thumbnail"


def picture_url(picture_id: str) -> str:
    """An uploaded picture."""
    return f"/api/pictures/{picture_id}"


def edit_file_url(job_id: str, what: str) -> str:
    """An edit's `mask`, `report` or `plot`."""
    return f"{job_url(job_id)}/{what}"


def upload_url(upload_id: str) -> str:
    """An uploaded video."""
    return f"/api/uploads/{upload_id}"
