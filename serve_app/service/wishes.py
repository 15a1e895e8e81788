"""What clients of OpenAI's API may ask for, and the storyboard that it means. Knows no HTTP and no model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from workflows.types import Json

FIELD_OF = {"duration_s": "seconds", "frames": "num_frames", "steps": "num_inference_steps",
            "guidance": "guidance_scale", "image": "input_reference", "mode": "input_reference"}
"""A storyboard's fields as requests name them; all others have the same name."""


class Wish(BaseModel):
    """What pictures and videos have in common. None: the model card's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prompt: Annotated[str, Field(min_length=1)]
    model: str | None = None
    """Name of the card that makes it here."""
    size: str | None = None
    """`WIDTHxHEIGHT`, pixels."""
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: FiniteFloat | None = None
    negative_prompt: str | None = None
    user: str | None = None
    """Taken, because clients send it, and not used: keys say here who asks."""

    def shot(self) -> dict[str, Json]:
        """The fields of a storyboard's shot that were given."""
        return given({"prompt": self.prompt, "seed": self.seed, "steps": self.num_inference_steps,
                      "guidance": self.guidance_scale, "negative_prompt": self.negative_prompt})


class ImageReference(BaseModel):
    """A picture in a request: one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image_url: str | None = None
    """The picture itself, as `data:image/png;base64,...`."""
    file_id: str | None = None
    """Id of a picture that was uploaded before."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ImageReference:
        if (self.image_url is None) is (self.file_id is None):
            raise ValueError("give image_url or file_id, one of the two")
        return self


class VideoWish(Wish):
    """A video that somebody asks for."""

    input_reference: ImageReference | None = None
    """The picture that it starts from; in a form it may be a file, too."""
    seconds: FiniteFloat | None = None
    num_frames: int | None = None
    fps: FiniteFloat | None = None

    def storyboard(self, image: str = "") -> dict[str, Json]:
        """The film of one shot; `image` is the name of the picture that it starts from, empty: none."""
        shot = {**self.shot(), **given({"duration_s": self.seconds, "frames": self.num_frames, "image": image or None})}
        return {**given({"size": self.size, "fps": self.fps}), "shots": [shot]}


class OutputFormat(StrEnum):
    """What a picture's file is."""

    PNG = "png"
    JPEG = "jpeg"


class ResponseFormat(StrEnum):
    """How a picture is told."""

    URL = "url"
    """Where it can be fetched."""
    B64_JSON = "b64_json"
    """The file itself, in base64."""


class Quality(StrEnum):
    """Words of others that mean the model card's own steps."""

    AUTO = "auto"
    STANDARD = "standard"


class ImageWish(Wish):
    """Pictures that somebody asks for."""

    n: Annotated[int, Field(ge=1, le=10)] = 1
    """How many; with a seed they have that and the next ones."""
    quality: Quality = Quality.AUTO
    response_format: ResponseFormat = ResponseFormat.URL
    output_format: OutputFormat = OutputFormat.PNG
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    """Quality of a JPEG, 100 is best."""

    @field_validator("output_compression")
    @classmethod
    def _only_jpeg_is_compressed(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("output_format") is OutputFormat.PNG:
            raise ValueError("is for output_format=jpeg; leave it out")
        return value

    def storyboard(self, default_size: str) -> dict[str, Json]:
        """One shot for each picture, so that each has its own seed, and may fail alone."""
        size = default_size if self.size in (None, "auto") else self.size
        shots: list[Json] = [
            {**self.shot(), **given({"seed": None if self.seed is None else self.seed + number})}
            for number in range(self.n)]
        return {"size": size, "shots": shots}


def given(fields: Mapping[str, Json]) -> dict[str, Json]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
