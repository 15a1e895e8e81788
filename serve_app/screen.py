"""What `render` shows: live bars on a terminal, plain lines in a log, JSON lines for machines. Knows JobViews only."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from serve_app.edit_rows import EDIT, edit_rows
from workflows.status import JobView, NodeView, ShotView
from workflows.tiers import Tier
from workflows.types import JobStatus, Json, NodeStatus, ProgressRecord

LINE_INTERVAL_S = 2.0
"""A plain log gets at most one line per running shot in this time."""

MARKS = {
    NodeStatus.SUCCEEDED: ("✓", "green"), NodeStatus.FAILED: ("✗", "red"), NodeStatus.SKIPPED: ("-", "yellow"),
    NodeStatus.CANCELLED: ("■", "yellow"), NodeStatus.RUNNING: ("▶", "cyan"), NodeStatus.PENDING: ("·", "dim"),
}


class Screen(Protocol):
    """Shows a job while it runs."""

    def note(self, text: str) -> None:
        """One line that stays: what is being started, what is odd."""

    def show(self, view: JobView) -> None:
        """The job as it is now."""

    def step(self, record: ProgressRecord) -> None:
        """One moment of one running node; every one of them, where `show` has the newest."""

    def close(self) -> None:
        """The last view was shown."""


class Clock:
    """Remaining time from the share that is done: honest only while the pace is steady."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int], tuple[float, float]] = {}

    def remaining_s(self, name: str, attempt: int, fraction: float) -> float | None:
        """Seconds left of something that is `fraction` (0..1) done; None before anything was seen to move."""
        now = time.monotonic()
        start_s, start_fraction = self._first.setdefault((name, attempt), (now, fraction))
        moved = fraction - start_fraction
        return (now - start_s) / moved * (1 - fraction) if moved > 0.01 else None


def eta_text(remaining_s: float | None) -> str:
    """`~ 2:05 left`, or nothing."""
    if remaining_s is None:
        return ""
    minutes, seconds = divmod(round(remaining_s), 60)
    return f"~ {minutes}:{seconds:02} left"


class LiveScreen:
    """One bar for the film, one per running shot, a mark for each of the others."""

    def __init__(self, console: Console) -> None:
        """Takes over the bottom of the terminal until `close`."""
        self._console = console
        self._clock = Clock()
        self._live = Live(console=console, refresh_per_second=8, transient=False)
        self._live.start()

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(Text(text, style="dim"))

    def show(self, view: JobView) -> None:
        """Redraw."""
        self._live.update(Group(self._header(view), self._shots(view)))

    def step(self, record: ProgressRecord) -> None:
        """Nothing: the bars show the newest step."""

    def close(self) -> None:
        """Leave the last picture on the terminal."""
        self._live.stop()

    def _header(self, view: JobView) -> RenderableType:
        left = eta_text(None if view.status.is_terminal else
                        self._clock.remaining_s("film", 0, view.progress))
        grid = Table.grid(padding=(0, 1))
        where = Text(f"{view.status.value} · {view.stage.value}", style="dim")
        grid.add_row(Text(view.title or view.id, style="bold"),
                     ProgressBar(total=1.0, completed=view.progress, width=30), f"{view.progress:6.1%}", where, left)
        return grid

    def _shots(self, view: JobView) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        for name, node, status, progress, alike in _rows(view):
            mark, style = MARKS[status]
            left = ""
            if status is NodeStatus.RUNNING:
                left = eta_text(self._clock.remaining_s(node.id, node.attempt, node.progress))
            detail = Text(_detail(node, status, alike), style="dim" if status is not NodeStatus.FAILED else "red")
            grid.add_row(Text(mark, style=style), name, ProgressBar(total=1.0, completed=progress, width=20), detail,
                         left)
        return grid


class PlainScreen:
    """One line per change, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._shown: dict[str, tuple[NodeStatus, str, float]] = {}

    def note(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def show(self, view: JobView) -> None:
        """Lines for the shots whose status or score changed, and now and then for those that run."""
        for name, node, status, progress, alike in _rows(view):
            old, told, at_s = self._shown.get(name, (NodeStatus.PENDING, "", 0.0))
            now = time.monotonic()
            due = status is NodeStatus.RUNNING and progress > 0 and now - at_s >= LINE_INTERVAL_S
            scored = status is NodeStatus.SUCCEEDED and alike != told
            if status is not old or due or scored:
                self._shown[name] = (status, alike, now)
                self.note(f"{view.progress:6.1%}  {name}: {_detail(node, status, alike) or status.value}")

    def step(self, record: ProgressRecord) -> None:
        """Nothing: a log of every step is what `--json` is for."""

    def close(self) -> None:
        """Nothing to do."""


class JsonLines:
    """One JSON object per line, each with its `event`."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._last: dict[str, Json] = {}

    def note(self, text: str) -> None:
        """`{"event": "note", "message": ...}`."""
        self._write({"event": "note", "message": text})

    def close(self) -> None:
        """Nothing to do."""

    def _news(self, event: str, data: dict[str, Json]) -> None:
        """`{"event": EVENT, EVENT: {...}}`, when anything changed."""
        if data != self._last:
            self._last = data
            self._write({"event": event, event: data})

    def _write(self, value: dict[str, Json]) -> None:
        print(json.dumps(value, ensure_ascii=False), file=self._stream, flush=True)


class JsonScreen(JsonLines):
    """One JSON object per line: `{"event": "note" | "job" | "step", ...}`."""

    def show(self, view: JobView) -> None:
        """`{"event": "job", "job": {...}}`, when anything changed."""
        self._news("job", view.to_json())

    def step(self, record: ProgressRecord) -> None:
        """`{"event": "step", "node": ..., "step": ..., "total_steps": ..., "timestep": ..., ...}`, none left out."""
        self._write({"event": "step", "node": record.node_id, "shot": record.shot_id, "attempt": record.attempt,
                     "phase": record.phase.value, "step": record.step, "total_steps": record.total_steps,
                     "timestep": record.timestep, "progress": round(record.fraction, 4)})

    def result(self, view: JobView, path: Path | None) -> None:
        """`{"event": "result", "status": ..., "path": ..., "job": {...}}`, last."""
        self._write({"event": "result", "status": view.status.value, "path": str(path) if path else None,
                     "job": view.to_json()})


def _rows(view: JobView) -> list[tuple[str, NodeView, NodeStatus, float, str]]:
    """What to show, in film order: shots, then the nodes of the whole film; of an edit its stages."""
    if view.kind == EDIT:
        return edit_rows(view)
    rows = [(f"{shot.id} (draft)" if shot.tier is Tier.DRAFT else shot.id, shot.current, shot.status, shot.progress,
             _alike(shot)) for shot in view.shots]
    return rows + [(node.id, node, node.status, node.progress, "") for node in view.film]


def _alike(shot: ShotView) -> str:
    """`, consistency 0.87 (take 2 of 3)`; empty where nobody measured."""
    if shot.consistency is None:
        return ""
    chosen = f" (take {shot.take} of {len(shot.scores)})" if shot.take and len(shot.scores) > 1 else ""
    return f", consistency {shot.consistency:.2f}{chosen}"


def _detail(node: NodeView, status: NodeStatus, alike: str = "") -> str:
    kind = node.kind.value
    if node.message:
        attempt = f" (attempt {node.attempt})" if node.attempt > 1 else ""
        return f"{kind}: {node.message}{attempt}"
    if status is NodeStatus.SUCCEEDED:
        return ("reused" if node.cached else f"{kind} done in {node.seconds:.1f} s") + alike
    return f"{kind} {status.value}" if status is not NodeStatus.PENDING else ""


def summary(view: JobView) -> str:
    """One sentence on how it ended."""
    shots = len(view.shots)
    good = sum(shot.status is NodeStatus.SUCCEEDED for shot in view.shots)
    reused = sum(node.cached for shot in view.shots for node in shot.nodes)
    took = (view.finished_at_s or 0) - (view.started_at_s or 0)
    made = (f"pictures of {shots} shots", f"pictures of {good} of {shots} shots") if view.pictures else (
        f"film of {shots} shots", f"film with {good} of {shots} shots")
    if view.kind == EDIT:
        made = ("edited video", "edited video, without all that belongs beside it")
    text = {JobStatus.SUCCEEDED: made[0], JobStatus.PARTIAL: made[1],
            JobStatus.FAILED: "nothing to show", JobStatus.CANCELLED: "cancelled"}.get(view.status, view.status.value)
    return f"{text}, {took:.1f} s" + (f", {reused} steps of the plan reused" if reused else "")
