"""Feed: one job's rows and steps as frames, ready to send to any number of watchers. Knows ledger and board port.

It turns rows and steps into frames, ready to send. A frame's id is `epoch:rows.steps`: the board's epoch, and how
far the job's rows and the board's steps were told. All three come from what every process shares, so an id that one
process gave is understood by any other, and after every restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import logging
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.progress import Poll, ProgressEvent
from serve_app.service.links import shot_file_url
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventRow, EventType, JobRow, NodeRow
from workflows.errors import UnknownJob
from workflows.status import planned_warnings
from workflows.telling import Name, Teller, Told
from workflows.types import NodeKind, ProgressRecord

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Pause before asking a board again that did not answer."""
FIRST_ANSWER_S = 2.0
"""How long the first watcher waits for the board; a silent board does not keep the rows from being told."""
PAGE = 2000
ID = re.compile(r"([0-9a-zA-Z_-]{1,32}):([0-9]{1,18})\.([0-9]{1,18})")
NO_EPOCH = "none"


class Board(Protocol):
    """The ProgressActor, as the hub needs it. May raise anything: progress is soft state."""

    async def history(self, job_id: str) -> Poll:
        """Every event of the job that is still kept."""

    async def poll(self, job_id: str, epoch: str, after: int) -> Poll:
        """Long-poll the job's events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a client has heard."""

    epoch: str
    rows: int
    steps: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.rows}.{self.steps}"

    def no_less_than(self, heard: Position) -> Position:
        """This place, with the rows and (of the same board) the steps that were heard already."""
        steps = max(self.steps, heard.steps) if self.epoch == heard.epoch else self.steps
        return Position(epoch=self.epoch, rows=max(self.rows, heard.rows), steps=steps)

    @classmethod
    def read(cls, text: str) -> Position | None:
        """The inverse of `str`; None for what is no such id."""
        match = ID.fullmatch(text.strip())
        return cls(epoch=match[1], rows=int(match[2]), steps=int(match[3])) if match else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What one row or one step has to say."""

    number: int
    """Counts up within a feed."""
    at: Position
    """After this frame."""
    text: bytes
    """Server-sent events; the id stands with the last of them, so that a cut connection repeats and loses nothing."""
    node_id: str
    """Empty for what concerns the whole job."""

    is_step: bool

    def text_after(self, heard: Position | None) -> bytes:
        """As sent to one who came with this id, which another process may have given, that had told more by then.

        Empty for a step that was heard; and no later id of the stream may stand for less than the first.
        """
        if heard and self.is_step and self.at.epoch == heard.epoch and self.at.steps <= heard.steps:
            return b""
        at = self.at.no_less_than(heard) if heard else self.at
        return self.text if at == self.at else self.text.replace(_id_line(self.at), _id_line(at), 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a new watcher gets first."""

    with_snapshot: bool
    """Something was missed that frames cannot tell: the whole job must be told first."""
    frames: tuple[Frame, ...]
    number: int
    """Go on after this frame."""


class Ring:
    """The newest frames of one kind."""

    def __init__(self, size: int) -> None:
        self._frames: deque[Frame] = deque(maxlen=size)
        self.lost: Frame | None = None
        """The newest frame that is gone."""

    def append(self, frame: Frame) -> None:
        """Add a frame; the oldest makes room."""
        if len(self._frames) == self._frames.maxlen:
            self.lost = self._frames[0]
        self._frames.append(frame)

    def after(self, number: int) -> list[Frame]:
        """Frames after this number, oldest first."""
        newer: list[Frame] = []
        for frame in reversed(self._frames):
            if frame.number <= number:
                break
            newer.append(frame)
        return newer[::-1]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)


class Feed:
    """One job, told once."""

    def __init__(self, job_id: str, ledger: Ledger, board: Board, window: int) -> None:
        """Nothing is asked before `open`."""
        self.job_id = job_id
        self.live: dict[str, ProgressRecord] = {}
        """The newest step of each node."""
        self.at = Position(epoch=NO_EPOCH, rows=0, steps=0)
        self.is_over = False
        """The newest row says that the job has ended."""
        self.is_gone = False
        """The job was deleted."""
        self.watchers = 0
        self.used_s = self.changed_s = time.monotonic()
        self._ledger = ledger
        self._board = board
        self._rows, self._steps = Ring(window), Ring(window)
        self._number = 0
        self._run_start = 0
        """Row with which the present run began: 0, or that of the newest rerun."""
        self._known_epochs: dict[str, int] = {}
        """Epoch -> steps up to this one were never heard here; in the order of the board's lives."""
        self._teller = Teller(job_id=job_id, url_of=lambda shot_id: shot_file_url(job_id, shot_id, "keyframe"))
        self._news = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Learn the job's history, then follow the board. Raises UnknownJob."""
        job, nodes, events = await asyncio.to_thread(self._read_all)
        self._teller.warnings = planned_warnings(job)
        self._teller.plan(nodes)
        history = await self._history()
        steps = history.events if history else ()
        if history:
            self._enter_epoch(history.epoch, history.since)
        # Each side keeps its own order, whatever the clocks of the machines say.
        sides: tuple[Sequence[EventRow | ProgressEvent], ...] = (events, steps)
        for one in heapq.merge(*sides, key=_when):
            if isinstance(one, EventRow):
                self._tell_row(one)
            else:
                self._tell_step(one)
        if history:
            self.at = Position(epoch=history.epoch, rows=self.at.rows, steps=history.seq)
        self._poller = asyncio.create_task(self._follow(), name=f"follow {self.job_id}")

    async def close(self) -> None:
        """Stop following; who still watches is let go."""
        self.is_gone = True
        self._wake()
        if self._poller is not None:
            self._poller.cancel()
            # Not awaited itself: its cancellation could not be told from the caller's own.
            await asyncio.wait([self._poller])

    async def look(self) -> None:
        """Tell the rows that are new."""
        try:
            while events := await asyncio.to_thread(self._ledger.events, self.job_id, self.at.rows, PAGE):
                if any(self._changes_plan(event) for event in events):
                    self._teller.plan(await asyncio.to_thread(self._ledger.nodes, self.job_id))
                for event in events:
                    self._tell_row(event)
                self._wake()
        except UnknownJob:
            self.is_gone = True
            self._wake()

    def begin(self, heard: Position | None, *, all_steps: bool = False) -> Beginning:
        """Where a watcher joins: `heard` is the last id it got; None: it is new, and may want all steps of this run."""
        if heard is None:
            return self._begin_new(all_steps)
        # An id beyond the last row is of a database that there was before a backup came in its place.
        rows_known = heard.rows <= self.at.rows and (self._rows.lost is None or heard.rows >= self._rows.lost.at.rows)
        steps_known = self._steps_known(heard)
        if not rows_known:
            return Beginning(with_snapshot=True, frames=(), number=self._number)
        epochs = list(self._known_epochs)
        frames = [frame for frame in self._rows if frame.at.rows > heard.rows]
        if steps_known:
            since = epochs.index(heard.epoch)
            frames += [frame for frame in self._steps if (epochs.index(frame.at.epoch), frame.at.steps)
                       > (since, heard.steps)]
        return Beginning(with_snapshot=not steps_known, frames=_in_order(frames), number=self._number)

    def after(self, number: int) -> tuple[Frame, ...] | None:
        """Frames after this number; None when some of them are gone already."""
        if any(ring.lost is not None and ring.lost.number > number for ring in (self._rows, self._steps)):
            return None
        return _in_order([*self._rows.after(number), *self._steps.after(number)])

    @property
    def number(self) -> int:
        """Of the newest frame."""
        return self._number

    async def news(self, timeout_s: float) -> bool:
        """Wait for the next frame or the end; False when the time passed first."""
        with contextlib.suppress(TimeoutError):
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the news.
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
            return True
        return False

    def _begin_new(self, all_steps: bool) -> Beginning:
        """The present run from its start, and the newest step of every node that runs, or all that are kept."""
        is_whole = self._run_start == 0 and self._rows.lost is None
        frames = [frame for frame in self._rows if frame.at.rows >= self._run_start]
        newest = {frame.node_id: frame for frame in self._steps}
        frames += [frame for frame in self._steps if frame.at.rows >= self._run_start] if all_steps else [
            frame for node_id, frame in newest.items() if node_id in self.live and not self.is_over]
        return Beginning(with_snapshot=not is_whole, frames=_in_order(frames), number=self._number)

    def _steps_known(self, heard: Position) -> bool:
        """Whether every step after what the client heard is still here."""
        unheard = self._known_epochs.get(heard.epoch)
        if unheard is None or heard.steps < unheard:
            return False
        lost = self._steps.lost
        if lost is None:
            return True
        epochs = list(self._known_epochs)
        return (epochs.index(heard.epoch), heard.steps) >= (epochs.index(lost.at.epoch), lost.at.steps)

    def _read_all(self) -> tuple[JobRow, tuple[NodeRow, ...], list[EventRow]]:
        job = self._ledger.job(self.job_id)
        events: list[EventRow] = []
        while page := self._ledger.events(self.job_id, events[-1].seq if events else 0, PAGE):
            events += page
        # Read last: every event's node is among them, unless a revision took it away.
        return job, self._ledger.nodes(self.job_id), events

    def _changes_plan(self, event: EventRow) -> bool:
        if event.type is EventType.JOB_RERUN:
            return True
        told = event.type is EventType.NODE_SUCCEEDED and event.data.get("kind") == NodeKind.STORY.value
        return told or bool(event.node_id and not self._teller.knows(event.node_id))

    async def _history(self) -> Poll | None:
        try:
            return await asyncio.wait_for(self._board.history(self.job_id), FIRST_ANSWER_S)
        except Exception as error:  # noqa: BLE001 - the board restarts by itself; the rows are told meanwhile
            log.warning("job %s: the progress board does not answer: %s", self.job_id, error)
            return None

    async def _follow(self) -> None:
        while True:
            try:
                poll = await self._board.poll(self.job_id, self.at.epoch, self.at.steps)
            except Exception:  # noqa: BLE001 - soft state: ask again until it answers
                await asyncio.sleep(RETRY_S)
                continue
            if poll.epoch != self.at.epoch or poll.is_snapshot:
                # A new board, or steps that were missed here: nobody can be told more than the newest.
                self._enter_epoch(poll.epoch, poll.seq)
            for event in poll.events:
                self._tell_step(event)
            self.at = Position(epoch=poll.epoch, rows=self.at.rows, steps=poll.seq)
            if poll.events:
                self._wake()

    def _enter_epoch(self, epoch: str, unheard: int) -> None:
        self._known_epochs[epoch] = unheard
        self.at = Position(epoch=epoch, rows=self.at.rows, steps=0)

    def _tell_row(self, event: EventRow) -> None:
        if event.seq <= self.at.rows:
            return
        self.at = Position(epoch=self.at.epoch, rows=event.seq, steps=self.at.steps)
        if event.type is EventType.JOB_RERUN:
            self._run_start = event.seq
            self.is_over = False
        elif event.type is EventType.JOB_FINISHED:
            self.is_over = True
        elif event.type is not EventType.NODE_STARTED:
            # Its first step may have come before the row that says that it began.
            self.live.pop(event.node_id, None)
        self._keep(self._rows, self._teller.event(event), event.node_id)

    def _tell_step(self, event: ProgressEvent) -> None:
        record = event.record
        self.at = Position(epoch=self.at.epoch, rows=self.at.rows, steps=event.seq)
        known = self.live.get(record.node_id)
        if known and (record.attempt, record.n) <= (known.attempt, known.n):
            return
        told = self._teller.step(record)
        if told:
            self.live[record.node_id] = record
        self._keep(self._steps, told, record.node_id)

    def _keep(self, ring: Ring, told: Sequence[Told], node_id: str) -> None:
        if told:
            self._number += 1
            self.changed_s = time.monotonic()
            ring.append(Frame(number=self._number, at=self.at, text=frame_text(told, self.at), node_id=node_id,
                              is_step=ring is self._steps))

    def _wake(self) -> None:
        """Let everybody look who waits for news."""
        news, self._news = self._news, asyncio.Event()
        news.set()


def frame_text(told: Sequence[Told], at: Position) -> bytes:
    """Events as they are sent."""
    blocks = [f"event: {one.name.value}\ndata: {_data(one)}\n" for one in told]
    return ("\n".join(blocks[:-1]) + ("\n" if blocks[:-1] else "")).encode() + _id_line(at) + f"{blocks[-1]}\n".encode()


def snapshot_text(body: bytes, at: Position) -> bytes:
    """The whole job as an event."""
    head = f'event: {Name.SNAPSHOT.value}\ndata: {{"type":"{Name.SNAPSHOT.value}",'
    return _id_line(at) + head.encode() + body.removeprefix(b"{") + b"\n\n"


def _id_line(at: Position) -> bytes:
    return f"id: {at}\n".encode()


def _data(told: Told) -> str:
    # The name once more: clients that read only `data:` lines know it too.
    return json.dumps({"type": told.name.value, **told.data}, ensure_ascii=False, separators=(",", ":"))


def _in_order(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    return tuple(sorted(frames, key=lambda frame: frame.number))


def _when(one: EventRow | ProgressEvent) -> float:
    return one.at_s if isinstance(one, EventRow) else one.record.at_s
