"""The meter: does a clip show the colour, background, shape and motion that were asked for? Knows no training.

`python -m serve_app.models.sketch.evaluate --n N` draws N scenes whose (colour, shape, motion) training never saw, asks
the model for them and prints a table. The same meter reads freshly drawn scenes first: that row is its own error.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import WanPipeline

from configs.model_card import ModelCard, PromptWorld
from serve_app.models.sketch import scenes
from serve_app.models.sketch.scenes import Scene

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
OBJECT_DISTANCE = 90
"""Sum of absolute RGB differences from the background, 0..765, above which a pixel belongs to the object."""
SMALLEST_OBJECT_PX = 12
WHOLE_SHARE = 0.9
"""Part of the object's pixels that must hang together, on average over the frames, for it to count as one piece."""
ROW = "{:<26}{:>8}{:>12}{:>8}{:>8}{:>11}{:>8}{:>10}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the meter sees in a clip; empty where it sees no object."""

    colour: str
    background: str
    shape: str
    motion: str
    one_piece: bool
    """Whether the object hangs together. Scattered scraps can have the right colour and are no object."""

    def hits(self, scene: Scene) -> tuple[bool, bool, bool, bool, bool]:
        """Right or wrong: colour, background, shape, motion, one piece."""
        return (self.colour == scene.colour, self.background == scene.background,
                self.shape == scene.shape, self.motion == scene.motion, self.one_piece)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt's clip with its verdict."""

    scene: Scene
    frames_THWC: np.ndarray
    reading: Reading
    seconds: float


def nearest_colour(rgb: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """The palette's name for a colour, by Euclidean distance in RGB."""
    return min(palette, key=lambda name: float(((rgb - np.array(palette[name])) ** 2).sum()))


def object_masks(frames_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the object is in each frame, bool (T, H, W), and the background's RGB.

    The frame's rim tells the background; each row is then compared with its own median, because the background is
    shaded from top to bottom.
    """
    values = frames_THWC.astype(np.float32)
    rim = np.concatenate([values[:, :6].reshape(-1, 3), values[:, -6:].reshape(-1, 3),
                          values[:, :, :4].reshape(-1, 3), values[:, :, -4:].reshape(-1, 3)])
    ground = np.median(rim, axis=0)
    rows = np.median(values, axis=(0, 2))
    rows = np.where(np.abs(rows - ground).sum(1, keepdims=True) < 110, rows, ground)
    return np.abs(values - rows[None, :, None]).sum(-1) > OBJECT_DISTANCE, ground


def read_motion(masks: np.ndarray, areas: np.ndarray) -> str:
    """The dominant change between the first and the last quarter of the frames that show an object."""
    seen = np.flatnonzero(areas > SMALLEST_OBJECT_PX)
    if len(seen) < 4:
        return scenes.STILL
    part = max(1, len(seen) // 4)
    centres = np.array([[axis.mean() for axis in np.nonzero(masks[i])] for i in seen])
    move = centres[-part:].mean(0) - centres[:part].mean(0)
    growth = math.log(areas[seen[-part:]].mean() / areas[seen[:part]].mean())
    scores = {"right": move[1] / 20, "left": -move[1] / 20, "down": move[0] / 14, "up": -move[0] / 14,
              "grows": growth, "shrinks": -growth}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.35 else scenes.STILL


def read_shape(mask_HW: np.ndarray, shapes: tuple[str, ...]) -> str:
    """The shape whose template, at the best of 144 places and sizes, has the most intersection over union."""
    ys, xs = np.nonzero(mask_HW)
    extent = max(np.ptp(ys), np.ptp(xs)) + 1
    # The object and four pixels around it, no matter whether they are inside the frame: the rest is empty anyway.
    edge = 4
    mask = torch.from_numpy(np.pad(mask_HW[ys.min():ys.max() + 1, xs.min():xs.max() + 1], edge))
    height, width = mask.shape
    places = torch.tensor([[width / 2 + dx, height / 2 + dy, share * extent]
                           for share in np.linspace(0.38, 0.66, 8) for dy in (-2, -1, 0, 1, 2, 3) for dx in (-1, 0, 1)],
                          dtype=torch.float32)
    row, column = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None, :] + 0.5
    x = (column - places[:, 0, None, None]) / places[:, 2, None, None]
    y = (row - places[:, 1, None, None]) / places[:, 2, None, None]
    x, y = torch.broadcast_tensors(x, y)

    def overlap(shape: str) -> float:
        template = scenes.distance(shape, x, y) < 0
        union = (template | mask).sum((1, 2)).clamp(min=1)
        return float(((template & mask).sum((1, 2)) / union).max())

    return max(shapes, key=overlap)


def is_one_piece(masks: np.ndarray) -> bool:
    """Whether the largest connected part holds almost all of the object, over the frames that show one."""
    shares = []
    for mask in masks[masks.reshape(len(masks), -1).sum(1) > SMALLEST_OBJECT_PX]:
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        shares.append(stats[1:, cv2.CC_STAT_AREA].max() / mask.sum())
    return bool(np.mean(shares) >= WHOLE_SHARE)


def measure(frames_THWC: np.ndarray, world: PromptWorld) -> Reading:
    """Read a clip, uint8 RGB (T, H, W, 3)."""
    masks, ground = object_masks(frames_THWC)
    areas = masks.reshape(len(masks), -1).sum(1).astype(float)
    background = nearest_colour(ground, world.backgrounds)
    if areas.max() <= SMALLEST_OBJECT_PX:
        return Reading(colour="", background=background, shape="", motion="", one_piece=False)
    return Reading(colour=nearest_colour(np.median(frames_THWC[masks], axis=0), world.colours), background=background,
                   shape=read_shape(masks[int(areas.argmax())], tuple(world.objects)),
                   motion=read_motion(masks, areas), one_piece=is_one_piece(masks))


def to_frames_THWC(clip_CTHW: torch.Tensor) -> np.ndarray:
    """uint8 frames from a clip in -1..1."""
    return ((clip_CTHW.permute(1, 2, 3, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def calibrate(world: PromptWorld, count: int, seed: int = 7) -> list[Sample]:
    """The meter on drawn held-out scenes: what it gets wrong here is its own fault."""
    rng, samples = random.Random(seed), []
    for _ in range(count):
        scene = scenes.draw_scene(world, rng, held_out=True)
        frames = to_frames_THWC(scenes.render([scene], [scenes.draw_layout(scene.motion, rng)], world)[0])
        samples.append(Sample(scene=scene, frames_THWC=frames, reading=measure(frames, world), seconds=0.0))
    return samples


def load_pipeline(folder: Path = CHECKPOINT) -> WanPipeline:
    """The text-to-video pipeline in float32, without a progress bar."""
    pipe = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: WanPipeline, card: ModelCard, prompt: str, seed: int, frames: int | None = None) -> np.ndarray:
    """A clip at the card's defaults, uint8 RGB (T, H, W, 3); the same seed gives the same clip."""
    default = card.defaults
    video = pipe(prompt, height=default.height_px, width=default.width_px, num_frames=frames or default.frames,
                 num_inference_steps=default.steps, guidance_scale=default.guidance,
                 max_sequence_length=int(card.arguments["max_sequence_length"]),
                 generator=torch.Generator().manual_seed(seed), output_type="np").frames[0]
    return (video * 255).round().astype(np.uint8)


def evaluate(pipe: WanPipeline, card: ModelCard, world: PromptWorld, count: int, *, held_out: bool) -> list[Sample]:
    """The meter on `count` generated clips."""
    rng, samples = random.Random(5), []
    for seed in range(count):
        scene = scenes.draw_scene(world, rng, held_out=held_out)
        start = time.perf_counter()
        frames = generate(pipe, card, scenes.caption(scene, world), seed)
        samples.append(Sample(scene=scene, frames_THWC=frames, reading=measure(frames, world),
                              seconds=time.perf_counter() - start))
    return samples


def table_row(name: str, samples: list[Sample]) -> str:
    """Shares of right answers and the mean time per clip."""
    hits = np.array([sample.reading.hits(sample.scene) for sample in samples])
    seconds = sum(sample.seconds for sample in samples) / len(samples)
    shares = [f"{share:.3f}" for share in hits.mean(0)]
    return ROW.format(f"{name} ({len(samples)})", *shares, f"{hits.all(1).mean():.3f}", f"{seconds:.2f}")


def mistakes(samples: list[Sample]) -> list[str]:
    """One line per wrong clip: asked and seen."""
    return [f"{sample.scene.colour} {sample.scene.shape} {sample.scene.motion} / {sample.scene.background}  seen as  "
            f"{sample.reading.colour} {sample.reading.shape} {sample.reading.motion} / {sample.reading.background}"
            f"{'' if sample.reading.one_piece else '  in pieces'}"
            for sample in samples if not all(sample.reading.hits(sample.scene))]


def contact_sheet(samples: list[Sample], world: PromptWorld, path: Path) -> None:
    """A PNG: one row of five frames per clip, twice their size, under its prompt and the meter's verdict."""
    rows = []
    for sample in samples:
        picks = sample.frames_THWC[np.linspace(0, len(sample.frames_THWC) - 1, 5).round().astype(int)]
        strip = cv2.resize(np.concatenate(list(picks), axis=1), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        verdict = "".join(letter if hit else "-" for letter, hit in zip("CBSMP", sample.reading.hits(sample.scene),
                                                                        strict=True))
        title = np.full((18, strip.shape[1], 3), 24, np.uint8)
        cv2.putText(title, f"{scenes.caption(sample.scene, world)}   [{verdict}]", (4, 13), cv2.FONT_HERSHEY_SIMPLEX,
                    0.42, (235, 235, 235), 1, cv2.LINE_AA)
        rows += [title, strip]
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="clips per row")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="pipeline directory")
    parser.add_argument("--steps", type=int, default=0, help="denoising steps; 0: the card's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seen", action="store_true", help="also measure combinations that training saw")
    parser.add_argument("--sheet", type=Path, default=None, help="write a PNG of the first eight held-out clips")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    card, world = scenes.load_card(), scenes.load_world()
    if args.steps:
        card = card.model_copy(update={"defaults": card.defaults.model_copy(update={"steps": args.steps})})
    pipe = load_pipeline(args.model)
    lines = [ROW.format("", "colour", "background", "shape", "motion", "one piece", "all", "s/clip"),
             table_row("drawn scenes", calibrate(world, args.n))]
    held_out = evaluate(pipe, card, world, args.n, held_out=True)
    lines.append(table_row("held-out", held_out))
    if args.seen:
        lines.append(table_row("seen", evaluate(pipe, card, world, args.n, held_out=False)))
    if args.sheet is not None:
        contact_sheet(held_out[:8], world, args.sheet)
    print("\n".join([*lines, "", "wrong held-out clips:", *mistakes(held_out)]))  # noqa: T201 - a command's answer


if __name__ == "__main__":
    main()
