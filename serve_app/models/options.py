"""A card's options on a loaded pipeline, and what is seen of them there. What a pipeline cannot do is refused.

The order matters: attention and weights first, then where the weights are, compiling last.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import _is_group_offload_enabled

from configs.model_card import ModelCard
from configs.model_options import DENOISERS, FLOAT8_STORAGE
from serve_app.models import attention, quantise
from serve_app.models.repo import refused
from serve_app.models.text_cache import RememberedPrompts, evict, is_evicted
from workflows.types import Json

log = logging.getLogger(__name__)

TEXT_ENCODERS = "text_encoder"


def start_in_main_memory(card: ModelCard) -> bool:
    """Whether the weights must not go to the GPU while they are read."""
    return card.options.offload != "none" or card.options.evict_text_encoders


def apply(pipe: DiffusionPipeline, card: ModelCard, device: str, dtypes: Mapping[str, torch.dtype],
          shared: Collection[str] = ()) -> DiffusionPipeline:
    """Everything that the card's options say, on a pipeline that has just been loaded; it ends up on the device.

    `shared` components came from another pipeline of the card and have been treated with it. Raises InvalidDocument
    naming the option.
    """
    options = card.options
    denoisers = _denoisers(pipe)
    # Weights that do not fit a GPU are loaded "cpu", and computed with on the GPU all the same.
    computes_on = "cuda" if device == "cpu" and torch.cuda.is_available() else device
    for name, denoiser in denoisers.items():
        if name not in shared and options.attention:
            attention.choose(card, name, denoiser, dtypes.get(name, dtypes["default"]), computes_on)
    if options.attention_slicing != "none":
        _slice_attention(card, denoisers)
    _adjust_vae(pipe, card)
    for name, scheme in options.quantise.items():
        if name not in pipe.components:
            raise refused(card, f"options.quantise.{name}", f"{type(pipe).__name__} has no component {name!r}",
                          _nearest(name, pipe.components))
        if scheme == FLOAT8_STORAGE and name not in shared:
            quantise.store_in_eight_bits(card, name, pipe.components[name], dtypes.get(name, dtypes["default"]))
    _place(pipe, card, device)
    _remember_prompts(pipe, card)
    if options.compile == "regional":
        _compile(card, {name: part for name, part in denoisers.items() if name not in shared})
    return pipe


def offload(pipe: DiffusionPipeline, kind: Literal["model", "group", "sequential"], device: str) -> None:
    """Weights in main memory, brought to the device when they are needed.

    Raises ValueError, RuntimeError or NotImplementedError for a pipeline that cannot.
    """
    match kind:
        case "model":
            pipe.enable_model_cpu_offload(device=device)
        case "group":
            for part in _modules(pipe).values():
                if not _is_group_offload_enabled(part):
                    apply_group_offloading(part, onload_device=torch.device(device),
                                           offload_device=torch.device("cpu"), offload_type="leaf_level")
        case "sequential":
            if device.startswith("cpu"):
                # accelerate would fail in the middle of the first call, with a TypeError that explains nothing.
                raise ValueError("there is no GPU to bring single weights to")
            pipe.enable_sequential_cpu_offload(device=device)


def used(pipe: DiffusionPipeline, card: ModelCard) -> dict[str, Json]:
    """What can be seen of the options in a pipeline as it stands, for manifests; empty where there is nothing."""
    parts, found = _modules(pipe), dict[str, Json]()
    for name, denoiser in _denoisers(pipe).items():
        if card.options.attention and (backend := attention.backend_of(denoiser)):
            found[f"attention.{name}"] = backend
        compiled = sum(block._compiled_call_impl is not None for block in denoiser.modules())
        if compiled:
            found[f"compile.{name}"] = f"{compiled} blocks, torch {torch.__version__}"
    for name, part in parts.items():
        if scheme := quantise.scheme_of(card, name, part):
            found[f"quantise.{name}"] = scheme
    if any(_is_group_offload_enabled(part) for part in parts.values()):
        found["offload"] = "group"
    elif vars(pipe).get("_all_hooks"):
        found["offload"] = "model"
    elif card.options.offload == "sequential" and vars(pipe).get("_offload_device") is not None:
        found["offload"] = "sequential"
    elif evicted := [name for name, part in parts.items() if is_evicted(part)]:
        found["evict_text_encoders"] = ", ".join(evicted)
    return found


def _modules(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _denoisers(pipe: DiffusionPipeline) -> dict[str, ModelMixin]:
    return {name: part for name, part in pipe.components.items()
            if name.startswith(DENOISERS) and isinstance(part, ModelMixin)}


def _slice_attention(card: ModelCard, denoisers: Mapping[str, ModelMixin]) -> None:
    for name, denoiser in denoisers.items():
        if not hasattr(denoiser, "set_attention_slice"):
            raise refused(card, "options.attention_slicing", f"{name} ({type(denoiser).__name__}) has no sliced "
                                                             "attention", "none")
        denoiser.set_attention_slice(card.options.attention_slicing)


def _adjust_vae(pipe: DiffusionPipeline, card: ModelCard) -> None:
    wanted, tiling = card.options.vae, card.vae_tiling or card.options.vae.tiling
    if not (tiling or wanted.slicing or wanted.channels_last):
        return
    vae = pipe.components.get("vae")
    field = "vae_tiling" if card.vae_tiling else "options.vae"
    if vae is None:
        raise refused(card, field, f"{type(pipe).__name__} has no component 'vae'")
    for on, switch in ((tiling, "enable_tiling"), (wanted.slicing, "enable_slicing")):
        name = switch.removeprefix("enable_")
        try:
            if on:
                {"tiling": vae.enable_tiling, "slicing": vae.enable_slicing}[name]()
        except (NotImplementedError, AttributeError) as error:
            where = field if card.vae_tiling and name == "tiling" else f"options.vae.{name}"
            raise refused(card, where, f"{type(vae).__name__} cannot decode with {name}", "false") from error
    if wanted.channels_last:
        for module in vae.modules():
            # One by one: a VAE of videos has two- and three-dimensional ones, and each has a format of its own.
            if isinstance(module, torch.nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, torch.nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)


def _place(pipe: DiffusionPipeline, card: ModelCard, device: str) -> None:
    kind = card.options.offload
    if kind != "none":
        try:
            offload(pipe, kind, device)
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise refused(card, "options.offload", f"{type(pipe).__name__} cannot be offloaded by {kind}: "
                          f"{str(error).strip().splitlines()[0]}", "none" if kind == "group" else "group") from error
        return
    if card.options.evict_text_encoders:
        if not _encoders(pipe):
            raise refused(card, "options.evict_text_encoders", f"{type(pipe).__name__} has no text encoder", "false")
        for name, part in _modules(pipe).items():
            if name.startswith(TEXT_ENCODERS):
                evict(part, device)
            else:
                part.to(device)
        return
    pipe.to(device)


def _remember_prompts(pipe: DiffusionPipeline, card: ModelCard) -> None:
    options = card.options
    if options.text_cache is None and not options.evict_text_encoders:
        return
    if not hasattr(pipe, "encode_prompt"):
        name = "text_cache" if options.text_cache is not None else "evict_text_encoders"
        raise refused(card, f"options.{name}", f"{type(pipe).__name__} has no encode_prompt", "leave it out")
    encoders = list(_encoders(pipe).values()) if options.evict_text_encoders else []
    pipe.encode_prompt = RememberedPrompts(pipe.encode_prompt, options.text_cache, encoders)


def _encoders(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in _modules(pipe).items() if name.startswith(TEXT_ENCODERS)}


def _compile(card: ModelCard, denoisers: Mapping[str, ModelMixin]) -> None:
    for name, denoiser in denoisers.items():
        try:
            # Without `fullgraph`, which makes nothing faster: it turns what cannot be compiled into an error.
            denoiser.compile_repeated_blocks()
        except ValueError as error:
            raise refused(card, "options.compile", f"{name} ({type(denoiser).__name__}) does not say which of its "
                                                   "blocks repeat", "none") from error


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), "")
