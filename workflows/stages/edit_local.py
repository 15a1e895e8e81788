"""All stages of an edit on the calling thread: those without a model, and trackers and editors that run here.

The worker of the CPU deployment and the library use it; replicas of models on GPUs use the parts in `edit_models`.
"""

from __future__ import annotations

from collections.abc import Mapping

from workflows.edit_plan import CLASSICAL
from workflows.edit_ports import FrameEditor, Tracker, Watching
from workflows.errors import RenderRefused
from workflows.media.classical_editor import ClassicalEditor
from workflows.media.classical_tracker import ClassicalTracker
from workflows.media.encode import EncodeOptions
from workflows.media.frames import OnProgress
from workflows.ports import ArtifactStore
from workflows.stages.edit_bench import Bench, Files
from workflows.stages.edit_finish import EditFinisher
from workflows.stages.edit_models import edit, is_given, keep_edit, keep_masks, read_search, read_sheet, search
from workflows.types import NodeCall, NodeKind, NodeResult

TRACKERS: Mapping[str, Tracker[Watching]] = {CLASSICAL.card: ClassicalTracker()}
EDITORS: Mapping[str, FrameEditor[Watching]] = {CLASSICAL.card: ClassicalEditor()}
"""By card name: what needs no weights."""


class LocalEdits:
    """Runs any node of any edit whose models are here."""

    def __init__(self, store: ArtifactStore, options: EncodeOptions, *,
                 trackers: Mapping[str, Tracker[Watching]] = TRACKERS,
                 editors: Mapping[str, FrameEditor[Watching]] = EDITORS) -> None:
        """`trackers` and `editors` by card name; they are called from whatever thread calls `run`."""
        self._files = Files(store)
        self._finisher = EditFinisher(store, options)
        self._trackers, self._editors = trackers, editors

    def run(self, call: NodeCall, on_progress: OnProgress) -> NodeResult:
        """Run one node; a result that the store already has is returned at once.

        `on_progress` is called with (done, all) and may raise RenderCancelled or DeadlineExceeded to stop it. Raises
        StageFailed and its children (RenderRefused for a model that is not here), MediaError, and what the store
        raises.
        """
        if is_given(call) or call.kind not in (NodeKind.MASK, NodeKind.EDIT):
            return self._finisher.run(call, on_progress)
        found = self._files.store.find(call.key)
        if found is not None:
            return NodeResult(artifact=found)
        bench, through = Bench(call, self._files), _Through(on_progress)
        if call.kind is NodeKind.MASK:
            tracker = self._trackers.get(str(call.payload["card"]))
            if tracker is None:
                raise _not_here(call, "tracker", self._trackers)
            return keep_masks(bench, search(read_search(bench), tracker, progress_callback=through, watch=through))
        editor = self._editors.get(str(call.payload["card"]))
        if editor is None:
            raise _not_here(call, "editor", self._editors)
        return keep_edit(bench, edit(read_sheet(bench), editor, progress_callback=through, watch=through))


class _Through:
    """A model's progress and its watch, told to the callback of a stage."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._told = (0, 1)

    def __call__(self, step: int, total: int, timestep: float) -> None:
        self._told = (step, max(total, 1))

    def check(self) -> None:
        """Tell how far it is; the callback raises when it is time to stop."""
        self._on_progress(*self._told)


def _not_here(call: NodeCall, what: str, here: Mapping[str, object]) -> RenderRefused:
    return RenderRefused(node_id=call.node_id, reason=(
        f"no {what} {call.payload['card']!r} runs here; those that do: {', '.join(here)}"))
