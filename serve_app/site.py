"""Where the jobs of a command are: on this machine, or on a server (`serve_app.remote`). Commands know only this.

Ray is loaded by what runs something here, not by what looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve_app.gpus import with_gpu_memory
from serve_app.screen import Screen
from serve_app.workplace import Workplace
from workflows.edit import EditRequest
from workflows.edit_plan import BESIDE
from workflows.errors import JobConflict
from workflows.status import JobView, job_view
from workflows.tiers import Tier
from workflows.types import JobStatus, Json, Stage

LOOK_S = 0.2
LINES = 1000


class Interrupted(Exception):
    """Ctrl-C; the text says what became of the job and how it goes on."""


@contextlib.contextmanager
def ctrl_c() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C sets inside the block, for the running loop.

    A second Ctrl-C, or one after the block, ends the process the hard way; jobs survive that too.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # no signal handlers on this platform's loop
        loop.add_signal_handler(signal.SIGINT, stop.set)
    try:
        yield stop
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLine:
    """A job in a list."""

    id: str
    title: str
    status: JobStatus
    progress: float
    """0..1."""
    shots: int
    """How many."""
    created_at_s: float


def require_over(job_id: str, status: JobStatus, shots: Sequence[str], force: bool) -> None:
    """Raise JobConflict where shots are chosen of a job that still runs: it would only be followed."""
    if (shots or force) and not status.is_terminal:
        raise JobConflict(job_id=job_id, problem="is not over yet; choose shots when it is, or cancel it first")


class Site(Protocol):
    """Makes films, and knows its jobs. Raises ReelrayError."""

    option: str
    """What a command needs to find this place again: empty, or ` --server URL`."""

    def render(self, storyboard: Path, screen: Screen, last_stage: Stage = Stage.COMPOSITION,
               tier: Tier | None = None) -> JobView:
        """See the film of a file, or its pictures, through from where it stands; `tier` is that of the shots that do
        not say their own, None: the file's. Raises Interrupted on Ctrl-C.
        """

    def edit(self, request: EditRequest, screen: Screen) -> JobView:
        """See an edit of a video through from where it stands. Raises Interrupted on Ctrl-C."""

    def plan_edit(self, request: EditRequest) -> dict[str, Json]:
        """What `edit` would do; see `service.edits.Edits.preview`."""

    def retry(self, job_id: str, shots: Sequence[str], force: bool, screen: Screen) -> JobView:
        """Run a finished job again where it has no result, or these shots, and see it through."""

    def promote(self, job_id: str, shots: Sequence[str], screen: Screen) -> JobView:
        """Make these drafts of a finished film final, or all, and see it through."""

    def deliver(self, view: JobView, output: Path) -> Path | None:
        """Bring the film, or the pictures to a directory, to where it was asked for; None when there is nothing.

        Every file is whole or not there.
        """

    def deliver_beside(self, view: JobView, what: str, output: Path) -> Path | None:
        """Bring what an edit made beside its video (`workflows.edit_plan.BESIDE`); None when there is none."""

    def jobs(self, status: JobStatus | None, limit: int) -> list[JobLine]:
        """Jobs, newest first."""

    def job(self, job_id: str) -> JobView:
        """One job as it is."""

    def log(self, job_id: str, follow: bool) -> Iterator[str]:
        """Lines of a job's log; with `follow` until the job is over."""

    def cancel(self, job_id: str) -> JobStatus:
        """End a job; the status it has by now."""


class LocalSite:
    """This machine: the database and the store that the settings name."""

    option = ""

    def __init__(self, place: Workplace) -> None:
        """Nothing is started before something is rendered."""
        self._place = place

    def render(self, storyboard: Path, screen: Screen, last_stage: Stage = Stage.COMPOSITION,
               tier: Tier | None = None) -> JobView:
        """Embedded: Ray and the models are started for it."""
        from serve_app.render import render
        from serve_app.submit import film_job

        # So that what this machine's GPUs cannot render is refused before anything is started.
        job = film_job(storyboard, with_gpu_memory(self._place.settings), self._place.store, last_stage=last_stage,
                       tier=tier)
        for warning in job.warnings:
            screen.note(f"note: {warning}")
        return render(job.new, self._place, screen)

    def edit(self, request: EditRequest, screen: Screen) -> JobView:
        """Embedded: Ray, and the models that it names, are started for it."""
        from serve_app.render import render
        from serve_app.service.edits import local_edits, local_job

        place = self._place
        draft = local_edits(with_gpu_memory(place.settings), place.ledger, place.store).draft(request)
        for warning in draft.warnings:
            screen.note(f"note: {warning}")
        return render(local_job(draft), place, screen)

    def plan_edit(self, request: EditRequest) -> dict[str, Json]:
        """Nothing is started for it."""
        from serve_app.service.edits import local_edits

        edits = local_edits(with_gpu_memory(self._place.settings), self._place.ledger, self._place.store)
        return edits.preview(edits.draft(request))

    def retry(self, job_id: str, shots: Sequence[str], force: bool, screen: Screen) -> JobView:
        """Embedded, as `render`."""
        from serve_app.render import reopen, run_to_end

        require_over(job_id, self._place.ledger.job(job_id).status, shots, force)
        reopen(job_id, self._place, screen, shots, force)
        return run_to_end(job_id, self._place, screen)

    def promote(self, job_id: str, shots: Sequence[str], screen: Screen) -> JobView:
        """Embedded, as `render`."""
        from serve_app.render import run_to_end
        from serve_app.service.films import local_films

        place = self._place
        chosen = local_films(place.settings, place.ledger, place.store).promote(job_id, shots)
        if chosen:
            screen.note(f"rendering as final: {', '.join(chosen)}")
        return run_to_end(job_id, place, screen)

    def deliver(self, view: JobView, output: Path) -> Path | None:
        """Copied from the store."""
        from serve_app.render import deliver

        return deliver(view, self._place, output)

    def deliver_beside(self, view: JobView, what: str, output: Path) -> Path | None:
        """Copied from the store."""
        from serve_app.render import copy_whole

        made = next((node.artifact for node in view.film if node.id == BESIDE[what]), None)
        return copy_whole(self._place.store.fetch(made), output) if made else None

    def jobs(self, status: JobStatus | None, limit: int) -> list[JobLine]:
        """From the database."""
        views = [self.job(job.id) for job in self._place.ledger.jobs(status=status, limit=limit).jobs]
        return [JobLine(id=view.id, title=view.title, status=view.status, progress=view.progress,
                        shots=len(view.shots), created_at_s=view.created_at_s) for view in views]

    def job(self, job_id: str) -> JobView:
        """From the database; steps are not in it."""
        return job_view(self._place.ledger.job(job_id), self._place.ledger.nodes(job_id))

    def log(self, job_id: str, follow: bool) -> Iterator[str]:
        """From the database."""
        offset = 0
        while True:
            is_over = self._place.ledger.job(job_id).status.is_terminal
            page = self._place.ledger.log_lines(job_id, offset, LINES)
            yield from page.lines
            if not page.lines and (is_over or not follow):
                return
            offset = page.next_offset
            if not page.lines:
                time.sleep(LOOK_S)

    def cancel(self, job_id: str) -> JobStatus:
        """A command that renders it hears of it."""
        self._place.ledger.cancel(job_id)
        return self._place.ledger.job(job_id).status
