"""How a model takes reference pictures of a film's characters: through an adapter's weights, or by itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from configs.base import Frozen
from configs.provenance import pinned

SHIPPED = ("flux2-klein-4b", "sdxl-ip-adapter")
"""The shipped cards that take reference pictures, for messages of code that reads no files."""
MAX_PICTURES = 16
MIN_SIDE_PX, MAX_RATIO = 64, 8
"""What FLUX.2's preparation insists on; below it there is nothing to recognise anybody by."""
_INSIDE = r"\w[\w.-]*(/\w[\w.-]*)*"
"""A path that does not leave its repo."""


class NativeReferences(Frozen):
    """A pipeline whose call takes the pictures as `image` (FLUX.2, Qwen-Image-Edit, FLUX Kontext)."""

    kind: Literal["native"]
    max_pictures: Annotated[int, Field(ge=1, le=MAX_PICTURES)]
    """Most pictures of one call. 1: the pipeline gets a picture; more: a list."""
    required: bool = False
    """The model draws nothing without a picture (editors)."""
    mention: str = "Image {n} shows {who}."
    """Said after the prompt for each picture, since nothing else tells the model whose it is; `{n}` counts from 1,
    `{who}` is the character's id. Empty: nothing is said."""

    @field_validator("mention")
    @classmethod
    def _has_places(cls, mention: str) -> str:
        if set("{}") & set(re.sub(r"\{(n|who)\}", "", mention)):
            raise ValueError("only {n} and {who} may stand in braces; nearest valid: 'Image {n} shows {who}.'")
        return mention


class IpAdapter(Frozen):
    """An IP-Adapter beside a Stable Diffusion checkpoint: attention to a picture encoder's features.

    It sees all pictures at once and cannot tell whose they are. Without a picture it is switched off, and the picture
    is the checkpoint's own.
    """

    kind: Literal["ip_adapter"]
    max_pictures: Annotated[int, Field(ge=1, le=MAX_PICTURES)]
    """Most pictures of one call."""
    repo: Annotated[str, Field(min_length=1)]
    """As the card's own `repo`; holds the adapter's weights and its picture encoder."""
    revision: str = ""
    """Pinned commit of a hub repo, 40 hex digits; empty follows its main branch."""
    weight_file: Annotated[str, Field(pattern=rf"^{_INSIDE}\.safetensors$")]
    """Path of the adapter's weights inside the repo."""
    image_encoder: Annotated[str, Field(pattern=rf"^({_INSIDE})?$")] = ""
    """Folder of the picture encoder inside the repo; empty: the checkpoint has one of its own."""
    scale: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Weight of the pictures beside the prompt; 1: the prompt hardly counts."""

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, revision: str) -> str:
        return pinned(revision)

    @property
    def files(self) -> tuple[str, ...]:
        """What is read of the repo."""
        encoder = (f"{self.image_encoder}/config.json", f"{self.image_encoder}/model.safetensors")
        return (self.weight_file, *(encoder if self.image_encoder else ()))


References = Annotated[NativeReferences | IpAdapter, Field(discriminator="kind")]


def size_problem(width_px: int, height_px: int) -> tuple[str, str]:
    """What is wrong with a reference picture of this size, and the nearest valid one; both empty when nothing is."""
    short_px, long_px = sorted((width_px, height_px))
    if short_px >= MIN_SIDE_PX and long_px <= short_px * MAX_RATIO:
        return "", ""
    return (f"a reference picture of {width_px}x{height_px} px",
            f"sides of {MIN_SIDE_PX} px at least, the longer one at most {MAX_RATIO} times the shorter")


