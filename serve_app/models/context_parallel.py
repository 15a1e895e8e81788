"""Context parallelism as diffusers does it: which models can, how their processes meet, how it is switched on.

Every process holds the whole model and calls the whole pipeline; inside the denoiser each has its share of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, DiffusionPipeline, ModelMixin, ParallelConfig
from diffusers.hooks import apply_context_parallel
from diffusers.hooks.context_parallel import remove_context_parallel
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention

from configs.model_card import ModelCard
from configs.parallel import Parallel
from serve_app.models.repo import refused

DENOISERS = ("transformer", "transformer_2", "unet")
RING_BACKEND = "_native_flash"
"""diffusers' default attention does not return what a ring adds up; this one does and is part of torch."""
BROKEN_PLANS = {
    "LTXVideoTransformer3DModel": "its attention mask has a row per head, and heads are shared out",
    "LTX2VideoTransformer3DModel": "its plan does not cut up positions of the `split` kind, which the checkpoints use",
}
"""Classes whose plan fails in the first step, as seen with diffusers 0.42.1 and checkpoints of their classes."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Processes that share a call are on one machine; what they say to each other must not be heard outside."""
UNEVEN = "divisible by mesh size"
"""How diffusers says that a sequence of tokens cannot be cut into equal shares."""


def denoisers(pipe: DiffusionPipeline) -> dict[str, ModelMixin]:
    """The parts of a pipeline that run once per step."""
    parts = pipe.components
    return {name: parts[name] for name in DENOISERS if isinstance(parts.get(name), ModelMixin)}


def require_support(pipe: DiffusionPipeline, card: ModelCard, parallel: Parallel, device: str) -> None:
    """Raises InvalidDocument when the pipeline's denoisers cannot be shared out as the card says."""
    if parallel.ring > 1 and device == "cpu":
        raise refused(card, "parallel.ring", "ring attention needs a GPU: no attention on the CPU returns what it adds "
                      "up", f"ulysses: {parallel.degree}")
    for name, model in denoisers(pipe).items():
        kind = type(model).__name__
        problem = ("the class has no context-parallel plan" if model._cp_plan is None
                   else BROKEN_PLANS.get(kind, ""))
        if problem:
            raise refused(card, setting_of(card), f"diffusers {diffusers.__version__} cannot share out {name} ({kind}) "
                          f"among GPUs: {problem}", f"no `{setting_of(card)}` in this card")
        for setting, heads in model.config.items():
            if setting.endswith("num_attention_heads") and isinstance(heads, int) and not parallel.uneven:
                _require_heads(card, parallel, f"{name} ({kind}) has {heads} attention heads ({setting})", heads)


def setting_of(card: ModelCard) -> str:
    """Which part of the card asks for several GPUs."""
    return "parallel" if card.elastic is None else "elastic"


def _require_heads(card: ModelCard, parallel: Parallel, what: str, heads: int) -> None:
    if heads % parallel.ulysses:
        nearest = max(degree for degree in range(1, parallel.ulysses) if heads % degree == 0)
        raise refused(card, f"{setting_of(card)}.ulysses", f"{what}, which {parallel.ulysses} does not divide",
                      f"ulysses: {nearest}" if nearest > 1 else "uneven: true")


def join_group(parallel: Parallel, device: str, rank: int, *, meeting: str, stall_s: float) -> None:
    """Meet the other processes of this machine through a file; returns when all are there.

    NCCL between GPUs, gloo between CPUs and for the few numbers that uneven shares exchange. One that takes longer than
    `stall_s` to come, or for an exchange, is waited for no longer.
    """
    store = dist.FileStore(meeting, parallel.degree)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", store=store, rank=rank,
                            world_size=parallel.degree, timeout=timedelta(seconds=stall_s))


def share_out(pipes: Iterable[DiffusionPipeline], parallel: Parallel, device: str, rank: int) -> None:
    """Switch it on in every denoiser of these pipelines, once in those that they have in common."""
    kind = device.partition(":")[0]
    mesh = dist.device_mesh.init_device_mesh(kind, (parallel.ring, parallel.ulysses),
                                             mesh_dim_names=("ring", "ulysses"))
    context = ContextParallelConfig(
        ring_degree=parallel.ring, ulysses_degree=parallel.ulysses, mesh=mesh,
        ulysses_anything=parallel.uneven and parallel.ulysses > 1, ring_anything=parallel.uneven and parallel.ring > 1)
    config = ParallelConfig(context_parallel_config=context)
    for model in _each_once(pipes):
        if kind != "cpu":
            if parallel.ring > 1 and not _has_backend(model):
                model.set_attention_backend(RING_BACKEND)
            model.enable_parallelism(config=config)
        else:
            _enable_on_cpu(model, config, rank)


def take_back(pipes: Iterable[DiffusionPipeline]) -> None:
    """Undo `share_out`: every denoiser computes alone again, as if nothing had been. Harmless where nothing was."""
    for model in _each_once(pipes):
        if model._parallel_config is None:
            continue
        remove_context_parallel(model, model._cp_plan)
        config, model._parallel_config = model._parallel_config, None
        context = config.context_parallel_config
        # Whatever still holds the config must not hold the group: its connections close when nothing knows it.
        config._mesh = context.mesh = context._mesh = None
        context._flattened_mesh = context._ring_mesh = context._ulysses_mesh = None
        for processor in _processors(model):
            processor._parallel_config = None


def _each_once(pipes: Iterable[DiffusionPipeline]) -> tuple[ModelMixin, ...]:
    return tuple({id(model): model for pipe in pipes for model in denoisers(pipe).values()}.values())


def _processors(model: ModelMixin) -> Iterator[Any]:
    """What computes its attention, and can be told to share it."""
    for part in model.modules():
        if isinstance(part, Attention | AttentionModuleMixin | MochiAttention) and hasattr(
                part.processor, "_parallel_config"):
            yield part.processor


def _has_backend(model: ModelMixin) -> bool:
    """Whether somebody chose how the model computes attention."""
    return any(part.processor._attention_backend is not None for part in model.modules()
               if isinstance(part, Attention | AttentionModuleMixin) and hasattr(part.processor, "_attention_backend"))


def _enable_on_cpu(model: ModelMixin, config: ParallelConfig, rank: int) -> None:
    """What `enable_parallelism` does, which itself counts accelerators and divides by their number."""
    context = config.context_parallel_config
    config.setup(rank, dist.get_world_size(), torch.device("cpu"), mesh=context.mesh)
    model._parallel_config = config
    for processor in _processors(model):
        processor._parallel_config = config
    apply_context_parallel(model, context, model._cp_plan)
