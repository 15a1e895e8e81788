"""Step checkpoints: stop a denoising loop after step k and go on from there, bit for bit. Knows no file layout, no job.

A pipeline cannot be entered in the middle, so a resumed run starts it as usual, with the same arguments, and lets the
first k steps cost nothing: the denoiser answers zeros, the scheduler passes the sample through, and at step k both are
given what the first run had. Everything the pipeline counts itself (loop index, guidance per step, the boundary
between two transformers) stays right without knowing the family.

Not bit-identical: runs with a residual cache (first-block cache and the like), which lives in neither sample nor
scheduler.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch.utils import _pytree as pytree

DENOISERS = ("transformer", "transformer_2", "unet")
"""Component names of the networks that diffusers pipelines call once or twice per step."""

CONFIG = "_internal_dict"
"""Where diffusers keeps a scheduler's configuration; never state."""


class Drawing(Protocol):
    """What a call draws its noise from: a `torch.Generator`, or several that draw alike."""

    def get_state(self) -> torch.Tensor:
        """Where it is in what it draws."""

    def set_state(self, state: torch.Tensor) -> Any:
        """Go there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """Stands for a tensor whose values do not matter."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, leaf: Any) -> Any:
        """The shape of a tensor; anything else is itself."""
        return cls(shape=tuple(leaf.shape), dtype=leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputShape:
    """What a denoiser returns: the structure and the shapes of the tensors in it."""

    structure: str
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, output: Any) -> OutputShape:
        """Read it off one output."""
        leaves, structure = pytree.tree_flatten(output)
        return cls(structure=pytree.treespec_dumps(structure), leaves=tuple(TensorShape.of(leaf) for leaf in leaves))

    def zeros(self, device: torch.device) -> Any:
        """An output of this shape."""
        leaves = [torch.zeros(leaf.shape, dtype=leaf.dtype, device=device) if isinstance(leaf, TensorShape) else leaf
                  for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, pytree.treespec_loads(self.structure))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCheckpoint:
    """All that a run needs to go on after `step` steps. Roughly four latents large with a multistep scheduler.

    Good for the same card, the same call and the same kind of device.
    """

    step: int
    """Steps finished."""
    total: int
    """Steps of the whole run."""
    samples: tuple[torch.Tensor, ...]
    """Latents after `step` steps, one per scheduler, on the CPU."""
    schedulers: tuple[dict[str, Any], ...]
    """What each scheduler remembers between steps; tensors stay on their devices."""
    generator: torch.Tensor
    """State of the call's own generator."""
    global_cpu: torch.Tensor
    global_cuda: torch.Tensor | None
    """States of torch's global generators (None: no CUDA in use)."""
    outputs: Mapping[str, OutputShape]
    """What each denoiser returns, by component name."""

    def to_bytes(self) -> bytes:
        """As a file of torch's."""
        plain = {
            "step": self.step, "total": self.total, "samples": self.samples, "schedulers": self.schedulers,
            "generator": self.generator, "global_cpu": self.global_cpu, "global_cuda": self.global_cuda,
            "outputs": {name: (shape.structure, [_plain(leaf) for leaf in shape.leaves])
                        for name, shape in self.outputs.items()},
        }
        file = io.BytesIO()
        torch.save(plain, file)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> StepCheckpoint:
        """The inverse; runs no code from it (`weights_only`)."""
        plain = torch.load(io.BytesIO(content), weights_only=True)
        outputs = {name: OutputShape(structure=structure, leaves=tuple(_shaped(leaf) for leaf in leaves))
                   for name, (structure, leaves) in plain.pop("outputs").items()}
        return cls(**plain, outputs=outputs)


def _plain(leaf: Any) -> Any:
    return ("tensor", leaf.shape, leaf.dtype) if isinstance(leaf, TensorShape) else ("value", leaf, None)


def _shaped(leaf: tuple[str, Any, Any]) -> Any:
    kind, value, dtype = leaf
    return TensorShape(shape=tuple(value), dtype=dtype) if kind == "tensor" else value


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """A deep copy of what the scheduler remembers (multistep ones mutate theirs in place)."""
    return {name: copy.deepcopy(value) for name, value in vars(scheduler).items() if name != CONFIG}


def restore(checkpoint: StepCheckpoint, schedulers: Sequence[Any], generator: Drawing) -> None:
    """Give schedulers and generators what they had at the checkpoint."""
    for scheduler, state in zip(schedulers, checkpoint.schedulers, strict=True):
        vars(scheduler).update(copy.deepcopy(state))
    generator.set_state(checkpoint.generator)
    torch.set_rng_state(checkpoint.global_cpu)
    if checkpoint.global_cuda is not None:
        torch.cuda.set_rng_state(checkpoint.global_cuda)


def checkpoint_now(schedulers: Sequence[Any], samples: Sequence[torch.Tensor], *, step: int, total: int,
                   generator: Drawing, outputs: Mapping[str, OutputShape]) -> StepCheckpoint:
    """Record the run as it is. Waits for the GPU (the latents come to the CPU), so not at every step."""
    return StepCheckpoint(
        step=step, total=total, samples=tuple(sample.detach().cpu().clone() for sample in samples),
        schedulers=tuple(scheduler_state(scheduler) for scheduler in schedulers), generator=generator.get_state(),
        global_cpu=torch.get_rng_state(),
        global_cuda=torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None, outputs=dict(outputs))


class DenoiserSwitch:
    """Stands before the `forward` of every denoiser: remembers what it returns, or answers zeros in its place."""

    def __init__(self, pipe: DiffusionPipeline, *, known: Mapping[str, OutputShape],
                 skipping: Callable[[], bool]) -> None:
        self.outputs = dict(known)
        """What each denoiser returns, once it has been called or is known from a checkpoint."""
        self._skipping = skipping
        self._originals: list[tuple[torch.nn.Module, Any]] = []
        for name in DENOISERS:
            module = pipe.components.get(name)
            if isinstance(module, torch.nn.Module):
                self._originals.append((module, vars(module).get("forward")))
                module.forward = self._switched(name, module.forward)

    def remove(self) -> None:
        """Put every `forward` back: on the class, or on the instance where an offload hook had put one."""
        for module, own in self._originals:
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._originals.clear()

    def _switched(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        # The arguments are the network's own affair, so they go through unseen.
        def switched(*args: Any, **kwargs: Any) -> Any:
            if self._skipping():
                device = next(leaf.device for leaf in pytree.tree_leaves((args, kwargs))
                              if isinstance(leaf, torch.Tensor))
                return self.outputs[name].zeros(device)
            output = forward(*args, **kwargs)
            if name not in self.outputs:
                self.outputs[name] = OutputShape.of(output)
            return output

        return switched
