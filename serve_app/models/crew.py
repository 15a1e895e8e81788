"""Several GPUs for one call: rank 0's side, inside the replica. The others are `crew_member`. Knows no job, no Ray.

All processes make the same call of the same pipeline with the same seed, and meet in every attention layer. So they
must stop at the same point, or those that go on would wait for ever: rank 0 decides at each point where a call may be
stopped, and the others wait for its word. An error of one process ends the call on all. Where they can no longer be
brought to the same point (a process died, or failed alone inside a step), the crew is broken up and the replica is
unhealthy: Serve replaces it.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from configs.parallel import Parallel
from serve_app.models.context_parallel import LOOPBACK, UNEVEN, join_group, share_out
from serve_app.models.crew_wire import LOADED, MET, Call, Enlist, Go, Meet, Report, Verdict
from serve_app.models.lifecycle import CancelToken
from serve_app.models.party import Parties
from serve_app.models.pipelines import LoadPipeline
from serve_app.models.studio import Painter
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from workflows.errors import (
    DeadlineExceeded,
    ImpossibleResources,
    Overloaded,
    Problem,
    RenderCancelled,
    RenderRefused,
    ReplicaLost,
    StartFailed,
)
from workflows.media.frames import UInt8Array

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""How much later than the first process of a call that failed the others may end it and still count as one crew."""


class Alone:
    """The crew of a replica whose calls run in its own process."""

    def keeping(self, load: LoadPipeline) -> LoadPipeline:
        """The loader, as it is."""
        return load

    def joined(self, studio: Mapping[Task, Painter]) -> Mapping[Task, Painter]:
        """The studio, as it is."""
        return studio

    def problem(self) -> str:
        """Why the replica should be replaced; empty when it is well."""
        return ""

    def close(self) -> None:
        """Nothing to end."""


def crew_of(card: ModelCard, device: str, *, stall_s: float) -> Alone | Crew | Parties:
    """Start the further processes that the card asks for, or none where replicas help each other.

    Raises ImpossibleResources for more GPUs than there are.
    """
    if card.elastic is not None:
        _stay_inside()
        return Parties(card.elastic, device, stall_s=stall_s)
    if card.parallel is None:
        return Alone()
    seen = torch.cuda.device_count()
    if device != "cpu" and seen < card.parallel.degree:
        raise ImpossibleResources(
            problem=f"card {card.name} shares a call out among {card.parallel.degree} GPUs, but this replica has "
                    f"{seen}; nearest valid: resources.num_gpus: {card.parallel.degree}")
    return Crew(card, card.parallel, device, stall_s=stall_s)


def _stay_inside() -> None:
    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)


@dataclass(slots=True, eq=False)
class _Member:
    """One further process, seen from rank 0."""

    rank: int
    process: subprocess.Popen[bytes]
    socket: socket.socket
    link: Connection
    report: Report = field(default_factory=lambda: Report(number=LOADED - 1))
    """The last one."""

    def say(self, message: Enlist | Meet | Call | Go) -> None:
        """Send; a process that is gone is noticed by who listens to it."""
        try:
            self.link.send(message)
        except OSError:
            log.debug("process %d hears nothing any more", self.rank)


class Crew:
    """The processes of one replica. One call at a time, always on the same thread."""

    def __init__(self, card: ModelCard, parallel: Parallel, device: str, *, stall_s: float) -> None:
        """Start them; they load while this process does."""
        self._card = card
        self._parallel = parallel
        self._device = device
        self._stall_s = stall_s
        self._pipes: list[DiffusionPipeline] = []
        self._changed = threading.Condition()
        self._problem = ""
        self._died = False
        self._closed = False
        self._number = MET
        """Of the last call."""
        self._running = False
        self._meetings = tempfile.TemporaryDirectory(prefix="reelray-crew-")
        _stay_inside()
        threads = max(torch.get_num_threads() // parallel.degree, 1)
        if device == "cpu":
            torch.set_num_threads(threads)
        self._members = [_start(rank) for rank in range(1, parallel.degree)]
        for member in self._members:
            kind = device.partition(":")[0]
            member.say(Enlist(card=card, rank=member.rank, threads=threads, stall_s=stall_s,
                              device=kind if kind == "cpu" else f"{kind}:{member.rank}"))
            threading.Thread(target=self._listen, args=(member,), name=f"crew-{member.rank}", daemon=True).start()

    # -- coming together ----------------------------------------------------------------------------------------------

    def keeping(self, load: LoadPipeline) -> LoadPipeline:
        """The loader, remembering what it loaded; if it fails, the other processes end too."""

        def load_and_keep(card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                          ) -> DiffusionPipeline:
            try:
                pipe = load(card, task, device, components)
            except BaseException:
                self.close()
                raise
            self._pipes.append(pipe)
            return pipe

        return load_and_keep

    def joined(self, studio: Mapping[Task, Painter]) -> Mapping[Task, Painter]:
        """Painters that make every call on all processes. Waits until all have loaded; raises what kept one of them."""
        try:
            self._all_have(LOADED)
            meeting = str(Path(self._meetings.name) / "meeting")
            for member in self._members:
                member.say(Meet(meeting=meeting))
            join_group(self._parallel, self._device, 0, meeting=meeting, stall_s=self._stall_s)
            share_out(self._pipes, self._parallel, self._device, 0)
            self._all_have(MET)
        except BaseException:
            self.close()
            raise
        return {task: CrewPainter(painter, task, self) for task, painter in studio.items()}

    def _all_have(self, number: int) -> None:
        failure = self._gather(number, patience_s=None)
        if failure is not None:
            raise failure
        if self._problem:
            raise StartFailed(problem=f"{self._card.name}: {self._problem}")

    # -- one call -----------------------------------------------------------------------------------------------------

    def run(self, painter: Painter, task: Task, take: Take, callback: ProgressCallback | None, watch: Watch,
            ) -> UInt8Array:
        """Make the call on all processes; only this one reports and returns its result.

        Raises what the painter raises, the error of another process as if it were this one's, ReplicaLost when a
        process goes in the middle of it, and Overloaded when one had gone before.
        """
        if watch.checkpoint_every or watch.resume is not None:
            raise RenderRefused(node_id=watch.label, reason="a call on several GPUs has no checkpoints")
        if self._problem:
            # Nothing was run: until Serve has replaced this replica, other shots must not be blamed for its end.
            raise Overloaded(node_id=watch.label, reason=f"{self._problem}; the replica is about to be replaced")
        number = self._begin(task, take, watch.label)
        ours: Exception | None = None
        try:
            frames = painter.generate(take, progress_callback=callback, watch=replace(
                watch, cancel=_Decision(self, number, watch), deadline=UNWATCHED.deadline))
        except Exception as error:  # noqa: BLE001 - raised below, when the others have been told
            ours = error
        self.say(number, Verdict.FREE if ours is None else Verdict.STOP)
        theirs = self._gather(number, patience_s=None if ours is None else GRACE_S)
        with self._changed:
            self._running = False
            self._changed.notify_all()
        if ours is None and theirs is None and not self._problem:
            return frames
        raise self._verdict(ours, theirs, watch.label)

    def say(self, number: int, verdict: Verdict) -> None:
        """Tell the others what was decided at this point of the call."""
        for member in self._members:
            member.say(Go(number=number, verdict=verdict))

    def require_whole(self, number: int) -> None:
        """Raise when it makes no sense to go on with the call: another process has failed in it."""
        if self._problem:
            raise RuntimeError(self._problem)
        if failure := self._failure(number):
            raise failure

    def _begin(self, task: Task, take: Take, label: str) -> int:
        with self._changed:
            self._number += 1
            self._running = True
        for member in self._members:
            member.say(Call(number=self._number, task=task, take=take, label=label))
        return self._number

    def _verdict(self, ours: Exception | None, theirs: Exception | None, label: str) -> Exception:
        """The one error of a call that failed somewhere."""
        if isinstance(ours, RenderCancelled | DeadlineExceeded):
            return ours
        if self._died:
            return ReplicaLost(node_id=label, reason=self._problem)
        if isinstance(ours, AssertionError) and UNEVEN in str(ours):
            shares = self._parallel.degree
            return RenderRefused(node_id=label, reason=f"this size, length or prompt makes a number of tokens that "
                                 f"{shares} GPUs cannot share evenly; nearest valid: another one, or `uneven: true` "
                                 "under `parallel` in the card")
        # After a break-up ours only says that the others did not answer.
        first, second = (theirs, ours) if self._problem else (ours, theirs)
        return first or second or ReplicaLost(node_id=label, reason=self._problem)

    # -- what is heard of the others ----------------------------------------------------------------------------------

    def _listen(self, member: _Member) -> None:
        """On a thread of its own, for as long as the process lives."""
        try:
            while True:
                report: Report = member.link.recv()
                with self._changed:
                    member.report = report
                    self._changed.notify_all()
                if report.error is not None and report.number > MET:
                    self._expect_the_end(report, member.rank)
        except (EOFError, OSError):
            self._break_up(f"process {member.rank} of {self._parallel.degree} is gone", died=True)

    def _expect_the_end(self, report: Report, rank: int) -> None:
        """A process failed: this one does too by itself, or it is inside an exchange that nobody answers any more."""
        with self._changed:
            over = self._changed.wait_for(
                lambda: self._problem or not (self._running and self._number == report.number), GRACE_S)
        if not over:
            self._break_up(f"process {rank} of {self._parallel.degree} failed alone: {report.error}")

    def _gather(self, number: int, *, patience_s: float | None) -> Exception | None:
        """Wait for every process's report; the first error among them. None also when the crew was broken up."""
        with self._changed:
            complete = self._changed.wait_for(lambda: self._problem or self._failed_early() or all(
                member.report.number >= number for member in self._members), patience_s)
        if not complete:
            self._break_up("the processes did not end a failed call together")
        return self._failed_early() or self._failure(number)

    def _failed_early(self) -> Exception | None:
        """What kept a process from coming to its first call."""
        return next((member.report.error for member in self._members
                     if member.report.number <= MET and member.report.error is not None), None)

    def _failure(self, number: int) -> Exception | None:
        return next((member.report.error for member in self._members
                     if member.report.number == number and member.report.error is not None), None)

    # -- the end ------------------------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the replica should be replaced; empty when all processes can make calls."""
        return self._problem

    def pids(self) -> tuple[int, ...]:
        """Of the other processes."""
        return tuple(member.process.pid for member in self._members)

    def close(self) -> None:
        """End the other processes. Not while a call runs."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        for member in self._members:
            member.socket.shutdown(socket.SHUT_RDWR)  # it ends itself when it hears this
        for member in self._members:
            try:
                member.process.wait(5)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()
            member.socket.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._meetings.cleanup()

    def _break_up(self, problem: str, *, died: bool = False) -> None:
        """No further call can be made together: let nobody wait for anybody."""
        with self._changed:
            if self._problem or self._closed:
                return
            self._problem, self._died = problem, died
            self._changed.notify_all()
        log.error("%s: %s", self._card.name, problem)
        for member in self._members:
            member.process.kill()
        if self._device != "cpu" and dist.is_initialized():
            # Kernels that wait for the others are on this GPU; gloo's exchanges end by themselves.
            dist.distributed_c10d._abort_process_group()


class _Decision(CancelToken):
    """Read by the tap between two steps: decides for all processes, and tells them."""

    __slots__ = ("_crew", "_number", "_watch")

    def __init__(self, crew: Crew, number: int, watch: Watch) -> None:
        super().__init__()
        self._crew = crew
        self._number = number
        self._watch = watch

    @property
    def is_set(self) -> bool:
        """False; raises what ends the call. The others are told to stop when the error arrives in `Crew.run`."""
        self._crew.require_whole(self._number)
        self._watch.check()
        self._crew.say(self._number, Verdict.ON)
        return False


class CrewPainter:
    """A painter whose calls are made by all processes."""

    def __init__(self, painter: Painter, task: Task, crew: Crew) -> None:
        self._painter = painter
        self._task = task
        self._crew = crew

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Why the take would be refused; empty when it would not."""
        return self._painter.problems(take)

    def warnings(self, take: Take) -> tuple[str, ...]:
        """What of the take will not be seen in the result."""
        return self._painter.warnings(take)

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """As the painter does."""
        return self._crew.run(self._painter, self._task, take, progress_callback, watch)


def _start(rank: int) -> _Member:
    """A new interpreter, not a fork: threads and CUDA do not survive one."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.models.crew_member", str(theirs.fileno())], pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    return _Member(rank=rank, process=process, socket=ours, link=Connection(os.dup(ours.fileno())))
