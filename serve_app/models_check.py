"""`reelray models check`: one finding per thing that a card promises. Loads torch and diffusers."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.model_card import EDIT_TASKS, FILM_TASKS, ModelCard, Task
from serve_app.findings import Finding
from serve_app.models import adapters, pipelines, quantise, weights
from serve_app.models.editors import editor_class
from serve_app.models.studio import open_studio
from serve_app.models.vision import require_torchvision
from serve_app.models.workbench import open_workbench
from workflows.errors import ReelrayError

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STORED_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
TOLERANCE = 0.1
"""How far the weights may be from what the card says they take of a GPU."""
LEAST_GB = 0.05
"""Below this, differences are not worth a word."""


def examine_card(card: ModelCard, *, load: bool = False, checksums: bool = False) -> Iterator[Finding]:
    """Classes, weights, sizes; with `checksums` every byte of a hub snapshot, with `load` the pipelines themselves."""
    if card.loader == "embedding":
        yield from _picture_model(card, load=load, checksums=checksums)
        return
    if card.loader == "tracker":
        yield from _tracker(card, load=load, checksums=checksums)
        return
    if card.loader != "diffusers":
        yield Finding(level="ok", what="weights", text="needs none")
        return
    try:
        for task in card.tasks:
            pipelines.find_class(card, task)
            if task in EDIT_TASKS:
                editor_class(card, task)
        yield Finding(level="ok", what="classes", text=", ".join(sorted(set(card.pipelines.values()))))
        directory = weights.require(card)
        extra, beside = adapters.extra_of(card), adapters.require(card)
        quantise.while_loading(card, directory, ())
    except ReelrayError as error:
        yield Finding(level="fail", what="card", text=str(error))
        return
    if card.effects():
        yield Finding(level="ok", what="options", text=f"{card.exactness}; the pipeline itself is asked by --load")
    yield from _files(card, directory, checksums=checksums)
    if beside is not None and extra is not None:
        yield from _extra(extra, beside, "adapter", checksums=checksums)
    if load:
        yield _loaded(card)


def _files(card: ModelCard, directory: Path, *, checksums: bool) -> Iterator[Finding]:
    found = weights.gaps(directory, card)
    if found:
        yield Finding(level="fail", what="weights", text=f"{directory}: {'; '.join(found)}")
        return
    size_gb = sum(path.stat().st_size for path in directory.rglob("*.safetensors")) / 1e9
    yield Finding(level="ok", what="weights", text=f"whole, {size_gb:.2f} GB at {directory}")
    yield from _components(directory)
    yield from _sizes(card, directory)
    if checksums:
        yield compared(directory)


def _extra(extra: adapters.Extra, directory: Path, what: str, *, checksums: bool) -> Iterator[Finding]:
    size_gb = sum((directory / path).stat().st_size for path in extra.files) / 1e9
    yield Finding(level="ok", what=what, text=f"{len(extra.files)} files of {extra.repo} are whole, {size_gb:.2f} GB "
                                              f"at {directory}")
    if checksums:
        yield compared(directory)


def _picture_model(card: ModelCard, *, load: bool, checksums: bool) -> Iterator[Finding]:
    try:
        extra, directory = adapters.extra_of(card), adapters.require(card)
        if extra is not None and directory is not None:
            yield from _extra(extra, directory, "weights", checksums=checksums)
        if load:
            started = time.perf_counter()
            pipelines.load_embedding(card)
            yield Finding(level="ok", what="load", text=f"in {time.perf_counter() - started:.1f} s on cpu")
    except ReelrayError as error:
        yield Finding(level="fail", what="card", text=str(error))


def _tracker(card: ModelCard, *, load: bool, checksums: bool) -> Iterator[Finding]:
    try:
        if card.finds_by == "text":
            require_torchvision(card, f"pipelines.{Task.TRACK.value}")
        yield Finding(level="ok", what="classes", text=card.pipelines[Task.TRACK])
        directory = weights.require(card)
        if found := weights.gaps(directory, card):
            yield Finding(level="fail", what="weights", text=f"{directory}: {'; '.join(found)}")
            return
        files = [path for path in directory.glob("*.safetensors") if weights.TOP_WEIGHTS.fullmatch(path.name)]
        found_gb = sum(map(values, files)) * DTYPE_BYTES[card.dtype] / 1e9
        yield Finding(level="ok", what="weights", text=f"whole, {found_gb:.2f} GB in {card.dtype}, at {directory}")
        said_gb = found_gb if card.memory is None else card.memory.total_gb
        if abs(found_gb - said_gb) > max(said_gb * TOLERANCE, LEAST_GB):
            yield Finding(level="note", what="memory", text=f"the card says {said_gb:g} GB in {card.dtype}")
        if checksums:
            yield compared(directory)
    except ReelrayError as error:
        yield Finding(level="fail", what="card", text=str(error))
        return
    if load:
        yield _loaded(card)


def compared(directory: Path) -> Finding:
    """Every byte of a hub snapshot against the names in the cache."""
    wrong, files = weights.corrupt(directory)
    if wrong:
        return Finding(level="fail", what="checksums", text=f"damaged: {', '.join(wrong)}")
    if not files:
        return Finding(level="note", what="checksums", text="no checksums known for a local directory")
    return Finding(level="ok", what="checksums", text=f"{files} files are as their names in the cache say")


def _components(directory: Path) -> Iterator[Finding]:
    """Whether the installed libraries have the classes that the checkpoint names."""
    index = json.loads((directory / weights.INDEX).read_text(encoding="utf-8"))
    for name, entry in index.items():
        if isinstance(entry, list) and entry[0] in ("diffusers", "transformers"):
            library = importlib.import_module(entry[0])
            if entry[1] not in dir(library) and entry[1] != "TokenizersBackend":
                yield Finding(level="fail", what="classes",
                              text=f"{name}: {entry[0]} {library.__version__} has no {entry[1]}; upgrade it")


def _sizes(card: ModelCard, directory: Path) -> Iterator[Finding]:
    """The card's memory against the files' own headers."""
    for name, said_gb in ({} if card.memory is None else card.memory.weights_gb).items():
        wanted = card.dtypes.get(name, card.dtype)
        found_gb = sum(values(path) for path in _weight_files(card, directory / name)) * DTYPE_BYTES[wanted] / 1e9
        if abs(found_gb - said_gb) > max(said_gb * TOLERANCE, LEAST_GB):
            yield Finding(level="note", what="memory", text=f"{name}: the card says {said_gb:g} GB in {wanted}, its "
                                                            f"files come to {found_gb:.2f} GB")


def _weight_files(card: ModelCard, folder: Path) -> list[Path]:
    """What is read for a component: of its folder, and of an adapter what becomes a part of it."""
    paths = [path for path in folder.glob("*.safetensors")
             if bool(card.variant and f".{card.variant}." in path.name) is _has_variant(folder, card.variant)]
    adapter, beside = adapters.adapter_of(card), adapters.require(card)
    if adapter is not None and beside is not None:
        paths += [beside / adapter.weight_file] if folder.name == "unet" else []
        paths += [beside / adapter.image_encoder / "model.safetensors"] if folder.name == "image_encoder" else []
    return paths


def _has_variant(folder: Path, variant: str) -> bool:
    return bool(variant) and any(folder.glob(f"*.{variant}.*"))


def values(path: Path) -> float:
    """Numbers in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum((entry["data_offsets"][1] - entry["data_offsets"][0]) / STORED_BYTES.get(entry["dtype"], 1)
               for name, entry in header.items() if name != "__metadata__")


def _loaded(card: ModelCard) -> Finding:
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    try:
        if card.tasks[0] in FILM_TASKS:
            open_studio(card, device, pipelines.load)
        else:
            open_workbench(card, device)
    except ReelrayError as error:
        return Finding(level="fail", what="load", text=str(error))
    took_s = time.perf_counter() - started
    peak = f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB of it" if device != "cpu" else ""
    return Finding(level="ok", what="load", text=f"{', '.join(card.tasks)} in {took_s:.1f} s on {device}{peak}")
