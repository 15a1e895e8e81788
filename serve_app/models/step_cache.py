"""Drafts that guess denoising steps: diffusers' first-block cache, for the time of one call. Knows no card, no job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from diffusers import DiffusionPipeline, FirstBlockCacheConfig
from diffusers.models.cache_utils import CacheMixin

from serve_app.models.resume import DENOISERS


def cacheable(pipe: DiffusionPipeline) -> tuple[CacheMixin, ...]:
    """The pipeline's denoisers that can be cached: none of those that are UNets, both of Wan 2.2's."""
    parts = (pipe.components.get(name) for name in DENOISERS)
    return tuple(part for part in parts if isinstance(part, CacheMixin))


@contextmanager
def step_cache(pipe: DiffusionPipeline, threshold: float | None) -> Iterator[None]:
    """Around one call. None: every step is computed.

    The hooks go with the call, so the next one is bit for bit what it would have been, and a call that was broken off
    leaves nothing behind.
    """
    with ExitStack() as after:
        for denoiser in cacheable(pipe) if threshold is not None else ():
            denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))
            after.callback(denoiser.disable_cache)
        yield
