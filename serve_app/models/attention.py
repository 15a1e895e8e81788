"""Which attention back end a denoiser uses: the first of a card's list that works on this GPU, in its dtype.

Every name is tried with one small call before it is kept. diffusers remembers the last choice for the whole process,
too; a replica holds one card, so that is the card's choice. Nothing is ever downloaded: `configs.model_options` refuses
the names that would.
"""

from __future__ import annotations

import logging

import torch
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)

from configs.model_card import ModelCard
from configs.parallel import Parallel
from serve_app.models.repo import refused

log = logging.getLogger(__name__)

TOKENS = 64
USUAL_HEAD = 64
FAR = 0.1
"""Largest relative distance from torch's own attention; eight-bit kernels stay well below it."""


def choose(card: ModelCard, name: str, denoiser: ModelMixin, dtype: torch.dtype, device: str) -> str:
    """Set the card's first back end that works for this component, and return it.

    It will compute in `dtype` on `device`, wherever its weights are now.

    Raises InvalidDocument with everything that was tried and why it did not work.
    """
    tried: list[str] = []
    for backend in card.options.attention:
        problem = _not_shared(backend, shared_by(card)) or _try(denoiser, backend, dtype, device)
        if not problem:
            log.info("%s: %s attends with %s%s", card.name, name, backend,
                     f" (not with {'; '.join(tried)})" if tried else "")
            return backend
        tried.append(f"{backend}: {problem}")
    raise refused(card, "options.attention", f"none works for {name} ({type(denoiser).__name__}) on "
                                             f"{device} in {dtype}: {'; '.join(tried)}", "native")


def shared_by(card: ModelCard) -> Parallel | None:
    """How several GPUs may come to share a call of the card; None: they never do."""
    return card.elastic.shared_by(card.elastic.ulysses) if card.elastic is not None else card.parallel


def backend_of(denoiser: torch.nn.Module) -> str:
    """The one that is set; empty where nothing was."""
    found = {str(backend) for module in denoiser.modules() if (backend := _set_on(module))}
    return ", ".join(sorted(name.rpartition(".")[2].lower() for name in found))


def is_free_to_choose(denoiser: torch.nn.Module) -> bool:
    """Whether its attention goes through diffusers' dispatcher; that of UNets does not."""
    return any(_can_dispatch(module) for module in denoiser.modules())


def _not_shared(backend: str, parallel: Parallel | None) -> str:
    """Why several GPUs cannot share this attention; empty where they can, or there is only one."""
    if parallel is None:
        return ""
    if parallel.ring > 1 and backend == "native":
        return "a ring adds up what it does not return"
    known = _AttentionBackendRegistry._is_context_parallel_available(AttentionBackendName(backend))
    return "" if known else "diffusers cannot share it out among GPUs"


def _try(denoiser: ModelMixin, backend: str, dtype: torch.dtype, device: str) -> str:
    """Set it; what is wrong with it, or empty."""
    if backend == "native" and not is_free_to_choose(denoiser):
        return ""
    if backend == "xformers" and not is_free_to_choose(denoiser):
        return _try_unet(denoiser)
    if not is_free_to_choose(denoiser):
        return f"{type(denoiser).__name__} lets nobody choose"
    try:
        denoiser.set_attention_backend(backend)
        return _probe(denoiser, dtype, device)
    # Every package has errors of its own for what it cannot do.
    except Exception as error:  # noqa: BLE001 - the reason is told when nothing else works either
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def _try_unet(denoiser: ModelMixin) -> str:
    """The only one that diffusers sets on UNets."""
    try:
        denoiser.enable_xformers_memory_efficient_attention()
    except (ModuleNotFoundError, ValueError, RuntimeError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0][:200]
    return ""


def _probe(denoiser: ModelMixin, dtype: torch.dtype, device: str) -> str:
    """One small call with the back end that has just been set, held against torch's own."""
    heads, size = _heads_of(denoiser)
    noise = torch.Generator("cpu").manual_seed(0)
    query, key, value = (torch.randn(1, TOKENS, heads, size, generator=noise).to(device, dtype)
                         for _ in range(3))
    with torch.inference_mode():
        found = dispatch_attention_fn(query, key, value).float()
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(part.float().transpose(1, 2) for part in (query, key, value))).transpose(1, 2)
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return "it returned no finite numbers"
    far = float((found - expected).norm() / expected.norm())
    return "" if far < FAR else f"it is {far:.2g} away from torch's own attention"


def _heads_of(denoiser: ModelMixin) -> tuple[int, int]:
    """Attention heads and the size of one."""
    for module in denoiser.modules():
        told = vars(module)
        projection = module._modules.get("to_q")
        if _can_dispatch(module) and isinstance(told.get("heads"), int) and isinstance(projection, torch.nn.Linear):
            return told["heads"], projection.out_features // told["heads"]
    size = denoiser.config.get("attention_head_dim")
    return 1, size if isinstance(size, int) else USUAL_HEAD


def _can_dispatch(module: torch.nn.Module) -> bool:
    processor = vars(module).get("processor")
    return processor is not None and hasattr(processor, "_attention_backend")


def _set_on(module: torch.nn.Module) -> str:
    processor = vars(module).get("processor")
    return str(processor._attention_backend.value) if _can_dispatch(module) and processor._attention_backend else ""
