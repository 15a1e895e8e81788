"""Frames of a clip, changed as a text says: a small class for each way in which diffusers' pipelines want to be asked.

| class          | pipelines       | one call                                          |
|----------------|-----------------|---------------------------------------------------|
| InstructEditor | InstructPix2Pix | some frames, each with the same noise             |
| PictureEditor  | FLUX.2          | one frame, always with the same noise             |
| QwenEditor     | Qwen-Image-Edit | the same; its guidance is from a negative prompt  |
| KontextEditor  | FLUX.1 Kontext  | the same; sizes are areas to it                   |
| ClipEditor     | Wan VACE        | the whole clip: inside the masks it is made anew  |

Image editors know nothing of time. The same noise in every frame is what keeps equal frames equal, so it never depends
on how many frames share a call. Frames with nothing in their mask are handed back as they are.
Knows no job, no store, no Ray.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from configs.model_card import ModelCard, Task
from serve_app.models.lifecycle import free_memory
from serve_app.models.render import tapped, tapped_alike, to_pixels
from serve_app.models.repo import refused
from serve_app.models.tap import Watch
from workflows.edit_doors import EditShape, edit_problems
from workflows.edit_ports import EditTake, FrameEditor, ProgressCallback
from workflows.errors import Problem, RenderRefused
from workflows.media.frames import UInt8Array

LoadedEditor = FrameEditor[Watch]
OURS = frozenset({
    "image", "video", "mask", "prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps",
    "guidance_scale", "image_guidance_scale", "true_cfg_scale", "generator", "output_type", "max_area", "_auto_resize",
    "prompt_embeds", "negative_prompt_embeds", "latents", "return_dict", "callback_on_step_end"})
"""Arguments that come from the edit or from reelray itself; a card may not fix them."""
GREY = 128
"""VACE was taught with this colour where something is to be made."""
NO_WORDS = " "
"""Qwen's guidance works only beside a negative prompt; this one asks for nothing."""


class CallCounter:
    """Steps of one pipeline call after another, as steps of one edit."""

    def __init__(self, calls: int, heard: ProgressCallback | None) -> None:
        self._calls = calls
        self._heard = heard
        self._before = 0

    @property
    def callback(self) -> ProgressCallback | None:
        """For the tap; None keeps the pipeline's own bar."""
        return None if self._heard is None else self._step

    def next_call(self) -> None:
        """A call is over."""
        self._before += 1

    def grow(self, more_calls: int) -> None:
        """It takes more calls than was thought."""
        self._calls += more_calls

    def _step(self, step: int, total: int, timestep: float) -> None:
        assert self._heard is not None
        self._heard(self._before * total + step + 1, self._calls * total, timestep)


class DiffusersEditor(ABC):
    """What all of them check. One call at a time, always on the same thread. Implements `FrameEditor`."""

    task = Task.EDIT_FRAMES

    def __init__(self, pipe: DiffusionPipeline, card: ModelCard) -> None:
        """Raises InvalidDocument when the card fixes an argument that the pipeline does not have, or that is ours."""
        self._pipe = pipe
        self._card = card
        known = inspect.signature(type(pipe).__call__).parameters
        for name in card.arguments:
            if name in OURS or name not in known:
                raise refused(card, f"arguments.{name}", f"{type(pipe).__name__} has no such argument" if name not in
                              known else "is set by reelray for every call; remove it")

    def problems(self, take: EditTake) -> tuple[Problem, ...]:
        """See `FrameEditor`."""
        frames_THWC = take.frames_THWC
        frames, height_px, width_px = frames_THWC.shape[:3]
        found = edit_problems(self._card, EditShape(
            size_px=width_px, frames=frames, steps=take.steps, negative_prompt=take.negative_prompt,
            image_guidance=take.image_guidance))
        if height_px == width_px and take.masks_THW.shape == frames_THWC.shape[:3]:
            return found
        return (*found, Problem(field="frames", problem=f"{frames_THWC.shape} with masks {take.masks_THW.shape}",
                                nearest="squares, and masks of the same frames"))

    def edit(self, take: EditTake, *, progress_callback: ProgressCallback | None = None, watch: Watch) -> UInt8Array:
        """See `FrameEditor`. An edit of one call of the pipeline can be checkpointed and resumed by the watch."""
        if problems := self.problems(take):
            raise RenderRefused(node_id=watch.label, reason="; ".join(problem.render() for problem in problems))
        edited_THWC = take.frames_THWC.copy()
        chosen = [frame for frame in range(len(edited_THWC)) if take.masks_THW[frame].any()]
        if chosen:
            self._edit(take, chosen, edited_THWC, progress_callback, watch)
        return edited_THWC

    @abstractmethod
    def _edit(self, take: EditTake, chosen: list[int], edited_THWC: UInt8Array, heard: ProgressCallback | None,
              watch: Watch) -> None:
        """Put the chosen frames, edited, into `edited_THWC`."""


class InstructEditor(DiffusersEditor):
    """Some frames in one call, the prompts encoded once per edit."""

    def _edit(self, take: EditTake, chosen: list[int], edited_THWC: UInt8Array, heard: ProgressCallback | None,
              watch: Watch) -> None:
        assert self._card.edit is not None
        most = self._card.edit.frames_at_once
        counter = CallCounter(_parts(chosen, most), heard)
        watch = _of_calls(watch, _parts(chosen, most))
        with torch.no_grad():
            words = self._words(take)
        while chosen:
            batch, rest = chosen[:most], chosen[most:]
            edited = self._call(take, batch, words, counter, watch)
            if edited is None:  # it does not fit the GPU's memory
                watch.note(f"{len(batch)} frames at once do not fit the GPU; edited {len(batch) // 2} at once")
                free_memory()
                calls, most = _parts(chosen, most), len(batch) // 2
                counter.grow(_parts(chosen, most) - calls)
                continue
            self._keep(edited, take, batch, edited_THWC, watch)
            counter.next_call()
            chosen = rest

    def _words(self, take: EditTake) -> dict[str, torch.Tensor]:
        """The encoded pair of prompts, for one frame. Without guidance by the text there is only one."""
        guided = take.guidance > 1
        pair = self._pipe._encode_prompt(take.prompt, self._pipe._execution_device, 1, guided, take.negative_prompt)
        return {"prompt_embeds": pair[:1], **({"negative_prompt_embeds": pair[1:2]} if guided else {})}

    def _call(self, take: EditTake, batch: list[int], words: Mapping[str, torch.Tensor], counter: CallCounter,
              watch: Watch) -> Any:
        """One call of the pipeline; None when more than one frame is more than the GPU can hold."""
        try:
            with tapped_alike(self._pipe, seed=take.seed, count=len(batch), progress_callback=counter.callback,
                              watch=watch) as generators:
                return self._pipe(
                    image=[Image.fromarray(take.frames_THWC[frame]) for frame in batch],
                    num_inference_steps=take.steps, guidance_scale=take.guidance,
                    image_guidance_scale=take.image_guidance, generator=generators, output_type="pt",
                    **{name: part.expand(len(batch), -1, -1) for name, part in words.items()}, **self._card.arguments)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            return None

    def _keep(self, output: Any, take: EditTake, batch: list[int], edited_THWC: UInt8Array, watch: Watch) -> None:
        pixels_THWC = to_pixels(output.images, (len(batch), *take.frames_THWC.shape[1:3]), label=watch.label)
        blanked = output.nsfw_content_detected or [False] * len(batch)
        for frame, pixels_HWC, is_blank in zip(batch, pixels_THWC, blanked, strict=True):
            if not is_blank:
                edited_THWC[frame] = pixels_HWC
        if hidden := [frame for frame, is_blank in zip(batch, blanked, strict=True) if is_blank]:
            watch.note("the model's safety checker blacked out frames of the chunk, which are left as they were: "
                       + ", ".join(map(str, hidden)))


class PictureEditor(DiffusersEditor):
    """One frame per call, always with the same noise."""

    def _edit(self, take: EditTake, chosen: list[int], edited_THWC: UInt8Array, heard: ProgressCallback | None,
              watch: Watch) -> None:
        side_px, counter = take.frames_THWC.shape[1], CallCounter(len(chosen), heard)
        watch = _of_calls(watch, len(chosen))
        for frame in chosen:
            with tapped(self._pipe, seed=take.seed, progress_callback=counter.callback, watch=watch) as generator:
                output = self._pipe(
                    image=Image.fromarray(take.frames_THWC[frame]), prompt=take.prompt, height=side_px, width=side_px,
                    num_inference_steps=take.steps, generator=generator, output_type="pt",
                    **self._own_arguments(take, side_px), **self._card.arguments)
            edited_THWC[frame] = to_pixels(output.images, (1, side_px, side_px), label=watch.label)[0]
            counter.next_call()

    def _own_arguments(self, take: EditTake, side_px: int) -> dict[str, Any]:
        """What only some of these pipelines are told."""
        return {"guidance_scale": take.guidance}


class QwenEditor(PictureEditor):
    """Its guidance is between prompt and negative prompt."""

    def _own_arguments(self, take: EditTake, side_px: int) -> dict[str, Any]:
        return {"true_cfg_scale": take.guidance, "negative_prompt": take.negative_prompt or NO_WORDS}


class KontextEditor(PictureEditor):
    """Sizes are areas to it, and it would scale the frame to one of its favourite shapes."""

    def _own_arguments(self, take: EditTake, side_px: int) -> dict[str, Any]:
        return {"guidance_scale": take.guidance, "max_area": side_px**2, "_auto_resize": False}


class ClipEditor(DiffusersEditor):
    """The whole clip in one call; its length is made to fit by repeating the last frame."""

    task = Task.EDIT_VIDEO

    def _edit(self, take: EditTake, chosen: list[int], edited_THWC: UInt8Array, heard: ProgressCallback | None,
              watch: Watch) -> None:
        frames, side_px = take.frames_THWC.shape[:2]
        length = self._card.frames.nearest(max(frames, self._card.frames.min_frames))[-1]
        if length != frames:
            watch.note(f"{self._card.name} makes clips of {self._card.frames.step}n+{self._card.frames.offset} frames: "
                       f"the last of {frames} was repeated up to {length}, and the rest cut off again")
        order = [min(frame, frames - 1) for frame in range(length)]
        inside_THW = take.masks_THW > 0
        hidden_THWC = np.where(inside_THW[..., None], np.uint8(GREY), take.frames_THWC)
        counter = CallCounter(1, heard)
        with tapped(self._pipe, seed=take.seed, progress_callback=counter.callback, watch=watch) as generator:
            output = self._pipe(
                prompt=take.prompt, negative_prompt=take.negative_prompt or None,
                video=[Image.fromarray(hidden_THWC[frame]) for frame in order],
                mask=[Image.fromarray(inside_THW[frame].astype(np.uint8) * 255) for frame in order],
                height=side_px, width=side_px, num_frames=length, num_inference_steps=take.steps,
                guidance_scale=take.guidance, generator=generator, output_type="pt", **self._card.arguments)
        made_THWC = to_pixels(output.frames[0], (length, side_px, side_px), label=watch.label)
        edited_THWC[chosen] = made_THWC[chosen]


def _parts(frames: list[int], at_once: int) -> int:
    return -(-len(frames) // at_once)


def _of_calls(watch: Watch, calls: int) -> Watch:
    """A checkpoint is of one call of a pipeline; an edit of several has none."""
    return watch if calls == 1 else replace(watch, checkpoint_every=0, resume=None)


EDITORS: Mapping[str, type[DiffusersEditor]] = {
    "StableDiffusionInstructPix2PixPipeline": InstructEditor,
    "QwenImageEditPipeline": QwenEditor, "QwenImageEditPlusPipeline": QwenEditor,
    "Flux2KleinPipeline": PictureEditor, "Flux2Pipeline": PictureEditor, "FluxKontextPipeline": KontextEditor,
    "WanVACEPipeline": ClipEditor,
}
"""By diffusers' class; a card may name no other for an edit."""


def editor_class(card: ModelCard, task: Task) -> type[DiffusersEditor]:
    """How the card's pipeline is asked. Raises InvalidDocument for one that is not known as an editor."""
    name = card.pipelines[task]
    found = EDITORS.get(name)
    if found is None or found.task is not task:
        able = [other for other, kind in EDITORS.items() if kind.task is task]
        raise refused(card, f"pipelines.{task.value}", f"{name} is not known as an editor of this kind",
                      " or ".join(able))
    return found
