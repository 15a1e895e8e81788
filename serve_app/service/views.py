"""A job as the status reply shows it, remembered for a moment, whoever asks how often. Knows no HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.service.edits import standing_json
from serve_app.service.files import ShotFile, files_by_shot
from serve_app.service.forecast import Forecast
from serve_app.service.links import job_links, shot_file_url, video_url
from workflows.durable.ledger import Ledger
from workflows.durable.overview import Overview, Tally
from workflows.durable.rows import JobRow, NodeRow
from workflows.durable.takes import Take, Takes, shown_clip
from workflows.progress import NodeShare, job_fraction
from workflows.status import JobView, job_stage, job_view
from workflows.tiers import Tier
from workflows.types import Artifact, JobStatus, Json, ProgressRecord

FRESH_S = 0.2
"""A reply may be this old; steps arrive at most four times a second."""
AHEAD_S = 0.1
"""A reply older than this is asked for again while it is still given: who asks often does not wait."""
REMEMBERED = 500
"""Jobs whose last reply is kept."""

Live = Callable[[str], Awaitable[Mapping[str, ProgressRecord]]]
"""The newest step of each running node of a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a reply's parts come from."""

    ledger: Ledger
    overview: Overview
    takes: Takes
    forecast: Forecast
    live: Live


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job's reply."""

    asked_s: float
    """By `time.monotonic`: nothing newer is in it."""
    status: JobStatus
    progress: float
    body: bytes
    """JSON, UTF-8."""


class Views:
    """Status replies. One question to the database per job and moment, however many ask."""

    def __init__(self, sources: Sources) -> None:
        """Needs a running event loop only when it is asked."""
        self._from = sources
        self._seen: dict[str, Seen] = {}
        self._asking: dict[str, tuple[float, asyncio.Task[Seen]]] = {}

    async def job(self, job_id: str, *, after_s: float = 0.0) -> Seen:
        """The job as it is: at most `FRESH_S` old, and asked for after `after_s` (`time.monotonic`).

        Raises UnknownJob.
        """
        seen, now_s = self._seen.get(job_id), time.monotonic()
        if seen and seen.asked_s >= max(after_s, now_s - FRESH_S):
            if seen.asked_s < now_s - AHEAD_S:
                self._begin(job_id, now_s, after_s)
            return seen
        # One impatient client does not take the answer from the others.
        return await asyncio.shield(self._begin(job_id, now_s, after_s))

    def shown(self, job_id: str) -> float:
        """The progress last shown of a job that was still running then; 0 when nothing is remembered."""
        seen = self._seen.get(job_id)
        return seen.progress if seen and not seen.status.is_terminal else 0.0

    def forget(self, job_id: str) -> None:
        """The job was changed just now, maybe opened again: an older reply would mislead, and so would its progress."""
        self._seen.pop(job_id, None)
        self._asking.pop(job_id, None)

    def _begin(self, job_id: str, now_s: float, after_s: float) -> asyncio.Task[Seen]:
        """The question that is under way, or a new one."""
        asked_s, asking = self._asking.get(job_id, (0.0, None))
        if asking is None or asked_s < after_s:
            asking = asyncio.create_task(self._ask(job_id, now_s), name=f"view {job_id}")
            self._asking[job_id] = now_s, asking
            asking.add_done_callback(lambda task: self._answered(job_id, task))
        return asking

    async def _ask(self, job_id: str, asked_s: float) -> Seen:
        floor = self.shown(job_id)
        row = await asyncio.to_thread(self._from.ledger.job, job_id)
        live = await self._from.live(job_id) if row.status is JobStatus.RUNNING else {}
        view, body = await asyncio.to_thread(self._build, row, live, floor)
        return Seen(asked_s=asked_s, status=view.status, progress=view.progress, body=body)

    def _answered(self, job_id: str, task: asyncio.Task[Seen]) -> None:
        # An error is for those who wait for it, and there may be nobody.
        is_answer = not task.cancelled() and task.exception() is None
        # After `forget` the answer belongs to those who asked before, and to nobody else.
        if self._asking.get(job_id, (0.0, None))[1] is not task:
            return
        del self._asking[job_id]
        if is_answer:
            if len(self._seen) >= REMEMBERED:
                self._seen.pop(next(iter(self._seen)))
            self._seen[job_id] = task.result()

    def _build(self, row: JobRow, live: Mapping[str, ProgressRecord], floor: float) -> tuple[JobView, bytes]:
        nodes = self._from.ledger.nodes(row.id)
        view = job_view(row, nodes, live, floor)
        eta = self._from.forecast.eta(row, nodes, live)
        data = job_json(view, nodes, self._from.takes.of(row.id))
        data["document_digest"] = row.document_digest
        data["queue_position"] = self._from.overview.queue_position(row)
        data["eta"] = eta.to_json() if eta else None
        data["edit"] = standing_json(row, nodes, live, floor)
        return view, json.dumps(data, ensure_ascii=False).encode()


def job_json(view: JobView, nodes: Sequence[NodeRow], takes: Sequence[Take]) -> dict[str, Json]:
    """A job's view with links in place of where its files lie."""
    data = view.to_json()
    shots, files = data["shots"], files_by_shot(nodes)
    assert isinstance(shots, list)
    for shot in shots:
        assert isinstance(shot, dict)
        shot_id = str(shot["id"])
        shot["files"] = _files_json(view.id, shot_id, files[shot_id])
        shot["takes"] = _takes_json(view.id, shot_id, nodes, takes, str(shot["tier"]))
        _hide_places(shot["nodes"])
    _hide_places(data["film"])
    video = data["video"]
    data["video"] = {**_without_place(video), "url": video_url(view.id)} if isinstance(video, dict) else None
    data["links"] = {**job_links(view.id)}
    return data


def summary_json(row: JobRow, tally: Tally) -> dict[str, Json]:
    """A job in a list."""
    shares = [NodeShare(cost=cost, status=status) for (_, status), cost in tally.costs.items()]
    return {
        "id": row.id, "kind": row.kind, "title": row.title, "status": row.status.value,
        "stage": job_stage(tally.costs.keys(), row.status).value,
        "priority": row.priority.value, "shots": tally.shots,
        "progress": round(job_fraction(shares, finished=row.status.is_terminal), 4), "created_at": row.created_at_s,
        "started_at": row.started_at_s, "finished_at": row.finished_at_s, "links": {**job_links(row.id)},
    }


def _files_json(job_id: str, shot_id: str, found: Mapping[ShotFile, Artifact]) -> dict[str, Json]:
    urls: dict[str, Json] = {
        what.value: shot_file_url(job_id, shot_id, what.value) if what in found else None for what in ShotFile}
    if found:
        urls[ShotFile.THUMBNAIL.value] = shot_file_url(job_id, shot_id, ShotFile.THUMBNAIL.value)
    return urls


def _takes_json(job_id: str, shot_id: str, nodes: Sequence[NodeRow], takes: Sequence[Take], tier: str) -> list[Json]:
    """`tier`: the shot's own, which is that of takes whose fields it still has."""
    mine = [kept for kept in takes if kept.shot_id == shot_id]
    clip = shown_clip(nodes, shot_id) if mine else None
    return [{"number": kept.number, "selected": clip is not None and clip.key == kept.key, "kept_at": kept.kept_at_s,
             "tier": tier if kept.shot is None else kept.shot.get("tier", Tier.FINAL.value),
             "clip": shot_file_url(job_id, shot_id, ShotFile.CLIP.value, take=kept.number)} for kept in mine]


def _hide_places(nodes: Json) -> None:
    """Where a file lies on this machine is nobody's business."""
    assert isinstance(nodes, list)
    for node in nodes:
        if isinstance(node, dict) and isinstance(node["artifact"], dict):
            node["artifact"] = _without_place(node["artifact"])


def _without_place(artifact: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in artifact.items() if name not in ("uri", "score")}
