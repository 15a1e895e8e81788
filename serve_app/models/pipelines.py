"""From a model card to a diffusers pipeline or a tracker: the only `from_pretrained` beside `chat_model`'s.

Knows no job and no Ray.

Weights are read from safetensors files only, and no code that comes with a checkpoint is ever run.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from serve_app.models import options, quantise, weights
from serve_app.models.adapters import require, with_adapter
from serve_app.models.context_parallel import require_support
from serve_app.models.repo import import_home, refused
from serve_app.models.vision import require_torchvision

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class LoadPipeline(Protocol):
    """How a replica gets its pipelines; `load` below, or a test's own."""

    def __call__(self, card: ModelCard, task: Task, device: str,
                 components: Mapping[str, Any] | None = None) -> DiffusionPipeline:
        """See `load`."""


def load(card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None) -> DiffusionPipeline:
    """The card's pipeline for a task, on `device`, in the card's dtypes. Downloads nothing.

    Weights go from the files to the device one component at a time; no second copy of the model is held in memory.

    `components` are those of a pipeline already loaded for another task of the same card: what both classes have in
    common is shared, not read again. Raises InvalidDocument when the card names no pipeline class for the task or a
    wrong one, when its weights are missing, incomplete or cannot be downloaded, and for options that it has no use for.
    """
    pipeline_class = find_class(card, task)
    where = weights.require(card)
    import_home(card)
    wanted = inspect.signature(pipeline_class.__init__).parameters
    shared = {name: part for name, part in (components or {}).items() if name in wanted and part is not None}
    # A replica's log is no terminal; its own line says how long loading took.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    dtypes = {"default": DTYPES[card.dtype], **{name: DTYPES[dtype] for name, dtype in card.dtypes.items()}}
    quantisation = quantise.while_loading(card, where, shared)
    files = quantise.from_files(card, where, shared, dtypes)
    # Weights that are to be offloaded would not fit the GPU first.
    device_map = None if options.start_in_main_memory(card) else device.partition(":")[0]
    try:
        pipe = pipeline_class.from_pretrained(
            str(where), dtype=dtypes, variant=card.variant or None, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, device_map=device_map, quantization_config=quantisation, **files, **shared)
    except (OSError, ValueError) as error:
        # OSError is also what a file with a wrong content raises.
        raise refused(card, "repo", f"{where} cannot be loaded: {_first_line(error)}") from error
    if card.parallel is not None:
        require_support(pipe, card, card.parallel, device)
    if card.elastic is not None:
        require_support(pipe, card, card.elastic.shared_by(card.elastic.ulysses), device)
    return options.apply(with_adapter(_adjusted(pipe, card), card, DTYPES), card, device, dtypes, shared)


def load_embedding(card: ModelCard) -> tuple[Any, Any]:
    """The picture model of a card with `loader: embedding`, on the CPU in float32, and its processor.

    Downloads nothing. Raises InvalidDocument when its files are missing or no picture model.
    """
    where = require(card)
    try:
        config = transformers.AutoConfig.from_pretrained(where, local_files_only=True)
        # A model of words and pictures has a class for pictures alone; AutoModel would want words too.
        is_clip = config.model_type.startswith("clip")
        loader = transformers.CLIPVisionModelWithProjection if is_clip else transformers.AutoModel
        model = loader.from_pretrained(where, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                                       local_files_only=True)
        processor = transformers.AutoImageProcessor.from_pretrained(where, backend="pil", local_files_only=True)
    except (OSError, ValueError) as error:
        raise refused(card, "repo", f"{where} cannot be loaded: {_first_line(error)}") from error
    return model.eval(), processor


def load_tracker(card: ModelCard, device: str) -> tuple[Any, Any]:
    """The video model of a card with `loader: tracker`, on `device` in the card's dtype, and its processor.

    A model that is told points and boxes has none (None): its frames are prepared by `tracking.FramesOnDemand`.
    Downloads nothing. Raises InvalidDocument when its files are missing or no such model, and for one that needs
    torchvision where there is none that works.
    """
    by_text = card.finds_by == "text"
    if by_text:
        require_torchvision(card, f"pipelines.{Task.TRACK.value}")
    where = weights.require(card)
    transformers.utils.logging.disable_progress_bar()
    loader = transformers.Sam3VideoModel if by_text else transformers.Sam2VideoModel
    try:
        model = loader.from_pretrained(where, dtype=DTYPES[card.dtype], use_safetensors=True, trust_remote_code=False,
                                       local_files_only=True, device_map=device.partition(":")[0])
        processor = transformers.Sam3VideoProcessor.from_pretrained(where, local_files_only=True) if by_text else None
    except (OSError, ValueError) as error:
        raise refused(card, "repo", f"{where} cannot be loaded: {_first_line(error)}") from error
    return model.eval(), processor


def find_class(card: ModelCard, task: Task) -> type[DiffusionPipeline]:
    """The diffusers class that the card names for the task. Raises InvalidDocument with the nearest name."""
    field = f"pipelines.{task.value}"
    if task not in card.pipelines:
        raise refused(card, field, f"the card has no pipeline for {task.value}; it has {', '.join(card.tasks)}")
    name = card.pipelines[task]
    # A library's class by a name from a file: the one place where an attribute is looked up by text.
    found = getattr(diffusers, name, None) if name in dir(diffusers) else None
    if not (inspect.isclass(found) and issubclass(found, DiffusionPipeline)):
        known = [other for other in dir(diffusers) if other.endswith("Pipeline")]
        nearest = difflib.get_close_matches(name, known, n=1)
        raise refused(card, field, f"diffusers {diffusers.__version__} has no pipeline {name!r}",
                       nearest[0] if nearest else "")
    return found


def _adjusted(pipe: DiffusionPipeline, card: ModelCard) -> DiffusionPipeline:
    """What the card changes of a checkpoint after loading."""
    unknown = set(card.dtypes) - set(pipe.components)
    if unknown:
        raise refused(card, f"dtypes.{min(unknown)}", f"{type(pipe).__name__} has no component {min(unknown)!r}; it "
                                                      f"has {', '.join(pipe.components)}")
    if card.scheduler:
        known = inspect.signature(type(pipe.scheduler).__init__).parameters
        for name in card.scheduler:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                raise refused(card, f"scheduler.{name}", f"{type(pipe.scheduler).__name__} has no such setting",
                              nearest[0] if nearest else "")
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **card.scheduler)
    return pipe


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
