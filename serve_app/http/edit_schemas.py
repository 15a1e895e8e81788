"""What requests for edits of videos and their replies look like. Knows no route."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from serve_app.http.schemas import JobReply, Part, PlannedNode, Seconds
from serve_app.service.edits import OURS
from workflows.edit import EditRequest
from workflows.edit_status import EditState
from workflows.types import Priority

BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
VIDEO, MASKS = "video", "mask_video"
"""Parts of a form that may be files."""


class EditQuery(BaseModel):
    """How an edit is asked for; what is to be done is the body."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    dry_run: bool = False
    """Only check and plan; a video that was sent is kept all the same, so that it need not be sent again."""
    priority: Priority = Priority.INTERACTIVE
    """Interactive jobs go before batch jobs."""
    webhook_url: Annotated[str, Field(max_length=2000)] = ""
    """Tell this address, and it alone, of this job; the reply has the secret."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Chunks of this job that may be worked on at the same time; not given: as many as there is room for."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Longest try at one chunk, in seconds, where the server allows longer; then it is tried again."""


class SourceReply(Part):
    """A video as it was sent."""

    width_px: int
    """As it is shown."""
    height_px: int
    fps: float
    frames: int
    """At that rate."""
    duration_s: Seconds
    has_sound: bool


class UploadReply(Part):
    """A video that was taken in."""

    id: str
    """SHA-256 of its bytes."""
    uri: str = Field(examples=["upload:9f86d081884c7d65..."])
    """What a request calls it: its `input_video_path` or `mask_video`."""
    url: str
    size_bytes: int
    video: SourceReply


class EditPlanReply(Part):
    """What an edit would do; nothing was."""

    title: str
    request: dict[str, JsonValue]
    """As it was understood, with the editor's own numbers where it said none; may be sent as it is."""
    source: SourceReply
    frames: int
    """Of the result."""
    duration_s: Seconds
    chunks: int
    nodes: tuple[PlannedNode, ...]
    document_digest: str
    """Two edits of one digest are the same."""
    cache_hits: int
    estimated_gpu_seconds: Seconds
    estimated_cpu_seconds: Seconds
    warnings: tuple[str, ...]


class EditStanding(Part):
    """Where an edit stands."""

    status: EditState
    """Its stages, and how it ended."""
    current_frame: int
    """Frames done in the stage that runs."""
    total_frames: int
    message: str
    error: str
    """Why it failed; empty otherwise."""
    request: dict[str, JsonValue] | None
    """What was asked for."""
    video_url: str | None
    mask_url: str | None
    """What was found, laid over the video."""
    report_url: str | None
    """Flicker, and what changed outside the mask."""
    plot_url: str | None


class AnyJobReply(JobReply):
    """A job as it is now."""

    edit: EditStanding | None
    """Of an edit of a video; null for every other kind."""


def wish_schema(components: dict[str, Any], ref: str) -> None:
    """Put `EditWish` among the components: a request without what only a program on the same machine may say."""
    schema = EditRequest.model_json_schema(ref_template=ref)
    components.update({name: found for name, found in schema.pop("$defs", {}).items() if name not in components})
    fields = {name: found for name, found in schema["properties"].items() if name not in OURS}
    fields["input_video_path"] = {**fields["input_video_path"], "examples": ["upload:9f86d081884c7d65..."]}
    components["EditWish"] = {
        **schema, "title": "EditWish", "properties": fields,
        "required": [name for name in schema["required"] if name not in OURS]}
    # In a form numbers and lists are text, read as JSON; what a field may be is said above.
    components["EditForm"] = {
        "type": "object", "title": "EditForm", "required": ["edit_prompt"], "additionalProperties": False,
        "description": "Fields of EditWish, lists as JSON text; the video, and given masks, may be files.",
        "properties": {VIDEO: BYTES, **fields}}
