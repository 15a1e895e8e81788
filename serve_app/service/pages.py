"""What the page shows: jobs, shots, plans and problems in the words of people. Knows no HTTP and no template."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from serve_app.edit_submit import KIND
from serve_app.service.access import ANYBODY, Caller
from serve_app.service.desk import Desk
from serve_app.service.edit_pages import EditPages, EditView
from serve_app.service.files import ShotFile
from serve_app.service.films import Draft, Order, Sent
from serve_app.service.links import shot_file_url, thumbnail_url
from workflows.errors import InvalidDocument, JobConflict, Problem
from workflows.storyboard import Shot, Storyboard, dump_storyboard
from workflows.tiers import Tier
from workflows.types import JobStatus, NodeKind, NodeStatus, Stage

MAX_LOG_LINES = 5000
PAGE_JOBS = 24
JOB_WORDS = {
    JobStatus.QUEUED: "Waiting", JobStatus.RUNNING: "Rendering", JobStatus.SUCCEEDED: "Finished",
    JobStatus.PARTIAL: "Shots missing", JobStatus.FAILED: "Failed", JobStatus.CANCELLED: "Cancelled"}
EDIT_WORDS = {JobStatus.RUNNING: "Editing", JobStatus.PARTIAL: "Without its report"}
SHOT_WORDS = {
    NodeStatus.PENDING: "Waiting", NodeStatus.RUNNING: "Rendering", NodeStatus.SUCCEEDED: "Finished",
    NodeStatus.FAILED: "Failed", NodeStatus.SKIPPED: "Skipped", NodeStatus.CANCELLED: "Cancelled"}
STAGE_WORDS = {Stage.STORY: "Reading the script", Stage.IMAGES: "Drawing first frames",
               Stage.VIDEOS: "Rendering the shots", Stage.COMPOSITION: "Joining the film",
               Stage.EXTRACTING: "Reading the video", Stage.MASKING: "Finding the region",
               Stage.PROPAGATING: "Following the region", Stage.EDITING: "Editing", Stage.SMOOTHING: "Smoothing",
               Stage.SAVING: "Saving"}
KIND_WORDS = {NodeKind.KEYFRAME: "first frame", NodeKind.CLIP: "clip", NodeKind.INTERPOLATE: "smoothing",
              NodeKind.CAPTION: "caption", NodeKind.COMPOSE: "film", NodeKind.STORY: "script",
              NodeKind.SCORE: "likeness", NodeKind.PICK: "choice", NodeKind.EXTRACT: "frames", NodeKind.MASK: "mask",
              NodeKind.PROPAGATE: "track", NodeKind.EDIT: "edit", NodeKind.SMOOTH: "smoothing",
              NodeKind.PREVIEW: "mask preview", NodeKind.SAVE: "video", NodeKind.REPORT: "report",
              NodeKind.PLOT: "plot"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeChoice:
    """An earlier take that can be shown again."""

    number: int
    selected: bool
    clip: str
    thumbnail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotCard:
    """One shot of the grid."""

    id: str
    number: int
    status: NodeStatus
    percent: float
    """0..100."""
    says: str
    """`diffusion step 12/50 (timestep 760.00)`, or what it waits for."""
    kind: str
    """Kind of the node that runs; empty when none does."""
    error: str
    prompt: str
    caption: str
    continues: str
    poster: str
    """URL of the keyframe or a small picture; empty before there is one."""
    clip: str
    is_draft: bool
    takes: tuple[TakeChoice, ...]
    consistency: str = ""
    """`0.87, take 2 of 3`: how much it looks like its characters' reference pictures; empty where nobody measured."""

    @property
    def word(self) -> str:
        """Its status, for people."""
        return SHOT_WORDS[self.status]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmPage:
    """One job."""

    id: str
    title: str
    status: JobStatus
    percent: float
    stage: str
    """What is being done now; empty when it is over."""
    queue_position: int | None
    eta: str
    """`about 40 s left, at most 1 min`; empty when nothing is known."""
    made: str
    """When it was sent, UTC."""
    took: str
    warnings: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]
    """Shot (or part of the film) and why it failed, with what to do."""
    shots: tuple[ShotCard, ...]
    video: str
    """URL of the film; empty before there is one."""
    edit: EditView | None = None
    """Of an edit of a video."""

    @property
    def is_active(self) -> bool:
        """Something may still happen to it."""
        return not self.status.is_terminal

    @property
    def word(self) -> str:
        """Its status, for people."""
        return self.edit.word if self.edit else JOB_WORDS[self.status]

    @property
    def url(self) -> str:
        """Its page."""
        return film_url(self.id)

    @property
    def done(self) -> int:
        """Shots that are finished."""
        return sum(shot.status is NodeStatus.SUCCEEDED for shot in self.shots)

    @property
    def drafts(self) -> int:
        """Shots that are drafts."""
        return sum(shot.is_draft for shot in self.shots)

    def shot(self, shot_id: str) -> ShotCard | None:
        """The card of one shot."""
        return next((card for card in self.shots if card.id == shot_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFilm:
    """One job of the list."""

    id: str
    title: str
    status: JobStatus
    percent: float
    shots: int
    made: str
    poster: str
    is_edit: bool = False
    """It edits a video; its `shots` are chunks."""

    @property
    def url(self) -> str:
        """Its page."""
        return film_url(self.id)

    @property
    def word(self) -> str:
        """Its status, for people."""
        return EDIT_WORDS.get(self.status, JOB_WORDS[self.status]) if self.is_edit else JOB_WORDS[self.status]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """Some jobs, newest first."""

    films: tuple[ListedFilm, ...]
    status: JobStatus | None
    next_cursor: str
    is_first: bool

    @property
    def is_moving(self) -> bool:
        """One of them may change by itself."""
        return any(not film.status.is_terminal for film in self.films)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """One thing wrong with what was written."""

    line: int | None
    source: str
    """That line, as it stands."""
    where: str
    problem: str
    nearest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShot:
    """One shot of a plan: the steps it would take, each with whether the store has it."""

    id: str
    parts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """What would be done."""

    title: str
    shots: tuple[PlannedShot, ...]
    to_make: int
    cached: int
    size: str
    length: str
    cost: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draught:
    """What stands in the editor, and what is known of it: issues, or a plan, or neither before it was checked."""

    text: str
    form: str
    """`storyboard` or `script`."""
    issues: tuple[Issue, ...] = ()
    plan: PlanView | None = None


class Pages:
    """What one desk has to show to whoever asks."""

    def __init__(self, desk: Desk, caller: Caller = ANYBODY) -> None:
        """Keeps nothing of its own."""
        self._desk, self._caller = desk, caller

    async def film(self, job_id: str) -> FilmPage:
        """A job as it is now. Raises UnknownJob."""
        seen = await self._desk.views.job(job_id)
        board = await asyncio.to_thread(self._storyboard, job_id)
        shots = {} if board is None else {shot.id: shot for shot in board.shots}
        job = json.loads(seen.body)
        return film_page(job, shots, await asyncio.to_thread(EditPages(self._desk).view, job) if job["edit"] else None)

    def films(self, status: JobStatus | None, cursor: str) -> ListPage:
        """Some jobs. Blocking. Raises InvalidDocument for a wrong cursor."""
        found: dict[str, Any] = self._desk.jobs(status, "", PAGE_JOBS, cursor, self._caller.own_jobs)
        posters = self._desk.overview.first_pictures([job["id"] for job in found["jobs"]])
        films = tuple(
            ListedFilm(id=job["id"], title=job["title"] or job["id"], status=JobStatus(job["status"]),
                       percent=100 * job["progress"], shots=job["shots"], made=when(job["created_at"]),
                       poster=thumbnail_url(job["id"]) if job["kind"] == KIND else _poster(
                           job["id"], posters.get(job["id"], "")), is_edit=job["kind"] == KIND)
            for job in found["jobs"])
        return ListPage(films=films, status=status, next_cursor=found["next_cursor"], is_first=not cursor)

    def check(self, text: str, form: str) -> Draught:
        """Read and plan, without doing anything. Blocking."""
        if not text.strip():
            return Draught(text=text, form=form)
        try:
            draft = self._desk.films.draft(_sent(text, form))
        except InvalidDocument as error:
            return Draught(text=text, form=form, issues=issues(error, text))
        return Draught(text=text, form=form, plan=self._plan(draft))

    def submit(self, text: str, form: str, token: str, tier: Tier | None = None) -> str:
        """Queue a film; its id. The same text with the same token is the same job. Blocking. Raises InvalidDocument."""
        draft = self._desk.films.draft(_sent(text, form), tier=tier)
        asked = (self._caller.key_id, token, form, *([tier.value] if tier else []), text)
        drawn = hashlib.sha256("\0".join(asked).encode("utf-8", "replace")).hexdigest()
        row = self._desk.films.submit(draft, Order(token=drawn, key_id=self._caller.key_id))
        return row.id

    def log(self, job_id: str) -> tuple[str, ...]:
        """The job's log. Blocking. Raises UnknownJob."""
        return tuple(self._desk.ledger.log_lines(job_id, 0, MAX_LOG_LINES).lines)

    def text_of(self, job_id: str) -> str:
        """A film's storyboard as it is now, to begin another one from. Blocking. Raises UnknownJob."""
        self._desk.ledger.job(job_id)
        board = self._storyboard(job_id)
        return "" if board is None else dump_storyboard(board)

    def _storyboard(self, job_id: str) -> Storyboard | None:
        try:
            return self._desk.films.storyboard_of(job_id)
        except (JobConflict, InvalidDocument):
            return None  # a script that was not told yet, or a job that was not sent as a storyboard

    def _plan(self, draft: Draft) -> PlanView:
        plan: dict[str, Any] = self._desk.films.preview(draft)
        parts: dict[str, list[tuple[str, bool]]] = {}
        for node in plan["nodes"]:
            if node["shot"]:
                parts.setdefault(node["shot"], []).append((KIND_WORDS[NodeKind(node["kind"])], node["cached"]))
        film, seconds = plan["film"], plan["estimated_gpu_seconds"] + plan["estimated_cpu_seconds"]
        return PlanView(
            title=plan["title"], warnings=tuple(plan["warnings"]), cached=plan["cache_hits"],
            to_make=len(plan["nodes"]) - plan["cache_hits"],
            shots=tuple(PlannedShot(id=shot_id, parts=tuple(mine)) for shot_id, mine in parts.items()),
            size=f"{film['width_px']} × {film['height_px']}", length=f"{film['duration_s']:.1f} s",  # noqa: RUF001
            cost=span(seconds) if seconds else "nothing")


def film_url(job_id: str) -> str:
    """A job's page."""
    return f"/films/{quote(job_id, safe='')}"


def _poster(job_id: str, shot_id: str) -> str:
    return shot_file_url(job_id, shot_id, ShotFile.THUMBNAIL.value) if shot_id else ""


def film_page(job: Mapping[str, Any], shots: Mapping[str, Shot], edit: EditView | None = None) -> FilmPage:
    """A status reply, with what the storyboard says of its shots, or what an edit has beside."""
    status = JobStatus(job["status"])
    started, finished = job["started_at"], job["finished_at"]
    video = job["video"]
    return FilmPage(
        id=job["id"], title=job["title"] or job["id"], status=status, percent=100 * job["progress"],
        stage="" if status is not JobStatus.RUNNING else STAGE_WORDS[Stage(job["stage"])],
        queue_position=job["queue_position"], eta=eta_text(job["eta"]), made=when(job["created_at"]),
        took=span(finished - started) if started and finished else "", warnings=tuple(job["warnings"]),
        errors=tuple(job["errors"].items()),
        shots=tuple(shot_card(job, shot, shots.get(shot["id"]), number)
                    for number, shot in enumerate(job["shots"], start=1)),
        video=f"{video['url']}?v={video['sha256'][:12]}" if video else "", edit=edit)


def shot_card(job: Mapping[str, Any], shot: Mapping[str, Any], written: Shot | None, number: int) -> ShotCard:
    """One shot of a status reply."""
    status, files = NodeStatus(shot["status"]), shot["files"]
    version = "".join(node["artifact"]["sha256"][:6] for node in shot["nodes"] if node["artifact"])
    running = next((node["kind"] for node in shot["nodes"] if node["status"] == NodeStatus.RUNNING.value), "")
    poster = files["thumbnail"] or files["keyframe"]
    alike, measured = shot["consistency"], len(shot["scores"])
    chosen = f", take {shot['take']} of {measured}" if shot["take"] and measured > 1 else ""
    return ShotCard(
        consistency="" if alike is None else f"{alike:.2f}{chosen}",
        id=shot["id"], number=number, status=status, percent=100 * shot["progress"],
        says=shot["message"] if status is NodeStatus.RUNNING else "", kind=running,
        error=job["errors"].get(shot["id"], ""), prompt=written.prompt if written else "",
        caption=(written.caption or "") if written else "", continues=(written.continues or "") if written else "",
        poster=f"{poster}?v={version}" if poster else "", clip=f"{files['clip']}?v={version}" if files["clip"] else "",
        is_draft=shot["tier"] == Tier.DRAFT.value,
        takes=tuple(TakeChoice(number=take["number"], selected=take["selected"], clip=take["clip"],
                               thumbnail=take["clip"].replace("/clip?", "/thumbnail?")) for take in shot["takes"]))


def issues(error: InvalidDocument, text: str) -> tuple[Issue, ...]:
    """Everything that is wrong, each with the line as it was written."""
    lines = text.splitlines()
    return tuple(
        Issue(line=problem.line, problem=problem.problem, nearest=problem.nearest, where=_where(problem),
              source=lines[problem.line - 1].strip() if problem.line and problem.line <= len(lines) else "")
        for problem in error.problems)


def eta_text(eta: Mapping[str, float] | None) -> str:
    """`about 40 s left, at most 1 min`."""
    if eta is None:
        return ""
    usual, late = span(eta["p50_s"]), span(eta["p90_s"])
    return f"about {usual} left" + (f", at most {late}" if late != usual else "")


def span(seconds: float) -> str:
    """A length of time that one can grasp: `8 s`, `3 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def when(at_s: float) -> str:
    """`2026-11-25T10:00:00Z`; the page shows it in the reader's own time."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _where(problem: Problem) -> str:
    parts: Sequence[str] = (f"shot {problem.shot_id}" if problem.shot_id else "", problem.field)
    return ", ".join(part for part in parts if part)


def _sent(text: str, form: str) -> Sent:
    if form == "script":
        return Sent(text=text, file="script", is_script=True)
    return Sent(text=text, file="film.json" if text.lstrip().startswith("{") else "film.yaml", is_script=False)
