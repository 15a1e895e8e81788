"""An edit as a job: fetch the video, refuse what cannot be edited, store it, plan. Nothing is submitted here; no Ray.

Whoever lets strangers name the video must decide first which paths and addresses they may name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import fsspec

from workflows.durable.rows import NewJob
from workflows.edit import EditRequest
from workflows.edit_door import Part, mask_video_problems, require_source, source_warnings
from workflows.edit_plan import CLASSICAL, EditAssets, Hand, plan_edit
from workflows.errors import InvalidDocument, MediaError, Problem
from workflows.media.classical_editor import ClassicalEditor
from workflows.media.classical_tracker import ClassicalTracker
from workflows.media.source import describe
from workflows.store import Store, sha256_of
from workflows.types import Artifact, Json, MediaType, digest

KIND = "edit"
"""Of a job that edits a video."""
REQUEST, WARNINGS, FRAMES = "edit", "warnings", "frames"
"""Of a job's document: the request as it was, what was said of the source, and how many frames are edited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSubmission:
    """A job ready to be submitted."""

    new: NewJob
    part: Part
    warnings: tuple[str, ...]


def edit_job(request: EditRequest, store: Store, *, tracker: Hand = CLASSICAL,
             editor: Hand = CLASSICAL) -> EditSubmission:
    """Plan an edit; `tracker` and `editor` are the models that the request's cards mean.

    Raises InvalidDocument with everything that stands in the way, each at its field of the request.
    """
    problems = [*_known_cards(request, tracker, editor), *_classical_problems(request)]
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    with ExitStack() as stack:
        video = stack.enter_context(_local(request.input_video_path, "input_video_path"))
        with _at("input_video_path"):
            source = describe(video)
        part = require_source(request, source)
        given: Path | None = None
        if request.mask_video:
            given = stack.enter_context(_local(request.mask_video, "mask_video"))
            with _at("mask_video"):
                problems = [*mask_video_problems(part, source, describe(given))]
            if problems:
                raise InvalidDocument(problems=tuple(problems))
        assets = EditAssets(source=_stored(video, store), mask_video=None if given is None else _stored(given, store))
    nodes = plan_edit(request, part, assets, size=(source.width_px, source.height_px), tracker=tracker, editor=editor)
    warnings = source_warnings(request, source)
    document: dict[str, Json] = {REQUEST: request.model_dump(mode="json"), WARNINGS: list(warnings),
                                 FRAMES: part.frames}
    identity = digest([[node.id, node.kind.value, node.lane, list(node.deps), dict(node.payload)] for node in nodes])
    new = NewJob(id=request.job_id, kind=KIND, title=f"{request.edit_prompt.strip()} in {Path(video).name}"[:200],
                 document=document, document_digest=identity, nodes=nodes)
    return EditSubmission(new=new, part=part, warnings=warnings)


def _known_cards(request: EditRequest, tracker: Hand, editor: Hand) -> list[Problem]:
    problems = [Problem(field=field, problem=f"no {field} {asked!r} here", nearest=hand.card)
                for field, asked, hand in (("tracker", request.tracker, tracker), ("editor", request.editor, editor))
                if asked != hand.card]
    if request.extra and tracker == editor == CLASSICAL:
        problems.append(Problem(field="extra", problem="the classical tracker and editor load no models",
                                nearest="a tracker and an editor that do, or no extra"))
    return problems


def _classical_problems(request: EditRequest) -> list[Problem]:
    """What the models without weights cannot do, before anything is run."""
    problems: list[Problem] = []
    if request.tracker == CLASSICAL.card and not request.mask_video:
        problems += ClassicalTracker().problems(request.find)
    if request.editor == CLASSICAL.card:
        problems += ClassicalEditor().prompt_problems(request.edit_prompt, request.negative_prompt)
    return problems


@contextmanager
def _local(place: str, field: str) -> Iterator[Path]:
    """A local file with what a path or URI names; a copy of what is elsewhere is removed at the end."""
    if "://" not in place:
        yield Path(place).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="reelray-") as directory:
        path = Path(directory) / (Path(place).name or "video")
        try:
            with fsspec.open(place, "rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, ValueError, ImportError) as error:
            problem = Problem(field=field, problem=f"{place} cannot be read: {error}")
            raise InvalidDocument(problems=(problem,)) from None
        yield path


@contextmanager
def _at(field: str) -> Iterator[None]:
    """What is wrong with a file, as a problem of the request."""
    try:
        yield
    except MediaError as error:
        raise InvalidDocument(problems=(Problem(field=field, problem=str(error)),)) from None


def _stored(path: Path, store: Store) -> Artifact:
    key = digest({"video": sha256_of(path)})[:32]
    found = store.find(key)
    return found or store.put(key, path, media_type=MediaType.VIDEO, manifest={"kind": "video", "name": path.name})
