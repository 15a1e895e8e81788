"""Stand-ins for the ports: a store in memory, and steps that do what a test tells them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from workflows.types import Artifact, Json, MediaType, NodeCall, NodeResult

Act = Exception | Callable[[NodeCall], Awaitable[NodeResult]]
"""What one attempt does: raise, or whatever the function does."""


class FakeStore:
    """An ArtifactStore in memory; `fetch` writes into the directory given."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._bytes: dict[str, bytes] = {}
        self._artifacts: dict[str, Artifact] = {}
        self.discarded: list[str] = []

    def find(self, key: str) -> Artifact | None:
        return self._artifacts.get(key)

    def put(self, key: str, source: Path, *, media_type: MediaType, manifest: Mapping[str, Json],
            score: float | None = None) -> Artifact:
        return self.keep(key, source.read_bytes(), media_type=media_type, score=score)

    def discard(self, key: str) -> None:
        self.discarded.append(key)

    def fetch(self, artifact: Artifact) -> Path:
        path = self._directory / f"{artifact.key}{artifact.media_type.suffix}"
        path.write_bytes(self._bytes[artifact.key])
        return path

    def keep(self, key: str, content: bytes = b"pixels", *, media_type: MediaType = MediaType.MP4,
             score: float | None = None) -> Artifact:
        """Commit bytes under a key."""
        self._bytes[key] = content
        self._artifacts[key] = Artifact(key=key, uri=f"memory://{key}", sha256=hashlib.sha256(content).hexdigest(),
                                        size_bytes=len(content), media_type=media_type, score=score)
        return self._artifacts[key]

    def lose(self, key: str) -> None:
        """Forget what was committed under a key."""
        del self._artifacts[key]


class ScriptedStep:
    """A Step that records its calls, takes the next act of the node's script, and without one succeeds at once."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.calls: list[NodeCall] = []
        self.script: dict[str, list[Act]] = {}

    async def __call__(self, call: NodeCall) -> NodeResult:
        self.calls.append(call)
        acts = self.script.get(call.node_id)
        if not acts:
            return self.result(call)
        act = acts.pop(0)
        if isinstance(act, Exception):
            raise act
        return await act(call)

    def result(self, call: NodeCall) -> NodeResult:
        """What a node that just succeeds returns."""
        return NodeResult(artifact=self.store.keep(call.key), seconds={"diffusion": 0.5})

    def started(self) -> list[str]:
        """Node ids in the order of their starts."""
        return [call.node_id for call in self.calls]
