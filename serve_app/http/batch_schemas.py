"""What requests and replies about batches look like. Knows no route."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from serve_app.http.schemas import Part, Seconds, Share, UnixTime
from workflows.durable.batch_rules import BatchStatus
from workflows.durable.batches import MAX_CONCURRENCY, MAX_NAME_CHARS
from workflows.durable.tables import FILE_CHARS
from workflows.tiers import Tier
from workflows.types import JobStatus

# Strict: of "5" or true nobody knows what was meant.
Limit = Annotated[int, Field(strict=True, ge=1, le=MAX_CONCURRENCY)]
Budget = Annotated[float, Field(strict=True, ge=0, le=1e12)]


class BatchFilm(Part):
    """One file: its text, or a storyboard as JSON."""

    file: Annotated[str, Field(min_length=1, max_length=FILE_CHARS)] = Field(examples=["boards/spring.yaml"])
    """Its name; the ending of a text says what it is: `.yaml`, `.json`, `.fountain`, `.txt`. The same name again, with
    other content, takes its place."""
    text: Annotated[str, Field(min_length=1)] | None = None
    storyboard: dict[str, JsonValue] | None = Field(default=None, examples=[
        {"shots": [{"prompt": "a red circle moves right over a blue background"}]}])

    @model_validator(mode="after")
    def _one_of_both(self) -> BatchFilm:
        if (self.text is None) == (self.storyboard is None):
            raise ValueError("a film has either text or storyboard")
        return self


class BatchRequest(Part):
    """Many films as one unit."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] = Field(examples=["spring trailers"])
    """The same name again joins the batch, with the same key."""
    films: Annotated[tuple[BatchFilm, ...], Field(min_length=1)]
    concurrency: Limit | None = None
    """Nodes of all its jobs that may run at the same time; not given: as it was, at first as many as there is room
    for."""
    gpu_seconds: Budget | None = None
    """GPU-seconds that it may use in all; then it is paused. Not given: as it was, at first no limit."""
    stages: Annotated[str, Field(max_length=200)] = "story,images,videos,composition"
    """`story,images`: only the picture of every shot."""
    tier: Tier | None = None
    """Of the shots that do not say their own."""


class BatchChange(Part):
    """What a batch may use from now on; null takes a limit away, what is not given stays."""

    concurrency: Limit | None = None
    gpu_seconds: Budget | None = None


class BatchFilmReply(Part):
    """A file of a batch, and the job that it is."""

    file: str
    job_id: str
    title: str
    status: JobStatus
    progress: Share
    error: str | None
    """Why a shot of it failed, the first one's reason, or the whole film."""


class BatchEta(Part):
    """Seconds until all of it is over."""

    p50_s: Seconds
    p90_s: Seconds


class BatchLinks(Part):
    """Where to go from here."""

    self: str
    report: str


class BatchLine(Part):
    """A batch in a list."""

    id: str = Field(examples=["spring-trailers-5f0c1b2a"])
    name: str
    status: BatchStatus
    held: Literal["paused", "budget"] | None
    """Why no node of it is started: somebody paused it, or its GPU-seconds are used up."""
    jobs: dict[JobStatus, int]
    """How many are in which status; what a file was before it came back changed does not count."""
    concurrency: int | None
    gpu_budget_s: Seconds | None
    gpu_used_s: Seconds
    """Charged so far, as for keys."""
    created_at: UnixTime
    links: BatchLinks


class BatchReply(BatchLine):
    """A batch as it is."""

    progress: Share
    """By planned seconds; 1.0 only when it is over."""
    eta: BatchEta | None
    """Null: it is over or paused, or nothing is known yet of some of its nodes."""
    running_nodes: int
    films: tuple[BatchFilmReply, ...]
    """In the order of the files."""


class BatchAccepted(BatchReply):
    """A batch that was made or joined."""

    new: tuple[str, ...]
    """Files that became jobs by this request."""
    changed: tuple[str, ...]
    """Those of them that the batch knew with other content; what they were is cancelled, what it made is kept."""
    warnings: dict[str, tuple[str, ...]]
    """By file: what will be done otherwise than asked."""


class BatchList(Part):
    """Some batches, newest first."""

    batches: tuple[BatchLine, ...]
    next_cursor: str
    """Give it back as `cursor` for the next page; empty on the last."""


class BatchReportRow(Part):
    """One shot of one film; an empty `shot` is what concerns the whole film."""

    file: str
    job_id: str
    shot: str
    status: str
    replaced: bool
    """The file came back with other content."""
    models: tuple[str, ...]
    attempts: int
    """At what a model makes, that ended."""
    seconds: Seconds
    """That all attempts at its nodes took."""
    gpu_seconds_useful: Seconds
    gpu_seconds_wasted: Seconds
    """Failed, cancelled, interrupted."""
    gpu_seconds_saved: Seconds
    """What making results had cost that were found in the store; not charged."""
    gpu_seconds_carried: Seconds
    """Of what was wasted, the share that a later attempt took over; not charged again."""
    cost: Seconds
    """Useful and wasted GPU-seconds at the price."""


class BatchReportTotal(Part):
    """The sums of the rows."""

    shots: int
    attempts: int
    seconds: Seconds
    gpu_seconds_useful: Seconds
    gpu_seconds_wasted: Seconds
    gpu_seconds_saved: Seconds
    gpu_seconds_carried: Seconds
    cost: Seconds


class BatchReport(Part):
    """What a batch has cost so far, shot by shot."""

    batch_id: str
    price_per_gpu_hour: Seconds
    rows: tuple[BatchReportRow, ...]
    total: BatchReportTotal


class ReportQuery(BaseModel):
    """How a report is asked for."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    format: Literal["json", "csv"] = "json"
    """`csv`: a line per shot, for spreadsheets."""
    price_per_gpu_hour: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """What an hour of one GPU costs, in any currency."""
