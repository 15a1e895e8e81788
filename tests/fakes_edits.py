"""Steps of an edit in this process, as an engine runs them: with the classical models, or what a test has instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.edit_clips import Unwatched
from workflows.edit import EditRequest, parse_edit
from workflows.edit_door import require_source
from workflows.edit_plan import CLASSICAL, EDIT_KINDS, EditAssets, Hand, plan_edit
from workflows.edit_ports import EditTake, FrameEditor, ProgressCallback, Tracker
from workflows.media.classical_editor import ClassicalEditor
from workflows.media.classical_tracker import ClassicalTracker
from workflows.media.encode import EncodeOptions
from workflows.media.frames import UInt8Array
from workflows.media.source import describe
from workflows.ports import ArtifactStore, Step
from workflows.stages.edit_local import LocalEdits
from workflows.store import sha256_of
from workflows.types import MediaType, NodeCall, NodeKind, NodeResult, NodeSpec, digest


class Flickering:
    """Recolours as `classical` does, and each frame a little lighter or darker than the one before."""

    def __init__(self, amount: int = 14) -> None:
        self._amount = amount
        self._plain = ClassicalEditor()

    def problems(self, take: EditTake) -> tuple:
        return self._plain.problems(take)

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None, watch: Unwatched) -> UInt8Array:
        edited = self._plain.edit(take, progress_callback=progress_callback, watch=watch)
        for number, frame in enumerate(edited):
            change = self._amount if number % 2 else -self._amount
            frame[:] = (frame.astype(int) + change).clip(0, 255).astype("uint8")
        return edited


@dataclass
class EditShop:
    """Runs the nodes of edits; counts them by kind."""

    store: ArtifactStore
    tracker: Tracker[Unwatched] = field(default_factory=ClassicalTracker)
    editor: FrameEditor[Unwatched] = field(default_factory=ClassicalEditor)
    started: list[str] = field(default_factory=list)
    before: Callable[[NodeCall], None] = lambda call: None
    """Called in the step's thread before it works; may raise."""

    def steps(self) -> dict[NodeKind, Step]:
        """One for each kind that edits need."""
        async def step(call: NodeCall) -> NodeResult:
            self.started.append(call.node_id)
            return await asyncio.to_thread(self._run, call)

        return dict.fromkeys(EDIT_KINDS, step)

    def _run(self, call: NodeCall) -> NodeResult:
        self.before(call)
        local = LocalEdits(self.store, EncodeOptions(), trackers={"classical": self.tracker},
                           editors={"classical": self.editor})
        return local.run(call, lambda done, total: None)


def request_for(path: Path, **changes: object) -> EditRequest:
    """A small edit of a red ball."""
    fields = {"job_id": "edit", "input_video_path": str(path), "output_dir": str(path.parent),
              "mask_prompt": "red ball", "edit_prompt": "make it green", "edit_size": 64, "chunk_frames": 16}
    return parse_edit({name: value for name, value in {**fields, **changes}.items() if value is not None})


def planned(request: EditRequest, store: ArtifactStore, *, tracker: Hand = CLASSICAL,
            editor: Hand = CLASSICAL) -> tuple[NodeSpec, ...]:
    """The request's nodes, its files put into the store."""
    path = Path(request.input_video_path)
    source = describe(path)
    part = require_source(request, source)
    masks = None
    if request.mask_video:
        masks = _put(store, Path(request.mask_video))
    return plan_edit(request, part, EditAssets(source=_put(store, path), mask_video=masks),
                     size=(source.width_px, source.height_px), tracker=tracker, editor=editor)


def _put(store: ArtifactStore, path: Path):
    key = digest({"video": sha256_of(path)})[:32]
    return store.put(key, path, media_type=MediaType.VIDEO, manifest={})

