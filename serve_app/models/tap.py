"""SchedulerTap: step progress, cancel, deadline and checkpoints for every diffusers pipeline. Knows no job, no Ray.

Every denoising loop calls `scheduler.step` once per step, also those of pipelines with no callback argument and no
interrupt. For the time of one call the tap gives the pipeline's schedulers a subclass of their own class whose `step`
reports after the real one. Stopping is an exception raised there: a pipeline's `_interrupt` flag would still decode
the noise and hand it back as a picture.

Cost per step: one Python frame and the callback. No CUDA tensor is read in the loop: the schedule is turned into plain
floats once, in `set_timesteps`, before the first step. On a GPU a step is reported when the GPU has made it
(`gpu_steps`); cancel and deadline are looked at when its kernels are queued.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from serve_app.models.gpu_steps import MakeMark, StepRelay, marks_for
from serve_app.models.resume import DenoiserSwitch, Drawing, StepCheckpoint, checkpoint_now, restore
from workflows.deadline import NEVER, Deadline
from workflows.errors import DeadlineExceeded, ModelFailed, RenderCancelled
from workflows.ports import Party

log = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int, float], None]
"""`callback(step, total_steps_count, current_timestep)`, after each denoising step; `step` counts from 0.

On a GPU it is called on a thread of its own, and for the last time before the render is over."""

OnCheckpoint = Callable[[StepCheckpoint], None]

CheckpointDue = Callable[[int, int], bool]
"""`due(steps_done, total_steps_count)`: whether to record now; asked after each step but the last."""


def _nothing() -> None:
    return None


def _unheard(text: str) -> None:
    """Nobody wants to know."""


def _uncounted(gpus: int) -> None:
    """Nobody wants to know."""


class Asked(Protocol):
    """Whether a render was asked to stop (`lifecycle.CancelToken`)."""

    @property
    def is_set(self) -> bool:
        """Read between two steps, on the rendering thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How one render is watched over from outside. The defaults watch nothing."""

    label: str = "render"
    """Node id, for errors."""
    cancel: Asked | None = None
    """Set from another thread to stop the render within one step."""
    deadline: Deadline = NEVER
    """When the render is stopped."""
    beat: Callable[[], None] = _nothing
    """Called at every sign of life: each step, each piece the VAE codes."""
    note: Callable[[str], None] = _unheard
    """Called with what a user should know of the result and nobody could know before."""
    other_pixels: Callable[[], None] = _nothing
    """Called when what was done for lack of memory may have changed pixels."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0: none, but for those that are due otherwise."""
    checkpoint_due: CheckpointDue | None = None
    """Decides by more than a number of steps, on the rendering thread."""
    on_checkpoint: OnCheckpoint | None = None
    """Takes each checkpoint, on the rendering thread. An error in it ends the render."""
    resume: StepCheckpoint | None = None
    """Go on from here. Steps before it are not run and not reported."""
    party: Party | None = None
    """Other replicas were asked to help."""
    shared: Callable[[int], None] = _uncounted
    """Called with the number of GPUs when others did."""

    def check(self) -> None:
        """Raise RenderCancelled or DeadlineExceeded when it is time to stop."""
        if self.cancel is not None and self.cancel.is_set:
            raise RenderCancelled(node_id=self.label, reason="cancelled between two steps")
        if self.deadline.is_over:
            raise DeadlineExceeded(node_id=self.label, reason="the time limit passed; stopped between two steps")


UNWATCHED = Watch()


class SafeCallback:
    """A progress callback that cannot cost a render: its first exception is logged, and it is not called again."""

    def __init__(self, callback: ProgressCallback | None, *, label: str) -> None:
        self._callback = callback
        self._label = label

    @property
    def is_silent(self) -> bool:
        """Whether nobody hears it, or not any more."""
        return self._callback is None

    def __call__(self, step: int, total_steps_count: int, current_timestep: float) -> None:
        """Pass on, if there is anybody."""
        if self._callback is None:
            return
        try:
            self._callback(step, total_steps_count, current_timestep)
        except Exception:  # whatever a stranger's callback raises
            log.warning("%s: the progress callback raised and is ignored from here on", self._label, exc_info=True)
            self._callback = None


@dataclass(slots=True, eq=False)
class _Lane:
    """One scheduler of the running call."""

    scheduler: Any
    done: int = 0
    """Steps it has made."""
    schedule: list[float] = field(default_factory=list)
    sample: torch.Tensor | None = None
    """Latents after its last step."""


class SchedulerTap:
    """Context manager around one call of one pipeline; see the module.

    Two schedulers in one loop (LTX-2 steps a deep copy for its sound) are both under the tap; the first to step is the
    one that reports. In a process group only rank 0 calls the callback.
    """

    def __init__(self, pipe: DiffusionPipeline, *, callback: ProgressCallback | None, watch: Watch,
                 generator: Drawing, make_mark: MakeMark | None = None) -> None:
        """`generator` is the one given to the pipeline: a checkpoint holds its state.

        `make_mark` marks steps on the device; None takes what the latents' device has.
        """
        self._pipe = pipe
        self._callback = SafeCallback(callback if _is_first_rank() else None, label=watch.label)
        self._watch = watch
        self._generator = generator
        self._make_mark = make_mark
        self._relay: StepRelay | None = None
        self._lanes: list[_Lane] = []
        self._leader: _Lane | None = None
        self._records = watch.on_checkpoint is not None and (
            watch.checkpoint_every > 0 or watch.checkpoint_due is not None)
        self._skipping = watch.resume is not None
        self._switch: DenoiserSwitch | None = None
        self._originals: list[tuple[Any, type]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._watch.check()
        for component in self._pipe.components.values():
            if isinstance(component, SchedulerMixin):
                self._originals.append((component, type(component)))
                component.__class__ = _tapped(type(component), self)
        self._watch_vae()
        if self._records or self._watch.resume is not None:
            known = self._watch.resume.outputs if self._watch.resume is not None else {}
            self._switch = DenoiserSwitch(self._pipe, known=known, skipping=lambda: self._skipping)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        for scheduler, original in self._originals:
            scheduler.__class__ = original
        for hook in self._hooks:
            hook.remove()
        if self._switch is not None:
            self._switch.remove()
        if self._relay is not None:
            self._relay.close(broken_off=error is not None)
        if error is not None:
            # A finished call does this itself; without it offloaded models and caches keep the broken run's state.
            self._pipe.maybe_free_model_hooks()

    # -- called by the schedulers -----------------------------------------------------------------------------------

    def scheduled(self, scheduler: Any) -> None:
        """The scheduler has its timesteps; this is the one place where they may be read from a GPU."""
        self._known(scheduler).schedule = [float(t) for t in scheduler.timesteps.tolist()]

    def step(self, scheduler: Any, base_step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One step of one scheduler: skipped before a checkpoint, else made and reported."""
        lane = self._lane(scheduler)
        if self._skipping:
            return self._skip(lane, base_step, args, kwargs)
        output = base_step(scheduler, *args, **kwargs)
        lane.sample = output[0] if isinstance(output, tuple) else output.prev_sample
        lane.done += 1
        self._watch.beat()
        if lane is self._leader:
            total = len(lane.schedule)
            # A pipeline that runs its loop several times (a long video in sections) starts again at 0.
            step = (lane.done - 1) % total
            self._tell(lane.sample, step, total, lane.schedule[step])
        if self._records:
            self._checkpoint(lane)
        self._watch.check()
        return output

    # -- parts of a step --------------------------------------------------------------------------------------------

    def _lane(self, scheduler: Any) -> _Lane:
        """The lane of a scheduler that steps; the first one leads."""
        if self._leader is not None and self._leader.scheduler is scheduler:
            return self._leader
        lane = self._known(scheduler)
        if not lane.schedule:  # the pipeline set the timesteps by hand
            self.scheduled(scheduler)
        if self._leader is None:
            self._leader = lane
        return lane

    def _tell(self, sample: torch.Tensor, step: int, total: int, timestep: float) -> None:
        """Now, or when the device has made the step."""
        if self._relay is None and not self._callback.is_silent:
            make_mark = self._make_mark or marks_for(sample.device)
            self._relay = None if make_mark is None else StepRelay(self._callback, make_mark)
        if self._relay is None:
            self._callback(step, total, timestep)
        else:
            self._relay.step(step, total, timestep)

    def _known(self, scheduler: Any) -> _Lane:
        for lane in self._lanes:
            if lane.scheduler is scheduler:
                return lane
        self._lanes.append(_Lane(scheduler))
        return self._lanes[-1]

    def _checkpoint(self, lane: _Lane) -> None:
        take, total = self._watch.on_checkpoint, len(lane.schedule)
        if take is None or self._switch is None or lane.done >= total:
            return
        samples = [other.sample for other in self._lanes if other.done == lane.done and other.sample is not None]
        # The last of the loop's schedulers must have reached this step.
        if len(samples) == len(self._lanes) and self._is_due(lane.done, total):
            take(checkpoint_now([other.scheduler for other in self._lanes], samples, step=lane.done, total=total,
                                generator=self._generator, outputs=self._switch.outputs))

    def _is_due(self, done: int, total: int) -> bool:
        every, due = self._watch.checkpoint_every, self._watch.checkpoint_due
        return bool(every and done % every == 0) or (due is not None and due(done, total))

    def _skip(self, lane: _Lane, base_step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass the sample through; at the checkpoint's last step hand over the recorded one."""
        checkpoint = self._watch.resume
        assert checkpoint is not None
        if checkpoint.total != len(lane.schedule):
            raise ModelFailed(node_id=self._watch.label, reason=f"the checkpoint is of a run of {checkpoint.total} "
                                                                f"steps, this one has {len(lane.schedule)}")
        given = inspect.signature(base_step).bind(lane.scheduler, *args, **kwargs).arguments
        sample = given["sample"]
        lane.done += 1
        if lane.done == checkpoint.step:
            sample = checkpoint.samples[self._lanes.index(lane)].to(sample.device)
        if all(other.done >= checkpoint.step for other in self._lanes):
            restore(checkpoint, [other.scheduler for other in self._lanes], self._generator)
            self._skipping = False
        return SchedulerOutput(prev_sample=sample) if given.get("return_dict", True) else (sample, sample)

    def _watch_vae(self) -> None:
        """Coding takes as long as several steps and has no step of its own; its parts beat and can be stopped too."""
        vae = self._pipe.components.get("vae")
        if isinstance(vae, torch.nn.Module):
            parts = dict(vae.named_children())
            self._hooks = [parts[name].register_forward_hook(self._part_done)
                           for name in ("encoder", "decoder") if name in parts]

    def _part_done(self, *_: object) -> None:
        self._watch.beat()
        self._watch.check()


def _tapped(base: type, tap: SchedulerTap) -> type:
    """A subclass of the scheduler's class that tells `tap`. A deep copy made inside the call keeps it, and so the tap.

    `functools.wraps` keeps the signatures: pipelines inspect them to decide whether to pass a generator, and without
    one an ancestral scheduler would silently draw from the global one.
    """

    @functools.wraps(base.step)  # type: ignore[attr-defined]
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return tap.step(self, base.step, args, kwargs)  # type: ignore[attr-defined]

    @functools.wraps(base.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        base.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        tap.scheduled(self)

    return type(base.__name__, (base,), {"step": step, "set_timesteps": set_timesteps})


def _is_first_rank() -> bool:
    group = torch.distributed
    return not (group.is_available() and group.is_initialized()) or group.get_rank() == 0


def unheard(step: int, total_steps_count: int, current_timestep: float) -> None:
    """For calls whose progress nobody follows (warm-ups, ranks other than 0): it keeps the pipeline's own bar away."""
