"""A card's pipeline with random weights, made on the device: reelray's own `load`, but for the files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from serve_app.models import options, pipelines
from tests.bench.gpu.architectures import ARCHITECTURES, Part


class RandomWeights:
    """Implements `pipelines.LoadPipeline`. Remembers what it made, and how long that took."""

    def __init__(self, *, tiny: bool) -> None:
        self._tiny = tiny
        self.pipes: dict[Task, DiffusionPipeline] = {}
        self.seconds = 0.0

    def __call__(self, card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                 ) -> DiffusionPipeline:
        """In the card's dtypes, with its scheduler settings and options; parts of another task's pipeline are shared.

        Of `quantise` only `float8_storage` can be made without files.
        """
        architecture, shared = ARCHITECTURES[card.name], components or {}
        started = time.perf_counter()
        torch.manual_seed(0)
        parts = {name: shared[name] if name in shared else
                 make(part, pipelines.DTYPES[card.dtypes.get(name, card.dtype)], device, tiny=self._tiny)
                 for name, part in architecture.parts.items()}
        readers = {name: read() for name, read in architecture.readers.items()}
        scheduler = architecture.scheduler()
        scheduler = type(scheduler).from_config(scheduler.config, **card.scheduler)
        made = pipelines.find_class(card, task)(**parts, **readers, scheduler=scheduler, **architecture.settings)
        dtypes = {"default": pipelines.DTYPES[card.dtype],
                  **{name: pipelines.DTYPES[dtype] for name, dtype in card.dtypes.items()}}
        options.apply(made, card, device, dtypes, shared)
        self.seconds += time.perf_counter() - started
        self.pipes[task] = made
        return made


def make(part: Part, dtype: torch.dtype, device: str, *, tiny: bool) -> torch.nn.Module:
    """One component. What its class keeps in float32 when a checkpoint is loaded is float32 here too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = part.make(tiny=tiny)
    finally:
        torch.set_default_dtype(before)
    if part.config is None:
        kept = set(model._keep_in_fp32_modules or ())
        for name, parameter in model.named_parameters():
            if kept & set(name.split(".")):
                parameter.data = parameter.data.float()
    # `torch.Tensor([...])`, as in SVD's blending of space and time, asks nobody for the device.
    return model.to(device).eval().requires_grad_(False)
