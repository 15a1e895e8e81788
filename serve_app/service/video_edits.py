"""Edits as clients of OpenAI's API ask for them, and the request of ours that it means. Knows no HTTP and no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, field_validator, model_validator

from serve_app.service.edits import Edits, named_videos, read_wish
from serve_app.service.films import Order, read_json
from serve_app.service.results import RESULT, Results
from serve_app.service.uploads import SCHEME, Uploads
from workflows.durable.rows import JobRow
from workflows.edit import Instances
from workflows.errors import InvalidDocument
from workflows.types import Json

VIDEO, MASKS = "video", "mask_video"
"""Fields that are videos."""
OURS: Mapping[str, str] = {
    "prompt": "edit_prompt", VIDEO: "input_video_path", MASKS: MASKS, "model": "editor", "num_inference_steps": "steps"}
"""Fields of these requests as an edit names them; all others have the same name."""
THEIRS: Mapping[str, str] = {ours: theirs for theirs, ours in OURS.items()}


class VideoReference(BaseModel):
    """A video in a request: one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str | None = None
    """Of a video that was made here."""
    file_id: str | None = None
    """Of a video that was uploaded."""

    @model_validator(mode="after")
    def _one_of_both(self) -> VideoReference:
        if (self.id is None) is (self.file_id is None):
            raise ValueError("give id or file_id, one of the two")
        return self

    @property
    def place(self) -> str:
        """As a request of ours names it."""
        return f"{RESULT}{self.id}" if self.id is not None else f"{SCHEME}{self.file_id}"


class VideoEditWish(BaseModel):
    """An edit that somebody asks for. None: the model card's default, or that of an edit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: Annotated[str, Field(min_length=1)]
    """What to do to it."""
    video: VideoReference | None = None
    """In a form it may be a file, too."""
    mask_prompt: str | None = None
    """What to find. Clients that do not know it send it as `extra_body`."""
    model: str | None = None
    """Name of the editor's card."""
    tracker: str | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: FiniteFloat | None = None
    image_guidance_scale: FiniteFloat | None = None
    negative_prompt: str | None = None
    max_frames: int | None = None
    start_s: FiniteFloat | None = None
    end_s: FiniteFloat | None = None
    erode_kernel: int | None = None
    dilate_kernel: int | None = None
    feather_px: int | None = None
    crop_margin: FiniteFloat | None = None
    edit_size: int | None = None
    smoothing: FiniteFloat | None = None
    chunk_frames: int | None = None
    keep_audio: bool | None = None
    invert_mask: bool | None = None
    instances: Instances | None = None
    mask_video: VideoReference | None = None
    """Masks that are given; in a form it may be a file, too."""
    points: JsonValue = None
    boxes: JsonValue = None
    user: str | None = None
    """Taken, because clients send it, and not used: keys say here who asks."""

    @field_validator("points", "boxes", mode="before")
    @classmethod
    def _may_be_text(cls, value: object) -> object:
        """Forms have nothing else."""
        if not isinstance(value, str):
            return value
        try:
            return read_json(value, "form.json")
        except InvalidDocument as error:
            raise ValueError(f"is a list as JSON: {error.problems[0].problem}") from None

    def fields(self) -> dict[str, Json]:
        """The request of ours; its videos are missing where they came as files."""
        said = self.model_dump(mode="json", exclude={"user", VIDEO, MASKS}, exclude_none=True)
        places = {OURS[name]: video.place for name, video in ((VIDEO, self.video), (MASKS, self.mask_video)) if video}
        return {**{OURS.get(name, name): value for name, value in said.items()}, **places}


class VideoEdits:
    """Edits as videos of one desk."""

    def __init__(self, edits: Edits, results: Results, uploads: Uploads) -> None:
        """Keeps nothing of its own."""
        self._edits, self._results, self._uploads = edits, results, uploads

    def submit(self, fields: Mapping[str, Json], order: Order, facts: Mapping[str, Json] | None = None) -> JobRow:
        """Queue it. Blocking. Raises InvalidDocument with all that is wrong, each at our field of it."""
        wish = read_wish(fields)
        return self._edits.submit(self._edits.draft(wish, named_videos(wish, self._uploads)), order, facts)

    def remix(self, video_id: str, prompt: str, order: Order) -> JobRow:
        """Queue a new edit of the same video with another prompt, all else as this one has it. Raises as `submit`."""
        fields = {**self._results.request(video_id), "edit_prompt": prompt}
        return self.submit(fields, order, {"remixed_from_video_id": video_id})
