"""How much GPU memory a model takes for a shape, and which share of a GPU its replicas get by it. Pure arithmetic.

The model, simple on purpose: need = weights + activations. Activations grow with pixels x frames: along straight lines
through (nothing, no activations) and the card's known peaks, and on along the last line beyond the largest of them. So
a shape between two known ones is interpolated, one peak gives a proportion, and a card without peaks says nothing.

What the remedies against too little memory take off (`Remedies`) is counted generously, because a refusal must be sure:
a call that was let through by mistake fails as it would have anyway, one that was refused by mistake never ran.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise, product

from configs.chat_card import AnyCard, ChatCard
from configs.model_card import CONTEXT_GB, ModelCard, SizeRule
from configs.settings import ModelsSettings

TORCH_SHARE = 0.90
"""Of a part of a GPU, what torch's allocator may take: the CUDA context and cuDNN's workspaces live outside it."""
WHOLE_FROM = 0.90
"""A replica that needs more of a GPU than this takes it whole: what is left would be of no use to another."""
TILED = 0.5
"""Of the activations, what is left when the VAE works in tiles. Cards do not say which part of a peak is the VAE's."""
LEAVES = 0.1
"""Of the largest component, what is on the GPU at one moment when its layers come and go."""
NEAR = 0.1
"""Share by which a smaller size may differ in form, and have more pixels than it should: models take multiples."""
UNTILED = frozenset({"StableVideoDiffusionPipeline"})
"""Pipelines with a VAE that knows no tiles."""


class Placement(StrEnum):
    """Where the weights wait while they are not used, from fast to small."""

    RESIDENT = "resident"
    """All on the GPU."""
    PARTS = "parts"
    """In main memory; one component at a time is on the GPU."""
    LAYERS = "layers"
    """In main memory; one layer at a time is on the GPU."""


PLACEMENTS = tuple(Placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What is done to make a call fit; the default is nothing."""

    tiles: bool = False
    """The VAE works in tiles: the one remedy that changes pixels, at the blended seams."""
    placement: Placement = Placement.RESIDENT

    def __str__(self) -> str:
        told = [_TOLD[self.placement]] if self.placement is not Placement.RESIDENT else []
        return " and ".join(["decoding in tiles"] * self.tiles + told) or "nothing"

    def joined(self, other: Remedies) -> Remedies:
        """Both."""
        return Remedies(tiles=self.tiles or other.tiles,
                        placement=max(self.placement, other.placement, key=PLACEMENTS.index))


_TOLD = {Placement.PARTS: "moving components in and out of the GPU",
         Placement.LAYERS: "moving layers in and out of the GPU"}
RUNGS = tuple(Remedies(tiles=tiles, placement=placement) for placement in Placement for tiles in (False, True))
"""From nothing to everything, what costs less time first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is asked of a model."""

    width_px: int
    height_px: int
    frames: int = 1
    pictures: int = 0
    """Reference pictures beside the prompt; what they take no card knows."""

    def is_within(self, other: Shape) -> bool:
        """Whether it takes no more memory than the other one."""
        return self.volume <= other.volume and self.pictures <= other.pictures

    @property
    def volume(self) -> int:
        """Pixels of all frames."""
        return self.width_px * self.height_px * self.frames

    def __str__(self) -> str:
        size = f"{self.width_px}x{self.height_px}"
        return size if self.frames == 1 else f"{size}, {self.frames} frames"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Memory of one call, in 10^9 bytes."""

    weights_gb: float
    largest_gb: float
    """The largest component's weights."""
    activations_gb: float
    how: str
    """`measured` or `published` only where the card has a peak of exactly this shape, else `estimated`."""

    def gb(self, remedies: Remedies = Remedies()) -> float:
        """With these remedies at work."""
        weights_gb = {Placement.RESIDENT: self.weights_gb, Placement.PARTS: self.largest_gb,
                      Placement.LAYERS: self.largest_gb * LEAVES}[remedies.placement]
        return weights_gb + self.activations_gb * (TILED if remedies.tiles else 1.0)


def default_shape(card: ModelCard) -> Shape:
    """What the card renders when nothing is said."""
    return Shape(width_px=card.defaults.width_px, height_px=card.defaults.height_px, frames=card.defaults.frames)


def need_of(card: ModelCard, shape: Shape) -> Need | None:
    """What the model needs for the shape; None where the card does not know, its options change it, or several GPUs
    share a call: then activations are less on each, and how much less nobody has measured.
    """
    if card.memory is None or not card.memory.peaks or card.options.changes_memory or card.parallel is not None:
        return None
    weights_gb = card.memory.total_gb
    known = {_volume(peak.shape): peak for peak in card.memory.peaks}
    points = [(0, 0.0), *((volume, max(known[volume].gb - weights_gb, 0.0)) for volume in sorted(known))]
    exact = known.get(shape.volume)
    return Need(weights_gb=weights_gb, largest_gb=max(card.memory.weights_gb.values()),
                activations_gb=_along(points, shape.volume), how="estimated" if exact is None else exact.how)


def _along(points: Sequence[tuple[int, float]], volume: int) -> float:
    """The height of the line through ascending points; the last piece goes on."""
    pieces = list(pairwise(points))
    (x0, y0), (x1, y1) = next((piece for piece in pieces if volume <= piece[1][0]), pieces[-1])
    return max(y0 + (y1 - y0) * (volume - x0) / (x1 - x0), 0.0)


def _volume(shape: str) -> int:
    return math.prod(int(number) for number in re.findall(r"\d+", shape))


# -- a share of a GPU ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """GPUs per replica."""

    gpus: float
    why: str

    def __str__(self) -> str:
        return f"{self.gpus:g} GPU{'s' if self.gpus > 1 else ''} per replica: {self.why}"


def room_gb(gpu_gb: float, gpus: float) -> float:
    """What a model may take of a GPU of `gpu_gb` in a replica with this share of it."""
    if gpus >= 1:
        return gpu_gb - CONTEXT_GB
    return min(gpu_gb * gpus * TORCH_SHARE, gpu_gb * gpus - CONTEXT_GB)


def share_of(card: AnyCard, models: ModelsSettings) -> Share:
    """GPUs per replica of the card: the setting, else the card's number, else by its peak at what it usually makes.

    Parts of a GPU are hundredths, rounded up; a whole one where the peak fits no part of it, or nobody knows.
    """
    asked = models.replica_of(card.name).num_gpus
    if asked is not None:
        return Share(gpus=asked, why="as set")
    if card.resources.num_gpus is not None:
        return Share(gpus=card.resources.num_gpus, why="as the card says")
    if isinstance(card, ModelCard) and card.parallel is not None:
        return Share(gpus=card.parallel.degree, why=f"{card.parallel}")
    if isinstance(card, ModelCard) and card.elastic is not None:
        return Share(gpus=1.0, why="`elastic` lends whole GPUs")
    if card.loader not in ("diffusers", "transformers", "tracker"):
        return Share(gpus=0.0, why="nothing is computed here")
    peak = _usual_peak(card)
    if peak is None:
        return Share(gpus=1.0, why="the card knows no peak")
    if models.gpu_memory_gb is None:
        return Share(gpus=1.0, why="the GPUs' memory is not known; models.gpu_memory_gb sets it")
    peak_gb, told = peak
    why = f"{told} on a GPU of {models.gpu_memory_gb:.4g} GB"
    part = max(peak_gb / TORCH_SHARE, peak_gb + CONTEXT_GB) / models.gpu_memory_gb
    if part > WHOLE_FROM:
        return Share(gpus=1.0, why=why)
    return Share(gpus=math.ceil(part * 100 - 1e-9) / 100, why=why)


def _usual_peak(card: AnyCard) -> tuple[float, str] | None:
    """GB, and of what: a model's default shape, or the longest question and answer of a language model."""
    if isinstance(card, ChatCard):
        peaks = card.memory.peaks if card.memory else ()
        most = max(peaks, key=lambda peak: peak.gb, default=None)
        return None if most is None else (most.gb, f"{most.gb:.3g} GB at {most.shape} ({most.how})")
    need, shape = need_of(card, default_shape(card)), default_shape(card)
    if need is None:
        return None
    if card.batch == 1:
        return need.gb(), f"{need.gb():.3g} GB at {shape} ({need.how})"
    together_gb = need.weights_gb + need.activations_gb * card.batch
    return together_gb, f"{together_gb:.3g} GB at {card.batch} x {shape} (estimated)"


def with_room(card: ModelCard, models: ModelsSettings) -> ModelCard:
    """The card, saying what its replicas have with these settings; nothing where the GPUs' memory is not known."""
    gpus, room = share_of(card, models).gpus, None
    if models.gpu_memory_gb is not None and models.device != "cpu" and card.loader == "diffusers" and gpus:
        room = room_gb(models.gpu_memory_gb, gpus)
    if room == card.resources.room_gb:
        return card
    return card.model_copy(update={"resources": card.resources.model_copy(update={"room_gb": room})})


# -- what fits -------------------------------------------------------------------------------------------------------


def rungs_of(card: ModelCard) -> tuple[Remedies, ...]:
    """What may take something off this card's need, from nothing to everything: its known peaks count its own tiles.

    Weights that the card's options move, or have made smaller, are left where they are; compiled layers are not moved.
    """
    tiles = not (card.vae_tiling or card.options.vae.tiling) and UNTILED.isdisjoint(card.pipelines.values())
    placements = PLACEMENTS if card.options.compile == "none" else (Placement.RESIDENT, Placement.PARTS)
    if card.options.changes_memory:
        placements = (Placement.RESIDENT,)
    if card.parallel is not None:
        # A remedy of one process would have to be taken by all of them at once.
        placements, tiles = (Placement.RESIDENT,), False
    return tuple(rung for rung in RUNGS if rung.placement in placements and (tiles or not rung.tiles))


def first_that_fits(need: Need, room: float, rungs: Iterable[Remedies]) -> Remedies | None:
    """The first of these remedies with which the need fits `room` GB."""
    return next((rung for rung in rungs if need.gb(rung) <= room), None)


def too_large(card: ModelCard, shape: Shape, room: float, remedies: Remedies) -> str:
    """Why the shape does not fit `room` GB even with these remedies, with the numbers; empty when it may fit."""
    need = need_of(card, shape)
    if need is None or need.gb(remedies) <= room:
        return ""
    return (f"{shape} of {card.name} need {need.gb():.3g} GB of GPU memory ({need.how}), "
            f"{need.gb(remedies):.3g} GB with {remedies}, and a replica has {room:.3g} GB")


def nearest_that_fits(card: ModelCard, shape: Shape, room: float, remedies: Remedies) -> str:
    """Fewer frames, or a smaller size of about the same form, that fit; empty when the card has none."""
    most = _largest_volume(card, shape, room, remedies)
    found = []
    frames = most // (shape.width_px * shape.height_px)
    if shape.frames > 1 and frames >= card.frames.min_frames and card.frames.nearest(frames)[0] <= frames:
        found.append(f"{card.frames.nearest(frames)[0]} frames")
    scale, unit = math.sqrt(most / shape.volume), card.size.multiple_px
    width_px, height_px = (int(side * scale) // unit * unit for side in (shape.width_px, shape.height_px))
    if not (card.size.problem(width_px) or card.size.problem(height_px)):
        found.append(f"{width_px}x{height_px}")
    return " or ".join(found)


def smaller_sizes(rule: SizeRule, width_px: int, height_px: int) -> tuple[tuple[int, int], ...]:
    """Sizes of about the same form with a half and a quarter of the pixels, largest first, as far as the rule has them.

    For what ran out of memory although nobody foretold it: activations grow with the pixels.
    """
    found: list[tuple[int, int]] = []
    for share in (1 / 2, 1 / 4):
        widths, heights = (rule.nearest(math.floor(side_px * math.sqrt(share))) for side_px in (width_px, height_px))
        near = {(width, height): abs(width / height * height_px / width_px - 1)
                for width, height in product(widths, heights)
                if width * height <= width_px * height_px * share * (1 + NEAR)}
        best = min(near, key=lambda size: (near[size], -size[0]), default=None)
        if best is not None and near[best] <= NEAR and best not in found:
            found.append(best)
    return tuple(found)


def _largest_volume(card: ModelCard, shape: Shape, room: float, remedies: Remedies) -> int:
    """The largest volume, up to the shape's own, that fits."""
    low, high = 0, shape.volume
    while low < high:
        middle = (low + high + 1) // 2
        need = need_of(card, Shape(width_px=middle, height_px=1))
        if need is None or need.gb(remedies) <= room:
            low = middle
        else:
            high = middle - 1
    return low
