"""What editing a video needs from outside, as values and Protocols: who finds a region, who edits it.

Legend: T frames, H rows, W columns, C red/green/blue. `frames_THWC` is uint8 RGB 0-255; `masks_THW` is uint8, 0 or
255, of the frames' size. Pixels are those of the video as it is shown: turned as its file says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from workflows.errors import Problem

if TYPE_CHECKING:  # the vocabulary loads no numpy
    import numpy as np
    from numpy.typing import NDArray

    UInt8Array = NDArray[np.uint8]

ProgressCallback = Callable[[int, int, float], None]
"""Called with (steps finished, steps in all, the scheduler's timestep or 0.0)."""


class Watching(Protocol):
    """How one call is watched over from outside."""

    def check(self) -> None:
        """Raise RenderCancelled or DeadlineExceeded when it is time to stop; called between steps."""


WatchT = TypeVar("WatchT", bound=Watching, contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place in one frame."""

    frame: int
    """From 0, in the frames that are handed over with it."""
    x: float
    y: float
    """Pixels from the left and from the top."""
    inside: bool = True
    """It is on what is looked for; False: it is beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle around one thing in one frame."""

    frame: int
    """From 0, in the frames that are handed over with it."""
    left: float
    top: float
    right: float
    bottom: float
    """Pixels; right and bottom are the first ones outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    """What to look for: words, or points and boxes, or both."""

    prompt: str = ""
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    instances: Literal["all", "best"] = "all"
    """`all` that fit are one mask; `best`: the one that fits best, the same over time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What was found."""

    masks_THW: UInt8Array
    score: float
    """The best score of anything that was seen, 0..1, also where it was not good enough."""
    instances: int
    """How many were found; 0: nothing, and all masks are 0."""


class Tracker(Protocol[WatchT]):
    """Finds a region in every frame of a chunk and follows it."""

    def track(self, frames_THWC: UInt8Array, find: Find, *, carried: UInt8Array | None,
              progress_callback: ProgressCallback | None, watch: WatchT) -> Tracked:
        """Masks of every frame.

        `carried`: the mask (H, W) of the first frame as the chunk before ended with it, so that what is followed stays
        the same over chunks; None: there is none before. With it `find` may be empty: go on with what it shows. Nothing
        found is a result, not an error. Raises StageFailed and its children, RenderRefused for what it cannot look for.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EditTake:
    """Everything that an editor needs to edit one chunk."""

    prompt: str
    negative_prompt: str
    steps: int
    guidance: float
    """How strongly the text is followed."""
    image_guidance: float
    """How strongly the picture is kept."""
    seed: int
    frames_THWC: UInt8Array
    """Square crops of one size around the region."""
    masks_THW: UInt8Array
    """Of the same crops."""
    fps: float


class FrameEditor(Protocol[WatchT]):
    """Does to a region what a text says."""

    def problems(self, take: EditTake) -> tuple[Problem, ...]:
        """What it cannot do with such a take, and what it can; empty: nothing stands in its way. Quick; the frames may
        be stand-ins of the right shape."""

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None, watch: WatchT) -> UInt8Array:
        """The crops edited, of the same shape. Raises StageFailed and its children."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVideo:
    """What a video file is, as far as editing cares; made by `workflows.media.source.describe`."""

    width_px: int
    height_px: int
    """As it is shown: turned by `rotation_deg`."""
    rotation_deg: int
    """Clockwise turn that a player applies to the stored pictures: 0, 90, 180 or 270."""
    fps: Fraction
    """Exact where all frames are equally far apart, otherwise as most of them come."""
    constant_rate: bool
    frames: int
    """Pictures in the file."""
    duration_s: float
    codec: str
    pix_fmt: str
    bits: int
    """Per sample of a channel."""
    has_alpha: bool
    transfer: str
    """How light is coded, e.g. `bt709`, `smpte2084`; `unknown` where the file does not say."""
    interlaced: bool
    audio_codecs: tuple[str, ...]
    """One per audio stream."""

    @property
    def timeline_frames(self) -> int:
        """Frames at the constant rate."""
        return self.frames if self.constant_rate else max(1, round(self.duration_s * self.fps))
