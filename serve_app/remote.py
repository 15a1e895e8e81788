"""A reelray server as the place where a command's jobs are. Knows the client, no Ray and no database."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from configs.load import KEY_VARIABLE
from serve_app.client import ApiError, Client, Problem, ServerAway
from serve_app.client_videos import is_elsewhere
from serve_app.mirror import Mirror, heard
from serve_app.screen import Screen
from serve_app.site import Interrupted, JobLine, require_over
from workflows import errors
from workflows.edit import EditRequest
from workflows.edit_plan import BESIDE
from workflows.status import JobView
from workflows.storyboard_rules import ID_PATTERN
from workflows.tiers import Tier
from workflows.types import JobStatus, Stage

OLDEST = (0, 1, 0)
"""Servers of an earlier version lack what is asked of them here."""
PATIENCE_S = 600.0
"""How long a server may be away while something is followed: it may load models when it starts."""
LOOK_S = 0.25
PAGE = 200
FILM_STATES = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL})


def open_remote(server: str, *, api_key: str = "") -> RemoteSite:
    """The server at this address, asked once; `api_key` defaults to $REELRAY_API_KEY.

    Raises InvalidSettings, ServerUnreachable, ServerRefused.
    """
    if not re.match(r"https?://[^/:]+(:[0-9]{1,5})?(/|$)|https?://\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?(/|$)", server):
        raise errors.InvalidSettings(problem=f"--server {server!r} is no address; nearest valid: "
                                             f"http://{server.rpartition('://')[2].strip('/') or '127.0.0.1:8000'}")
    site = RemoteSite(server.rstrip("/"), api_key=api_key)
    site.greet()
    return site


class RemoteSite:
    """One server. The job goes on there whatever becomes of this process."""

    def __init__(self, server: str, *, api_key: str = "", patience_s: float = PATIENCE_S) -> None:
        """`patience_s`: how long to wait for a server that goes away while something is followed."""
        self.option = f" --server {server}"
        self._server = server
        self._brisk = Client(server, api_key=api_key, patience_s=0.0)
        self._steady = Client(server, api_key=api_key)
        self._patient = Client(server, api_key=api_key, patience_s=patience_s)

    def greet(self) -> None:
        """Find out who answers there. Raises ServerRefused for a server that is none of ours, or too old."""
        with self._in_our_words():
            health = self._brisk.health()
        found = str(health.get("version", ""))
        if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < OLDEST:
            needed = ".".join(map(str, OLDEST))
            raise errors.ServerRefused(server=self._server, problem=(
                f"it runs {f'reelray {found}' if found else 'an earlier reelray'}, and this command needs {needed} or "
                "later there"))

    def render(self, storyboard: Path, screen: Screen, last_stage: Stage = Stage.COMPOSITION,
               tier: Tier | None = None) -> JobView:
        """The same file for the same models is the same job, for a day: the command given again joins it."""
        with self._in_our_words(storyboard.name):
            film = self._steady.film(storyboard)
            stages = "" if last_stage is Stage.COMPOSITION else f"{Stage.STORY},{last_stage}"
            tier_asked = tier.value if tier else ""
            plan = self._steady.plan(film, stages=stages, tier=tier_asked)
            for warning in plan["warnings"]:
                screen.note(f"note: {warning}")
            digest = str(plan["document_digest"])
            key = f"render{tier_asked}-{digest[:32]}-{hashlib.sha256(film.content).hexdigest()[:32]}"
            job = self._submitted(digest, lambda number: self._steady.submit(
                film, idempotency_key=f"{key}-{number}", stages=stages, tier=tier_asked))
            screen.note(f"job {job['id']} at {self._server}")
            return self._see_through(job, (), False, screen)

    def edit(self, request: EditRequest, screen: Screen) -> JobView:
        """The same edit of the same video is the same job, for a day: the command given again joins it."""
        place, wish = _wish(request)
        with self._in_our_words():
            if isinstance(place, Path):
                screen.note(f"sending {place} to {self._server} ...")
            plan = self._steady.plan_edit(place, wish)
            for warning in plan["warnings"]:
                screen.note(f"note: {warning}")
            # The plan names the videos by their ids: they are not sent, or read, once more.
            asked, digest = plan["request"], str(plan["document_digest"])
            job = self._submitted(digest, lambda number: self._steady.edit(
                asked["input_video_path"], asked, idempotency_key=f"edit-{digest}-{number}"))
            screen.note(f"job {job['id']} at {self._server}")
            return self._see_through(job, (), False, screen)

    def plan_edit(self, request: EditRequest) -> dict[str, Any]:
        """The server's own; the video is sent there all the same."""
        with self._in_our_words():
            return self._steady.plan_edit(*_wish(request))

    def retry(self, job_id: str, shots: Sequence[str], force: bool, screen: Screen) -> JobView:
        """On the server."""
        with self._in_our_words():
            job = self._steady.job(job_id)
            require_over(job_id, JobStatus(job["status"]), shots, force)
            return self._see_through(job, shots, force, screen, again=True)

    def promote(self, job_id: str, shots: Sequence[str], screen: Screen) -> JobView:
        """On the server."""
        with self._in_our_words():
            nodes = self._steady.promote(job_id, shots)["nodes"]
            if nodes:
                screen.note(f"rendering as final: {', '.join(nodes)}")
            view = JobView.from_json(self._steady.job(job_id))
            if view.status.is_terminal:
                screen.show(view)
                return view
            return self._followed(job_id, screen)

    def deliver(self, view: JobView, output: Path) -> Path | None:
        """Downloaded; a broken download goes on where it stopped."""
        if view.status not in FILM_STATES or not (view.result or view.pictures):
            return None
        with self._in_our_words():
            if not view.pictures:
                output.parent.mkdir(parents=True, exist_ok=True)
                return self._patient.download(view.id, output)
            output.mkdir(parents=True, exist_ok=True)
            for shot_id, picture in view.pictures.items():
                if not ID_PATTERN.fullmatch(shot_id):
                    raise errors.ServerRefused(server=self._server, problem=f"it calls a shot {shot_id[:80]!r}")
                self._patient.download_picture(view.id, shot_id, output / f"{shot_id}{picture.media_type.suffix}")
            return output

    def deliver_beside(self, view: JobView, what: str, output: Path) -> Path | None:
        """Downloaded, as `deliver` does."""
        if not any(node.id == BESIDE[what] and node.artifact for node in view.film):
            return None
        with self._in_our_words():
            output.parent.mkdir(parents=True, exist_ok=True)
            return self._patient.download_beside(view.id, what, output)

    def jobs(self, status: JobStatus | None, limit: int) -> list[JobLine]:
        """Those that the key may see."""
        with self._in_our_words():
            found = listed(self._steady, status.value if status else "", limit)
        return [JobLine(id=job["id"], title=job["title"], status=JobStatus(job["status"]), progress=job["progress"],
                        shots=job["shots"], created_at_s=job["created_at"]) for job in found]

    def job(self, job_id: str) -> JobView:
        """With its steps."""
        with self._in_our_words():
            return JobView.from_json(self._steady.job(job_id))

    def log(self, job_id: str, follow: bool) -> Iterator[str]:
        """A server that restarts meanwhile is waited for."""
        with self._in_our_words():
            if follow:
                self._steady.job(job_id)
                yield from self._patient.log_lines(job_id)
                return
            offset = 0
            while lines := (page := self._steady.log(job_id, offset=offset))["lines"]:
                yield from lines
                offset = page["next_offset"]

    def cancel(self, job_id: str) -> JobStatus:
        """On the server."""
        with self._in_our_words():
            return JobStatus(self._steady.cancel(job_id)["status"])

    def _submitted(self, digest: str, submit: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """The job of this plan: an earlier one of the same, unless it was changed or deleted since. `submit(number)`
        asks for the one of that number.
        """
        for number in itertools.count():
            accepted = submit(number)
            if accepted["document_digest"] != digest:
                raise errors.ServerRefused(server=self._server, problem=(
                    f"its models were changed just now; job {accepted['id']} is made with the new ones. Give the "
                    "command again"))
            try:
                job = self._steady.job(accepted["id"])
            except ApiError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
            else:
                if job["document_digest"] == digest:
                    return job
        raise AssertionError("there is always a next number")

    def _see_through(self, job: dict[str, Any], shots: Sequence[str], force: bool, screen: Screen, *,
                     again: bool = False) -> JobView:
        if JobStatus(job["status"]).is_terminal:
            if again or JobStatus(job["status"]) is not JobStatus.SUCCEEDED:
                nodes = self._steady.retry(job["id"], shots, force=force)["nodes"]
            else:
                nodes = []
            if not nodes:
                view = JobView.from_json(job)
                screen.show(view)
                return view
            screen.note(f"running again: {', '.join(nodes)}")
        return self._followed(job["id"], screen)

    def _followed(self, job_id: str, screen: Screen) -> JobView:
        try:
            return followed(self._patient, Mirror(self._brisk, job_id, screen))
        except KeyboardInterrupt:
            raise Interrupted(
                f"job {job_id} goes on at the server; the same command joins it, `reelray log {job_id} -f"
                f"{self.option}` follows it, `reelray cancel {job_id}{self.option}` stops it") from None

    def _in_our_words(self, file: str = "") -> contextlib.AbstractContextManager[None]:
        return in_our_words(self._server, file)


@contextlib.contextmanager
def in_our_words(server: str, file: str = "") -> Iterator[None]:
    """What a client of that server raises, as the errors that commands tell; `file` is what was sent."""
    try:
        yield
    except ServerAway as error:
        raise errors.ServerUnreachable(server=server, problem=str(error)) from error
    except ApiError as error:
        raise _ours(error, server, file) from error


def followed(client: Client, mirror: Mirror) -> JobView:
    """Show a job until it is over; its last view."""
    last_id = ""
    while True:
        for event in heard(client.events(mirror.job_id, last_id=last_id, all_steps=True), LOOK_S):
            last_id = event.id or last_id if event else last_id
            mirror.take(event)
        # A reply may be a moment older than the event that said that the job is over: then there is no more to hear.
        view = mirror.look()
        if view is not None and view.status.is_terminal:
            return view
        time.sleep(LOOK_S)


def _wish(request: EditRequest) -> tuple[Path | str, dict[str, Any]]:
    """The video, and what is said of it: the server fills in what is not."""
    wish = request.model_dump(mode="json", include=request.model_fields_set - {"job_id", "output_dir"})
    place = str(wish.pop("input_video_path"))
    return place if is_elsewhere(place) else Path(place).expanduser(), wish


def listed(client: Client, status: str, limit: int) -> list[dict[str, Any]]:
    """So many of the newest jobs, page by page."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while len(found) < limit:
        page = client.jobs(status=status, limit=min(limit - len(found), PAGE), cursor=cursor)
        found += page["jobs"]
        cursor = page["next_cursor"]
        if not cursor:
            break
    return found


def _ours(error: ApiError, server: str, file: str) -> errors.ReelrayError:
    if error.problems:
        return errors.InvalidDocument(problems=tuple(map(_problem, error.problems)), file=file)
    if error.status == 401:
        return errors.ServerRefused(server=server, problem=f"{error.detail}; {KEY_VARIABLE} holds the key that is sent")
    if error.status >= 500 or error.status == 429:
        return errors.ServerUnreachable(server=server, problem=error.detail)
    return errors.ServerRefused(server=server, problem=error.detail)


def _problem(found: Problem) -> errors.Problem:
    """In the words of a command that reads the file itself: a field of a shot, not a place in a request."""
    if found.file:
        return errors.Problem(problem=found.detail, file=found.file, shot_id=found.shot, line=found.line,
                              nearest=found.nearest)
    parts = [part for part in found.pointer.removeprefix("#").split("/") if part]
    if found.shot and parts[:1] == ["shots"]:
        parts = parts[2:]
    field = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts).removeprefix(".")
    return errors.Problem(problem=found.detail, field=field or found.parameter, shot_id=found.shot, line=found.line,
                          nearest=found.nearest)
