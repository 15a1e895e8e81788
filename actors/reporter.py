"""Reporter: carries a replica's progress to the ProgressActor without ever slowing or failing a denoising step.

The GPU thread appends to a dictionary of short queues; one daemon thread sends what has gathered, at most once per
interval and with one call in flight. A dead or restarted actor costs nothing but a second or two of silence.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from actors.progress import Receipt
from workflows.types import Phase, ProgressRecord

log = logging.getLogger(__name__)

QUEUE_LIMIT = 512
"""Records kept per node between two sends; older ones are dropped first (an observer then sees a gap, never a stop)."""


class Transport(Protocol):
    """How a batch reaches the board."""

    def send(self, records: list[ProgressRecord]) -> Receipt:
        """Deliver a batch and return the receipt. May raise anything; may block for seconds."""


class Reporter:
    """One per replica process. `update` costs about a microsecond, never raises, never blocks."""

    def __init__(self, transport: Transport, *, flush_s: float, on_cancelled: Callable[[str], None]) -> None:
        """Start the sending thread; it calls `on_cancelled(job_id)` when the board says that a job was cancelled."""
        self._transport = transport
        self._flush_s = flush_s
        self._on_cancelled = on_cancelled
        self._lock = threading.Lock()
        self._fresh: dict[tuple[str, str], deque[ProgressRecord]] = {}
        self._live: dict[tuple[str, str], ProgressRecord] = {}
        self._epoch = ""
        self._urgent = threading.Event()
        self._closed = False
        self._silent = False
        self._thread = threading.Thread(target=self._loop, name="reporter", daemon=True)
        self._thread.start()

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        """Hand over the newest record of a node."""
        key = (record.job_id, record.node_id)
        with self._lock:
            self._fresh.setdefault(key, deque(maxlen=QUEUE_LIMIT)).append(record)
            if record.phase is Phase.DONE:
                self._live.pop(key, None)
            else:
                self._live[key] = record
        if urgent:
            self._urgent.set()

    def end(self, job_id: str, node_id: str) -> None:
        """The node no longer runs here, whatever became of it."""
        with self._lock:
            self._live.pop((job_id, node_id), None)

    def close(self) -> None:
        """Send what is left and stop."""
        self._closed = True
        self._urgent.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._closed:
            self._urgent.wait(self._flush_s)
            self._urgent.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            batch = [record for queue in self._fresh.values() for record in queue]
            # A running call that has nothing new to say still asks whether its job was cancelled.
            quiet = [record for key, record in self._live.items() if key not in self._fresh]
            self._fresh.clear()
        if batch or quiet:
            self._deliver(batch + quiet)

    def _deliver(self, batch: list[ProgressRecord]) -> None:
        try:
            receipt = self._transport.send(batch)
            if self._epoch and receipt.epoch != self._epoch:  # the board restarted empty: tell it what is live
                with self._lock:
                    live = list(self._live.values())
                receipt = self._transport.send(live) if live else receipt
        except Exception as error:  # noqa: BLE001 - progress is soft state: whatever goes wrong, the render goes on
            if not self._silent:
                log.warning("progress is not delivered for now: %s: %s", type(error).__name__, error)
            self._silent = True
            return
        self._silent = False
        self._epoch = receipt.epoch
        for job_id in receipt.cancelled:
            self._on_cancelled(job_id)
