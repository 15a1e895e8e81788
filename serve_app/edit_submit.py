"""An edit as a job: fetch the video, refuse what cannot be edited, store it, plan. Nothing is submitted here; no Ray.

Whoever lets strangers name the video must decide first which paths and addresses they may name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import fsspec

from workflows.durable.rows import NewJob
from workflows.edit import EditRequest
from workflows.edit_door import Part, mask_video_problems, require_source, source_warnings
from workflows.edit_plan import CLASSICAL, EditAssets, Hand, plan_edit
from workflows.edit_ports import SourceVideo
from workflows.errors import InvalidDocument, MediaError, Problem
from workflows.media.classical_editor import ClassicalEditor
from workflows.media.classical_tracker import ClassicalTracker
from workflows.media.source import describe
from workflows.store import Store, sha256_of
from workflows.types import Artifact, Json, MediaType, digest

KIND = "edit"
"""Of a job that edits a video."""
REQUEST, WARNINGS, FRAMES, VIDEO = "edit", "warnings", "frames", "video"
"""Of a job's document: the request as it was, what was said of the source, how many frames are edited, and the result
as clients of OpenAI's API have it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A video that lies in the store already."""

    artifact: Artifact
    name: str
    """As its owner calls it, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditSubmission:
    """A job ready to be submitted."""

    new: NewJob
    part: Part
    source: SourceVideo
    warnings: tuple[str, ...]


def edit_job(request: EditRequest, store: Store, *, tracker: Hand = CLASSICAL, editor: Hand = CLASSICAL,
             given: Mapping[str, Given] = MappingProxyType({})) -> EditSubmission:
    """Plan an edit; `tracker` and `editor` are the models that the request's cards mean. `given`: videos by what the
    request calls them; any other name is a path or an address.

    Raises InvalidDocument with everything that stands in the way, each at its field of the request.
    """
    problems = [*_known_cards(request, tracker, editor), *_classical_problems(request)]
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    with ExitStack() as stack:
        video = stack.enter_context(_local(request.input_video_path, "input_video_path", store, given))
        with _at("input_video_path", request.input_video_path in given):
            source = describe(video)
        part = require_source(request, source)
        masks: Path | None = None
        if request.mask_video:
            masks = stack.enter_context(_local(request.mask_video, "mask_video", store, given))
            with _at("mask_video", request.mask_video in given):
                problems = [*mask_video_problems(part, source, describe(masks))]
            if problems:
                raise InvalidDocument(problems=tuple(problems))
        assets = EditAssets(source=_artifact(request.input_video_path, video, store, given),
                            mask_video=None if masks is None else _artifact(request.mask_video, masks, store, given))
    nodes = plan_edit(request, part, assets, size=(source.width_px, source.height_px), tracker=tracker, editor=editor)
    warnings = source_warnings(request, source)
    document: dict[str, Json] = {REQUEST: request.model_dump(mode="json"), WARNINGS: list(warnings),
                                 FRAMES: part.frames, VIDEO: _video(request, part, source)}
    identity = digest([[node.id, node.kind.value, node.lane, list(node.deps), dict(node.payload)] for node in nodes])
    known = given.get(request.input_video_path)
    new = NewJob(id=request.job_id, kind=KIND, document=document, document_digest=identity, nodes=nodes,
                 title=f"{request.edit_prompt.strip()} in {known.name if known else Path(video).name}"[:200])
    return EditSubmission(new=new, part=part, source=source, warnings=warnings)


def _video(request: EditRequest, part: Part, source: SourceVideo) -> dict[str, Json]:
    width_px, height_px = source.width_px - source.width_px % 2, source.height_px - source.height_px % 2
    return {"prompt": request.edit_prompt, "model": request.editor, "seconds": f"{float(part.frames / part.fps):g}",
            "size": f"{width_px}x{height_px}"}


def video_key(sha256: str) -> str:
    """The store's key of a video with these bytes, wherever it came from."""
    return digest({"video": sha256})[:32]


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
def _local(place: str, field: str, store: Store, given: Mapping[str, Given]) -> Iterator[Path]:
    """A local file with what a path or URI names; a copy of what is elsewhere is removed at the end."""
    if place in given:
        yield store.fetch(given[place].artifact)
        return
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
def _at(field: str, is_given: bool = False) -> Iterator[None]:
    """What is wrong with a file, as a problem of the request; where one of the store lies is nobody's business."""
    try:
        yield
    except MediaError as error:
        told = error.problem if is_given else str(error)
        raise InvalidDocument(problems=(Problem(field=field, problem=told),)) from None


def _artifact(place: str, path: Path, store: Store, given: Mapping[str, Given]) -> Artifact:
    return given[place].artifact if place in given else stored_video(path, sha256_of(path), store, path.name)


def stored_video(path: Path, sha256: str, store: Store, name: str) -> Artifact:
    """A video of this digest in the store, put there where it is not yet; `name` is kept beside it."""
    key = video_key(sha256)
    return store.find(key) or store.put(key, path, media_type=MediaType.VIDEO,
                                        manifest={"kind": "video", "name": name})
