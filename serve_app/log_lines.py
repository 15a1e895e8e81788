"""What happens to jobs as JSON, one object per line, for log collectors. Reads the history of the database."""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TextIO

from workflows.durable.overview import Happening, Overview
from workflows.status import JobView
from workflows.types import Json, ProgressRecord

PAGE = 1000
OVERLAP = 200
"""Rows that are looked at again: on Postgres a row may become visible after one with a higher number."""
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JobLog:
    """Every job's history from now on; each row is written once."""

    def __init__(self, overview: Overview, stream: TextIO) -> None:
        """What happened before is not told."""
        self._overview = overview
        self._stream = stream
        self._newest = overview.newest()
        self._told: OrderedDict[int, None] = OrderedDict.fromkeys(
            row.event.seq for row in overview.happened(self._newest - OVERLAP, PAGE))

    def tell(self) -> None:
        """Write what is new."""
        while True:
            fresh = [row for row in self._overview.happened(self._newest - OVERLAP, PAGE + OVERLAP)
                     if row.event.seq not in self._told]
            for row in fresh:
                self._told[row.event.seq] = None
                self._newest = max(self._newest, row.event.seq)
                write_line(self._stream, _line(row))
            while len(self._told) > PAGE + 2 * OVERLAP:
                self._told.popitem(last=False)
            if len(fresh) < PAGE:
                return


class JsonFormatter(logging.Formatter):
    """What this process itself logs, in the same form; `extra` becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        fields: dict[str, object] = {
            "time": _time(record.created), "level": record.levelname.lower(), "message": record.getMessage(),
            "logger": record.name}
        fields |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


class LogScreen:
    """What `serve` says of itself, in the same form."""

    def __init__(self, stream: TextIO) -> None:
        """Write here."""
        self._stream = stream

    def note(self, text: str) -> None:
        """One line."""
        write_line(self._stream, {"time": _time(time.time()), "level": "info", "message": text})

    def show(self, view: JobView) -> None:
        """Nothing: the job's history tells it."""

    def step(self, record: ProgressRecord) -> None:
        """Nothing: steps are not logged."""

    def close(self) -> None:
        """Nothing to do."""


def write_line(stream: TextIO, value: dict[str, Json]) -> None:
    """One object on one line, at once."""
    print(json.dumps(value, ensure_ascii=False), file=stream, flush=True)


def log_in_json(stream: TextIO) -> None:
    """From now on this process writes its own log as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _line(row: Happening) -> dict[str, Json]:
    event = row.event
    return {"time": _time(event.at_s), "level": event.level.value, "message": event.line or event.type.value,
            "type": event.type.value, "job_id": event.job_id, "shot_id": row.shot_id, "node_id": event.node_id,
            "data": dict(event.data)}


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds")
