"""What is asked of a model, in reelray's words (Take) and in one pipeline's own (PipelineCall). Runs nothing.

Arrays: T frames, H height, W width, C = 3 colours; uint8, RGB, 0-255.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

from diffusers import DiffusionPipeline
from PIL import Image

from configs.memory import Shape
from configs.model_card import ModelCard, Task
from serve_app.models.reference_input import ReferenceInput
from serve_app.models.step_cache import cacheable
from workflows.errors import InvalidDocument, Problem
from workflows.media.frames import UInt8Array

OURS = frozenset({"prompt", "negative_prompt", "image", "width", "height", "num_frames", "num_inference_steps",
                  "fps", "frame_rate", "generator", "latents", "output_type", "return_dict", "callback_on_step_end",
                  "ip_adapter_image", "ip_adapter_image_embeds"})
"""Pipeline arguments that come from the take or from reelray itself; a card may not fix them, nor the guidance."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Take:
    """One picture or one clip asked of a model."""

    prompt: str
    negative_prompt: str = ""
    width_px: int
    height_px: int
    frames: int = 1
    """1 for a picture."""
    fps: float = 16.0
    """Frames per second at which the clip will be shown."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Classifier-free guidance scale; 0 or 1 is none."""
    seed: int
    """0 .. 2^63 - 1; the same seed and card give the same picture on the same kind of device."""
    picture_HWC: UInt8Array | None = None
    """First frame, exactly `height_px` by `width_px` (image to video)."""
    references_HWC: tuple[UInt8Array, ...] = ()
    """Reference pictures of any size (text to image)."""
    cache_threshold: float | None = None
    """Of the first-block cache, above 0: steps that change less are guessed. None: every step is computed."""

    @property
    def shape(self) -> Shape:
        """What its memory depends on."""
        return Shape(width_px=self.width_px, height_px=self.height_px, frames=self.frames,
                     pictures=len(self.references_HWC))

    def problems(self, card: ModelCard) -> tuple[Problem, ...]:
        """Where the take breaks the card's rules; empty when it can be rendered."""
        found = [_size_problem(card, "width_px", self.width_px), _size_problem(card, "height_px", self.height_px)]
        if text := card.frames.problem(self.frames):
            found.append(Problem(field="frames", problem=text, nearest=_either(card.frames.nearest(self.frames))))
        if self.steps < 1:
            found.append(Problem(field="steps", problem=f"{self.steps} steps", nearest="1"))
        if not 0 <= self.seed < 2**63:
            found.append(Problem(field="seed", problem=f"{self.seed} is outside 0..2^63-1",
                                 nearest="0" if self.seed < 0 else str(2**63 - 1)))
        return tuple(problem for problem in found if problem is not None)


def _size_problem(card: ModelCard, name: str, size_px: int) -> Problem | None:
    text = card.size.problem(size_px)
    return Problem(field=name, problem=text, nearest=_either(card.size.nearest(size_px))) if text else None


def _either(values: tuple[int, ...]) -> str:
    return " or ".join(str(value) for value in values)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PipelineCall:
    """Arguments of one pipeline call, under diffusers' names; None is left out, so the pipeline's default holds."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    """Several of each in a call that makes several pictures."""
    image: Image.Image | list[Image.Image] | None = None
    ip_adapter_image: list[list[Image.Image]] | None = None
    """One list per adapter."""
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    num_inference_steps: int
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    min_guidance_scale: float | None = None
    max_guidance_scale: float | None = None
    fps: int | None = None
    frame_rate: float | None = None
    fixed: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    """The card's `arguments`."""

    def kwargs(self) -> dict[str, object]:
        """As keyword arguments, for the one spread into the pipeline."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "fixed"}
        return {**self.fixed, **{name: value for name, value in named.items() if value is not None}}


class GuidanceBy(StrEnum):
    """How a pipeline is told the guidance scale."""

    SCALE = "guidance_scale"
    TRUE_CFG = "true_cfg_scale"
    """QwenImage: its `guidance_scale` is for distilled models only and defaults to None."""
    RAMP = "max_guidance_scale"
    """SVD: from `min_guidance_scale` at the first frame to the maximum at the last."""
    GUIDER = "guider"
    """HunyuanVideo 1.5: a component of the pipeline holds it."""
    NONE = "none"


class Dialect:
    """How one pipeline wants to be asked; read once from the signature of its `__call__`.

    What a card or a take asks for and the pipeline has no argument for is refused by name, not dropped.
    """

    def __init__(self, pipe: DiffusionPipeline, card: ModelCard, task: Task) -> None:
        """Raises InvalidDocument when the card's fixed arguments or defaults do not fit the pipeline."""
        self._pipeline = type(pipe).__name__
        self._card = card
        parameters = inspect.signature(type(pipe).__call__).parameters
        self._names = frozenset(parameters)
        self._guidance = _guidance_of(pipe, parameters)
        self._takes_lists = _takes_lists(parameters)
        self._pipe = pipe
        self._references = ReferenceInput(pipe, card.references if task is Task.TEXT_TO_IMAGE else None)
        if problems := self._card_problems(task):
            raise InvalidDocument(problems=problems, file=f"model card {card.name}")

    @property
    def takes_prompt(self) -> bool:
        """False for Stable Video Diffusion: its motion follows the picture alone."""
        return "prompt" in self._names

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """What of the take this pipeline cannot do; empty when all of it."""
        found = list(take.problems(self._card))
        if take.negative_prompt and "negative_prompt" not in self._names:
            found.append(self._lacks("negative_prompt", "leave it empty"))
        if take.guidance > 1 and self._guidance is GuidanceBy.NONE:
            found.append(self._lacks("guidance", "0"))
        if take.cache_threshold is not None and not cacheable(self._pipe):
            found.append(self._lacks("cache_threshold", "none"))
        return (*found, *self._references.problems(take.references_HWC))

    def call(self, take: Take) -> PipelineCall:
        """Translate a take that has no problems."""
        names, fixed, by = self._names, self._card.arguments, self._guidance
        has_size = {"width", "height"} <= names
        return PipelineCall(
            prompt=take.prompt if "prompt" in names else None,
            negative_prompt=take.negative_prompt or None,
            image=(self._references.image(take.references_HWC) if take.picture_HWC is None
                   else Image.fromarray(take.picture_HWC)),
            ip_adapter_image=self._references.ip_adapter_image(take.references_HWC),
            width=take.width_px if has_size else None,
            height=take.height_px if has_size else None,
            num_frames=take.frames if "num_frames" in names else None,
            num_inference_steps=take.steps,
            guidance_scale=take.guidance if by is GuidanceBy.SCALE else None,
            true_cfg_scale=take.guidance if by is GuidanceBy.TRUE_CFG else None,
            # The pipeline's own minimum is 1; below that the ramp would run backwards.
            min_guidance_scale=min(take.guidance, 1.0) if self._ramps_from_its_own_minimum else None,
            max_guidance_scale=take.guidance if by is GuidanceBy.RAMP else None,
            fps=max(round(take.fps), 1) if "fps" in names else None,
            frame_rate=take.fps if "frame_rate" in names else None,
            fixed=fixed)

    def call_many(self, takes: Sequence[Take]) -> PipelineCall:
        """One call for several takes that differ in their prompts and seeds only (`batching.kind_of`)."""
        one = self.call(takes[0])
        # None and "" are not the same to SDXL, so that all takes have a negative prompt or none has.
        negative = [take.negative_prompt for take in takes] if one.negative_prompt is not None else None
        return replace(one, prompt=[take.prompt for take in takes], negative_prompt=negative)

    def guide(self, pipe: DiffusionPipeline, take: Take) -> None:
        """Set what a pipeline holds in a component: the guidance of some, the weight of an adapter's pictures."""
        self._references.weigh(pipe, len(take.references_HWC))
        if self._guidance is GuidanceBy.GUIDER:
            pipe.guider = pipe.guider.new(guidance_scale=take.guidance)

    @property
    def _ramps_from_its_own_minimum(self) -> bool:
        return self._guidance is GuidanceBy.RAMP and "min_guidance_scale" not in self._card.arguments

    def _card_problems(self, task: Task) -> tuple[Problem, ...]:
        card, found = self._card, []
        for name in card.arguments:
            if name in OURS or name == self._guidance:
                found.append(Problem(field=f"arguments.{name}", problem="is set by reelray for every call; remove it"))
            elif name not in self._names:
                found.append(Problem(field=f"arguments.{name}", problem=f"{self._pipeline} has no such argument"))
        if card.defaults.negative_prompt and "negative_prompt" not in self._names:
            found.append(self._lacks("defaults.negative_prompt", "leave it empty"))
        if card.defaults.guidance > 1 and self._guidance is GuidanceBy.NONE:
            found.append(self._lacks("defaults.guidance", "0"))
        if card.batch > 1 and not self._takes_lists:
            found.append(Problem(field="batch", problem=f"{self._pipeline} makes one picture per call", nearest="1"))
        if card.draft and card.draft.cache and not cacheable(self._pipe):
            found.append(self._lacks("draft.cache", "leave it out"))
        needs_picture = task is Task.IMAGE_TO_VIDEO
        if needs_picture and "image" not in self._names:
            found.append(self._lacks(f"pipelines.{task.value}", "an image-to-video pipeline"))
        if task is not Task.TEXT_TO_IMAGE and "num_frames" not in self._names:
            found.append(self._lacks(f"pipelines.{task.value}", "a video pipeline"))
        return (*found, *self._references.card_problems(self._names))

    def _lacks(self, name: str, nearest: str) -> Problem:
        return Problem(field=name, problem=f"{self._pipeline} has nothing to do it with", nearest=nearest)


def _guidance_of(pipe: DiffusionPipeline, parameters: Mapping[str, inspect.Parameter]) -> GuidanceBy:
    scale = parameters.get("guidance_scale")
    if "true_cfg_scale" in parameters and scale is not None and scale.default is None:
        return GuidanceBy.TRUE_CFG
    if scale is not None:
        return GuidanceBy.SCALE
    if "max_guidance_scale" in parameters:
        return GuidanceBy.RAMP
    return GuidanceBy.GUIDER if "guider" in pipe.components else GuidanceBy.NONE


def _takes_lists(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether one call takes a prompt, a negative prompt and a generator per picture, as the signature says."""
    asked = [parameters[name] for name in ("prompt", "negative_prompt", "generator") if name in parameters]
    return {"prompt", "generator"} <= set(parameters) and all("list[" in str(one.annotation).lower() for one in asked)
