"""A job of a server as it is now, kept up by its events. Knows the client, and what is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from serve_app.client import ApiError, Client, Event, ServerAway
from serve_app.client_errors import NOT_REELRAY
from serve_app.screen import Screen
from workflows.progress import UNFINISHED_CEILING
from workflows.status import JobView
from workflows.types import NodeStatus, Phase, ProgressRecord

FRESH_S = 0.25
"""The server's replies may be 0.2 s old: sooner after an event they may not know of it."""
IDLE_S = 5.0
"""A job of which nothing is heard is looked at this often."""


def heard(events: Iterator[Event], quiet_s: float) -> Iterator[Event | None]:
    """The events as they come, and None whenever none came for `quiet_s`. They are listened to on another thread, so
    that this one stays free; what goes wrong there is raised here.
    """
    news: SimpleQueue[Event | BaseException | None] = SimpleQueue()

    def listen() -> None:
        try:
            for event in events:
                news.put(event)
            news.put(None)
        except BaseException as error:  # noqa: BLE001 - raised on the other side
            news.put(error)

    threading.Thread(target=listen, name="events", daemon=True).start()
    while True:
        try:
            found = news.get(timeout=quiet_s)
        except Empty:
            yield None
            continue
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found


class Mirror:
    """One job. A step changes what is shown at once; after everything else the job is asked for again."""

    def __init__(self, client: Client, job_id: str, screen: Screen) -> None:
        """`client` must not wait for a server that is away: the events do."""
        self._client = client
        self._job_id = job_id
        self._screen = screen
        self._job: dict[str, Any] | None = None
        self._records: dict[str, ProgressRecord] = {}
        self._progress = 0.0
        self._is_away = False
        self._looked_s = self._changed_s = float("-inf")

    def take(self, event: Event | None) -> None:
        """Something was heard, or nothing for a moment."""
        record = None if event is None else step_of(self._job_id, event)
        if event is not None and record is None:
            self._changed_s = time.monotonic()
        elif event is not None and record is not None and self._records.get(record.node_id) != record:
            self._records[record.node_id] = record
            self._progress = max(self._progress, float(event.data.get("progress", 0.0)))
            self._screen.step(record)
            self._show()
        now_s = time.monotonic()
        if (self._looked_s <= self._changed_s <= now_s - FRESH_S) or now_s - self._looked_s >= IDLE_S:
            self.look()

    def look(self) -> JobView | None:
        """Ask for the job and show it; None while the server is away. Raises ApiError."""
        self._looked_s = time.monotonic()
        try:
            self._job = self._client.job(self._job_id)
        except (ServerAway, ApiError) as error:
            if isinstance(error, ApiError) and not (error.passes or error.status >= 500 or error.code == NOT_REELRAY):
                raise
            if not self._is_away:
                self._screen.note("the server does not answer; the job goes on there, trying again ...")
            self._is_away = True
            return None
        if self._is_away:
            self._screen.note("the server answers again")
        self._is_away = False
        return self._show()

    def _show(self) -> JobView | None:
        if self._job is None:
            return None
        view = JobView.from_json(with_steps(self._job, self._records, self._progress))
        self._progress = view.progress
        self._screen.show(view)
        return view


def step_of(job_id: str, event: Event) -> ProgressRecord | None:
    """The step of a running node that an event tells of, if it does."""
    data: Mapping[str, Any] = event.data["shot"] if event.name == "shot_update" else event.data
    if event.name not in ("shot_update", "progress") or not data.get("phase"):
        return None
    is_shot = event.name == "shot_update"
    return ProgressRecord(
        job_id=job_id, node_id=data["node"], shot_id=data["id"] if is_shot else "", attempt=data["attempt"], n=0,
        phase=Phase(data["phase"]), step=data["step" if is_shot else "current"], timestep=data["timestep"], at_s=0.0,
        total_steps=data["total_steps" if is_shot else "total"], fraction=data["node_progress"])


def with_steps(job: Mapping[str, Any], records: Mapping[str, ProgressRecord], floor: float) -> dict[str, Any]:
    """A job's reply with the steps that it does not know yet; `floor` is the progress shown before (0..1)."""
    shots = [{**shot, "nodes": [_with_step(node, records) for node in shot["nodes"]]} for shot in job["shots"]]
    for shot in shots:
        shot["progress"] = max(shot["progress"], sum(node["progress"] for node in shot["nodes"]) / len(shot["nodes"]))
        if shot["status"] == NodeStatus.PENDING and any(n["status"] == NodeStatus.RUNNING for n in shot["nodes"]):
            shot["status"] = NodeStatus.RUNNING.value
    progress = job["progress"] if job["finished_at"] else max(job["progress"], min(floor, UNFINISHED_CEILING))
    return {**job, "shots": shots, "film": [_with_step(node, records) for node in job["film"]], "progress": progress}


def _with_step(node: Mapping[str, Any], records: Mapping[str, ProgressRecord]) -> dict[str, Any]:
    record = records.get(node["id"])
    is_newer = record is not None and (
        (node["status"] == NodeStatus.PENDING and record.attempt > node["attempt"])
        or (node["status"] == NodeStatus.RUNNING and record.attempt == node["attempt"]
            and record.fraction >= node["progress"]))
    if record is None or not is_newer:
        return dict(node)
    return {**node, "status": NodeStatus.RUNNING.value, "attempt": record.attempt, "step": record.step,
            "total_steps": record.total_steps, "timestep": record.timestep, "progress": record.fraction,
            "message": record.text()}
