"""Does the model do as it is told? `python -m serve_app.models.sketch.evaluate` tells.

It asks the model for scenes whose (colour, shape, motion) training never saw, reads the clips with the meter, and says
of each goal whether it is reached (exit code 1: not all are). The meter reads freshly drawn scenes first: that row is
its own error.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline

from configs.model_card import ModelCard
from configs.prompt_world import PromptWorld
from serve_app.models.sketch import scenes
from serve_app.models.sketch.meter import Reading, measure
from serve_app.models.sketch.scenes import Scene
from serve_app.models.sketch.sheet import Row, write_sheet

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
PICTURE_CLIPS = 40
"""Clips made from a given first frame, at most."""
SHEET_CLIPS = 16
ROW = "| {:<18} | {:>6} | {:>10} | {:>6} | {:>6} | {:>9} | {:>6} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What the model must reach on held-out prompts; shares of clips, 0..1."""

    colour: float = 0.97
    background: float = 0.97
    shape: float = 0.85
    motion: float = 0.95
    first_frame_db: float = 25.0
    """PSNR of the first frame of a clip made from a picture, on average, against that picture."""
    clip_s: float = 6.0
    """Median seconds per clip at the card's defaults on two CPU cores, loading apart."""


GOALS = Goals()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt's clip with its verdict."""

    scene: Scene
    frames_THWC: np.ndarray
    reading: Reading
    seconds: float
    first_frame_db: float = 0.0
    """Set for clips made from a picture."""


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


def load_image_pipeline(pipe: WanPipeline, folder: Path = CHECKPOINT) -> WanImageToVideoPipeline:
    """The image-to-video pipeline, with the weights that `pipe` has already loaded."""
    shared = {name: pipe.components[name] for name in ("tokenizer", "text_encoder", "vae", "transformer", "scheduler")}
    image_pipe = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32, **shared)
    image_pipe.set_progress_bar_config(disable=True)
    return image_pipe


def generate(pipe: WanPipeline, card: ModelCard, prompt: str, seed: int, frames: int | None = None) -> np.ndarray:
    """A clip at the card's defaults, uint8 RGB (T, H, W, 3); the same seed gives the same clip."""
    default = card.defaults
    video = pipe(prompt, height=default.height_px, width=default.width_px, num_frames=frames or default.frames,
                 num_inference_steps=default.steps, guidance_scale=default.guidance,
                 max_sequence_length=int(card.arguments["max_sequence_length"]),
                 generator=torch.Generator().manual_seed(seed), output_type="np").frames[0]
    return (video * 255).round().astype(np.uint8)


def animate(pipe: WanImageToVideoPipeline, card: ModelCard, prompt: str, first_HWC: np.ndarray, seed: int,
            ) -> np.ndarray:
    """A clip at the card's defaults that starts from a picture, uint8 RGB (T, H, W, 3)."""
    default = card.defaults
    video = pipe(image=PIL.Image.fromarray(first_HWC), prompt=prompt, height=default.height_px, width=default.width_px,
                 num_frames=default.frames, num_inference_steps=default.steps, guidance_scale=default.guidance,
                 max_sequence_length=int(card.arguments["max_sequence_length"]),
                 generator=torch.Generator().manual_seed(seed), output_type="np").frames[0]
    return (video * 255).round().astype(np.uint8)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, in dB."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def evaluate(pipe: WanPipeline, card: ModelCard, world: PromptWorld, count: int, *, held_out: bool) -> list[Sample]:
    """The meter on `count` clips made from words alone."""
    rng, samples = random.Random(5), []
    for seed in range(count):
        scene = scenes.draw_scene(world, rng, held_out=held_out)
        start = time.perf_counter()
        frames = generate(pipe, card, scenes.caption(scene, world), seed)
        seconds = time.perf_counter() - start
        samples.append(Sample(scene=scene, frames_THWC=frames, reading=measure(frames, world), seconds=seconds))
        _tell(f"{seed + 1}/{count} clips")
    return samples


def evaluate_pictures(pipe: WanImageToVideoPipeline, card: ModelCard, world: PromptWorld, count: int) -> list[Sample]:
    """The meter on `count` clips made from the drawn first frame of a held-out scene and its words."""
    rng, samples = random.Random(6), []
    for seed in range(count):
        scene = scenes.draw_scene(world, rng, held_out=True)
        drawn = scenes.render([scene], [scenes.draw_layout(scene.motion, rng)], world, 1)[0]
        first = to_frames_THWC(drawn)[0]
        start = time.perf_counter()
        frames = animate(pipe, card, scenes.caption(scene, world), first, seed)
        seconds = time.perf_counter() - start
        samples.append(Sample(scene=scene, frames_THWC=frames, reading=measure(frames, world), seconds=seconds,
                              first_frame_db=psnr_db(frames[0], first)))
        _tell(f"{seed + 1}/{count} clips from pictures")
    return samples


def shares(samples: Sequence[Sample]) -> np.ndarray:
    """Shares of right answers: colour, background, shape, motion, one piece."""
    return np.array([sample.reading.hits(sample.scene) for sample in samples]).mean(0)


def table_row(name: str, samples: Sequence[Sample]) -> str:
    """Shares of right answers, and of clips with all of them, as a row of Markdown."""
    hits = np.array([sample.reading.hits(sample.scene) for sample in samples])
    return ROW.format(f"{name} ({len(samples)})", *(f"{share:.3f}" for share in hits.mean(0)),
                      f"{hits.all(1).mean():.3f}")


def verdicts(clips: Sequence[Sample], pictures: Sequence[Sample], goals: Goals = GOALS) -> list[tuple[str, bool]]:
    """A line for each goal, and whether it is reached."""
    colour, background, shape, motion, _ = shares(clips)
    least = [("colour", colour, goals.colour), ("background", background, goals.background),
             ("shape", shape, goals.shape), ("motion", motion, goals.motion),
             ("first frame, dB", float(np.mean([sample.first_frame_db for sample in pictures])), goals.first_frame_db)]
    told = [(f"{name}: {found:.3f}, at least {goal:g}", bool(found >= goal)) for name, found, goal in least]
    clip_s = float(np.median([sample.seconds for sample in clips]))
    return [*told, (f"seconds per clip, median: {clip_s:.2f}, at most {goals.clip_s:g}", clip_s <= goals.clip_s)]


def mistakes(samples: Sequence[Sample]) -> list[str]:
    """One line per wrong clip: asked and seen."""
    return [f"{sample.scene.colour} {sample.scene.shape} {sample.scene.motion} / {sample.scene.background}  seen as  "
            f"{sample.reading.colour} {sample.reading.shape} {sample.reading.motion} / {sample.reading.background}"
            f"{'' if sample.reading.one_piece else '  in pieces'}"
            for sample in samples if not all(sample.reading.hits(sample.scene))]


def sheet_rows(samples: Sequence[Sample], world: PromptWorld) -> list[Row]:
    """Five frames of each clip under its prompt, and what the meter finds wrong."""
    names = ("colour", "background", "shape", "motion", "in pieces")
    rows = []
    for sample in samples:
        wrong = [name for name, hit in zip(names, sample.reading.hits(sample.scene), strict=True) if not hit]
        title = scenes.caption(sample.scene, world) + (f"   wrong: {', '.join(wrong)}" if wrong else "")
        rows.append(Row(title=title, frames_THWC=sample.frames_THWC))
    return rows


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text}   ")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300, help="held-out prompts (default 300)")
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="pipeline directory (default: the shipped one)")
    parser.add_argument("--steps", type=int, default=0, help="denoising steps; 0: the card's")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seen", action="store_true", help="also measure combinations that training saw")
    parser.add_argument("--sheet", type=Path, default=None, help=f"picture of the first {SHEET_CLIPS} held-out clips")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    card, world = scenes.load_card(), scenes.load_world()
    if args.steps:
        card = card.model_copy(update={"defaults": card.defaults.model_copy(update={"steps": args.steps})})
    pipe = load_pipeline(args.model)
    clips = evaluate(pipe, card, world, args.n, held_out=True)
    pictures = evaluate_pictures(load_image_pipeline(pipe, args.model), card, world, min(args.n, PICTURE_CLIPS))
    lines = [ROW.format("", "colour", "background", "shape", "motion", "one piece", "all"),
             "|---|---|---|---|---|---|---|", table_row("drawn scenes", calibrate(world, args.n)),
             table_row("held-out", clips), table_row("from a picture", pictures)]
    if args.seen:
        lines.append(table_row("seen", evaluate(pipe, card, world, args.n, held_out=False)))
    if args.sheet is not None:
        write_sheet(sheet_rows(clips[:SHEET_CLIPS], world), args.sheet)
    told = verdicts(clips, pictures)
    goals = [f"{'reached' if reached else 'MISSED '}  {text}" for text, reached in told]
    print("\n".join([*lines, "", *goals, "", "wrong held-out clips:", *mistakes(clips)]))  # noqa: T201 - its answer
    return 0 if all(reached for _, reached in told) else 1


if __name__ == "__main__":
    sys.exit(main())
