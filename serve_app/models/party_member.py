"""A replica that helps with another one's call: comes, makes the same call, goes. Knows no job, no Ray."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

from configs.model_card import Task
from serve_app.models.crew_wire import Call, Go, Meet, Orders, Report, Verdict, portable
from serve_app.models.lifecycle import CancelToken, free_memory
from serve_app.models.party import GRACE_S, LOOK_S, Parties, PartyPainter, Together, address_of, gone_within, shut
from serve_app.models.studio import Painter
from serve_app.models.tap import Watch, unheard
from workflows.errors import RenderCancelled
from workflows.ports import Party

log = logging.getLogger(__name__)


def assist(party: Party, studio: Mapping[Task, Painter], parties: Parties, *, cancel: CancelToken,
           beat: Callable[[], None]) -> None:
    """On the GPU thread: help with the party's call. Returns also when there was none to help with."""
    link = _come(party, parties.meet_s, cancel)
    if link is None:
        log.info("party %s: nobody to help", party.id[:8])
        return
    with link:
        try:
            meet, call = link.recv(), link.recv()
        except (EOFError, OSError):
            return  # it is made alone
        assert isinstance(meet, Meet)
        assert isinstance(call, Call)
        inbox = _Inbox(link, parties.together)
        painter = studio[call.task]
        assert isinstance(painter, PartyPainter)
        error = _perform(painter.alone, call, party, meet.meeting, inbox, parties.together, beat)
        inbox.is_over = True
        try:
            link.send(Report(number=call.number, error=error))
        except OSError:
            log.debug("party %s: rank 0 is gone", party.id[:8])
        shut(link)
        inbox.join()
    if error is not None:
        free_memory()


def _come(party: Party, patience_s: float, cancel: CancelToken) -> Connection | None:
    """To where rank 0 waits; None when it does not, or nobody is wanted any more."""
    end_s = time.monotonic() + patience_s
    while time.monotonic() < end_s and not cancel.is_set:
        way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            way.connect(address_of(party))
        except OSError:
            way.close()
            time.sleep(LOOK_S)
            continue
        link = Connection(way.detach())
        try:
            link.send_bytes(party.id.encode())
        except OSError:
            link.close()
            continue
        return link
    return None


def _perform(painter: Painter, call: Call, party: Party, meeting: str, inbox: _Inbox, together: Together,  # noqa: PLR0913
             beat: Callable[[], None]) -> Exception | None:
    """The call's error, if it is one of this replica's own."""
    own: Exception | None = None
    ended = False
    try:
        together.join(party.size, party.rank, meeting)
        painter.generate(call.take, progress_callback=unheard,
                         watch=Watch(label=call.label, cancel=Orders(inbox.verdict), beat=beat))
        ended = True
    except RenderCancelled:
        log.info("%s: stopped with the replica that was helped", call.label)
    except Exception as error:
        log.exception("%s: failed while helping", call.label)
        own = portable(error, party.rank)
    together.leave(broken=not ended)
    return own


class _Inbox:
    """Rank 0's verdicts in order, and what to do when there will be no more of them."""

    def __init__(self, link: Connection, together: Together) -> None:
        self._link = link
        self._together = together
        self._verdicts: queue.SimpleQueue[Verdict | None] = queue.SimpleQueue()
        self.is_over = False
        """This replica has made its call, or left it."""
        self._thread = threading.Thread(target=self._listen, name="inbox", daemon=True)
        self._thread.start()

    def verdict(self) -> Verdict:
        """Wait for what rank 0 says at this point. Raises ConnectionError when it is gone."""
        verdict = self._verdicts.get()
        if verdict is None:
            self._verdicts.put(None)
            raise ConnectionError("the replica that was helped is gone")
        return verdict

    def join(self) -> None:
        """Wait for the thread; the connection must have been shut."""
        self._thread.join()

    def _listen(self) -> None:
        last = Verdict.ON
        try:
            while last is Verdict.ON:
                message: Go = self._link.recv()
                last = message.verdict
                self._verdicts.put(last)
        except (EOFError, OSError):
            self._verdicts.put(None)
        if last is not Verdict.FREE and not gone_within(GRACE_S, lambda: self.is_over):
            self._together.break_off("the replica that was helped has left the running call")
