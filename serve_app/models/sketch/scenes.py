"""Captioned clips drawn by formula: one coloured shape that moves over a plain background. Knows no model."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from configs.model_card import ModelCard
from configs.prompt_world import PromptWorld

CARD_PATH = Path(__file__).resolve().parents[3] / "configs" / "models" / "sketch.yaml"
HEIGHT_PX, WIDTH_PX, FRAMES = 128, 192, 17
STILL = ""
"""The motion of a scene whose caption names none: nothing moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a clip shows, in the words of the card's world; `motion` is STILL when nothing moves."""

    colour: str
    shape: str
    motion: str
    background: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a scene's object is: centre and radius in pixels at the first and the last frame, in a line."""

    start_x_px: float
    end_x_px: float
    start_y_px: float
    end_y_px: float
    start_radius_px: float
    end_radius_px: float


def load_card() -> ModelCard:
    """The card this model ships with; its `world` is the one owner of the vocabulary."""
    return ModelCard.model_validate(yaml.safe_load(CARD_PATH.read_text(encoding="utf-8")))


def load_world() -> PromptWorld:
    """The card's closed vocabulary.

    Raises:
        ValueError: the card has no `world`.
    """
    world = load_card().world
    if world is None:
        raise ValueError(f"{CARD_PATH.name} has no `world`; the sketch model cannot be described without one")
    return world


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this scene's (colour, shape, motion): one triple in seven, chosen by CRC-32."""
    return zlib.crc32(f"{scene.colour}|{scene.shape}|{scene.motion}".encode()) % 7 == 0


def draw_scene(world: PromptWorld, rng: random.Random, *, held_out: bool, still_share: float = 0.0) -> Scene:
    """A random scene whose object differs in colour from its background.

    `still_share` (0..1) is the chance of no motion. `held_out` picks the side of the split.
    """
    while True:
        motion = STILL if rng.random() < still_share else rng.choice(list(world.motions))
        scene = Scene(colour=rng.choice(list(world.colours)), shape=rng.choice(list(world.objects)),
                      motion=motion, background=rng.choice(list(world.backgrounds)))
        if scene.colour != scene.background and is_held_out(scene) == held_out:
            return scene


def caption(scene: Scene, world: PromptWorld) -> str:
    """The plainest sentence for a scene: the first phrase of each kind."""
    moves = f" {world.motions[scene.motion][0]}" if scene.motion else ""
    where = world.background_phrases[0].replace("{b}", scene.background)
    return f"a {scene.colour} {world.objects[scene.shape][0]}{moves} {where}"


def training_caption(scene: Scene, world: PromptWorld, rng: random.Random) -> str:
    """A sentence for a scene with any of the world's phrases; now and then without background, colour or article.

    A motion is never left out: a caption without one means a scene at rest.
    """
    colour = "" if rng.random() < 0.04 else f"{scene.colour} "
    thing = f"{rng.choice(('a', 'a', 'a', 'the', 'one'))} {colour}{rng.choice(world.objects[scene.shape])}"
    moves = f" {rng.choice(world.motions[scene.motion])}" if scene.motion else ""
    where = rng.choice(world.background_phrases).replace("{b}", scene.background)
    order = rng.random()
    if order < 0.04:
        return thing + moves
    if order < 0.2:
        return f"{where}, {thing}{moves}"
    return f"{thing}{moves} {where}"


def draw_layout(motion: str, rng: random.Random) -> Layout:
    """A random place and size for an object that moves so; its centre stays inside the frame.

    Places are spread wide, so that a clip can go on from wherever an earlier one ended.

    Raises:
        ValueError: the motion has no drawing rule.
    """
    x, y, radius = rng.uniform(0.18, 0.82) * WIDTH_PX, rng.uniform(0.26, 0.74) * HEIGHT_PX, rng.uniform(17, 30)
    x2, y2, radius2 = x, y, radius
    if motion in ("left", "right"):
        x, x2 = _travel(WIDTH_PX, 0.14, (0.34, 0.58), rng)
        if motion == "left":
            x, x2 = x2, x
    elif motion in ("up", "down"):
        radius = radius2 = rng.uniform(17, 27)
        y, y2 = _travel(HEIGHT_PX, 0.2, (0.34, 0.52), rng)
        if motion == "up":
            y, y2 = y2, y
    elif motion in ("grows", "shrinks"):
        x = x2 = rng.uniform(0.26, 0.74) * WIDTH_PX
        y = y2 = rng.uniform(0.36, 0.64) * HEIGHT_PX
        radius = rng.uniform(12, 25)
        radius2 = min(48.0, radius * rng.uniform(1.8, 3.0))
        if motion == "shrinks":
            radius, radius2 = radius2, radius
    elif motion != STILL:
        raise ValueError(f"motion {motion!r} has no drawing rule; known: left, right, up, down, grows, shrinks, ''")
    return Layout(start_x_px=x, end_x_px=x2, start_y_px=y, end_y_px=y2, start_radius_px=radius, end_radius_px=radius2)


def _travel(side_px: int, margin: float, share: tuple[float, float], rng: random.Random) -> tuple[float, float]:
    """Start and end of a way of some share of a side, inside its margins, in pixels and ascending."""
    span = rng.uniform(*share)
    start = rng.uniform(margin, 1 - margin - span)
    return start * side_px, (start + span) * side_px


def distance(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signed distance (negative inside) to a shape of about unit radius at the origin; y points down.

    Raises:
        ValueError: the shape has no formula.
    """
    if shape == "circle":
        return (x * x + y * y).sqrt() - 1
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.88
    if shape == "triangle":
        return torch.maximum(0.8660254 * x.abs() - 0.5 * (y - 0.15) - 0.55, y - 0.9)
    if shape == "star":
        return _star_distance(x, y)
    raise ValueError(f"shape {shape!r} has no formula; known: circle, square, triangle, star")


def _star_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Five points of radius 1.15, five notches of radius 0.5; the angle is folded onto one edge."""
    sector = math.pi / 5
    radius, angle = (x * x + y * y).sqrt(), torch.atan2(x, -y)
    folded = ((angle + sector) % (2 * sector) - sector).abs()
    tip_x, notch_x, notch_y = 1.15, 0.5 * math.cos(sector), 0.5 * math.sin(sector)
    normal_x, normal_y = notch_y, tip_x - notch_x
    length = math.hypot(normal_x, normal_y)
    return ((radius * torch.cos(folded) - tip_x) * normal_x + radius * torch.sin(folded) * normal_y) / length


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Clips taken apart: what is seen is ground + (paint - ground) * matte. Values -1..1, matte 0..1."""

    ground_BCTHW: torch.Tensor
    """The background, one frame long."""
    paint_BCTHW: torch.Tensor
    """The object's colour, everywhere."""
    matte_BCTHW: torch.Tensor
    """How much of a pixel the object covers; one channel."""

    def clip(self) -> torch.Tensor:
        """The clips, (B, 3, T, H, W)."""
        return self.ground_BCTHW + (self.paint_BCTHW - self.ground_BCTHW) * self.matte_BCTHW


def draw_layers(scenes: Sequence[Scene], layouts: Sequence[Layout], world: PromptWorld, times: torch.Tensor,
                shrink: int = 1) -> Layers:
    """The scenes at `times`, (B, T) of 0 (first frame) to 1 (last frame), on the device of `times`.

    Edges are smooth over one pixel; background and object are softly shaded from top to bottom. `shrink` 2 draws
    pictures of half the size.
    """
    device, width_px, height_px = times.device, WIDTH_PX // shrink, HEIGHT_PX // shrink
    ends = torch.tensor([[(a.start_x_px, a.end_x_px), (a.start_y_px, a.end_y_px),
                          (a.start_radius_px, a.end_radius_px)] for a in layouts], device=device) / shrink
    paths = ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * times[:, None]
    centre_x, centre_y, radius = (paths[:, i, :, None, None] for i in range(3))
    row = torch.arange(height_px, dtype=torch.float32, device=device)[:, None] + 0.5
    column = torch.arange(width_px, dtype=torch.float32, device=device)[None, :] + 0.5
    x, y = torch.broadcast_tensors((column - centre_x) / radius, (row - centre_y) / radius)
    inside = torch.empty_like(x)
    for shape in {scene.shape for scene in scenes}:
        mine = torch.tensor([i for i, scene in enumerate(scenes) if scene.shape == shape], device=device)
        inside[mine] = (0.5 - distance(shape, x[mine], y[mine]) * radius[mine]).clamp(0, 1)
    paint = torch.tensor([world.colours[s.colour] for s in scenes], device=device)[:, :, None, None, None] / 255
    ground = torch.tensor([world.backgrounds[s.background] for s in scenes], device=device)
    ground = ground[:, :, None, None, None] / 255
    ground = (ground * (0.88 + 0.24 * row / height_px)).clamp(0, 1).expand(-1, -1, -1, -1, width_px)
    shade = (1 - 0.1 * (row - centre_y) / radius).clamp(0.8, 1.2)[:, None]
    paint = (paint * shade).clamp(0, 1).expand(-1, -1, -1, -1, width_px)
    return Layers(ground_BCTHW=ground * 2 - 1, paint_BCTHW=paint * 2 - 1, matte_BCTHW=inside[:, None])


def render(scenes: Sequence[Scene], layouts: Sequence[Layout], world: PromptWorld, frames: int = FRAMES,
           ) -> torch.Tensor:
    """The first `frames` frames of clips, (B, 3, frames, 128, 192), float32 in -1..1."""
    times = torch.linspace(0, 1, FRAMES)[:frames].expand(len(scenes), -1)
    return draw_layers(scenes, layouts, world, times).clip()


def draw_scenes(world: PromptWorld, rng: random.Random, count: int, *, still_share: float = 0.1,
                ) -> tuple[list[Scene], list[Layout]]:
    """`count` training scenes and where things are in them."""
    scenes = [draw_scene(world, rng, held_out=False, still_share=still_share) for _ in range(count)]
    return scenes, [draw_layout(scene.motion, rng) for scene in scenes]


def draw_batch(world: PromptWorld, rng: random.Random, count: int, *, frames: int = FRAMES, still_share: float = 0.1,
               ) -> tuple[torch.Tensor, list[Scene]]:
    """`count` training clips (B, 3, frames, 128, 192) in -1..1 and what they show."""
    scenes, layouts = draw_scenes(world, rng, count, still_share=still_share)
    return render(scenes, layouts, world, frames), scenes
