"""What the page shows of edits: the form, its fields and what is wrong with them; and how an edit stands. Knows no HTTP
and no template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from serve_app.edit_submit import KIND
from serve_app.service.desk import Desk
from serve_app.service.edit_places import BOXES, POINTS, text_of
from serve_app.service.edits import EditFile
from serve_app.service.links import job_url
from serve_app.service.results import RESULT, Result
from serve_app.service.uploads import SCHEME
from workflows.edit import EditRequest, Instances
from workflows.edit_status import EditState
from workflows.errors import ArtifactMissing, Problem, UnknownUpload
from workflows.types import Json, NodeKind, NodeStatus, Stage

STAGES = {Stage.EXTRACTING: "reading the video", Stage.MASKING: "finding the region",
          Stage.PROPAGATING: "following the region", Stage.EDITING: "changing the region",
          Stage.SMOOTHING: "calming the flicker", Stage.SAVING: "writing the video"}
SOURCE = "input_video_path"
BY_ITSELF = frozenset({SOURCE, "mask_prompt", POINTS, "edit_prompt"})
"""Fields that stand before the fold."""
LABELS: Mapping[str, Mapping[str, str]] = {
    "Which part": {"start_s": "Begin at, s", "end_s": "End at, s", "max_frames": "Frames at most"},
    "The region": {"tracker": "Found by", "instances": "Of several that fit", "erode_kernel": "Smaller by, px",
                   "dilate_kernel": "Larger by, px", "feather_px": "Soft edge, px", "mask_video": "Given masks",
                   BOXES: "Boxes around it"},
    "The edit": {"editor": "Edited by", "negative_prompt": "Not to be seen", "steps": "Steps",
                 "guidance_scale": "Follow the words", "image_guidance_scale": "Keep the picture", "seed": "Seed",
                 "crop_margin": "Around the region", "edit_size": "Size, px"},
    "From frame to frame": {"smoothing": "Smoothing", "chunk_frames": "Frames at once"},
}
"""Fields behind the fold, by what they are about -> what people call them."""
CHOICES = frozenset({"tracker", "editor", "instances"})
FILES: Mapping[str, str] = {
    "mask_video": "A video whose light pixels are the mask, frame by frame, in place of finding one."}
"""Fields that are files here -> what they are."""
HINTS: Mapping[str, str] = {
    **FILES, BOXES: "Left, top, right, bottom in pixels, a frame after @: 10,20,110,90@24; several with ; between."}
OF_THE_EDITOR = frozenset({"steps", "guidance_scale", "image_guidance_scale", "edit_size"})
"""Where nothing is said, an editor with a card has numbers of its own."""
SWITCHES = {"invert_mask": False, "keep_audio": True}
"""Fields that are on or off -> what they are at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One field behind the fold."""

    name: str
    label: str
    hint: str
    kind: str
    """`choice`, `number`, `file` or `text`."""
    choices: tuple[str, ...] = ()
    default: str = ""
    """What holds where the field is empty."""
    least: str = ""
    most: str = ""
    step: str = "any"

    @property
    def span(self) -> str:
        """`0 to 200`; empty where there are no bounds."""
        if self.least and self.most:
            return f"{self.least} to {self.most}"
        return f"from {self.least}" if self.least else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditForm:
    """The form as it stands: what was written, and what is wrong with it."""

    values: Mapping[str, str]
    problems: Mapping[str, tuple[Problem, ...]]
    """By field; those of no field of the form under an empty name."""
    groups: tuple[tuple[str, tuple[FormField, ...]], ...]
    results: tuple[Result, ...]
    source_name: str
    """What the video is called that was sent already; empty: none was."""
    max_bytes: int

    @property
    def is_unfolded(self) -> bool:
        """Something behind the fold needs a look."""
        return any(field.name in self.problems or self.values.get(field.name, "") not in ("", field.default)
                   for _, fields in self.groups for field in fields)

    def is_on(self, name: str) -> bool:
        """A switch."""
        return self.values.get(name, str(SWITCHES[name]).lower()) == "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    """One stage of an edit."""

    name: str
    doing: str
    state: str
    """`waiting`, `running`, `done`, `failed` or `stopped`."""
    percent: float
    says: str
    """`frame 12 of 48`; empty while it waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditView:
    """What a job that edits a video has beside what every job has. Addresses are empty before there is such a file."""

    state: EditState
    word: str
    lines: tuple[StageLine, ...]
    asked: tuple[tuple[str, str], ...]
    source: str
    start_s: float
    """Where in the source the edit begins."""
    mask: str
    report: str
    plot: str
    numbers: tuple[tuple[str, str], ...]
    """What the report says, for people."""


class EditPages:
    """What one desk has to show of edits. Blocking."""

    def __init__(self, desk: Desk) -> None:
        """Keeps nothing of its own."""
        self._desk = desk

    def form(self, values: Mapping[str, str], problems: Sequence[Problem], key_id: str) -> EditForm:
        """The form with these values; results are those of one API key, empty: of all."""
        edits = self._desk.edits
        groups = tuple((title, tuple(_field(name, label, edits.cards_for(name) if name in ("tracker", "editor") else ())
                                     for name, label in labels.items())) for title, labels in LABELS.items())
        known = {*BY_ITSELF, *SWITCHES, *(name for labels in LABELS.values() for name in labels)}
        by_field: dict[str, tuple[Problem, ...]] = {}
        for problem in problems:
            name = re.split(r"[.\[]", problem.field)[0]  # that of a list, where a part of it is meant
            name = name if name in known else ""
            by_field[name] = (*by_field.get(name, ()), problem)
        return EditForm(values=values, problems=by_field, groups=groups, results=self._desk.results.recent(key_id),
                        source_name=self._name(values.get(SOURCE, "")),
                        max_bytes=self._desk.settings.max_video_mb * 1_000_000)

    def values_from(self, job_id: str) -> dict[str, str]:
        """The form's values to begin from a job: an edit's own, or a film as the video. Raises UnknownJob, UnknownPart.
        """
        if self._desk.ledger.job(job_id).kind != KIND:
            return {SOURCE: f"{RESULT}{job_id}"}
        request, usual = self._desk.results.request(job_id), _usual()
        written = {name: _written(name, value) for name, value in request.items()
                   if value is not None and (name in SWITCHES or value != usual.get(name))}
        known = {*BY_ITSELF, *SWITCHES, *(name for labels in LABELS.values() for name in labels)}
        return {name: value for name, value in written.items() if name in known}

    def view(self, job: Mapping[str, Any]) -> EditView:
        """Of an edit's status reply. Raises UnknownJob."""
        edit = job["edit"]
        state = EditState(edit["status"])
        source = self._desk.results.source(job["id"])
        url = job_url(job["id"])
        return EditView(
            state=state, word=state.value.capitalize(), lines=tuple(_line(job, stage) for stage in STAGES),
            asked=_asked(edit["request"] or {}),
            source=f"{url}/source?v={source.artifact.sha256[:12]}", start_s=source.start_s,
            mask=_versioned(job, edit["mask_url"], NodeKind.PREVIEW),
            report=_versioned(job, edit["report_url"], NodeKind.REPORT),
            plot=_versioned(job, edit["plot_url"], NodeKind.PLOT),
            numbers=self._numbers(job["id"]) if edit["report_url"] else ())

    def _numbers(self, job_id: str) -> tuple[tuple[str, str], ...]:
        try:
            path = self._desk.store.fetch(self._desk.edits.file(job_id, EditFile.REPORT))
        except ArtifactMissing:
            return ()
        return numbers_of(json.loads(path.read_bytes()))

    def _name(self, place: str) -> str:
        if not place.startswith(SCHEME):
            return ""
        try:
            return self._desk.uploads.find(place.removeprefix(SCHEME)).name
        except UnknownUpload:
            return ""


def numbers_of(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What an edit's report says, for people."""
    told: list[tuple[str, str]] = []
    if warp := report["warp_error"]:
        told += [("Flicker before smoothing", f"{warp['before']:.2f}"), ("Flicker after it", f"{warp['after']:.2f}"),
                 ("Flicker of the source", f"{warp['source']:.2f}")]
    if outside := report["outside_mask"]:
        told += [("Changed outside the mask", f"{outside['changed_pixels']:,} pixels"),
                 ("Outside, once encoded", f"{outside['psnr_db']:.1f} dB"),
                 ("In the worst frame", f"{outside['worst_psnr_db']:.1f} dB")]
    return tuple(told)


def _versioned(job: Mapping[str, Any], url: str | None, kind: NodeKind) -> str:
    """The address with what tells one version from the next, as a retry makes another file under the same address."""
    made = next((node["artifact"]["sha256"][:12] for node in job["film"]
                 if node["kind"] == kind.value and node["artifact"]), "")
    return f"{url}?v={made}" if url else ""


def _line(job: Mapping[str, Any], stage: Stage) -> StageLine:
    nodes = [node for node in (*job["film"], *(node for shot in job["shots"] for node in shot["nodes"]))
             if node["stage"] == stage.value and node["kind"] != NodeKind.PREVIEW.value]
    share = sum(node["progress"] for node in nodes) / len(nodes) if nodes else 0.0
    state = _state({NodeStatus(node["status"]) for node in nodes}, share)
    frames = job["edit"]["total_frames"]
    says = f"frame {int(share * frames)} of {frames}" if state == "running" and frames else (
        "" if state in ("waiting", "running") else state)
    return StageLine(name=stage.value, doing=STAGES[stage], state=state, percent=100 * share, says=says)


def _state(statuses: set[NodeStatus], share: float) -> str:
    if NodeStatus.FAILED in statuses:
        return "failed"
    if statuses & {NodeStatus.CANCELLED, NodeStatus.SKIPPED}:
        return "stopped"
    if statuses == {NodeStatus.SUCCEEDED}:
        return "done"
    return "running" if share > 0 or NodeStatus.RUNNING in statuses else "waiting"


def _asked(request: Mapping[str, Json]) -> tuple[tuple[str, str], ...]:
    """What was asked for, without what is as usual."""
    usual = _usual()
    return tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in request.items()
                 if name not in ("mask_prompt", "edit_prompt", SOURCE) and value != usual.get(name))


def _written(name: str, value: Any) -> str:
    """A field of a request as the form has it."""
    if name in (POINTS, BOXES):
        return text_of(name, value)
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _usual() -> Mapping[str, Json]:
    """The fields that need not be said."""
    usual = {name: field.get_default(call_default_factory=True) for name, field in EditRequest.model_fields.items()
             if not field.is_required()}
    return {**usual, "instances": Instances.ALL.value, "points": [], "boxes": []}


@cache
def _schema() -> Mapping[str, Any]:
    found: dict[str, Any] = EditRequest.model_json_schema()
    return found


def _field(name: str, label: str, cards: tuple[str, ...]) -> FormField:
    """A field as the request's own schema bounds and explains it."""
    rule: dict[str, Any] = _schema()["properties"][name]
    number = next((one for one in rule.get("anyOf", (rule,)) if one.get("type") in ("number", "integer")), None)
    hint = rule.get("description", "").replace("`", "").replace("\n", " ")
    if name in CHOICES:
        choices = cards or tuple(_schema()["$defs"]["Instances"]["enum"])
        return FormField(name=name, label=label, hint=hint, kind="choice", choices=choices, default=choices[0])
    if number is None:
        return FormField(name=name, label=label, hint=HINTS.get(name, hint), kind="file" if name in FILES else "text")
    usual = "" if rule.get("default") is None else f"{rule['default']:g}"
    return FormField(
        name=name, label=label, hint=hint, kind="number",
        default=f"the editor's, or {usual}" if name in OF_THE_EDITOR else usual,
        least=_bound(number, "minimum", "exclusiveMinimum"), most=_bound(number, "maximum", "exclusiveMaximum"),
        step="1" if number["type"] == "integer" else "any")


def _bound(rule: Mapping[str, Any], *names: str) -> str:
    found = next((rule[name] for name in names if name in rule), None)
    return "" if found is None else str(found) if isinstance(found, int) else f"{found:g}"
