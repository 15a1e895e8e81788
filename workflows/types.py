"""The vocabulary: ids, statuses and their moves, and the frozen values that cross rooms and processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue

from workflows.errors import ErrorRecord, IllegalMove

Json = JsonValue
"""What a row, an event or a manifest may hold."""


CPU_LANE = "cpu"
STORY_LANE = "story"
"""Of scripts that a language model breaks into shots: they wait for an answer, and must not hold up the CPU's work."""
NO_MODEL_LANES = frozenset({CPU_LANE, STORY_LANE})
"""Lanes whose nodes cost no GPU-seconds."""


class JobStatus(StrEnum):
    """Where a whole job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    """The film exists, but at least one shot is missing from it."""
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Nothing will change until somebody asks for a rerun."""
        return self in TERMINAL_JOBS


TERMINAL_JOBS = frozenset({JobStatus.SUCCEEDED, JobStatus.PARTIAL, JobStatus.FAILED, JobStatus.CANCELLED})


class NodeStatus(StrEnum):
    """Where one node of a job's DAG stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Something it depends on failed."""
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """It will not run again unless a rerun names it."""
        return self in TERMINAL_NODES


TERMINAL_NODES = frozenset(
    {NodeStatus.SUCCEEDED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.CANCELLED},
)

JOB_MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: TERMINAL_JOBS | {JobStatus.QUEUED},
    # A rerun opens a finished job again.
    **{status: frozenset({JobStatus.QUEUED}) for status in TERMINAL_JOBS},
}

NODE_MOVES: Mapping[NodeStatus, frozenset[NodeStatus]] = {
    NodeStatus.PENDING: frozenset(
        {NodeStatus.RUNNING, NodeStatus.SUCCEEDED, NodeStatus.SKIPPED, NodeStatus.CANCELLED, NodeStatus.FAILED},
    ),
    # Back to pending: the attempt was interrupted or will be retried.
    NodeStatus.RUNNING: frozenset(
        {NodeStatus.SUCCEEDED, NodeStatus.FAILED, NodeStatus.CANCELLED, NodeStatus.PENDING, NodeStatus.RUNNING},
    ),
    **{status: frozenset({NodeStatus.PENDING}) for status in TERMINAL_NODES},
}


def advance_job(old: JobStatus, new: JobStatus) -> JobStatus:
    """Return `new`, or raise IllegalMove when the table forbids the move."""
    if new not in JOB_MOVES[old]:
        raise IllegalMove(what="job", old=old, new=new)
    return new


def advance_node(old: NodeStatus, new: NodeStatus) -> NodeStatus:
    """Return `new`, or raise IllegalMove when the table forbids the move."""
    if new not in NODE_MOVES[old]:
        raise IllegalMove(what="node", old=old, new=new)
    return new


class Stage(StrEnum):
    """The four stages of a film and the six of an edit, each in order, as users see them."""

    STORY = "story"
    IMAGES = "images"
    VIDEOS = "videos"
    COMPOSITION = "composition"
    EXTRACTING = "extracting"
    MASKING = "masking"
    PROPAGATING = "propagating"
    EDITING = "editing"
    SMOOTHING = "smoothing"
    SAVING = "saving"


FILM_STAGES = (Stage.STORY, Stage.IMAGES, Stage.VIDEOS, Stage.COMPOSITION)


class NodeKind(StrEnum):
    """What a node does; one async function in `workflows.stages` each."""

    STORY = "story"
    """Break a script into shots; inserts the shots' nodes in its own commit."""
    KEYFRAME = "keyframe"
    """Text to one picture, the first frame of a clip."""
    CLIP = "clip"
    """Text, or text and a first frame, to a clip."""
    INTERPOLATE = "interpolate"
    """Raise a clip's frame rate by an integer factor."""
    CAPTION = "caption"
    """Burn a caption into a clip."""
    SCORE = "score"
    """Say how much a clip looks like its characters' reference pictures."""
    PICK = "pick"
    """Say which take of a shot the film uses, by their scores."""
    COMPOSE = "compose"
    """Join the clips into the film."""
    EXTRACT = "extract"
    """Find the pictures of a video that are edited, and when each is shown."""
    MASK = "mask"
    """Find a region in the frames of one chunk."""
    PROPAGATE = "propagate"
    """Join the chunks' masks, and lay the square that follows the region."""
    EDIT = "edit"
    """Do to the region in one chunk what a text says."""
    SMOOTH = "smooth"
    """Fade chunk into chunk, and take the flicker out."""
    PREVIEW = "preview"
    """Show the mask on its video."""
    SAVE = "save"
    """Put the edited region back into the video."""
    REPORT = "report"
    """Measure flicker, and what changed outside the mask."""
    PLOT = "plot"
    """Draw the report."""

    @property
    def stage(self) -> Stage:
        """The stage that users see."""
        return STAGE_OF[self]


STAGE_OF: Mapping[NodeKind, Stage] = {
    NodeKind.STORY: Stage.STORY,
    NodeKind.KEYFRAME: Stage.IMAGES,
    NodeKind.CLIP: Stage.VIDEOS,
    NodeKind.INTERPOLATE: Stage.VIDEOS,
    NodeKind.CAPTION: Stage.VIDEOS,
    NodeKind.SCORE: Stage.VIDEOS,
    NodeKind.PICK: Stage.VIDEOS,
    NodeKind.COMPOSE: Stage.COMPOSITION,
    NodeKind.EXTRACT: Stage.EXTRACTING,
    NodeKind.MASK: Stage.MASKING,
    NodeKind.PROPAGATE: Stage.PROPAGATING,
    NodeKind.EDIT: Stage.EDITING,
    NodeKind.SMOOTH: Stage.SMOOTHING,
    NodeKind.PREVIEW: Stage.SAVING,
    NodeKind.SAVE: Stage.SAVING,
    NodeKind.REPORT: Stage.SAVING,
    NodeKind.PLOT: Stage.SAVING,
}


class Priority(StrEnum):
    """Which jobs go first: interactive work is always dispatched before batch work."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class MediaType(StrEnum):
    """What an artifact's file is."""

    MP4 = "video/mp4"
    PNG = "image/png"
    JPEG = "image/jpeg"
    JSON = "application/json"
    MKV = "video/x-matroska"
    VIDEO = "application/octet-stream"
    """A user's video, in whatever container it came."""

    @property
    def suffix(self) -> str:
        """File name ending, with the dot."""
        return SUFFIXES[self]


SUFFIXES: Mapping[MediaType, str] = {
    MediaType.MP4: ".mp4", MediaType.PNG: ".png", MediaType.JPEG: ".jpg", MediaType.JSON: ".json",
    MediaType.MKV: ".mkv", MediaType.VIDEO: ".video"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An immutable file in the store; equal digests mean equal bytes."""

    key: str
    """Content key of the node that made it."""
    uri: str
    sha256: str
    size_bytes: int
    media_type: MediaType
    score: float | None = None
    """What was measured, where the file is a measurement: -1..1."""

    def to_json(self) -> dict[str, Json]:
        """As plain data, for a row or a manifest."""
        measured: dict[str, Json] = {} if self.score is None else {"score": self.score}
        return {"key": self.key, "uri": self.uri, "sha256": self.sha256, "size_bytes": self.size_bytes,
                "media_type": self.media_type.value, **measured}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> Artifact:
        """The inverse of `to_json`."""
        score = data.get("score")
        return cls(key=str(data["key"]), uri=str(data["uri"]), sha256=str(data["sha256"]),
                   size_bytes=int(str(data["size_bytes"])), media_type=MediaType(str(data["media_type"])),
                   score=None if score is None else float(str(score)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One node of a job's DAG, as planned: everything that decides its result is in `kind`, `payload` and `deps`."""

    id: str
    """Unique in its job: `s1.clip`, `compose`."""
    kind: NodeKind
    shot_id: str = ""
    """Empty for nodes that belong to the whole film."""
    deps: tuple[str, ...] = ()
    payload: Mapping[str, Json] = field(default_factory=dict)
    lane: str = CPU_LANE
    """Which pool of slots it needs: a model card's name, `cpu`, or `story`."""
    cost: float = 1.0
    """Expected GPU- or CPU-seconds, relative; weighs progress and orders the queue."""
    accepts_missing: bool = False
    """Runs even when something it depends on failed (compose does)."""


LENT = "lent"
"""In a result's seconds: what the GPUs that helped have spent on it, all together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCall:
    """One attempt at one node, as handed to its stage."""

    job_id: str
    node_id: str
    shot_id: str
    kind: NodeKind
    key: str
    attempt: int
    """From 1; every start counts, whatever ended the one before."""
    generation: int
    """0 for the first take; each forced rerun adds one."""
    payload: Mapping[str, Json]
    inputs: Mapping[str, Artifact | None]
    """By node id, in the order of the node's deps; None where that node failed or was skipped."""
    left_s: float
    """Seconds until the attempt is stopped, from here; a receiver counts them from its arrival, by its own clock."""
    avoid: tuple[str, ...] = ()
    """Replicas that ran out of memory for it; another one is asked where there is one."""
    seats: tuple[int, ...] = ()
    """Of its lane: its own, and those of idle replicas that are kept free to help. Calls of one seat go to one replica;
    without a seat they go to any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResult:
    """What a stage returns."""

    artifact: Artifact
    warnings: tuple[str, ...] = ()
    """Shown to the user with the job: what was done otherwise than asked, and why."""
    new_nodes: tuple[NodeSpec, ...] = ()
    """Dynamic fan-out: inserted in the same commit as this result."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Named timings, e.g. `diffusion`, `encode`."""
    gpus: int = 1
    """That made it, where idle ones helped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A node's outcome: it has a result."""

    result: NodeResult
    cached: bool = False
    """True when the store already had the artifact and no work was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A node's outcome: it has none, and why."""

    error: ErrorRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A node's outcome: something it depends on has no result."""

    missing: tuple[str, ...]


Outcome = Done | Failed | Skipped

ONLY_BELOW = "only_below"
"""Of a payload: `{"score": id of a score node, "below": number}`. The node runs only where that score is lower."""
SMALLER = "smaller"
"""Of a payload: sizes `[width_px, height_px]` that may stand in for its own, largest first, where no GPU holds that."""
UNKEYED = frozenset({ONLY_BELOW, SMALLER})
"""What a payload says of whether, or how, a node is run, and not of its result."""
MISSING_KEY = "missing"
"""Stands for the key of a dependency that has no result, so that a film with a hole never answers for a whole one."""


def canonical_json(value: Json | Mapping[str, Json]) -> str:
    """One spelling per value: sorted keys, no spaces, UTF-8 kept, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Json | Mapping[str, Json]) -> str:
    """Hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_key(kind: NodeKind, payload: Mapping[str, Json], dep_keys: tuple[str, ...], generation: int = 0) -> str:
    """The key of everything that decides a node's result (32 hex digits).

    The order of `dep_keys` counts: composing a then b is not composing b then a.
    """
    decides = {name: value for name, value in payload.items() if name not in UNKEYED}
    body: dict[str, Json] = {"kind": kind.value, "payload": decides, "deps": list(dep_keys)}
    if generation:
        body["generation"] = generation
    return digest(body)[:32]


def substitute_key(key: str) -> str:
    """Where a result is kept that was made in place of the one which the key stands for, and is not found by it."""
    return digest({"instead of": key})[:32]


class Phase(StrEnum):
    """Where a running clip stands; the shares 2/88/10 are in `workflows.progress`."""

    INITIALISE = "initialise"
    DIFFUSION = "diffusion"
    SAVING = "saving"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressRecord:
    """One moment of one running node. Soft state: never stored, may be lost."""

    job_id: str
    node_id: str
    shot_id: str
    attempt: int
    n: int
    """Counts up within an attempt; (attempt, n) orders records whatever order they arrive in."""
    phase: Phase
    step: int
    """Denoising steps finished, 0..total_steps."""
    total_steps: int
    timestep: float
    """The scheduler's timestep of the last finished step."""
    fraction: float
    """Share of the whole node, 0..1."""
    at_s: float
    """Unix time."""

    def text(self) -> str:
        """`diffusion step 12/50 (timestep 760.00)`, or the phase's name."""
        if self.phase is Phase.DIFFUSION and self.step:
            return f"diffusion step {self.step}/{self.total_steps} (timestep {self.timestep:.2f})"
        return self.phase.value
