"""Idle replicas that help with one call: how they find each other, and rank 0's side. Knows no job, no Ray.

Each is a replica of its own, with the model loaded. They meet on this machine, join a process group, share the
denoisers out for one call and take that back completely. As in a crew (`crew`) all make the same call with the same
seed and stop at the same point, by rank 0's word; other than a crew they part after each call, so nobody needs anybody:
who does not come in time is not waited for, and where the common call fails, rank 0 makes it alone. Only who is inside
an exchange on a GPU that nobody answers has to break it off, and is unhealthy afterwards.
"""

from __future__ import annotations

import gc
import hashlib
import hmac
import logging
import os
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from configs.parallel import Elastic
from serve_app.models.context_parallel import join_group, share_out, take_back
from serve_app.models.crew_wire import Call, Go, Meet, Report, Verdict
from serve_app.models.lifecycle import CancelToken, free_memory
from serve_app.models.pipelines import LoadPipeline
from serve_app.models.studio import Painter
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, Watch
from workflows.deadline import NEVER
from workflows.errors import DeadlineExceeded, Overloaded, Problem, RenderCancelled
from workflows.media.frames import UInt8Array
from workflows.ports import Party

log = logging.getLogger(__name__)

MEET_S = 5.0
"""How long the first of a party waits for the others, from its turn on its GPU."""
GRACE_S = 10.0
"""How much later than the first one others may leave a call that failed."""
LOOK_S = 0.05
NUMBER = 1
"""Of a party's only call, as crews count them."""


def address_of(party: Party) -> str:
    """Where the party meets: a name of the kernel's, on no disk, that does not tell the id."""
    return "\0reelray-party-" + hashlib.sha256(party.id.encode()).hexdigest()[:32]


class Together:
    """The process group of one replica: joined for one call, and left without a trace."""

    def __init__(self, elastic: Elastic, device: str, *, stall_s: float) -> None:
        self._elastic = elastic
        self._device = device
        self._stall_s = stall_s
        self.pipes: list[DiffusionPipeline] = []
        self.problem = ""
        """Why no further call can be made in this process; empty: it is well."""

    def join(self, size: int, rank: int, meeting: str) -> None:
        """Returns when all are there and every denoiser is shared out. Raises what torch raises."""
        parallel = self._elastic.shared_by(size)
        # Who died on the way is noticed here; in the group itself it would be waited for as for a slow step.
        here = dist.FileStore(f"{meeting}-here", size)
        here.set(str(rank), "here")
        here.wait([str(other) for other in range(size)], timedelta(seconds=GRACE_S))
        join_group(parallel, self._device, rank, meeting=meeting, stall_s=self._stall_s)
        share_out(self.pipes, parallel, self._device, rank)

    def leave(self, *, broken: bool) -> None:
        """Compute alone again. Harmless where nothing was joined. `broken`: others may be gone."""
        take_back(self.pipes)
        if dist.is_initialized():
            if broken and self._device != "cpu":
                dist.distributed_c10d._abort_process_group()
            else:
                dist.destroy_process_group()
            gc.collect()  # a group closes its connections when nothing knows it any more

    def break_off(self, problem: str) -> None:
        """From another thread: this process is inside an exchange that nobody answers.

        Exchanges of gloo end by themselves; on a GPU kernels wait, and only an abort takes them away.
        """
        log.error("%s", problem)
        if self._device != "cpu" and dist.is_initialized():
            self.problem = problem
            dist.distributed_c10d._abort_process_group()


class Parties:
    """What a replica of an elastic card is to others and to itself; in the place of a crew."""

    def __init__(self, elastic: Elastic, device: str, *, stall_s: float, meet_s: float = MEET_S) -> None:
        """`stall_s`: a single exchange between replicas that takes longer fails."""
        self.together = Together(elastic, device, stall_s=stall_s)
        self.meet_s = meet_s

    def keeping(self, load: LoadPipeline) -> LoadPipeline:
        """The loader, remembering what it loaded."""

        def load_and_keep(card: ModelCard, task: Task, device: str, components: Mapping[str, Any] | None = None,
                          ) -> DiffusionPipeline:
            pipe = load(card, task, device, components)
            self.together.pipes.append(pipe)
            return pipe

        return load_and_keep

    def joined(self, studio: Mapping[Task, Painter]) -> Mapping[Task, Painter]:
        """Painters that let others help where the watch names a party."""
        return {task: PartyPainter(painter, task, self) for task, painter in studio.items()}

    def problem(self) -> str:
        """Why the replica should be replaced; empty when it is well."""
        return self.together.problem

    def close(self) -> None:
        """Let go of the pipelines."""
        self.together.pipes.clear()

    # -- rank 0 -------------------------------------------------------------------------------------------------------

    def lead(self, painter: Painter, task: Task, take: Take, callback: ProgressCallback | None, watch: Watch,
             ) -> UInt8Array | None:
        """Make the call with the watch's party; None: it is to be made alone.

        Raises RenderCancelled, DeadlineExceeded, and Overloaded when one of the others died in the middle of it: its
        next attempt is made alone.
        """
        party = watch.party
        assert party is not None
        with ExitStack() as stack:
            mates = stack.enter_context(_gathered(party, watch, self.meet_s, self.together))
            if len(mates) < party.size - 1:
                log.info("%s: %d of %d GPUs came together; it is made alone", watch.label, len(mates) + 1, party.size)
                return None
            meeting = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reelray-party-"))) / "meeting")
            for mate in mates:
                mate.say(Meet(meeting=meeting))
                mate.say(Call(number=NUMBER, task=task, take=take, label=watch.label))
            frames: UInt8Array | None = None
            failure: Exception | None = None
            try:
                self.together.join(party.size, party.rank, meeting)
                frames = painter.generate(take, progress_callback=callback, watch=replace(
                    watch, cancel=_Decision(mates, watch), deadline=NEVER, party=None, resume=None,
                    checkpoint_every=0, checkpoint_due=None, on_checkpoint=None))
            except Exception as error:  # noqa: BLE001 - judged below, when the others have been told
                failure = error
            self._part(mates, failure)
            if failure is None:
                watch.shared(party.size)
                return frames
            raise_or_note(failure, mates, self.problem(), watch.label)
        return None

    def _part(self, mates: list[Mate], failure: Exception | None) -> None:
        """End the call on all: after a success in peace, after a failure so that nobody waits for anybody."""
        for mate in mates:
            mate.say(Go(number=NUMBER, verdict=Verdict.FREE if failure is None else Verdict.STOP))
            mate.is_needed = False
        if failure is None:
            _wait(mates)
        else:
            traceback.clear_frames(failure.__traceback__)  # what they hold keeps the group's connections open
        self.together.leave(broken=failure is not None)
        if failure is not None:
            _wait(mates)


def raise_or_note(failure: Exception, mates: list[Mate], problem: str, label: str) -> None:
    """What a call that failed in company comes to; returns when it may be tried alone, here and now."""
    if isinstance(failure, RenderCancelled | DeadlineExceeded):
        raise failure
    if problem or any(mate.died for mate in mates):
        raise Overloaded(node_id=label, reason="a replica that helped with this call is gone")
    theirs = next((mate.report.error for mate in mates if mate.report and mate.report.error), None)
    log.warning("%s: failed on several GPUs, and is made alone: %s: %s", label,
                type(theirs or failure).__name__, str(theirs or failure)[:300])


class Mate:
    """One helper, seen from rank 0."""

    def __init__(self, link: Connection, together: Together) -> None:
        self._link = link
        self._together = together
        self._over = threading.Event()
        self.is_needed = True
        """The call still needs it."""
        self.report: Report | None = None
        """Its last word."""
        self._thread = threading.Thread(target=self._listen, name="mate", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it takes no part in the call any more."""
        return self._over.is_set()

    @property
    def died(self) -> bool:
        """It went without a last word."""
        return self.is_over and self.report is None

    def say(self, message: Meet | Call | Go) -> None:
        """Send; one that is gone is noticed by who listens to it."""
        try:
            self._link.send(message)
        except OSError:
            log.debug("a helper hears nothing any more")

    def wait(self, patience_s: float) -> None:
        """For its last word."""
        self._over.wait(patience_s)

    def close(self) -> None:
        """Hang up; it leaves at its next point."""
        shut(self._link)

    def _listen(self) -> None:
        try:
            self.report = self._link.recv()
        except (EOFError, OSError):
            self.report = None
        self._over.set()
        if not gone_within(GRACE_S, lambda: not self.is_needed):
            self._together.break_off("a replica that helped with the running call is gone")


def gone_within(patience_s: float, over: Callable[[], bool]) -> bool:
    """Whether it is over before so many seconds have passed."""
    end_s = time.monotonic() + patience_s
    while not over():
        if time.monotonic() > end_s:
            return False
        time.sleep(LOOK_S)
    return True


def shut(link: Connection) -> None:
    """End a connection so that whoever reads from it, here or there, hears of it."""
    with socket.socket(fileno=os.dup(link.fileno())) as end:
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the other side was faster")


def _wait(mates: list[Mate]) -> None:
    end_s = time.monotonic() + GRACE_S
    for mate in mates:
        mate.wait(max(end_s - time.monotonic(), 0.0))


@contextmanager
def _gathered(party: Party, watch: Watch, meet_s: float, together: Together) -> Iterator[list[Mate]]:
    """Those who came within `meet_s`. All that did are sent home at the end. Raises what the watch raises."""
    mates: list[Mate] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(address_of(party))
            door.listen(party.size)
            door.settimeout(LOOK_S)
            end_s = time.monotonic() + meet_s
            while len(mates) < party.size - 1 and time.monotonic() < end_s:
                watch.check()
                try:
                    guest, _ = door.accept()
                except TimeoutError:
                    continue
                guest.settimeout(None)
                link = Connection(guest.detach())
                if _knows(link, party):
                    mates.append(Mate(link, together))
        yield mates
    finally:
        for mate in mates:
            mate.is_needed = False
            mate.close()


def _knows(link: Connection, party: Party) -> bool:
    """Whether who came was asked: it says the party's id, and nothing else is read before it has."""
    try:
        if link.poll(1.0) and hmac.compare_digest(link.recv_bytes(256), party.id.encode()):
            return True
    except (EOFError, OSError):
        log.debug("somebody came and went")
    link.close()
    return False


class _Decision(CancelToken):
    """Read by the tap between two steps: decides for the whole party, and tells it."""

    __slots__ = ("_mates", "_watch")

    def __init__(self, mates: list[Mate], watch: Watch) -> None:
        super().__init__()
        self._mates = mates
        self._watch = watch

    @property
    def is_set(self) -> bool:
        """False; raises what ends the call. The others are told when the error arrives in `Parties.lead`."""
        if any(mate.is_over for mate in self._mates):
            raise ConnectionError("a helper has left the call")
        self._watch.check()
        for mate in self._mates:
            mate.say(Go(number=NUMBER, verdict=Verdict.ON))
        return False


class PartyPainter:
    """One task of an elastic replica: in company where the watch names one that comes, else alone."""

    def __init__(self, painter: Painter, task: Task, parties: Parties) -> None:
        self.alone = painter
        """The painter itself."""
        self._task = task
        self._parties = parties
        self._asked = ""
        """The last party that was waited for; a call that is tried again waits for none."""

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Why the take would be refused; empty when it would not."""
        return self.alone.problems(take)

    def warnings(self, take: Take) -> tuple[str, ...]:
        """What of the take will not be seen in the result."""
        return self.alone.warnings(take)

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """As the painter does."""
        if watch.party is not None and watch.party.id != self._asked:
            self._asked = watch.party.id
            frames = self._parties.lead(self.alone, self._task, take, progress_callback, watch)
            if frames is not None:
                return frames
            free_memory()
            watch.check()
        return self.alone.generate(take, progress_callback=progress_callback, watch=replace(watch, party=None))
