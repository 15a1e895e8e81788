"""One row per model family: which tiny checkpoint, which pipeline class, which task, which small shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from configs.model_card import CallDefaults, FrameRule, ModelCard, SizeRule, Task
from serve_app.models import pipelines
from serve_app.models.render import tapped
from serve_app.models.takes import Dialect, Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from tests import tiny
from tests.tiny_pictures import ADAPTER_ENCODER, ADAPTER_FILE

STEPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one family is loaded and asked for something tiny."""

    name: str
    pipeline: str
    task: Task
    side_px: int = 32
    frames: int = 1
    frame_step: int = 1
    references: str = ""
    """Kind of reference pictures that it takes."""

    def card(self, checkpoints: Path, **changes: object) -> ModelCard:
        """A card for the family's checkpoint below `checkpoints`."""
        fields: dict[str, object] = {
            "name": self.name.replace("_", "-"), "title": self.name, "repo": str(tiny.build(self.name, checkpoints)),
            "pipelines": {self.task: self.pipeline},
            "defaults": CallDefaults(steps=STEPS, guidance=3.0, width_px=self.side_px, height_px=self.side_px,
                                     frames=self.frames, fps=8),
            "size": SizeRule(multiple_px=self.side_px, min_px=self.side_px, max_px=128),
            "frames": FrameRule(step=self.frame_step, offset=1 % self.frame_step, max_frames=64),
        }
        if self.references:
            fields["references"] = {"kind": self.references, "max_pictures": 2, **self._adapter(checkpoints)}
        return ModelCard.model_validate({**fields, **changes})

    def _adapter(self, checkpoints: Path) -> dict[str, object]:
        if self.references != "ip_adapter":
            return {}
        return {"repo": str(tiny.build_ip_adapter(checkpoints)), "weight_file": ADAPTER_FILE,
                "image_encoder": ADAPTER_ENCODER}

    def take(self, **changes: object) -> Take:
        """A call of STEPS steps with a fixed seed."""
        picture_HWC = None
        if self.task is Task.IMAGE_TO_VIDEO:
            picture_HWC = np.random.default_rng(0).integers(0, 256, (self.side_px, self.side_px, 3), dtype=np.uint8)
        take = Take(prompt="a red ball", width_px=self.side_px, height_px=self.side_px, frames=self.frames, fps=8,
                    steps=STEPS, guidance=3.0, seed=7, picture_HWC=picture_HWC)
        return replace(take, **changes)

    def load(self, checkpoints: Path) -> DiffusionPipeline:
        """A pipeline of its own, fresh from disk."""
        return pipelines.load(self.card(checkpoints), self.task, "cpu")

    def dialect(self, pipe: DiffusionPipeline, checkpoints: Path) -> Dialect:
        """How the pipeline is asked."""
        return Dialect(pipe, self.card(checkpoints), self.task)

    def render(self, pipe: DiffusionPipeline, checkpoints: Path, *, callback: ProgressCallback | None = None,
               watch: Watch = UNWATCHED, **changes: object) -> torch.Tensor:
        """The pipeline's own floats, before they are rounded to pixels."""
        take = self.take(**changes)
        dialect = self.dialect(pipe, checkpoints)
        dialect.guide(pipe, take)
        call = dialect.call(take)
        with tapped(pipe, seed=take.seed, progress_callback=callback, watch=watch) as generator:
            output = pipe(**call.kwargs(), generator=generator, output_type="pt")
        floats: torch.Tensor = output.frames if "frames" in output else output.images
        return floats


FAMILIES = [
    Family(name="wan_t2v", pipeline="WanPipeline", task=Task.TEXT_TO_VIDEO, frames=5, frame_step=4),
    Family(name="wan_ti2v", pipeline="WanImageToVideoPipeline", task=Task.IMAGE_TO_VIDEO, frames=5, frame_step=4),
    Family(name="wan21_i2v", pipeline="WanImageToVideoPipeline", task=Task.IMAGE_TO_VIDEO, frames=5, frame_step=4),
    Family(name="wan22_t2v", pipeline="WanPipeline", task=Task.TEXT_TO_VIDEO, frames=5, frame_step=4),
    Family(name="wan22_i2v", pipeline="WanImageToVideoPipeline", task=Task.IMAGE_TO_VIDEO, frames=5, frame_step=4),
    Family(name="svd", pipeline="StableVideoDiffusionPipeline", task=Task.IMAGE_TO_VIDEO, frames=2),
    Family(name="sdxl", pipeline="StableDiffusionXLPipeline", task=Task.TEXT_TO_IMAGE),
    Family(name="sdxl_turbo", pipeline="StableDiffusionXLPipeline", task=Task.TEXT_TO_IMAGE),
    Family(name="ltx", pipeline="LTXPipeline", task=Task.TEXT_TO_VIDEO, frames=9, frame_step=8),
    Family(name="ltx2", pipeline="LTX2Pipeline", task=Task.TEXT_TO_VIDEO, frames=5),
    Family(name="hv15", pipeline="HunyuanVideo15Pipeline", task=Task.TEXT_TO_VIDEO, side_px=16, frames=3,
           frame_step=2),
    Family(name="flux", pipeline="FluxPipeline", task=Task.TEXT_TO_IMAGE),
    Family(name="z_image", pipeline="ZImagePipeline", task=Task.TEXT_TO_IMAGE),
    Family(name="qwen_image", pipeline="QwenImagePipeline", task=Task.TEXT_TO_IMAGE),
    Family(name="flux2_klein", pipeline="Flux2KleinPipeline", task=Task.TEXT_TO_IMAGE, references="native"),
    Family(name="sdxl_ip_adapter", pipeline="StableDiffusionXLPipeline", task=Task.TEXT_TO_IMAGE,
           references="ip_adapter"),
]
FAST = ("wan_t2v", "svd", "sdxl", "sdxl_turbo")
"""The families that every run of the tests covers; the others are marked slow."""

every_family = pytest.mark.parametrize("family", [
    pytest.param(family, id=family.name, marks=() if family.name in FAST else pytest.mark.slow) for family in FAMILIES])
BY_NAME = {family.name: family for family in FAMILIES}
