"""One further process of a replica that several GPUs share: loads what rank 0 loads, makes every call that it makes.

Started by `serve_app.models.crew`, over a socket pair whose end is this process's end: it never outlives rank 0.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection

import torch
from diffusers import DiffusionPipeline

from configs.model_card import ModelCard, Task
from serve_app.models import pipelines
from serve_app.models.context_parallel import join_group, share_out
from serve_app.models.crew_wire import LOADED, MET, Call, Enlist, Go, Meet, Orders, Report, Verdict, portable
from serve_app.models.lifecycle import free_memory
from serve_app.models.studio import Painter, open_studio
from serve_app.models.tap import Watch, unheard
from workflows.errors import RenderCancelled

log = logging.getLogger(__name__)


class Inbox:
    """Rank 0's messages in order. When rank 0 is gone, this process ends on the spot, whatever it is doing."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._messages: queue.SimpleQueue[Meet | Call | Go] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def meet(self) -> Meet:
        """Wait for the meeting."""
        while not isinstance(message := self._messages.get(), Meet):
            pass
        return message

    def call(self) -> Call:
        """Wait for the next call; what belonged to the last one is dropped."""
        while not isinstance(message := self._messages.get(), Call):
            pass
        return message

    def verdict(self, number: int) -> Verdict:
        """Wait for what rank 0 says at this point of the call."""
        while True:
            message = self._messages.get()
            if isinstance(message, Go) and message.number == number:
                return message.verdict

    def _listen(self) -> None:
        try:
            while True:
                self._messages.put(self._link.recv())
        except (EOFError, OSError):
            os._exit(0)  # the main thread may be inside a collective that nobody will answer any more


def serve(link: Connection) -> None:
    """Load, join, and then one call after the other, until the process ends."""
    enlist: Enlist = link.recv()
    inbox = Inbox(link)
    torch.set_num_threads(enlist.threads)
    if enlist.device != "cpu":
        torch.cuda.set_device(enlist.device)
    studio, pipes = _loaded(enlist)
    link.send(Report(number=LOADED))
    parallel = enlist.card.parallel
    assert parallel is not None
    join_group(parallel, enlist.device, enlist.rank, meeting=inbox.meet().meeting, stall_s=enlist.stall_s)
    share_out(pipes, parallel, enlist.device, enlist.rank)
    link.send(Report(number=MET))
    while True:
        call = inbox.call()
        error = _perform(studio, call, inbox, enlist.rank)
        link.send(Report(number=call.number, error=error))
        if error is not None:
            free_memory()


def _loaded(enlist: Enlist) -> tuple[Mapping[Task, Painter], list[DiffusionPipeline]]:
    pipes: list[DiffusionPipeline] = []

    def load(card: ModelCard, task: Task, device: str, components: Mapping[str, object] | None = None,
             ) -> DiffusionPipeline:
        pipes.append(pipelines.load(card, task, device, components))
        return pipes[-1]

    return open_studio(enlist.card, enlist.device, load), pipes


def _perform(studio: Mapping[Task, Painter], call: Call, inbox: Inbox, rank: int) -> Exception | None:
    """The call's error, if it is one of this process's own."""
    try:
        studio[call.task].generate(call.take, progress_callback=unheard,
                                   watch=Watch(label=call.label, cancel=Orders(partial(inbox.verdict, call.number))))
    except RenderCancelled:
        return None
    except Exception as error:
        log.exception("%s: failed", call.label)
        return portable(error, rank)
    return None


def main(descriptor: int) -> None:
    """The process. An error before the first call is reported like any other."""
    logging.basicConfig(format=f"%(levelname)s process {os.getpid()}: %(message)s")
    link = Connection(descriptor)
    try:
        serve(link)
    except Exception as error:
        log.exception("a process of a replica on several GPUs ends")
        link.send(Report(number=LOADED, error=portable(error, os.getpid())))


if __name__ == "__main__":
    main(int(sys.argv[1]))
