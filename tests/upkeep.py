"""A real store beside a ledger, and a step that keeps its results there."""

from __future__ import annotations

from pathlib import Path

from tests.fakes import ScriptedStep
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeCall, NodeResult


class StoringStep(ScriptedStep):
    """Keeps its results in a real store."""

    def __init__(self, place: Store, scratch: Path) -> None:
        self.place, self.scratch = place, scratch
        self.calls, self.script = [], {}

    def result(self, call: NodeCall) -> NodeResult:
        return NodeResult(artifact=stored(self.place, call.key, self.scratch))


def stored(store: Store, key: str, scratch: Path) -> Artifact:
    """A small file under a key."""
    source = scratch / f"{key}.source"
    source.write_text(f"bytes of {key}")
    return store.put(key, source, media_type=MediaType.MP4, manifest={})
