"""Routes that look at jobs, steer them, and hand out their files and events. Knows the desk, not what a job is."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serve_app.http.access import TheCaller
from serve_app.http.artifacts import FILE_DOC, artifact_response
from serve_app.http.deps import JobId, ShotId, TheDesk, refusals
from serve_app.http.edit_schemas import AnyJobReply
from serve_app.http.image_schemas import ImageList
from serve_app.http.problems import Detail, Refused
from serve_app.http.schemas import ChangeReply, JobList, LogReply, RetryRequest
from serve_app.service.feed import ID
from serve_app.service.files import ShotFile
from serve_app.service.stills import pictures_json
from workflows.telling import Name
from workflows.types import JobStatus

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
files = APIRouter(prefix="/api/jobs", tags=["files"])

MAX_LINES = 5000
NO_STORE = {"Cache-Control": "no-store"}
STREAM = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Doc = dict[int | str, dict[str, Any]]
EVENT = 'id: 1f0c9a2b:12.7\nevent: info\ndata: {"type":"info","message":"job: queued, 7 nodes"}\n\n'
EVENT_FIELDS: dict[str, Any] = {
    "type": "object", "required": ["event", "data"], "additionalProperties": False, "properties": {
        "event": {"enum": [name.value for name in Name]}, "id": {"type": "string", "pattern": ID.pattern},
        "data": {"type": "string", "contentMediaType": "application/json"}, "retry": {"type": "integer"}}}
EVENTS_DOC: Doc = {
    200: {"description": "Events until the job is over",
          "content": {"text/event-stream": {"itemSchema": EVENT_FIELDS, "example": EVENT}}},
    204: {"description": "The job is over and you have heard all; do not reconnect"}}
NOTHING_TO_DO: Doc = {200: {"model": ChangeReply, "description": "There is nothing to do"}}


@router.get("", response_model=JobList, responses=refusals(422), summary="List jobs")
async def list_jobs(
    desk: TheDesk, caller: TheCaller,
    status: Annotated[JobStatus | None, Query(description="Only jobs with this status.")] = None,
    kind: Annotated[str, Query(pattern="^[a-z]{0,40}$", description="Only jobs of this kind, e.g. `film`.")] = "",
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs per page.")] = 50,
    cursor: Annotated[str, Query(max_length=500, description="`next_cursor` of the page before.")] = "",
) -> Response:
    """Jobs, newest first; with a `user` key only its own."""
    found = await asyncio.to_thread(desk.jobs, status, kind, limit, cursor, caller.own_jobs)
    return JSONResponse(found, headers=NO_STORE)


@router.get("/{job_id}", response_model=AnyJobReply, responses=refusals(404, 422), summary="Look at a job")
async def show_job(job_id: JobId, desk: TheDesk) -> Response:
    """Stage, progress, every shot with its steps, place in the queue, time left, warnings and errors; at most 0.2 s
    old.
    """
    return Response((await desk.views.job(job_id)).body, headers=NO_STORE, media_type="application/json")


@router.get("/{job_id}/images", response_model=ImageList, responses=refusals(404, 422), summary="List a job's pictures")
async def list_images(job_id: JobId, desk: TheDesk) -> Response:
    """Every picture that the job draws: where it is, what it was made from, and how far it is."""
    await asyncio.to_thread(desk.ledger.job, job_id)
    nodes = await asyncio.to_thread(desk.ledger.nodes, job_id)
    return JSONResponse(pictures_json(job_id, nodes), headers=NO_STORE)


@router.get("/{job_id}/log", response_model=LogReply, summary="Read a job's log",
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **refusals(404, 422)})
async def show_log(
    job_id: JobId, desk: TheDesk,
    offset: Annotated[int, Query(ge=0, le=2**31, description="First line, counted from 0.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LINES, description="Most lines.")] = 500,
    follow: Annotated[bool, Query(description="Plain text from `offset` on, line by line, until the job is over; "
                                              "`limit` does not count.")] = False,
) -> Response:
    """Lines of the job's log: what was started, what failed and why, with times in UTC."""
    page = await asyncio.to_thread(desk.ledger.log_lines, job_id, offset, limit)
    if follow:
        return StreamingResponse(desk.streams.log(job_id, offset), 200, STREAM, "text/plain")
    return JSONResponse({"offset": offset, "next_offset": page.next_offset, "lines": list(page.lines)},
                        headers=NO_STORE)


@router.get("/{job_id}/events", response_class=Response, summary="Follow a job",
            responses={**EVENTS_DOC, **refusals(404, 422)})
async def follow_job(
    job_id: JobId, desk: TheDesk, last_event_id: Annotated[str, Header(max_length=100)] = "",
    last_event_id_query: Annotated[str, Query(alias="last_event_id", max_length=100, description=(
        "For clients that cannot send the header `Last-Event-ID`."))] = "",
    all_steps: Annotated[bool, Query(description="Begin with every step of the present run that is kept, not only with "
                                                 "the newest of each shot.")] = False,
) -> Response:
    """Server-sent events: `stage_update`, `info`, `progress`, `image_generated`, `shot_update` (every denoising step),
    `warning`, `error`, `done`; `snapshot` (the job, as its status reply) where you missed more than is kept.

    The stream begins with the present run's start, or after the event whose id you send, and ends with the job. Ids
    stay valid over restarts, and on any replica.
    """
    stream = await desk.streams.events(job_id, last_event_id or last_event_id_query, all_steps=all_steps)
    if stream is None:
        return Response(status_code=204)
    return StreamingResponse(stream, 200, STREAM, "text/event-stream")


@router.post("/{job_id}/cancel", status_code=202, response_model=ChangeReply,
             responses={**NOTHING_TO_DO, **refusals(403, 404, 422)}, summary="Cancel a job")
async def cancel_job(job_id: JobId, desk: TheDesk) -> Response:
    """End a job; what runs stops at its next denoising step. A finished job stays as it is."""
    status = await desk.cancel(job_id)
    return JSONResponse(await desk.standing(job_id, ()), 200 if status.is_terminal else 202)


@router.post("/{job_id}/retry", status_code=202, response_model=ChangeReply,
             responses={**NOTHING_TO_DO, **refusals(400, 403, 404, 409, 413, 422)}, summary="Run a job again")
async def retry_job(job_id: JobId, desk: TheDesk, asked: RetryRequest | None = None) -> Response:
    """Run what did not succeed, or the chosen shots, and all that depends on them. Results that the store still has
    are reused, unless `force` asks for new takes; the clips shown until then are kept under `takes`.
    """
    asked = asked or RetryRequest()
    if asked.force and not asked.shots:
        raise Refused(422, "invalid-request", "force needs shots: say which get a new take", errors=(
            Detail(detail="is empty, and force is true", pointer="#/shots"),))
    nodes = await desk.retry(job_id, asked.shots, force=asked.force)
    return JSONResponse(await desk.standing(job_id, nodes), 202 if nodes else 200)


@router.delete("/{job_id}", status_code=204, responses=refusals(403, 404, 409, 422), summary="Forget a job")
async def delete_job(job_id: JobId, desk: TheDesk) -> None:
    """Forget a finished job with its log and takes. Its files stay in the store, where other films may use them."""
    await desk.delete(job_id)


@files.head("/{job_id}/video", include_in_schema=False)
@files.get("/{job_id}/video", response_class=Response, responses={**FILE_DOC, **refusals(404, 416, 422)},
           summary="The film, or the edited video")
async def video(request: Request, job_id: JobId, desk: TheDesk) -> Response:
    """The film or the edited video as MP4; ranges and entity tags as HTTP has them."""
    artifact = await asyncio.to_thread(desk.files.video, job_id)
    return await artifact_response(request, desk.store, artifact, job_id)


@files.head("/{job_id}/shots/{shot_id}/{file}", include_in_schema=False)
@files.get("/{job_id}/shots/{shot_id}/{file}", response_class=Response, summary="A file of a shot",
           responses={**FILE_DOC, **refusals(404, 416, 422)})
async def shot_file(
    request: Request, job_id: JobId, shot_id: ShotId, desk: TheDesk,
    file: Annotated[ShotFile, Path(description="`keyframe`, `clip` or `thumbnail`.")],
    take: Annotated[int | None, Query(ge=1, le=2**31, description="Number of an earlier take.")] = None,
) -> Response:
    """The picture that a shot starts from, its clip as the film shows it, or a small picture of it (PNG)."""
    artifact = await asyncio.to_thread(desk.files.of_shot, job_id, shot_id, file, take)
    return await artifact_response(request, desk.store, artifact, f"{job_id}-{shot_id}-{file.value}")
