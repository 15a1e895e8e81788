"""Server-sent events as a client reads them. Knows only the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.client_errors import Tries


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event; `id` is empty where another event of the same cause follows."""

    id: str
    name: str
    data: Mapping[str, Any]


def alive(lines: Iterator[str], tries: Tries) -> Iterator[str]:
    """The lines; each of them, a heartbeat too, says that the server is there."""
    for line in lines:
        tries.reached()
        yield line


def events_in(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream's lines."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "event" in fields and "data" in fields:
            yield Event(id=fields.get("id", ""), name=fields["event"], data=json.loads(fields["data"]))
        fields = {}
