"""A video that somebody wants edited: read, refused or planned, submitted; where it stands, and its files. Blocking, no
HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath

from configs.load import edit_cards, load_cards
from configs.model_card import EDIT_TASKS, ModelCard, Task
from configs.settings import Settings
from serve_app.edit_submit import FRAMES, KIND, REQUEST, VIDEO, EditSubmission, Given, edit_job
from serve_app.service.films import Order
from serve_app.service.forecast import Forecast
from serve_app.service.links import edit_file_url, video_url
from serve_app.service.previews import foretold
from serve_app.service.uploads import SCHEME, Uploads, video_json
from serve_app.submit import slug_of
from workflows.durable.ledger import Ledger
from workflows.durable.overview import Overview
from workflows.durable.rows import JobRow, NewJob, NodeRow
from workflows.edit import EditRequest, parse_edit
from workflows.edit_hands import hands_of, with_card_defaults
from workflows.edit_plan import BESIDE, CLASSICAL, SAVE
from workflows.edit_status import edit_status
from workflows.errors import InvalidDocument, Problem, UnknownPart
from workflows.store import Store
from workflows.types import Artifact, Json, NodeKind, ProgressRecord

OURS: Mapping[str, str] = {
    "job_id": "the server names the job", "output_dir": "the server keeps the files; download them",
    "extra": "these would name files of the server; its operator says where models lie"}
"""Fields of a request that only a program on the same machine may fill in, and why."""
UNNAMED = "edit"
"""Id of a job before it has one."""


class EditFile(StrEnum):
    """A file that an edit makes beside its video."""

    MASK = "mask"
    """What was found, laid over the video."""
    REPORT = "report"
    """Flicker before and after smoothing, and what changed outside the mask."""
    PLOT = "plot"
    """The report, drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDraft:
    """An edit that can be submitted."""

    request: EditRequest
    """With its models' own numbers where it said none."""
    submission: EditSubmission

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the source is taken differently than it is."""
        return self.submission.warnings

    @property
    def digest(self) -> str:
        """What makes two edits the same."""
        return self.submission.new.identity


class Edits:
    """Edits of one ledger and one store."""

    def __init__(self, ledger: Ledger, store: Store, forecast: Forecast, cards: Mapping[str, ModelCard],
                 started: Iterable[str] | None = None) -> None:
        """`cards`: those that are known; `started`: those that run here, None: whichever is asked for."""
        self._ledger = ledger
        self._store = store
        self._forecast = forecast
        self._cards = cards
        self._started = None if started is None else frozenset(started)

    def draft(self, request: EditRequest, given: Mapping[str, Given] | None = None) -> EditDraft:
        """Look at the video and plan. `given`: videos of the store by what the request calls them.

        Raises InvalidDocument with everything that is wrong, each at its field.
        """
        self._require_started(request)
        request = with_card_defaults(request, self._cards)
        tracker, editor = hands_of(request, self._cards)
        submission = edit_job(request, self._store, tracker=tracker, editor=editor, given=given or {})
        return EditDraft(request=request, submission=submission)

    def submit(self, draft: EditDraft, order: Order, facts: Mapping[str, Json] | None = None) -> JobRow:
        """Queue it; `facts` are told of it to clients of OpenAI's API."""
        new = draft.submission.new
        job_id = f"{slug_of(draft.request.edit_prompt)}-{order.token[:10]}"
        told = new.document[VIDEO]
        assert isinstance(told, dict)
        document = {**new.document, REQUEST: {**_shown(draft.request), "job_id": job_id},
                    VIDEO: {**told, **(facts or {})}}
        return self._ledger.submit(replace(
            new, id=job_id, document=document, priority=order.priority, key_id=order.key_id,
            webhook_url=order.webhook_url, limits=order.limits))

    def preview(self, draft: EditDraft) -> dict[str, Json]:
        """What submitting the draft would do, as the dry run's reply."""
        new, part = draft.submission.new, draft.submission.part
        return {
            "title": new.title, "document_digest": draft.digest, "request": _shown(draft.request),
            "warnings": list(draft.warnings), "source": video_json(draft.submission.source),
            "frames": part.frames, "duration_s": round(float(part.frames / part.fps), 6),
            "chunks": sum(node.kind is NodeKind.EDIT for node in new.nodes),
            **foretold(new.nodes, self._store, self._forecast.pace)}

    def file(self, job_id: str, what: EditFile) -> Artifact:
        """A file beside the video. Raises UnknownJob; UnknownPart for jobs of another kind and while it is not made."""
        job, nodes = self._ledger.job(job_id), self._ledger.nodes(job_id)
        if job.kind != KIND:
            raise UnknownPart(job_id=job_id, problem=f"is a {job.kind}, and only edits have a {what.value}")
        found = next((node.artifact for node in nodes if node.id == BESIDE[what]), None)
        if found is None:
            raise UnknownPart(job_id=job_id, problem=f"is {job.status.value}; there is no {what.value}, or not yet")
        return found

    def cards_for(self, field: str) -> tuple[str, ...]:
        """Names that a request may give as its `tracker` or `editor` here, the one without weights first."""
        tracks = field == "tracker"
        able = self._able(field) if self._started is not None else {
            name for name, card in self._cards.items()
            if (card.tasks == (Task.TRACK,) if tracks else set(card.tasks) & set(EDIT_TASKS))}
        return CLASSICAL.card, *sorted(able)

    def _require_started(self, request: EditRequest) -> None:
        if self._started is None:
            return
        used = {"editor": request.editor, **({} if request.mask_video else {"tracker": request.tracker})}
        problems = [Problem(field=field, problem=f"card {name!r} is not started here; the operator names it in "
                                                 "models.edit_cards",
                            nearest=" or ".join([*sorted(self._able(field)), CLASSICAL.card]))
                    for field, name in used.items() if name in self._cards and name not in self._started]
        if problems:
            raise InvalidDocument(problems=tuple(problems))

    def _able(self, field: str) -> set[str]:
        """The cards that are started here for this."""
        tracks = field == "tracker"
        return {name for name in self._started or () if (self._cards[name].finds_by is not None) is tracks}


def read_wish(fields: Mapping[str, Json]) -> EditRequest:
    """A request that came from elsewhere. Raises InvalidDocument with every problem, each at its field."""
    problems = [Problem(field=name, problem=why, nearest="leave it out") for name, why in OURS.items()
                if name in fields]
    own = {name: value for name, value in fields.items() if name not in OURS}
    try:
        request = parse_edit({**own, "job_id": UNNAMED, "output_dir": "."})
    except InvalidDocument as error:
        raise InvalidDocument(problems=(*problems, *error.problems)) from None
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    return request


def named_videos(request: EditRequest, uploads: Uploads) -> dict[str, Given]:
    """The videos that a request from elsewhere names, by what it calls them. Raises InvalidDocument with all that are
    something else than an upload or an address that the settings allow.
    """
    found: dict[str, Given] = {}
    problems: list[Problem] = []
    for field, place in (("input_video_path", request.input_video_path), ("mask_video", request.mask_video)):
        try:
            if place and place not in found:
                found[place] = uploads.named(field, place)
        except InvalidDocument as error:
            problems += error.problems
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    return found


def edits_of(settings: Settings, ledger: Ledger, store: Store, forecast: Forecast) -> Edits:
    """Of a service: with the cards that it starts. Raises SettingsError."""
    cards = load_cards(settings)
    return Edits(ledger, store, forecast, cards, [card.name for card in edit_cards(settings, cards)])


def local_edits(settings: Settings, ledger: Ledger, store: Store) -> Edits:
    """For who starts what an edit needs: estimates are the cards' own. Raises SettingsError for the cards."""
    return Edits(ledger, store, Forecast(Overview(ledger.database), {}), load_cards(settings))


def standing_json(job: JobRow, nodes: Sequence[NodeRow], live: Mapping[str, ProgressRecord],
                  floor: float) -> dict[str, Json] | None:
    """Where an edit stands, as `status.json` says it, with addresses in place of paths; None for other jobs."""
    if job.kind != KIND:
        return None
    frames = job.document.get(FRAMES)
    status = edit_status(job, nodes, live, frames=frames if isinstance(frames, int) else 0, floor=floor)
    made = {node.id for node in nodes if node.artifact is not None}
    return {
        "status": status.status.value, "current_frame": status.current_frame, "total_frames": status.total_frames,
        "message": status.message, "error": status.error, "request": _told(job.document.get(REQUEST)),
        "video_url": video_url(job.id) if SAVE in made else None,
        **{f"{what}_url": edit_file_url(job.id, what) if node in made else None for what, node in BESIDE.items()}}


def _shown(request: EditRequest) -> dict[str, Json]:
    """The fields that whoever asked may know and send again."""
    return request.model_dump(mode="json", exclude=set(OURS))


def _told(request: Json) -> Json:
    """The request of a job, which a command of this machine may have sent: paths of this machine lose all but their
    names.
    """
    if not isinstance(request, dict):
        return None
    told = {name: value for name, value in request.items() if name not in OURS}
    for name in ("input_video_path", "mask_video"):
        place = str(told.get(name, ""))
        if not place.startswith(SCHEME) and ("://" not in place or place.startswith("file:")):
            told[name] = PurePath(place).name
    return told


def local_job(draft: EditDraft) -> NewJob:
    """The job of a draft whose video is a file of this machine: the same edit of the same video is the same job."""
    new = draft.submission.new
    stem = PurePath(draft.request.input_video_path).stem
    return replace(new, id=f"{slug_of(stem)}-{draft.digest[:8]}")
