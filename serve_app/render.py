"""`reelray render`: one film, embedded, from the document to the file. Survives Ctrl-C: the same command goes on."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import uuid
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from configs.load import cards_in_use, edit_cards, load_cards
from serve_app.edit_settings import settings_for
from serve_app.edit_submit import KIND as EDIT
from serve_app.screen import Screen
from serve_app.session import Session
from serve_app.site import Interrupted, ctrl_c
from serve_app.watch import Watcher
from serve_app.workplace import Workplace
from workflows.durable.rows import NewJob
from workflows.errors import JobConflict, UnknownJob
from workflows.status import JobView, job_view
from workflows.types import JobStatus


def render(job: NewJob, place: Workplace, screen: Screen) -> JobView:
    """Submit `job` (or find it again) and see it through; returns its last view.

    A job that already succeeded costs nothing; one that failed or was cancelled runs again where it has no result.
    Raises Interrupted on Ctrl-C.
    """
    job, is_new = _under_its_id(job, place)
    if is_new:
        return _run(job.id, place, screen, job)
    reopen(job.id, place, screen)
    return run_to_end(job.id, place, screen)


def _under_its_id(job: NewJob, place: Workplace) -> tuple[NewJob, bool]:
    """The job, and whether it is new. One that was changed since, whose drafts were promoted, keeps its id: what it
    was before is another job, `ID-2`.
    """
    for number in itertools.count(1):
        named = replace(job, id=job.id if number == 1 else f"{job.id}-{number}")
        try:
            found = place.ledger.job(named.id)
        except UnknownJob:
            return named, True
        if found.document_digest == job.identity:
            return named, False
    raise AssertionError("there is always a next number")


def reopen(job_id: str, place: Workplace, screen: Screen, selection: Collection[str] = (), force: bool = False) -> None:
    """Make a finished job run again where it has no result, or where its files are gone, or where asked to."""
    if not place.ledger.job(job_id).status.is_terminal:
        return
    nodes = place.ledger.nodes(job_id)
    without = [node.id for node in nodes if node.artifact is None or not place.store.exists(node.artifact)]
    chosen = place.ledger.rerun(job_id, tuple(selection) or tuple(without), force=force)
    if chosen:
        screen.note(f"running again: {', '.join(chosen)}")


def run_to_end(job_id: str, place: Workplace, screen: Screen) -> JobView:
    """Run an open job with an application of its own; a finished one is only shown."""
    job = place.ledger.job(job_id)
    if job.status.is_terminal:
        view = job_view(job, place.ledger.nodes(job_id))
        screen.show(view)
        return view
    if job.status is JobStatus.RUNNING:
        screen.note("the job was interrupted; it goes on when its lease has run out, "
                    f"{place.settings.engine.lease_s:.0f} s after its Director was last heard of")
    return _run(job_id, place, screen)


def _run(job_id: str, place: Workplace, screen: Screen, new: NewJob | None = None) -> JobView:
    kind = new.kind if new else place.ledger.job(job_id).kind
    settings = settings_for(place.settings, kind, new.nodes if new else place.ledger.nodes(job_id))
    films = kind != EDIT
    cards = cards_in_use(settings) if films else edit_cards(settings, load_cards(settings))
    names = ", ".join(card.name for card in cards)
    screen.note(f"starting Ray and loading {names} ..." if names else "starting Ray ...")
    session = Session(settings, only=[job_id], films=films)
    try:
        if session.dashboard:
            screen.note(f"Ray dashboard: http://{session.dashboard}")
        for line in session.shares:
            screen.note(line)
        return asyncio.run(_follow(job_id, place, session, screen, new))
    finally:
        session.close()


async def _follow(job_id: str, place: Workplace, session: Session, screen: Screen, new: NewJob | None) -> JobView:
    with ctrl_c() as stop:
        watch = asyncio.create_task(_watch(job_id, place, session, screen, new))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([watch, stopped], return_when=asyncio.FIRST_COMPLETED)
    if watch.done():
        stopped.cancel()
        return watch.result()
    watch.cancel()
    raise Interrupted("stopped; what is finished is kept, the same command goes on")


async def _watch(job_id: str, place: Workplace, session: Session, screen: Screen, new: NewJob | None) -> JobView:
    view: JobView | None = None
    async with Watcher(place.ledger, job_id, session.observer, on_record=screen.step) as watcher:
        if new is not None:
            # Submitted once somebody watches: the Director is already up, and first steps would pass unseen.
            await asyncio.to_thread(place.ledger.submit, new)
        await session.wake()
        async for view in watcher.views():
            screen.show(view)
    if view is None:
        raise JobConflict(job_id=job_id, problem="it vanished from the database")
    return view


def deliver(view: JobView, place: Workplace, output: Path) -> Path | None:
    """Copy the film to where it was asked for, or the pictures into that directory; None when there is nothing."""
    if view.status not in {JobStatus.SUCCEEDED, JobStatus.PARTIAL}:
        return None
    for shot_id, picture in view.pictures.items():
        copy_whole(place.store.fetch(picture), output / f"{shot_id}{picture.media_type.suffix}")
    if view.pictures:
        return output
    return copy_whole(place.store.fetch(view.result), output) if view.result else None


def copy_whole(source: Path, output: Path) -> Path:
    """Copy a file, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        shutil.copyfile(source, scratch)
        scratch.replace(output)
    finally:
        scratch.unlink(missing_ok=True)
    return output
