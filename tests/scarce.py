"""A GPU with little memory, played on the CPU: real pipelines whose parts run out of it above a size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import torch
from diffusers import DiffusionPipeline

from actors.progress import ActorTransport
from actors.reporter import Reporter
from configs.memory import Placement
from configs.model_card import ModelCard, Task
from configs.settings import Settings
from serve_app.deployments import ModelDeployment, open_store, own_name
from serve_app.models import pipelines
from serve_app.models.replica import ModelReplica
from serve_app.models.resume import DENOISERS

PLENTY = 10**9


class ScarceLoad:
    """`pipelines.load`, but the denoiser takes latents of so many numbers, the VAE's decoder at once of so many."""

    def __init__(self, denoiser: Mapping[Placement, int] | None = None, decoder: int = PLENTY) -> None:
        """`denoiser`: by where its weights lie; plenty where nothing is said."""
        self.denoiser = dict(denoiser or {})
        self.decoder = decoder
        self.devices: list[str] = []
        """Where each pipeline was loaded to."""
        self.pipes: list[DiffusionPipeline] = []
        self.calls: list[tuple[Placement, int]] = []
        """Each failure of a denoiser, and each first call of it that went well: where it lay, numbers asked for."""
        self.failures = 0

    def __call__(self, card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                 ) -> DiffusionPipeline:
        pipe = pipelines.load(card, task, device, components)
        self.devices.append(device)
        self.pipes.append(pipe)
        for name in DENOISERS:
            if (part := pipe.components.get(name)) is not None:
                part.register_forward_pre_hook(lambda _, args, kwargs: self._denoise(pipe, args, kwargs),
                                               with_kwargs=True)
        pipe.vae.decoder.register_forward_pre_hook(lambda _, args: self._limit(args[0].numel(), self.decoder))
        return pipe

    def _denoise(self, pipe: DiffusionPipeline, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        size = max(value.numel() for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
                   and value.ndim >= 4)
        placement = placement_of(pipe)
        if (placement, size) not in self.calls[-1:]:
            self.calls.append((placement, size))
        self._limit(size, self.denoiser.get(placement, PLENTY))

    def _limit(self, size: int, most: int) -> None:
        if size > most:
            self.failures += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} numbers.\nMore about it.")


def placement_of(pipe: DiffusionPipeline) -> Placement:
    """Where a pipeline's weights wait."""
    if vars(pipe).get("_all_hooks"):
        return Placement.PARTS
    hooked = (vars(module).get("_diffusers_hook") for part in pipe.components.values()
              if isinstance(part, torch.nn.Module) for module in part.modules())
    return Placement.LAYERS if any(registry is not None and "group_offloading" in registry.hooks
                                   for registry in hooked) else Placement.RESIDENT


class ScarceModel(ModelDeployment):
    """The deployment of a card; one with the note `resident=A parts=B layers=C` has a denoiser of these limits."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        context = ray.get_runtime_context()
        (settings.data_dir / f"{card.name}.gpu").write_text(",".join(context.get_accelerator_ids()["GPU"]))
        limits = dict(part.split("=") for part in card.notes.split())
        reporter = Reporter(ActorTransport(settings.progress, settings.ray.namespace),
                            flush_s=settings.progress.flush_s, on_cancelled=self._cancel_job)
        self._replica = ModelReplica(
            card, settings.models, settings.media, open_store(settings), reporter,
            float(context.get_assigned_resources().get("GPU", 0)),
            load=ScarceLoad({Placement(name): int(limit) for name, limit in limits.items()}), name=own_name())
