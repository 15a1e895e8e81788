"""What the core needs from outside, as Protocols; `serve_app` implements them, and so does `tests/fakes.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workflows.types import Artifact, Json, MediaType, NodeCall, NodeResult, ProgressRecord


class ArtifactStore(Protocol):
    """Immutable files under content keys (implemented by `workflows.store.Store`)."""

    def find(self, key: str) -> Artifact | None:
        """The artifact committed under this key, or None."""

    def put(self, key: str, source: Path, *, media_type: MediaType, manifest: Mapping[str, Json],
            score: float | None = None) -> Artifact:
        """Commit a local file under a key, atomically; a second commit of the same key is harmless."""

    def discard(self, key: str) -> None:
        """Remove what unfinished attempts at this key have left; nobody will go on from it."""

    def fetch(self, artifact: Artifact) -> Path:
        """A local file with the artifact's bytes, checked against its digest. Read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Replicas of one model on one machine that are to make one call together, seen by one of them."""

    id: str
    """Of this one meeting, and known to nobody else."""
    size: int
    """Replicas, one GPU each; at least 2."""
    rank: int
    """0 is whose call it is; 1 to size - 1 help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderCall:
    """Everything a model replica needs to make one picture or one clip; small enough for one RPC."""

    job_id: str
    node_id: str
    shot_id: str
    attempt: int
    key: str
    left_s: float
    """As in NodeCall."""
    card: str
    """Name of the model card."""
    card_digest: str
    """Digest of the card the film was planned with; a replica with another card refuses."""
    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    frames: int
    """1 for a picture."""
    fps: float
    steps: int
    guidance: float
    seed: int
    first_frame: Artifact | None = None
    """The picture the clip starts from (image to video)."""
    cache_threshold: float | None = None
    """Of diffusers' first-block cache, in drafts; None: every step is computed."""
    references: tuple[Artifact, ...] = ()
    """Reference pictures of characters, in the shot's order (text to image)."""
    avoid: tuple[str, ...] = ()
    """Replicas that ran out of memory for it, by name; it is sent to others."""
    seat: int | None = None
    """Of its lane; calls of one seat go to one replica. None: to any."""
    may_shrink: bool = False
    """It may be made smaller: what does not fit is no mistake of the call then, and a first frame of another size is
    scaled."""
    party: Party | None = None
    """Others that were asked to help; each goes to a replica of its own. None: it is made alone."""


class Model(Protocol):
    """A model deployment, seen from a stage.

    Raises StageFailed and its children; ArtifactMissing, ArtifactCorrupt or MediaError for the first frame; nothing
    else.
    """

    async def image(self, call: RenderCall) -> NodeResult:
        """Text to one picture (PNG)."""

    async def clip(self, call: RenderCall) -> NodeResult:
        """Text, or text and first frame, to one clip (MP4)."""

    async def assist(self, call: RenderCall) -> None:
        """Help the replica that makes the call, as one of its party; returns when it needs no help, or never came."""


class ProgressSink(Protocol):
    """Where a running node says how far it is. Never raises, never blocks."""

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        """Hand over the newest record; `urgent` asks for delivery now rather than at the next tick."""

    def end(self, job_id: str, node_id: str) -> None:
        """The node no longer runs here, whatever became of it."""


Step = Callable[[NodeCall], Awaitable[NodeResult]]
"""A stage with its ports already in place; the engine knows nothing more of it."""


class MediaWorker(Protocol):
    """The CPU deployment that finishes clips and joins films. Raises ReelrayError children, nothing else."""

    async def run(self, call: NodeCall) -> NodeResult:
        """One interpolate, caption, compose or score node."""
