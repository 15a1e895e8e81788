"""Pictures that wait for the GPU at the same moment, made in one call of the pipeline. Knows no store, no Ray.

Every item queues a turn on the GPU thread. Whose turn comes takes along the items that wait and are like it (same size,
steps, guidance), oldest first, up to the card's `batch`; their own turns then find nothing to do. So the GPU never
waits for mates, and an item waits no longer than it would without them.

Each item has its own noise, progress, deadline and cancel: one that leaves is let go at once and the others go on; the
call is stopped when all have left. A call that fails is made again item by item, so that one cannot fail its mates.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import Protocol

from configs.model_card import ModelCard, Task
from serve_app.models.ladder import Ladder
from serve_app.models.lifecycle import CancelToken, GpuThread, Heartbeat, finish, free_memory, is_out_of_memory
from serve_app.models.records import DECODED_SHARE, RunRecords, StepClock
from serve_app.models.studio import Painter
from serve_app.models.takes import Take
from serve_app.models.tap import ProgressCallback, Watch
from serve_app.models.text_to_image import TextToImage
from workflows.deadline import NEVER, Deadline
from workflows.errors import ReelrayError
from workflows.media.frames import UInt8Array
from workflows.ports import RenderCall

log = logging.getLogger(__name__)

Rendered = tuple[UInt8Array, dict[str, float]]
"""frame_HWC, and seconds of the GPU by part."""
Kind = tuple[float | bool, ...]
"""What alike takes have in common."""

OWN = frozenset({"prompt", "negative_prompt", "seed"})
"""Fields of a take in which mates differ."""
SHARED = frozenset({"width_px", "height_px", "frames", "fps", "steps", "guidance"})
"""Fields in which they agree."""


class Paint(Protocol):
    """Several alike takes in one call; `TextToImage.generate_many`."""

    def __call__(self, takes: Sequence[Take], *, progress_callback: ProgressCallback | None, watch: Watch,
                 ) -> list[UInt8Array]:
        """One frame_HWC per take."""


@dataclass(slots=True, eq=False)
class Item:
    """One picture that is waited for."""

    take: Take
    call: RenderCall
    token: CancelToken
    records: RunRecords
    alone: Callable[[], Rendered]
    """Renders it without mates, on the GPU thread."""
    deadline: Deadline = NEVER
    done: Future[Rendered] = field(default_factory=Future)
    """Resolved on the GPU thread."""
    group: _Group | None = None
    """Whom it is rendered with, from the moment it is."""

    def is_open(self) -> bool:
        """Whether somebody may still want its result; one past its deadline is sent away. On the GPU thread."""
        if not self.done.done():
            watch = Watch(label=self.call.node_id, cancel=self.token, deadline=self.deadline)
            try:
                watch.check()
            except ReelrayError as error:
                self.done.set_exception(error)
        return not self.done.done()


class _Group:
    """The items of one call. As the call's cancel (`tap.Asked`) it is set when all of them have left."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.over: Future[None] = Future()

    @property
    def is_set(self) -> bool:
        return not self.left()

    def left(self) -> list[Item]:
        """Who still waits. On the GPU thread."""
        return [item for item in self.items if item.is_open()]

    def is_deserted(self) -> bool:
        """The same question from another thread."""
        return all(item.done.done() or item.token.is_set for item in self.items)

    def step(self, step: int, total_steps_count: int, current_timestep: float) -> None:
        """Tell every item's own job."""
        for item in self.items:
            if not item.done.done():
                item.records.step(step, total_steps_count, current_timestep)


def kind_of(take: Take) -> Kind | None:
    """Equal for takes that one call can make together; None for one that must be made alone.

    There must be a negative prompt in all or none: SDXL guides away from "" in another way than from nothing.
    """
    for other in fields(take):
        # A first frame, and whatever a take will have one day; what mates may share of that is not known here.
        if other.name not in OWN | SHARED and getattr(take, other.name) is not other.default:
            return None
    return (take.width_px, take.height_px, take.frames, take.fps, take.steps, take.guidance, bool(take.negative_prompt))


class Batcher:
    """The waiting pictures of one replica. `run` on the event loop, the rest on the GPU thread."""

    def __init__(self, ladder: Ladder, gpu: GpuThread, heartbeat: Heartbeat, paint: Paint, *, largest: int) -> None:
        """`largest` items are made in one call at most."""
        self._ladder = ladder
        self._gpu = gpu
        self._heartbeat = heartbeat
        self._paint = paint
        self._largest = largest
        self._fits: dict[Kind | None, int] = {}
        """What of `largest` fits the GPU, where that was less."""
        self._waiting: list[Item] = []
        self._lock = threading.Lock()

    async def run(self, item: Item) -> Rendered:
        """The item's picture; its seconds are its share of the call's. Raises StageFailed and its children.

        When the awaiting task is cancelled: an item that waits is taken out; one that is being rendered leaves at once,
        and only the last one to leave waits until the GPU is free again (see `SerialThread.run`).
        """
        with self._lock:
            self._waiting.append(item)
        turn = self._gpu.submit(lambda: self._turn(item))
        turn.add_done_callback(lambda turn: self._dropped(item) if turn.cancelled() else None)
        done = asyncio.wrap_future(item.done)
        done.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also when nobody waits
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            item.token.set()
            if self._withdraw(item):
                turn.cancel()
            elif item.group is not None and item.group.is_deserted():
                await finish(asyncio.wrap_future(item.group.over))
            raise

    def _withdraw(self, item: Item) -> bool:
        """Whether it was still waiting; it does not any more."""
        with self._lock:
            if item not in self._waiting:
                return False
            self._waiting.remove(item)
            return True

    def _dropped(self, item: Item) -> None:
        """The replica closes, and the item's turn will not come."""
        if self._withdraw(item):
            item.done.cancel()

    def _turn(self, first: Item) -> None:
        group = self._gather(first)
        try:
            if len(group.items) < 2 or not self._render(group):
                for item in group.left():
                    _render_alone(item)
        except Exception as error:
            # Nobody reads what a turn raises, and these items wait for nothing else.
            log.exception("a shared call failed beside the model")
            self._heartbeat.note(error)
            for item in group.items:
                if not item.done.done():
                    item.done.set_exception(error)
        finally:
            group.over.set_result(None)

    def _gather(self, first: Item) -> _Group:
        """The item and its mates, taken out of those that wait; empty when it was a mate before, or has left."""
        kind = kind_of(first.take)
        largest = 1 if kind is None else self._fits.get(kind, self._largest)
        with self._lock:
            if first not in self._waiting:
                return _Group(())
            others = [item for item in self._waiting if item is not first and kind_of(item.take) == kind]
            open_items = [item for item in (first, *others) if item.is_open()]
            group = _Group(open_items[:largest] if first in open_items else ())
            for item in {first, *group.items}:
                self._waiting.remove(item)
                item.group = group
        return group

    def _render(self, group: _Group) -> bool:
        """All in one call; False when it failed, when all have left, or where single ones fit only with remedies."""
        items, nodes = group.items, ", ".join(item.call.node_id for item in group.items)
        if not self._ladder.stand(Task.TEXT_TO_IMAGE, items[0].take.shape):
            return False
        try:
            clock = StepClock(group.step)
            pictures = self._paint([item.take for item in items], progress_callback=clock, watch=Watch(
                label=nodes, cancel=group, beat=self._heartbeat.beat))
            seconds = {part: spent_s / len(items) for part, spent_s in clock.seconds().items()}
            for item, picture_HWC in zip(items, pictures, strict=True):
                if item.is_open():
                    item.records.saving(DECODED_SHARE)
                    item.done.set_result((picture_HWC, dict(seconds)))
            return True
        except Exception as error:
            if is_out_of_memory(error):
                self._lower(items)
            elif group.left():
                log.warning("%s failed together and are made one by one: %s", nodes, error, exc_info=True)
        # Out here no traceback holds the tensors that are to be freed.
        free_memory()
        return False

    def _lower(self, items: Sequence[Item]) -> None:
        take, fits = items[0].take, max(len(items) // 2, 1)
        self._fits[kind_of(take)] = fits
        log.warning("%d pictures of %s do not fit the GPU at once, from here on %d: a smaller `batch` in the card "
                    "saves the attempt", len(items), take.shape, fits)


def _render_alone(item: Item) -> None:
    try:
        item.done.set_result(item.alone())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the waiting caller's
        item.done.set_exception(error)


def batcher_of(card: ModelCard, studio: Mapping[Task, Painter], ladder: Ladder, gpu: GpuThread,
               heartbeat: Heartbeat) -> Batcher | None:
    """The card's, or None when it makes one picture at a time."""
    painter = studio.get(Task.TEXT_TO_IMAGE)
    if card.batch == 1 or not isinstance(painter, TextToImage):
        return None
    return Batcher(ladder, gpu, heartbeat, painter.generate_many, largest=card.batch)
