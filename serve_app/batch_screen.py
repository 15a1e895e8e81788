"""What `reelray batch` shows: a bar on a terminal, lines in a log, JSON lines for machines. Knows BatchViews only."""

from __future__ import annotations

import time
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from serve_app.screen import JsonLines, eta_text
from serve_app.service.batch_view import BatchView, FilmView
from workflows.durable.batch_rules import BatchStatus, Held
from workflows.types import JobStatus

LINE_INTERVAL_S = 10.0
"""A plain log gets a line on the whole at most this often."""
SHOWN_RUNNING = 12
"""Films with a line of their own on a terminal."""
HELD_BECAUSE = {Held.PAUSED: "paused", Held.BUDGET: "its GPU-seconds are used up"}


class BatchScreen(Protocol):
    """Shows a batch while it runs."""

    def note(self, text: str) -> None:
        """One line that stays."""

    def show(self, view: BatchView) -> None:
        """The batch as it is now."""

    def close(self) -> None:
        """The last view was shown."""


def counted(view: BatchView) -> str:
    """`12 of 300 films, 2 failed`; what is not there is not said."""
    total = sum(view.jobs.values())
    told = [f"{view.jobs.get(JobStatus.SUCCEEDED, 0)} of {total} films"]
    told += [f"{view.jobs[status]} {status.value}" for status in (JobStatus.PARTIAL, JobStatus.FAILED,
                                                                  JobStatus.CANCELLED) if view.jobs.get(status)]
    return ", ".join(told)


def left(view: BatchView) -> str:
    """`~ 2:05 left`, or why nothing starts, or nothing."""
    if view.status is BatchStatus.PAUSED:
        running = f", {view.running_nodes} nodes finish" if view.running_nodes else ""
        return f"{HELD_BECAUSE.get(view.held, view.held.value)}{running}"
    return eta_text(view.eta.p50_s if view.eta else None)


class LiveBatch:
    """One bar for all, one per film that runs."""

    def __init__(self, console: Console) -> None:
        """Takes over the bottom of the terminal until `close`."""
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(Text(text, style="dim"))

    def show(self, view: BatchView) -> None:
        """Redraw."""
        whole, films = Table.grid(padding=(0, 1)), Table.grid(padding=(0, 1))
        whole.add_row(Text(view.name, style="bold"), ProgressBar(total=1.0, completed=view.progress, width=30),
                      f"{view.progress:6.1%}", Text(counted(view), style="dim"), left(view))
        running = [film for film in view.films if film.status is JobStatus.RUNNING]
        for film in running[:SHOWN_RUNNING]:
            films.add_row(Text("▶", style="cyan"), Text(film.file),
                          ProgressBar(total=1.0, completed=film.progress, width=20), f"{film.progress:6.1%}")
        more = len(running) - SHOWN_RUNNING
        self._live.update(Group(whole, films, *([Text(f"  and {more} more", style="dim")] if more > 0 else [])))

    def close(self) -> None:
        """Leave the last picture on the terminal."""
        self._live.stop()


class PlainBatch:
    """One line per film that ends, and one on the whole now and then."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._ended: dict[str, JobStatus] | None = None
        self._told_s = 0.0

    def note(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def show(self, view: BatchView) -> None:
        """What ended since the last look; not what had ended before the first."""
        ended = {film.file: film.status for film in view.films if film.status.is_terminal}
        for film in view.films if self._ended is not None else ():
            if film.file in ended and (self._ended or {}).get(film.file) is not film.status:
                self.note(f"{view.progress:6.1%}  {line_of(film)}")
        self._ended = ended
        if not view.status.is_terminal and time.monotonic() - self._told_s >= LINE_INTERVAL_S:
            self._told_s = time.monotonic()
            self.note(f"{view.progress:6.1%}  {' · '.join(part for part in (counted(view), left(view)) if part)}")

    def close(self) -> None:
        """Nothing to do."""


class JsonBatch(JsonLines):
    """One JSON object per line: `{"event": "note" | "batch", ...}`."""

    def show(self, view: BatchView) -> None:
        """`{"event": "batch", "batch": {...}}`, when anything changed."""
        self._news("batch", view.to_json())

    def result(self, view: BatchView, paths: dict[str, str]) -> None:
        """`{"event": "result", "status": ..., "paths": {file: film}, "batch": {...}}`, last."""
        self._write({"event": "result", "status": view.status.value, "paths": {**paths}, "batch": view.to_json()})


def line_of(film: FilmView) -> str:
    """How a film stands, with its reason."""
    return f"{film.file}: {film.status.value}" + (f": {film.error}" if film.error else "")
