"""Endpoint: somebody else's HTTP API that speaks OpenAI's words, and the name under which the key to it is found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from configs.base import Frozen

Extra = Literal["seed", "negative_prompt", "num_inference_steps", "guidance_scale", "num_frames", "fps"]
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class Endpoint(Frozen):
    """Where an API is and which of its models is meant. Holds the name of a key, never a key: settings are printed."""

    api_url: str = ""
    """Base address up to and with the version, e.g. `https://api.openai.com/v1`."""
    model_name: str = ""
    """As the API calls it."""
    api_key_env: str = ""
    """Environment variable with the key, in capitals, where the Director and the replicas run; empty: no key, or
    `api_key_file`."""
    api_key_file: Path | None = None
    """File with the key alone in it, read at every use, so that a new key needs no restart."""

    @property
    def key_place(self) -> str:
        """Where the key is, for people; empty when none is named. Without the file's name: people put keys there."""
        if self.api_key_env:
            return f"${self.api_key_env}"
        return "the file in api_key_file" if self.api_key_file is not None else ""

    @field_validator("api_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not url:
            return url
        try:
            parts = urlsplit(url)
            complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            complete = False
        # Said without the text itself: people paste keys into addresses.
        if not complete or not url.isascii() or any(char.isspace() for char in url):
            raise ValueError("is no address; nearest valid: https://api.openai.com/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("holds a user, a password or a query; the key belongs into api_key_env or api_key_file")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_variable(cls, name: str) -> str:
        if name and not _VARIABLE.fullmatch(name):
            raise ValueError("is the name of an environment variable, in capitals, never the key itself; nearest "
                             "valid: OPENAI_API_KEY")
        if name.startswith("REELRAY_"):
            raise ValueError("must not begin with REELRAY_: such variables are settings; nearest valid: OPENAI_API_KEY")
        return name


class RemoteModel(Endpoint):
    """A model card's API: `POST {api_url}/images/generations`, and `/videos` with its polling."""

    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """For one request with its answer: a whole picture, or one look at a video."""
    video_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 1800.0
    """For a video, from the request to the file."""
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = 2.0
    """How often a video that is being made is looked at."""
    parallel: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests at the same time, per replica."""
    sizes: tuple[Annotated[str, Field(pattern=r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$")], ...] = ()
    """The only sizes that the API draws (`1024x1024`), where they are few: the one that fits best is asked for, then
    scaled and cropped to the film's, with a warning. Empty: it draws the size asked for, and another one is refused."""
    sends: tuple[Extra, ...] = ()
    """Further fields, besides model, prompt and size, that the API understands under these names. With `num_frames` no
    `seconds` are sent."""

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """`sizes` as numbers: width and height in pixels."""
        pairs = (size.split("x") for size in self.sizes)
        return tuple((int(width), int(height)) for width, height in pairs)

    @model_validator(mode="after")
    def _is_named(self) -> RemoteModel:
        if not (self.api_url and self.model_name):
            raise ValueError("needs api_url and model_name")
        return self
