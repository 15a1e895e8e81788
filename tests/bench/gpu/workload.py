"""What is asked of each measured model, at its card's defaults, and the goals; beside it the tiny one of a dry run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from configs.load import CARDS_DIR, load_card
from configs.model_card import ModelCard, SizeRule, Task
from serve_app.models.takes import Take
from workflows.ports import RenderCall
from workflows.types import Artifact

TINY_STEPS = 3
PROMPT = "a red ball rolls over a green meadow while the sun goes down behind the hills"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One way of rendering, measured."""

    name: str
    clip_s: float
    """From the call to the pixels (or the stored file)."""
    step_s: float
    """Median over the steps; NaN where nobody looked."""
    peak_gb: float
    """In tensors, weights included."""
    share: float
    """Operations of the steps per second, of what a matrix product reaches on this machine; 0..1."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure that a render has to reach."""

    text: str
    value: Callable[[Result], float]
    at_most: float = math.inf
    at_least: float = -math.inf

    def verdict(self, result: Result) -> str:
        """`61.2 s (clip <= 52 s): NOT met`."""
        value = self.value(result)
        if math.isnan(value):
            return f"{self.text}: not measured"
        return f"{self.text}: {'met' if self.at_least <= value <= self.at_most else 'NOT met'} ({value:.4g})"


def clip_within(limit_s: float) -> Goal:
    return Goal(text=f"all of it <= {limit_s:g} s", value=lambda result: result.clip_s, at_most=limit_s)


def share_of_ceiling(limit: float) -> Goal:
    return Goal(text=f"share of the matmul ceiling >= {limit:g}", value=lambda result: result.share, at_least=limit)


def memory_below(limit_gb: float) -> Goal:
    return Goal(text=f"peak < {limit_gb:g} GB", value=lambda result: result.peak_gb, at_most=limit_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One model, one task, one shape."""

    card_name: str
    task: Task
    rounds: int
    """How often each way of rendering is timed; the best counts."""
    goals: tuple[Goal, ...]
    tiny_px: int
    tiny_frames: int
    tiny_rounds: int = 1

    def card(self, *, tiny: bool) -> ModelCard:
        """The shipped card; for a dry run with other defaults and without its lower limits."""
        card = load_card(CARDS_DIR / f"{self.card_name}.yaml")
        if not tiny:
            return card
        defaults = card.defaults.model_copy(update={
            "steps": TINY_STEPS, "width_px": self.tiny_px, "height_px": self.tiny_px, "frames": self.tiny_frames})
        # SVD's guidance rises from frame to frame, so that a single one has none; it is never asked for one.
        shortest = min(card.frames.min_frames, self.tiny_frames)
        return card.model_copy(update={
            "defaults": defaults, "frames": card.frames.model_copy(update={"min_frames": shortest}),
            "size": SizeRule(multiple_px=card.size.multiple_px, min_px=self.tiny_px, max_px=card.size.max_px)})

    def take(self, card: ModelCard, *, steps: int = 0) -> Take:
        """The card's defaults, which is what a shot gets; `steps` other than its own for a part of a measurement."""
        asked = card.defaults
        picture_HWC = None
        if self.task is Task.IMAGE_TO_VIDEO:
            noise = np.random.default_rng(0)
            picture_HWC = noise.integers(0, 256, (asked.height_px, asked.width_px, 3), dtype=np.uint8)
        return Take(prompt=PROMPT, negative_prompt=asked.negative_prompt, width_px=asked.width_px,
                    height_px=asked.height_px, frames=asked.frames, fps=asked.fps, steps=steps or asked.steps,
                    guidance=asked.guidance, seed=7, picture_HWC=picture_HWC)


def render_call(card: ModelCard, take: Take, *, key: str, first_frame: Artifact | None) -> RenderCall:
    """The same take as a replica is asked for it."""
    return RenderCall(
        job_id="job", node_id="s1.clip", shot_id="s1", attempt=1, key=key, left_s=4e9, card=card.name,
        card_digest=card.digest(), prompt=take.prompt, negative_prompt=take.negative_prompt, width_px=take.width_px,
        height_px=take.height_px, frames=take.frames, fps=take.fps, steps=take.steps, guidance=take.guidance,
        seed=take.seed, first_frame=first_frame)


WORKLOADS: Mapping[str, Workload] = {
    "wan": Workload(card_name="wan2.1-t2v-1.3b", task=Task.TEXT_TO_VIDEO, rounds=1, tiny_px=32, tiny_frames=5,
                    goals=(clip_within(52), share_of_ceiling(0.70))),
    "svd": Workload(card_name="svd-xt", task=Task.IMAGE_TO_VIDEO, rounds=2, tiny_px=64, tiny_frames=2,
                    goals=(clip_within(12), memory_below(16))),
    "sdxl": Workload(card_name="sdxl", task=Task.TEXT_TO_IMAGE, rounds=5, tiny_px=64, tiny_frames=1, tiny_rounds=2,
                     goals=(clip_within(1.5),)),
}
"""Section -> workload. The goals are for one H200."""
