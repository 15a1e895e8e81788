"""`reelray serve`: HTTP, models and Director on this machine until stopped; every open job of the database goes on."""

from __future__ import annotations

import queue
import signal
import sys
from collections.abc import Callable

from serve_app.log_lines import JobLog, LogScreen, log_in_json
from serve_app.screen import Screen
from serve_app.session import Session
from serve_app.workplace import Workplace
from workflows.durable.database import is_down
from workflows.durable.keys import Keys
from workflows.durable.overview import Overview
from workflows.durable.rows import JobRow
from workflows.errors import InvalidSettings

LOOK_S = 0.5
SHOWN_JOBS = 200
"""Newest jobs whose changes are told."""


def serve_until_stopped(place: Workplace, screen: Screen) -> None:
    """Start everything and tell how jobs move; Ctrl-C hands running work back and returns.

    Raises InvalidSettings when keys are needed and there are none.
    """
    require_keys(place)
    if place.settings.log_format == "json":
        screen = LogScreen(sys.stdout)
        log_in_json(sys.stdout)
    session = Session(place.settings, only=(), http=True)
    # A handler runs in the midst of the wait: an Event that it sets would wait there for its own lock.
    stops: queue.SimpleQueue[int] = queue.SimpleQueue()
    signal.signal(signal.SIGINT, lambda number, _: stops.put(number))
    signal.signal(signal.SIGTERM, lambda number, _: stops.put(number))
    try:
        if session.dashboard:
            screen.note(f"Ray dashboard: http://{session.dashboard}")
        for line in session.shares:
            screen.note(line)
        screen.note(f"serving at {place.settings.http.url}")
        screen.note("ready; Ctrl-C stops, and what is unfinished goes on at the next start")
        known: dict[str, JobRow] = {}
        history = JobLog(Overview(place.ledger.database), sys.stdout)
        in_json = place.settings.log_format == "json"
        telling = Telling(history.tell if in_json else lambda: _tell_changes(place, screen, known), screen.note)
        while not _came(stops):
            telling.look()
    finally:
        session.close()


class Telling:
    """Tells what is new in the database; while that is away it says so once, and waits as the Director does."""

    def __init__(self, tell: Callable[[], object], note: Callable[[str], object]) -> None:
        """`tell` reads the database and says what is new; `note` takes a line for people."""
        self._tell = tell
        self._note = note
        self._is_away = False

    def look(self) -> None:
        """Once. Raises what `tell` raises, unless it is that the database cannot be reached."""
        try:
            self._tell()
        except Exception as error:
            if not is_down(error):
                raise
            if not self._is_away:
                self._note("the database is away; jobs go on when it is back")
            self._is_away = True
            return
        if self._is_away:
            self._note("the database is back")
        self._is_away = False


def _came(stops: queue.SimpleQueue[int]) -> bool:
    try:
        stops.get(timeout=LOOK_S)
    except queue.Empty:
        return False
    return True


def require_keys(place: Workplace) -> None:
    """Refuse to serve where every request would be refused. Raises InvalidSettings."""
    http = place.settings.http
    if http.needs_keys and all(key.revoked_at_s for key in Keys(place.ledger.database).all()):
        raise InvalidSettings(problem=(
            f"http.host {http.host} asks for API keys, and there are none; make one with `reelray keys create NAME "
            "--role admin`, or serve on http.host=127.0.0.1, or say http.allow_unauthenticated=true: then whoever "
            "reaches the port renders, reads and deletes"))


def _tell_changes(place: Workplace, screen: Screen, known: dict[str, JobRow]) -> None:
    for job in place.ledger.jobs(limit=SHOWN_JOBS).jobs:
        before = known.get(job.id)
        if (before is None and not job.status.is_terminal) or (before is not None and before.status is not job.status):
            screen.note(f"{job.id}: {job.status.value}")
        known[job.id] = job
