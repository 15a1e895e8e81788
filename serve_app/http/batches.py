"""Routes for batches. Reads what was sent; everything else is the desk's."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from serve_app.http.access import TheCaller
from serve_app.http.batch_schemas import (
    BatchAccepted,
    BatchChange,
    BatchFilm,
    BatchList,
    BatchReply,
    BatchReport,
    BatchRequest,
    ReportQuery,
)
from serve_app.http.deps import TheDesk, refusals
from serve_app.http.films import last_stage_asked
from serve_app.http.problems import Detail, Refused, refused_document
from serve_app.service.batch_view import BatchView
from serve_app.service.batches import BatchOrder, RefusedFiles, SentFile
from serve_app.service.links import batch_links, batch_url
from workflows.durable.batches import BatchLimits
from workflows.types import Json

router = APIRouter(prefix="/api/batches", tags=["batches"])

NO_STORE = {"Cache-Control": "no-store"}
NO_LIMIT = float("inf")
BatchId = Annotated[str, Path(description="Id of a batch.", max_length=200)]
CSV_DOC: dict[int | str, dict[str, Any]] = {200: {
    "description": "The report", "content": {"text/csv": {"schema": {"type": "string"}}}}}


@router.post("", status_code=202, response_model=BatchAccepted, summary="Make or join a batch",
             responses={200: {"model": BatchAccepted, "description": "There is nothing to render"},
                        **refusals(400, 403, 413, 422)})
async def create_batch(desk: TheDesk, caller: TheCaller, asked: BatchRequest) -> Response:
    """Queue many films as one unit, behind everything interactive. All of them are checked before anything runs: either
    every one is taken, or the reply names every problem of every film.

    The same name again joins the batch. Films that are there already are left as they are; a file whose content changed
    is a new job, and what it was before is cancelled.
    """
    stage = last_stage_asked(asked.stages)
    order = BatchOrder(name=asked.name, key_id=caller.key_id, last_stage=stage, tier=asked.tier, limits=BatchLimits(
        concurrency=asked.concurrency, gpu_budget_s=asked.gpu_seconds))
    sent = [_sent(film) for film in asked.films]
    try:
        made = await asyncio.to_thread(desk.batches.submit, desk.films, order, sent)
    except RefusedFiles as refused:
        raise _refusal(refused, asked.films) from None
    view = BatchView.from_json(made)
    desk.submitted_many([film.job_id for film in view.films])
    return JSONResponse({**_linked(made), "new": made["new"], "changed": made["changed"], "warnings": made["warnings"]},
                        200 if view.status.is_terminal else 202, {"Location": batch_url(view.id)})


@router.get("", response_model=BatchList, responses=refusals(422), summary="List batches")
async def list_batches(
    desk: TheDesk, caller: TheCaller,
    limit: Annotated[int, Query(ge=1, le=200, description="Batches per page.")] = 50,
    cursor: Annotated[str, Query(max_length=500, description="`next_cursor` of the page before.")] = "",
) -> Response:
    """Batches, newest first; with a `user` key only its own."""
    found = await asyncio.to_thread(desk.batches.page, limit, cursor, caller.own_jobs)
    return JSONResponse(found, headers=NO_STORE)


@router.get("/{batch_id}", response_model=BatchReply, responses=refusals(404, 422), summary="Look at a batch")
async def show_batch(batch_id: BatchId, desk: TheDesk) -> Response:
    """Progress and time left of the whole, what it has used, and every film with its job."""
    return await _shown(desk, batch_id)


@router.patch("/{batch_id}", response_model=BatchReply, responses=refusals(400, 403, 404, 413, 422),
              summary="Change a batch's limits")
async def change_batch(batch_id: BatchId, desk: TheDesk, asked: BatchChange) -> Response:
    """Give it other limits; null takes one away. A batch that stopped for its GPU-seconds goes on when it has more."""
    given = asked.model_fields_set
    concurrency = asked.concurrency or 0 if "concurrency" in given else None
    seconds = asked.gpu_seconds if asked.gpu_seconds is not None else NO_LIMIT if "gpu_seconds" in given else None
    await asyncio.to_thread(desk.batches.rows.change, batch_id, BatchLimits(
        concurrency=concurrency, gpu_budget_s=seconds))
    desk.submitted_many(())
    return await _shown(desk, batch_id)


@router.post("/{batch_id}/pause", response_model=BatchReply, responses=refusals(403, 404, 409, 422),
             summary="Pause a batch")
async def pause_batch(batch_id: BatchId, desk: TheDesk) -> Response:
    """Start no further node of it; what runs finishes. It stays paused, over every restart, until it is resumed."""
    await asyncio.to_thread(desk.batches.rows.pause, batch_id)
    desk.submitted_many(())
    return await _shown(desk, batch_id)


@router.post("/{batch_id}/resume", response_model=BatchReply, responses=refusals(403, 404, 409, 422),
             summary="Resume a batch")
async def resume_batch(batch_id: BatchId, desk: TheDesk) -> Response:
    """Go on where it was paused. 409 when its GPU-seconds are used up: give it more first."""
    await asyncio.to_thread(desk.batches.rows.resume, batch_id)
    desk.submitted_many(())
    return await _shown(desk, batch_id)


@router.post("/{batch_id}/cancel", status_code=202, response_model=BatchReply, summary="Cancel a batch",
             responses={200: {"model": BatchReply, "description": "It is over"}, **refusals(403, 404, 422)})
async def cancel_batch(batch_id: BatchId, desk: TheDesk) -> Response:
    """End every job of it that is not over; what runs stops at its next denoising step."""
    await desk.cancel_batch(batch_id)
    view = await asyncio.to_thread(desk.batches.view, batch_id)
    return JSONResponse(_linked(view.to_json()), 200 if view.status.is_terminal else 202, NO_STORE)


@router.post("/{batch_id}/retry", status_code=202, response_model=BatchReply, summary="Run what failed again",
             responses={200: {"model": BatchReply, "description": "There is nothing to do"}, **refusals(403, 404, 422)})
async def retry_batch(batch_id: BatchId, desk: TheDesk) -> Response:
    """Run what did not succeed in every job that is over, and all that depends on it."""
    opened = await desk.retry_batch(batch_id)
    return await _shown(desk, batch_id, status=202 if opened else 200)


@router.get("/{batch_id}/report", response_model=BatchReport, responses={**CSV_DOC, **refusals(404, 422)},
            summary="What a batch has cost")
async def report_batch(batch_id: BatchId, desk: TheDesk, ask: Annotated[ReportQuery, Query()]) -> Response:
    """GPU-seconds of every shot: useful, wasted, saved and carried; attempts, models, seconds, and the cost at a price
    per GPU-hour.
    """
    report = await asyncio.to_thread(desk.batches.report, batch_id, ask.price_per_gpu_hour)
    if ask.format == "json":
        return JSONResponse(report.to_json(), headers=NO_STORE)
    name = quote(f"{batch_id}.csv", safe="")
    return Response(report.to_csv(), media_type="text/csv", headers={
        **NO_STORE, "Content-Disposition": f"attachment; filename*=UTF-8''{name}"})


@router.delete("/{batch_id}", status_code=204, responses=refusals(403, 404, 409, 422), summary="Forget a batch")
async def delete_batch(batch_id: BatchId, desk: TheDesk) -> None:
    """Forget a batch that is over, with its jobs and their logs. Files stay in the store; what was used stays charged
    to its key.
    """
    await desk.delete_batch(batch_id)


def _sent(film: BatchFilm) -> SentFile:
    if film.text is not None:
        return SentFile(file=film.file, text=film.text)
    return SentFile(file=film.file, text=json.dumps(film.storyboard, ensure_ascii=False), is_storyboard=True)


def _refusal(refused: RefusedFiles, films: tuple[BatchFilm, ...]) -> Refused:
    """Every problem of every film: a pointer into the storyboard, or the line of the text."""
    details: list[Detail] = []
    for place, error, shot_ids in refused.refused:
        film = films[place]
        for found, problem in zip(refused_document(error, shot_ids).errors, error.problems, strict=False):
            if film.text is None:
                inside, line, said = f"/storyboard{found.pointer.removeprefix('#')}", None, found.detail
            else:
                # Nothing points into a text: its line, shot and field say where.
                inside, line = "/text", found.line
                said = f"{problem.field}: {found.detail}" if problem.field else found.detail
            details.append(Detail(detail=said, pointer=f"#/films/{place}{inside}", shot=found.shot, line=line,
                                  nearest=found.nearest, file=film.file))
    files = len(refused.refused)
    summary = f"{details[0].file}: {details[0].detail}"
    more = f" ({len(details)} problems in {files} films, see errors)" if len(details) > 1 else ""
    return Refused(422, "invalid-document", f"{summary}{more}", errors=details, most=len(details))


async def _shown(desk: TheDesk, batch_id: str, *, status: int = 200) -> Response:
    view = await asyncio.to_thread(desk.batches.view, batch_id)
    return JSONResponse(_linked(view.to_json()), status, NO_STORE)


def _linked(view: dict[str, Json]) -> dict[str, Json]:
    return {**view, "links": {**batch_links(str(view["id"]))}}
