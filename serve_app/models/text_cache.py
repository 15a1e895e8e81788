"""Encoded prompts, remembered; text encoders that are on the GPU only while they encode. Knows no card and no job."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate.hooks import CpuOffload
from PIL import Image

from configs.model_options import TextCache

Encode = Callable[..., Any]


class RememberedPrompts:
    """Stands for a pipeline's `encode_prompt`: the same arguments give the same tensors, encoded once.

    The key is the content of all arguments. Arguments or results of a kind that it does not know are passed through and
    not remembered. One thread.
    """

    def __init__(self, encode: Encode, limits: TextCache | None, encoders: Sequence[torch.nn.Module] = ()) -> None:
        """`limits` None: remember nothing; `encoders` go to main memory after each time that they were needed."""
        self._encode = encode
        self._signature = inspect.signature(encode)
        self._limits = limits
        self._encoders = tuple(encoders)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._bytes = 0
        self.found = 0
        """How often a prompt was remembered."""

    # Whatever the pipeline passes is the key.
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `encode_prompt` returns, in tensors of the caller's own."""
        key = self._key(args, kwargs)
        if key is not None and key in self._kept:
            self.found += 1
            self._kept.move_to_end(key)
            return _copied(self._kept[key])
        result = self._encode(*args, **kwargs)
        for encoder in self._encoders:
            send_away(encoder)
        if key is not None:
            self._keep(key, result)
        return result

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
        if self._limits is None:
            return None
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            return _content(bound.arguments)
        except TypeError:
            return None

    def _keep(self, key: Hashable, result: Any) -> None:
        assert self._limits is not None
        try:
            kept, size = _copied(result), _bytes(result)
        except TypeError:
            return
        most = self._limits.mb * 10**6
        if size > most:
            return
        self._kept[key] = kept
        self._bytes += size
        while len(self._kept) > self._limits.prompts or self._bytes > most:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])


def evict(encoder: torch.nn.Module, device: str) -> None:
    """Into main memory until it is called; its call brings it to the device, `send_away` back."""
    if "_hf_hook" not in vars(encoder):
        accelerate.cpu_offload_with_hook(encoder, torch.device(device))


def send_away(encoder: torch.nn.Module) -> None:
    """Nothing for an encoder that has not been evicted, or is no more."""
    hook = vars(encoder).get("_hf_hook")
    if isinstance(hook, CpuOffload):
        hook.init_hook(encoder)


def is_evicted(encoder: torch.nn.Module) -> bool:
    """Whether it comes and goes."""
    return isinstance(vars(encoder).get("_hf_hook"), CpuOffload)


def _content(value: Any) -> Hashable:
    """The value as something that is equal when it is. Raises TypeError for what it does not know."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return type(value).__name__, value
        case torch.device() | torch.dtype():
            return str(value)
        case list() | tuple():
            return tuple(_content(part) for part in value)
        case dict():
            return tuple((name, _content(part)) for name, part in sorted(value.items()))
        case torch.Tensor():
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return str(value.dtype), str(value.device), tuple(value.shape), hashlib.sha256(data.tobytes()).digest()
        case np.ndarray():
            return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
        case Image.Image():
            return value.mode, value.size, hashlib.sha256(value.tobytes()).digest()
    raise TypeError(f"{type(value).__name__} has no content that is known")


def _copied(value: Any) -> Any:
    """Its tensors cloned, so that nobody who writes into his own changes another's. Raises TypeError."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)
    if type(value) is dict:
        return {name: _copied(part) for name, part in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be remembered")


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(_bytes(part) for part in value)
    return sum(_bytes(part) for part in value.values()) if isinstance(value, dict) else 0
