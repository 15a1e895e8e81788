"""Weights in fewer bits, by the packages that diffusers knows; one that is missing is refused with its pip command."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import PipelineQuantizationConfig

from configs.model_card import ModelCard
from configs.model_options import FLOAT8_STORAGE, GGUF, TORCHAO
from serve_app.models.repo import refused
from serve_app.models.weights import INDEX

TORCHAO_CLASSES = dict(zip(TORCHAO, ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig",
                                     "Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig"),
                           strict=True))


def while_loading(card: ModelCard, where: Path, shared: Iterable[str]) -> PipelineQuantizationConfig | None:
    """How `from_pretrained` is told of the components that torchao quantises; None for none.

    Raises InvalidDocument for components that the checkpoint does not have, and for packages that are not here.
    """
    if not card.options.quantise:
        return None
    index = _index(where)
    mapping = {}
    for component, scheme in card.options.quantise.items():
        library = _library(card, index, component)
        if scheme in TORCHAO and component not in set(shared):
            _require(card, component, "torchao")
            module = importlib.import_module("torchao.quantization")
            # A library's class by a name from our own table.
            kind = vars(module)[TORCHAO_CLASSES[scheme]]()
            mapping[component] = (transformers if library == "transformers" else diffusers).TorchAoConfig(kind)
    return PipelineQuantizationConfig(quant_mapping=mapping) if mapping else None


def from_files(card: ModelCard, where: Path, shared: Iterable[str], dtypes: Mapping[str, torch.dtype],
               ) -> dict[str, Any]:
    """Components whose weights are in GGUF files of their own, by name. Raises InvalidDocument."""
    found = {}
    for component, scheme in card.options.quantise.items():
        if not scheme.startswith(GGUF) or component in set(shared):
            continue
        path = Path(scheme.removeprefix(GGUF)).expanduser()
        library, kind = _index(where)[component]
        if library != "diffusers":
            raise refused(card, f"options.quantise.{component}", f"GGUF files are read for components of diffusers, "
                                                                 f"not of {library}", "int8_weight_only")
        if not path.is_file():
            raise refused(card, f"options.quantise.{component}", f"there is no file {path}")
        _require(card, component, "gguf")
        dtype = dtypes.get(component, dtypes["default"])
        try:
            # A library's class by the name in the checkpoint's own index, as diffusers looks it up itself.
            found[component] = vars(diffusers)[kind].from_single_file(
                str(path), config=str(where), subfolder=component, local_files_only=True, dtype=dtype,
                quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype))
        except (KeyError, AttributeError, OSError, ValueError) as error:
            raise refused(card, f"options.quantise.{component}", f"{path} cannot be loaded into a {kind}: "
                          f"{(str(error).strip().splitlines() or [type(error).__name__])[0]}") from error
    return found


def store_in_eight_bits(card: ModelCard, name: str, component: torch.nn.Module, dtype: torch.dtype) -> None:
    """diffusers' layerwise casting. Raises InvalidDocument for components that have none."""
    if not isinstance(component, diffusers.ModelMixin):
        raise refused(card, f"options.quantise.{name}", f"{type(component).__name__} is no model of diffusers and has "
                                                        "no layerwise casting", "int8_weight_only")
    component.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def scheme_of(card: ModelCard, name: str, component: torch.nn.Module) -> str:
    """What is seen in the loaded component: the card's scheme where it took hold, else empty."""
    scheme = card.options.quantise.get(name, "")
    if scheme == FLOAT8_STORAGE:
        held = any(parameter.dtype is torch.float8_e4m3fn for parameter in component.parameters())
    else:
        held = bool(vars(component).get("is_quantized")) or vars(component).get("hf_quantizer") is not None
    return scheme if held else ""


def _index(where: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((where / INDEX).read_text(encoding="utf-8"))
    return {name: entry for name, entry in tree.items() if isinstance(entry, list) and entry[0]}


def _library(card: ModelCard, index: Mapping[str, Any], component: str) -> str:
    if component not in index:
        raise refused(card, f"options.quantise.{component}", f"the checkpoint has no component {component!r}; it has "
                      f"{', '.join(index)}", next(iter(difflib.get_close_matches(component, list(index), n=1)), ""))
    return str(index[component][0])


def _require(card: ModelCard, component: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise refused(card, f"options.quantise.{component}", f"the package {package} is not installed: `pip install "
                                                             f"{package}`", FLOAT8_STORAGE)
