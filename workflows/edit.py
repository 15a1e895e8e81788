"""What a user may ask of a video: the request, its limits, and what a source must be. Pure; reads no file.

`workflows.edit_plan` makes nodes of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from configs.base import Frozen
from workflows.edit_ports import Box, Find, Point
from workflows.errors import InvalidDocument, Problem
from workflows.explain import Owner, Owners, refused, schema_findings
from workflows.source import Document, Finding, closest, dotted, shortened
from workflows.types import Json

MAX_PROMPT_CHARS = 1000
MAX_SEED = 2**32 - 1
MAX_PROMPTED = 200
"""Most points, and most boxes."""
RIM_PX = 5
"""Diameter by which a mask that was found grows unless the request says otherwise."""
SIZE_STEP_PX = 8
"""Models work on latents an eighth of the picture's size."""
DEFAULT_EDITOR = DEFAULT_TRACKER = "classical"
MODEL_PATHS = ("INSTRUCT_PIX2PIX_MODEL_PATH", "SAM3_MODEL_PATH", "SAM2_MODEL_PATH")
"""What `extra` may hold."""
OVERLAP_FRAMES = 8
"""Two chunks share so many frames, over which one edit is faded into the other; fewer where chunks are short."""
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
Pixel = Annotated[float, Field(ge=0, le=100_000)]
FrameNumber = Annotated[int, Field(ge=0)]
KernelPx = Annotated[int, Field(ge=0, le=200)]


class Instances(StrEnum):
    """Which of several things that fit are edited."""

    ALL = "all"
    BEST = "best"


class _Part(Frozen):
    """What belongs to a request: no number of it is infinite, or none."""

    model_config = ConfigDict(allow_inf_nan=False)


class PointPrompt(_Part):
    """A place on the thing that is looked for, or beside it."""

    frame: FrameNumber = 0
    """From 0, counted from `start_s`."""
    x: Pixel
    """Pixels from the left, in the video as it is shown."""
    y: Pixel
    """Pixels from the top."""
    inside: bool = True
    """False: this place does not belong to it."""


class BoxPrompt(_Part):
    """A rectangle around the thing that is looked for."""

    frame: FrameNumber = 0
    """From 0, counted from `start_s`."""
    left: Pixel
    top: Pixel
    right: Pixel
    bottom: Pixel
    """Pixels; right and bottom are the first ones outside."""

    @model_validator(mode="after")
    def _has_an_inside(self) -> BoxPrompt:
        if self.right - self.left < 1 or self.bottom - self.top < 1:
            raise refused(f"a box from ({self.left:g}, {self.top:g}) to ({self.right:g}, {self.bottom:g}) holds no "
                          "pixel", "left < right and top < bottom")
        return self


class EditRequest(_Part):
    """Find something in a video and change it; everything else stays as it is."""

    job_id: str
    """Names the job and its files: letters, digits, `.`, `_`, `-`."""
    input_video_path: str
    """A path or URI of the video."""
    output_dir: str
    """Directory for `{job_id}_output.mp4`, `{job_id}_mask.mp4`, `{job_id}_log.txt` and `status.json`."""
    mask_prompt: Prompt = ""
    """What to find, e.g. `hair`; not needed with points, boxes or `mask_video`."""
    edit_prompt: Prompt
    """What to do to it, e.g. `make the hair red`."""
    negative_prompt: Prompt = ""
    """What the edit should not show; for editors that know such."""
    tracker: str = DEFAULT_TRACKER
    """Card of the model that finds; `classical` needs no weights and knows colours, points and boxes."""
    editor: str = DEFAULT_EDITOR
    """Card of the model that edits; `classical` needs no weights and recolours."""
    max_frames: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Edit so many frames from `start_s` on; the result is as long."""
    start_s: Annotated[float, Field(ge=0)] = 0.0
    """Where the result begins in the source, in seconds."""
    end_s: Annotated[float, Field(gt=0)] | None = None
    """Where it ends; not given: at the source's end."""
    erode_kernel: KernelPx = 0
    """Diameter in pixels by which the mask is made smaller all round; 0: not at all."""
    dilate_kernel: KernelPx | None = None
    """Diameter in pixels by which it is made larger, after eroding. Not given: 0 for a `mask_video`, else 5, which is
    what the edit needs to fade in, and to cover colours that videos keep in blocks."""
    feather_px: Annotated[int, Field(ge=0, le=100)] = 2
    """Over so many pixels inside the mask's edge the edit fades in; outside nothing changes."""
    crop_margin: Annotated[float, Field(ge=0, le=4)] = 0.25
    """The square that an editor sees is larger than the region by this share."""
    edit_size: Annotated[int, Field(ge=64, le=2048)] = 512
    """Side in pixels of that square as the editor gets it, a multiple of 8."""
    steps: Annotated[int, Field(ge=1, le=200)] = 20
    """Denoising steps per batch of frames."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] = 7.5
    """How strongly the text is followed."""
    image_guidance_scale: Annotated[float, Field(ge=0, le=50)] = 1.5
    """How strongly the picture is kept."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.7
    """How strongly each edited frame is drawn to the one before, along the motion of the source; 0: not at all."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    keep_audio: bool = True
    """Copy the source's sound, bit for bit."""
    chunk_frames: Annotated[int, Field(ge=8, le=1024)] = 48
    """Frames that a model gets at once; memory grows with it and not with the video."""
    invert_mask: bool = False
    """Edit everything but what was found."""
    instances: Instances = Instances.ALL
    """Which of several things that fit."""
    mask_video: str = ""
    """Path or URI of a video whose light pixels are the mask, frame by frame, in place of finding one."""
    points: Annotated[tuple[PointPrompt, ...], Field(max_length=MAX_PROMPTED)] = ()
    boxes: Annotated[tuple[BoxPrompt, ...], Field(max_length=MAX_PROMPTED)] = ()
    extra: dict[str, str] = Field(default_factory=dict)
    """Where models lie on this machine, by name: `SAM3_MODEL_PATH`, `SAM2_MODEL_PATH`,
    `INSTRUCT_PIX2PIX_MODEL_PATH`."""

    @property
    def dilation_px(self) -> int:
        """Diameter by which the mask is made larger."""
        if self.dilate_kernel is not None:
            return self.dilate_kernel
        return 0 if self.mask_video else RIM_PX

    @field_validator("job_id")
    @classmethod
    def _names_files(cls, value: str) -> str:
        if not _JOB_ID.fullmatch(value):
            nearest = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")[:100] or "edit-1"
            raise refused(f"{shortened(value)!r} cannot name files", nearest)
        return value

    @field_validator("input_video_path", "output_dir", "edit_prompt")
    @classmethod
    def _is_said(cls, value: str) -> str:
        if not value.strip():
            raise refused("is empty")
        return value

    @field_validator("edit_size")
    @classmethod
    def _fits_latents(cls, value: int) -> int:
        if value % SIZE_STEP_PX:
            below = value - value % SIZE_STEP_PX
            raise refused(f"{value} is no multiple of {SIZE_STEP_PX}", f"{below} or {below + SIZE_STEP_PX}")
        return value

    @field_validator("extra")
    @classmethod
    def _is_known(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in MODEL_PATHS:
                raise refused(f"{shortened(name)!r} is not one of {', '.join(MODEL_PATHS)}", closest(name, MODEL_PATHS))
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> EditRequest:
        prompted = bool(self.mask_prompt.strip() or self.points or self.boxes)
        if self.mask_video and prompted:
            raise refused("mask_video: masks are given, and also something to find", "one of the two")
        if not self.mask_video and not prompted:
            raise refused("mask_prompt: nothing says what to edit",
                          "a mask_prompt, points, boxes or a mask_video")
        if self.points and not any(point.inside for point in self.points) and not (self.boxes or self.mask_prompt):
            raise refused("points: all of them are beside the thing", "at least one with inside: true")
        if self.end_s is not None and self.end_s <= self.start_s:
            raise refused(f"end_s: {self.end_s:g} s is not after start_s, {self.start_s:g} s",
                          f"more than {self.start_s:g}")
        if self.mask_video and self.instances is not Instances.ALL:
            raise refused("instances: given masks have no instances to choose from", Instances.ALL.value)
        return self

    @property
    def overlap_frames(self) -> int:
        """Frames that a chunk shares with the next."""
        return min(OVERLAP_FRAMES, self.chunk_frames // 4)

    @property
    def find(self) -> Find:
        """What to look for, with frames counted from `start_s`."""
        points = tuple(Point(frame=at.frame, x=at.x, y=at.y, inside=at.inside) for at in self.points)
        boxes = tuple(Box(frame=at.frame, left=at.left, top=at.top, right=at.right, bottom=at.bottom)
                      for at in self.boxes)
        instances: Literal["all", "best"] = "best" if self.instances is Instances.BEST else "all"
        return Find(prompt=self.mask_prompt.strip(), points=points, boxes=boxes, instances=instances)


_OWNERS: Owners = {
    (): Owner("an edit", tuple(EditRequest.model_fields)),
    ("points",): Owner("a point", tuple(PointPrompt.model_fields)),
    ("boxes",): Owner("a box", tuple(BoxPrompt.model_fields)),
    ("extra",): Owner("`extra`", MODEL_PATHS),
}
_MOST_PROBLEMS = 20


def parse_edit(fields: Mapping[str, Json]) -> EditRequest:
    """An edit out of plain data. Raises InvalidDocument with every problem, each at its field."""
    try:
        return EditRequest.model_validate_json(json.dumps(dict(fields)), strict=True)
    except ValidationError as error:
        findings = schema_findings(error, Document(value=dict(fields)), _OWNERS, limit=_MOST_PROBLEMS)
        raise InvalidDocument(problems=tuple(map(_problem, findings))) from None


def _problem(finding: Finding) -> Problem:
    """What concerns several fields is told at the one that its words begin with."""
    field, colon, problem = finding.problem.partition(": ")
    if not finding.path and colon and field in EditRequest.model_fields:
        return Problem(field=field, problem=problem, nearest=finding.nearest)
    return Problem(field=dotted(finding.path), problem=finding.problem, nearest=finding.nearest)
