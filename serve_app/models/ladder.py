"""What a replica does when a call does not fit its GPU: rungs from fast to small, one after the other.

    as loaded -> VAE in tiles -> components come and go -> layers come and go -> OutOfMemoryError

Tiles only help where it was the VAE that ran out of memory; a denoiser that did goes straight to the next placement of
the weights. What a shape needed is remembered: it, and every larger one, begins there. Smaller ones begin at the bottom
again. Knows pipelines and memory, no job and no Ray. Used by the one thread that runs the pipelines.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import HookRegistry
from diffusers.models import autoencoders

from configs.memory import (
    PLACEMENTS,
    Placement,
    Remedies,
    Shape,
    first_that_fits,
    nearest_that_fits,
    need_of,
    rungs_of,
    too_large,
)
from configs.model_card import ModelCard, Task
from serve_app.models.lifecycle import free_memory, is_out_of_memory
from serve_app.models.pipelines import LoadPipeline
from serve_app.models.tap import UNWATCHED, Watch
from workflows.errors import Problem

log = logging.getLogger(__name__)

AUTOENCODERS = Path(autoencoders.__file__).parent
GROUP_HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
"""What `enable_group_offload` leaves on modules; diffusers has no call that takes it off again."""
NOTHING = Remedies()
NOMINAL = 1.03
"""A GPU gives torch up to 2 % less than its name says. Shares are made from the name, so without this a card's usual
shape would begin with a remedy in the very share that was made for it; an attempt that does not fit climbs anyway."""


def vae_at_work(error: BaseException) -> bool:
    """Whether the error came out of a VAE."""
    return any(Path(frame.f_code.co_filename).parent == AUTOENCODERS
               for frame, _ in traceback.walk_tb(error.__traceback__))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What a shape turned out to need."""

    task: Task
    shape: Shape
    remedies: Remedies


class Ladder:
    """The pipelines of one replica, how they stand on its GPU, and what it has learned of shapes."""

    def __init__(self, card: ModelCard, device: str, room: float | None) -> None:
        """`room`: GB that a call may take there; None where nobody knows: then only errors tell."""
        self._card = card
        self._device = device
        self._room = room
        self._pipes: dict[Task, DiffusionPipeline] = {}
        self._rungs: dict[Task, tuple[Remedies, ...]] = {}
        self._tilers: dict[Task, Tiler] = {}
        self._known: list[_Known] = []
        self._least = NOTHING
        # Which pipeline's components are placed how; None: all lie in main memory.
        self._stand: tuple[Placement, Task | None] | None = (Placement.RESIDENT, None)

    # -- loading ----------------------------------------------------------------------------------------------------

    def keeping(self, load: LoadPipeline) -> LoadPipeline:
        """`load`, but pipelines whose weights do not fit the GPU stay in main memory; all of them are remembered."""

        def loaded(card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                   ) -> DiffusionPipeline:
            # Where the card's options move the weights themselves, nobody knows how much of them is there at once.
            foretold = card.memory is not None and not card.options.changes_memory and card.parallel is None
            weights_gb = card.memory.total_gb if card.memory and foretold else 0.0
            resident = self._room is None or weights_gb <= self._room
            pipe = load(card, task, device if resident else "cpu", components)
            self._pipes[task] = pipe
            self._tilers[task] = Tiler(pipe)
            self._rungs[task] = _rungs_of(pipe, self._tilers[task], card)
            if not resident:
                log.warning("%s: %.1f GB of weights do not fit %.1f GB of GPU memory; they stay in main memory",
                            card.name, weights_gb, self._room)
                self._stand = None
                self._least = next((Remedies(placement=rung.placement) for rung in self._rungs[task]
                                    if rung.placement is not Placement.RESIDENT), NOTHING)
            return pipe

        return loaded

    def close(self) -> None:
        """Let go of the pipelines."""
        self._pipes.clear()
        self._tilers.clear()

    # -- before a call ----------------------------------------------------------------------------------------------

    def problems(self, task: Task, shape: Shape) -> tuple[Problem, ...]:
        """Why the shape cannot be rendered here whatever is done; empty when it may fit, or nobody knows."""
        if self._room is None or task not in self._rungs:
            return ()
        most = self._rungs[task][-1]
        if not too_large(self._card, shape, self._room * NOMINAL, most):
            return ()
        return (Problem(field="frames" if shape.frames > 1 else "size",
                        problem=too_large(self._card, shape, self._room, most),
                        nearest=nearest_that_fits(self._card, shape, self._room, most)),)

    def foothold(self, task: Task, shape: Shape) -> Remedies:
        """Where a call begins: at what its shape, or a smaller one, is known or expected to need."""
        footing = self._least.joined(self._expected(task, shape))
        for known in self._known:
            if known.task is task and known.shape.is_within(shape):
                footing = footing.joined(known.remedies)
        return footing

    def _expected(self, task: Task, shape: Shape) -> Remedies:
        need, rungs = need_of(self._card, shape), self._rungs.get(task, (NOTHING,))
        if self._room is None or need is None:
            return NOTHING
        return first_that_fits(need, self._room * NOMINAL, rungs) or rungs[-1]

    def stand(self, task: Task, shape: Shape) -> bool:
        """Whether calls of this shape need no remedy; the pipelines then stand as they were loaded."""
        if self.foothold(task, shape) != NOTHING:
            return False
        try:
            self._put(task, Placement.RESIDENT)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False  # a call by itself climbs from here
        return True

    # -- the call ---------------------------------------------------------------------------------------------------

    def attempts(self, task: Task, shape: Shape, watch: Watch = UNWATCHED) -> Iterator[AbstractContextManager[None]]:
        """Around one call: `for attempt in ladder.attempts(...): with attempt: ...`, each after the last one failed.

        An attempt swallows OutOfMemoryError while there is a higher rung; the last one raises it. What was done to make
        the call fit is noted with the watch.
        """
        footing, label = self.foothold(task, shape), f"{watch.label}: {shape}"
        while True:
            attempt = _Attempt(self, task, shape, footing)
            with attempt:
                self._put(task, footing.placement)
            watch.beat()  # moving many gigabytes takes a while
            if attempt.higher is None:
                yield attempt
            if attempt.higher is None:
                break
            # Out here no traceback holds the tensors of the attempt any more.
            free_memory()
            watch.check()
            log.warning("%s: out of GPU memory with %s (%s); trying again with %s", label, footing, attempt.trouble,
                        attempt.higher)
            footing = attempt.higher
        if footing != NOTHING:
            watch.note(f"{shape} did not fit the GPU as it was: rendered with {footing}"
                       + ("; seams are blended, so the result is kept apart from those of other GPUs"
                          if footing.tiles else ""))
        if footing.tiles:
            watch.other_pixels()

    def higher(self, task: Task, shape: Shape, footing: Remedies, *, vae: bool) -> Remedies | None:
        """Remember that the shape needs more than this, and say what comes next; None when there is nothing."""
        rungs = self._rungs.get(task, (NOTHING,))
        if vae and not footing.tiles and rungs[-1].tiles:
            found = replace(footing, tiles=True)
        else:
            place = PLACEMENTS.index(footing.placement)
            wider = [rung.placement for rung in rungs if PLACEMENTS.index(rung.placement) > place]
            if not wider:
                return None
            found = replace(footing, placement=wider[0])
        self._known.append(_Known(task=task, shape=shape, remedies=found))
        return found

    # -- how the pipelines stand ------------------------------------------------------------------------------------

    def tile(self, task: Task, *, on: bool) -> None:
        """On for one attempt, so that no call but the ladder's own is ever made in tiles."""
        if task in self._tilers:
            self._tilers[task].set(on=on)

    def _put(self, task: Task, placement: Placement) -> None:
        """Put the task's pipeline there; nothing is touched where it stands so already."""
        if task not in self._pipes:
            return
        wanted = (placement, None if placement is Placement.RESIDENT else task)
        if wanted == self._stand:
            return
        self._stand = None
        for pipe in self._pipes.values():
            lift(pipe)
        free_memory()
        place(self._pipes[task], self._pipes.values(), placement, self._device)
        self._stand = wanted


class _Attempt(AbstractContextManager[None]):
    """One try of one call."""

    def __init__(self, ladder: Ladder, task: Task, shape: Shape, footing: Remedies) -> None:
        self._ladder = ladder
        self._task = task
        self._shape = shape
        self._footing = footing
        self.higher: Remedies | None = None
        """What to try next."""
        self.trouble = ""

    def __enter__(self) -> None:
        """Tiles, where they are meant."""
        if self._footing.tiles:
            self._ladder.tile(self._task, on=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> bool:
        """Swallow a lack of memory while there is something left to try. Raises OutOfMemoryError when there is not."""
        if self._footing.tiles:
            self._ladder.tile(self._task, on=False)
        if error is None or not is_out_of_memory(error):
            return False
        self.trouble = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        self.higher = self._ladder.higher(self._task, self._shape, self._footing, vae=vae_at_work(error))
        if self.higher is None:
            tried = "" if self._footing == NOTHING else f"even with {self._footing}: "
            raise torch.OutOfMemoryError(f"{tried}{error}") from None
        return True


# -- one pipeline ----------------------------------------------------------------------------------------------------


class Tiler:
    """Lets a pipeline's VAE work in tiles, and one picture after the other."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        vae = pipe.components.get("vae")
        state = {} if vae is None else vars(vae)
        self._vae = vae
        self.can = state.get("use_tiling") is False
        """False too where the card has its VAE in tiles already."""
        self._slices = state.get("use_slicing") is False

    def set(self, *, on: bool) -> None:
        """On, or as it was loaded."""
        if self.can:
            (self._vae.enable_tiling if on else self._vae.disable_tiling)()
        if self.can and self._slices:
            (self._vae.enable_slicing if on else self._vae.disable_slicing)()


def _rungs_of(pipe: DiffusionPipeline, tiler: Tiler, card: ModelCard) -> tuple[Remedies, ...]:
    """What can be done with this pipeline, from nothing to everything, what costs less time first.

    Whatever the card itself has done is left alone.
    """
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    placements: list[Placement] = []
    if modules and not _is_placed(pipe, modules):
        placements = [Placement.PARTS, Placement.LAYERS] if pipe.model_cpu_offload_seq else [Placement.LAYERS]
    return tuple(rung for rung in rungs_of(card)
                 if rung.placement in (Placement.RESIDENT, *placements) and (tiler.can or not rung.tiles))


def _is_placed(pipe: DiffusionPipeline, modules: list[torch.nn.Module]) -> bool:
    """Whether something moves its weights in and out already."""
    registries = [vars(module).get("_diffusers_hook") for whole in modules for module in whole.modules()]
    return bool(vars(pipe).get("_all_hooks")) or any(
        name in registry.hooks for registry in registries if registry is not None for name in GROUP_HOOKS)


def lift(pipe: DiffusionPipeline) -> None:
    """Take a pipeline off the GPU, with all that moved its weights in and out."""
    pipe.remove_all_hooks()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            registry = HookRegistry.check_if_exists_or_initialize(part)
            for name in GROUP_HOOKS:
                registry.remove_hook(name, recurse=True)
    # A pipeline that was loaded onto a device by a map refuses to be moved by anything else until it is forgotten.
    pipe.reset_device_map()
    pipe.to("cpu", silence_dtype_warnings=True)


def place(pipe: DiffusionPipeline, pipes: Iterable[DiffusionPipeline], placement: Placement, device: str) -> None:
    """Put lifted pipelines there: all of them on the device, or only what `pipe` uses at one moment."""
    match placement:
        case Placement.RESIDENT:
            for each in pipes:
                each.to(device)
        case Placement.PARTS:
            pipe.enable_model_cpu_offload(device=device)
        case Placement.LAYERS:
            # Not `enable_sequential_cpu_offload`: it needs a GPU, so no test could show that it goes on and off again.
            pipe.enable_group_offload(onload_device=torch.device(device), offload_device=torch.device("cpu"),
                                      offload_type="leaf_level")
