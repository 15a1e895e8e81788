"""When Serve has decided to end a replica: told while its calls still run. Knows Ray, no model.

Serve waits for a stopped replica's calls, for as long as `graceful_shutdown_timeout_s`, and tells its class only after
that (`__del__`). A clip in the making wants to know before. The replica's own actor, in this process, has a flag; Ray
2.60 shows it nowhere else, so it is read there. Where a later Ray has none, calls are finished instead of handed over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ray._private.worker import global_worker

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often; one attribute is read."""


def is_stopping() -> bool:
    """Whether this process is a replica that Serve is ending. Raises AttributeError where Ray keeps that elsewhere."""
    return any(bool(actor._replica_impl._shutting_down) for actor in list(global_worker.actors.values()))


def when_stopping(tell: Callable[[], object], stopping: Callable[[], bool] = is_stopping, *, look_s: float = LOOK_S,
                  ) -> threading.Thread:
    """Call `tell()` once, from a thread of its own, when the replica around this process is to end."""

    def look() -> None:
        waiting = threading.Event()  # never set; a plain sleep, but one that ends with the process
        while True:
            waiting.wait(look_s)
            try:
                if stopping():
                    break
            except AttributeError as error:
                log.warning("calls will be finished, not handed over, when this replica is stopped: %s", error)
                return
        log.info("the replica is being stopped: calls are handed over")
        tell()

    thread = threading.Thread(target=look, name="leaving", daemon=True)
    thread.start()
    return thread
