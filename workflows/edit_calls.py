"""What a model replica is told of one chunk of an edit, small enough for one RPC; pixels stay in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workflows.edit_ports import Find
from workflows.types import Artifact, Json, NodeResult

FRAMES, MASKS, CARRIED = "frames", "masks", "carried"
"""Names of a chunk's inputs: pictures without loss, masks of the same frames, masks of the chunk before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkCall:
    """What all calls have: whose they are, who may answer, and what the chunk is read from."""

    job_id: str
    node_id: str
    shot_id: str
    attempt: int
    key: str
    deadline_s: float
    card: str
    """Name of the model card."""
    card_digest: str
    """Digest of the card that the edit was planned with; a replica with another card refuses."""
    inputs: Mapping[str, Artifact]
    """By what they are to the chunk."""
    first: int
    """The chunk's first frame in its inputs."""
    frames: int
    fps: float
    details: Mapping[str, Json] = field(default_factory=dict)
    """Whatever else the chunk's reader has to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackCall(ChunkCall):
    """Find something in a chunk and follow it."""

    find: Find
    """Its frames are counted from the chunk's first one."""
    carried_frame: int = 0
    """In the input `carried`, the mask of this chunk's first frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditCall(ChunkCall):
    """Change a chunk's crops as a text says."""

    task: Literal["edit_frames", "edit_video"]
    prompt: str
    negative_prompt: str
    steps: int
    guidance: float
    image_guidance: float
    seed: int


class EditModel(Protocol):
    """A tracker's or an editor's deployment, seen from a stage.

    Raises StageFailed and its children; ArtifactMissing, ArtifactCorrupt or MediaError for the inputs; nothing else.
    """

    async def track(self, call: TrackCall) -> NodeResult:
        """Masks without loss. Its artifact's `score` is the best of anything that was seen; a find of nothing is a
        result too, all black, and its first warning says so."""

    async def edit(self, call: EditCall) -> NodeResult:
        """The crops edited, without loss."""
