"""A step that keeps its results in a real store, for tests of what looks after one."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.fakes import ScriptedStep
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeCall, NodeResult


class StoringStep(ScriptedStep):
    """Keeps its results in a real store."""

    def __init__(self, place: Store, scratch: Path, *, keeps_name: bool = True) -> None:
        """`keeps_name`: a result that is made again has the same bytes, and so the same name."""
        self.place, self.scratch, self.keeps_name = place, scratch, keeps_name
        self.calls, self.script = [], {}

    def result(self, call: NodeCall) -> NodeResult:
        return NodeResult(artifact=stored(self.place, call.key, self.scratch,
                                          "" if self.keeps_name else uuid.uuid4().hex))


def stored(store: Store, key: str, scratch: Path, more: str = "") -> Artifact:
    """A small file under a key."""
    source = scratch / f"{key}{more}.source"
    source.write_text(f"bytes of {key}{more}")
    return store.put(key, source, media_type=MediaType.MP4, manifest={})
