"""What requests and replies look like: pydantic models, for the OpenAPI document and for checks. Knows no route."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool

from workflows.storyboard import MAX_SHOTS, FilmFields
from workflows.tiers import Tier
from workflows.types import JobStatus, MediaType, NodeKind, NodeStatus, Priority, Stage

Seconds = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
UnixTime = Annotated[float, Field(description="Unix time, seconds.", examples=[1795000000.0])]


class Part(BaseModel):
    """Frozen and closed; the docstring under a field is its description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# -- problems ------------------------------------------------------------------------------------------------------


class ProblemDetail(Part):
    """One thing wrong with a request."""

    detail: str
    pointer: str | None = Field(default=None, examples=["#/shots/2/frames"])
    """JSON pointer into the request body."""
    parameter: str | None = None
    """The query parameter, path parameter or header that is wrong."""
    shot: str | None = None
    line: int | None = None
    """1-based line of the request body."""
    nearest: str | None = Field(default=None, examples=["77 or 81"])
    """The nearest valid value or values, ready to paste."""
    file: str | None = None
    """Which of several documents in the body."""


class Problem(Part):
    """Why a request was refused (RFC 9457, `application/problem+json`)."""

    type: str = Field(examples=["urn:reelray:problem:invalid-document"])
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    """For a person; says what to do."""
    code: str = Field(examples=["invalid-document"])
    """For a program; the end of `type`."""
    instance: str | None = None
    """The path that was asked for."""
    errors: tuple[ProblemDetail, ...] | None = None


# -- films ---------------------------------------------------------------------------------------------------------


class FilmQuery(BaseModel):
    """How a film is asked for; what is to be made is the body."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    dry_run: bool = False
    """Only check and plan: nodes, what the store already has, estimated seconds."""
    priority: Priority = Priority.INTERACTIVE
    """Interactive jobs go before batch jobs."""
    webhook_url: Annotated[str, Field(max_length=2000)] = ""
    """Tell this address, and it alone, of this job; the reply has the secret."""
    stages: Annotated[str, Field(max_length=200)] = Field(
        default="story,images,videos,composition", examples=["story,images"])
    """`story,images`: the job is over when every shot has its picture; a film made of them later draws none again."""
    tier: Tier | None = None
    """`draft`: made to be looked at, faster and less exact; of the shots that do not say their own. Not given: the
    document's."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Nodes of this job that may run at the same time; not given: as many as there is room for."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Longest try at one picture or clip, in seconds, where the server allows longer; then it is tried again."""


class ScriptRequest(Part):
    """A script, as JSON: it is broken into shots by fixed rules, or by a language model where the server has one."""

    script: Annotated[str, Field(min_length=1)] = Field(
        examples=["A red circle moves left over a blue background.\n\nA yellow star falls down."])
    format: Literal["auto", "fountain", "text"] = "auto"
    """`auto` takes it for a screenplay in Fountain notation where it has a scene heading or a title page."""
    title: Annotated[str, Field(max_length=200)] = ""
    """Not given: the script's own."""
    film: FilmFields = FilmFields()
    """What a script cannot say: size, frame rate, seed, style ..."""


class Links(Part):
    """Where to go from here."""

    self: str = Field(examples=["/api/jobs/shapes-5f0c1b2a9d"])
    events: str = Field(examples=["/api/jobs/shapes-5f0c1b2a9d/events"])
    log: str = Field(examples=["/api/jobs/shapes-5f0c1b2a9d/log"])


class JobWebhook(Part):
    """The webhook that was registered with a job."""

    id: str
    secret: str
    """Deliveries are signed with it."""


class Accepted(Part):
    """A job that waits to be run."""

    id: str = Field(examples=["shapes-5f0c1b2a9d"])
    status: JobStatus
    title: str
    warnings: tuple[str, ...]
    """What will be done otherwise than asked, and why."""
    document_digest: str
    """Two jobs of one digest are one film; another one in the job's reply says that the film was changed since."""
    links: Links
    webhook: JobWebhook | None = None
    """With `webhook_url` only."""


class PlannedNode(Part):
    """One node of a plan."""

    id: str = Field(examples=["s1.clip"])
    kind: NodeKind
    shot: str
    """Empty for what belongs to the whole film."""
    deps: tuple[str, ...]
    lane: str
    """The model card that runs it, or `cpu`."""
    cached: bool
    """Its result is in the store; nothing runs for it."""
    estimated_seconds: Seconds
    """0 when cached."""


class PlannedFilm(Part):
    """The finished film, if no shot is missing."""

    width_px: int
    height_px: int
    fps: float
    frames: int
    """0: pictures only."""
    duration_s: Seconds


class PlanReply(Part):
    """What would be done; nothing was."""

    title: str
    film: PlannedFilm
    nodes: tuple[PlannedNode, ...]
    document_digest: str
    """Of what would be submitted."""
    cache_hits: int
    estimated_gpu_seconds: Seconds
    """Sum over the nodes of model cards; measured where such nodes were run before, else the cards' own numbers."""
    estimated_cpu_seconds: Seconds
    warnings: tuple[str, ...]


class ChangeReply(Part):
    """What a verb has set going."""

    id: str
    status: JobStatus
    nodes: tuple[str, ...] = Field(examples=[["s2.clip", "compose"]])
    """The nodes that will run; empty when there is nothing to do, and for a cancel."""
    links: Links


# -- jobs ----------------------------------------------------------------------------------------------------------


class RetryRequest(Part):
    """What to run again; without a body all that did not succeed."""

    shots: tuple[str, ...] = Field(default=(), examples=[["s2", "s5"]])
    """Shots or nodes; they and all that depends on them run again."""
    force: StrictBool = False
    """New takes, also of shots that succeeded; needs `shots`."""


class PromoteRequest(Part):
    """Which drafts become final; without a body all."""

    shots: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=MAX_SHOTS, examples=[["s2", "s5"]])
    """Shots; those that are final already stay as they are."""


class FileReply(Part):
    """A stored file; equal digests mean equal bytes."""

    key: str
    sha256: str
    size_bytes: int
    media_type: MediaType


class VideoReply(FileReply):
    """The film."""

    url: str


class NodeReply(Part):
    """One node: one stage of one shot, or of the film."""

    id: str
    kind: NodeKind
    stage: Stage
    status: NodeStatus
    attempt: int
    cached: bool
    step: int
    """Denoising steps, or frames, finished by the running attempt."""
    total_steps: int
    timestep: float
    """The scheduler's timestep of the last finished step."""
    progress: Share
    message: str = Field(examples=["diffusion step 12/50 (timestep 760.00)"])
    seconds: Seconds
    """How long it took; 0 until it is done."""
    artifact: FileReply | None


class ShotFiles(Part):
    """URLs of a shot's files, as far as they exist."""

    keyframe: str | None
    """The picture it starts from."""
    clip: str | None
    """As the film shows it; before that is made, as far as it is."""
    thumbnail: str | None


class TakeReply(Part):
    """An earlier take of a shot."""

    number: int
    selected: bool
    """The film shows it again."""
    kept_at: UnixTime
    tier: Tier
    clip: str
    """URL."""


class ShotReply(Part):
    """One shot; `step` to `message`: of the node that runs, failed or was last; `consistency`: likeness, if known."""

    id: str
    status: NodeStatus
    progress: Share
    step: int
    total_steps: int
    timestep: float
    attempt: int
    message: str
    consistency: Annotated[float, Field(ge=-1.01, le=1.01)] | None
    take: int | None
    """The one that the film uses, where scores decide about it."""
    scores: dict[str, float]
    """Of such a shot's takes, by their numbers."""
    nodes: tuple[NodeReply, ...]
    tier: Tier
    """What was asked for; a model without drafts makes the final picture at once."""
    files: ShotFiles
    takes: tuple[TakeReply, ...]


class EtaReply(Part):
    """Seconds left, learned from finished nodes of the same card and shape."""

    p50_s: Seconds
    p90_s: Seconds


class JobHead(Part):
    """What every reply about a job begins with."""

    id: str
    kind: str = Field(examples=["film"])
    title: str
    status: JobStatus
    stage: Stage
    """The earliest stage with open work; the last one once the job is over."""
    progress: Share
    """1 only when the job is over."""
    priority: Priority
    created_at: UnixTime
    started_at: UnixTime | None
    finished_at: UnixTime | None
    links: Links


class JobReply(JobHead):
    """A job as it is now."""

    document_digest: str
    """Of the film as it is now; a changed shot changes it."""
    queue_position: int | None
    """1: taken next; null once it was taken."""
    eta: EtaReply | None
    """Null before there is data, and once the job is over."""
    shots: tuple[ShotReply, ...]
    film: tuple[NodeReply, ...]
    """Nodes of the whole film: story, compose."""
    warnings: tuple[str, ...]
    errors: dict[str, str]
    """Shot or node -> why it failed."""
    video: VideoReply | None


class JobSummary(JobHead):
    """A job in a list; progress by finished nodes alone."""

    shots: int
    """How many."""


class JobList(Part):
    """Some jobs, newest first."""

    jobs: tuple[JobSummary, ...]
    next_cursor: str
    """Give it back as `cursor` for the next page; empty on the last."""


class LogReply(Part):
    """Some lines of a job's log, oldest first."""

    offset: int
    next_offset: int
    """Ask from here next time."""
    lines: tuple[str, ...]


# -- system --------------------------------------------------------------------------------------------------------


class ModelReply(Part):
    """A model card."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """What it can be asked for."""
    used_for: tuple[str, ...]
    """What this server asks it for."""
    licence: str
    defaults: dict[str, JsonValue]
    size: dict[str, JsonValue]
    """Rule for width and height."""
    frames: dict[str, JsonValue]
    """Rule for lengths."""
    num_gpus: float
    """Per replica."""
    vocabulary: str | None
    """Of a model that knows only some words."""
    draft: str
    """What a draft changes, and what is less exact in it; empty: a draft is as the final film."""


class ModelList(Part):
    """All model cards."""

    models: tuple[ModelReply, ...]


class LaneReply(Part):
    """A pool of slots: one model card's replicas, or `cpu`."""

    lane: str
    slots: int
    """Calls in flight that it has room for."""
    running: int
    waiting: int


class CapacityReply(Part):
    """What there is, and what waits for it."""

    lanes: tuple[LaneReply, ...]
    jobs_queued: int
    jobs_running: int
    cluster: dict[str, float]
    """Resources of the Ray cluster, e.g. `GPU`."""
    available: dict[str, float]
    """Those that no process holds."""
