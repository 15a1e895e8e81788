"""A pipeline that does as it is told, and a sink that remembers: for tests of what surrounds a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from configs.model_card import FILM_TASKS, CallDefaults, FrameRule, ModelCard, SizeRule, Task
from workflows.ports import RenderCall
from workflows.types import Artifact, Phase, ProgressRecord

STEPS = 5


def _nothing(step: int) -> None:
    """What a step does unless a test says otherwise."""


class ScriptedPipeline(DiffusionPipeline):
    """A real scheduler's loop around a denoiser that a test scripts; paints one colour, chosen by the seed."""

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.takes: list[dict[str, Any]] = []
        """One entry per call."""
        self.denoise: Callable[[int], None] = _nothing
        """Called in every step, before the scheduler's."""
        self.paint = 0.5

    @torch.no_grad()
    def __call__(self, prompt: str, negative_prompt: str = "", image: Any = None, width: int = 0, height: int = 0,
                 num_frames: int = 1, num_inference_steps: int = 1, guidance_scale: float = 1.0,
                 generator: torch.Generator | None = None, output_type: str = "pt") -> SimpleNamespace:
        self.takes.append({"prompt": prompt, "negative_prompt": negative_prompt, "image": image, "width": width,
                           "height": height, "num_frames": num_frames, "steps": num_inference_steps,
                           "guidance": guidance_scale})
        sample = torch.randn(1, 1, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for step, timestep in enumerate(self.scheduler.timesteps):
            self.denoise(step)
            sample = self.scheduler.step(sample, timestep, sample, return_dict=False)[0]
        frames = torch.full((1, num_frames, 3, height, width), self.paint)
        return _Output(frames=frames + sample.sigmoid().item() * 0.1 * (self.paint > 0))


class _Output(SimpleNamespace):
    def __contains__(self, name: str) -> bool:
        return name in vars(self)


class Gate:
    """Holds the denoiser at one step until it is opened."""

    def __init__(self, at_step: int = 1) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.seen: list[int] = []
        self._at_step = at_step

    def __call__(self, step: int) -> None:
        self.seen.append(step)
        if step == self._at_step:
            self.reached.set()
            assert self.opened.wait(10)


class ScriptedLoad:
    """`pipelines.load` that hands out one scripted pipeline for every task."""

    def __init__(self) -> None:
        self.pipe = ScriptedPipeline(FlowMatchEulerDiscreteScheduler())
        self.loaded: list[Task] = []

    def __call__(self, card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                 ) -> DiffusionPipeline:
        self.loaded.append(task)
        return self.pipe


class RememberingSink:
    """A ProgressSink that keeps what it was given."""

    def __init__(self) -> None:
        self.records: list[ProgressRecord] = []
        self.urgent: list[Phase] = []
        self.ended: list[tuple[str, str]] = []

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        self.records.append(record)
        if urgent:
            self.urgent.append(record.phase)

    def end(self, job_id: str, node_id: str) -> None:
        self.ended.append((job_id, node_id))

    def of(self, job_id: str) -> list[ProgressRecord]:
        return [record for record in self.records if record.job_id == job_id]


def scripted_card(*tasks: Task) -> ModelCard:
    """A card for the scripted pipeline."""
    return ModelCard(
        name="scripted", title="scripted", repo="nowhere",
        pipelines={task: "ScriptedPipeline" for task in tasks or FILM_TASKS},
        defaults=CallDefaults(steps=STEPS, guidance=3, width_px=64, height_px=32, frames=5, fps=8),
        size=SizeRule(multiple_px=16, min_px=16, max_px=128), frames=FrameRule(step=4, offset=1, max_frames=17))


def render_call(card: ModelCard, *, key: str = "a" * 32, job_id: str = "job", node_id: str = "s1.clip",
                frames: int = 5, first_frame: Artifact | None = None, left_s: float = 4e9, card_name: str = "",
                **changes: Any) -> RenderCall:
    """A call that the card can answer."""
    fields: dict[str, Any] = {
        "job_id": job_id, "node_id": node_id, "shot_id": "s1", "attempt": 2, "key": key, "left_s": left_s,
        "card": card_name or card.name, "card_digest": card.digest(), "prompt": "a red ball", "negative_prompt": "",
        "width_px": card.defaults.width_px, "height_px": card.defaults.height_px, "frames": frames, "fps": 8.0,
        "steps": STEPS, "guidance": 3.0, "seed": 11, "first_frame": first_frame}
    return RenderCall(**{**fields, **changes})
