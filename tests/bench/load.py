"""A small HTTP/1.1 load generator: requests at an offered rate, and readers of event streams. One loop, no threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CONNECTIONS = 64
"""Kept open; a request that finds all of them busy waits, and its wait counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What became of requests that were offered at a rate."""

    offered_per_s: float
    answered_per_s: float
    """Until the last answer: less than offered where the server is too slow."""
    latencies_s: tuple[float, ...]
    """Sorted; counted from when the request was due, not from when it could be sent."""
    failures: int
    """Other statuses than 200, and broken connections."""


class Connection:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> int:
        """The status; the body is read and dropped."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(head("GET", path))
            status, headers = await read_head(reader)
            await reader.readexactly(int(headers["content-length"]))
            return status
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def head(method: str, path: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *(["Content-Type: application/json"] if body else []), "", ""]).encode() + body


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    pairs = (line.partition(": ") for line in lines if line)
    return int(status.split()[1]), {name.lower(): value for name, _, value in pairs}


async def offer(port: int, path: str, *, per_s: float, seconds: float) -> Answers:
    """Open loop: one request every 1/per_s seconds, whether or not the ones before were answered."""
    latencies_s: list[float] = []
    failures = 0
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    connections = [Connection(port) for _ in range(CONNECTIONS)]
    for connection in connections:
        idle.put_nowait(connection)

    async def one(due_s: float) -> None:
        nonlocal failures
        connection = await idle.get()
        status = await connection.get(path)
        idle.put_nowait(connection)
        if status == 200:
            latencies_s.append(time.perf_counter() - due_s)
        else:
            failures += 1

    began_s, asked = time.perf_counter(), []
    for number in range(round(per_s * seconds)):
        due_s = began_s + number / per_s
        if (wait_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        asked.append(asyncio.create_task(one(due_s)))
    await asyncio.gather(*asked)
    took_s = max(time.perf_counter() - began_s, seconds)
    for connection in connections:
        connection.close()
    return Answers(offered_per_s=per_s, answered_per_s=len(latencies_s) / took_s,
                   latencies_s=tuple(sorted(latencies_s)), failures=failures)


async def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(method, path, b"" if body is None else json.dumps(body).encode()))
    status, headers = await read_head(reader)
    found = await reader.readexactly(int(headers.get("content-length", 0)))
    writer.close()
    return status, found


@dataclass(slots=True, kw_only=True)
class Listener:
    """One client of an event stream."""

    port: int
    path: str
    heard: list[tuple[float, bytes]] = field(default_factory=list)
    """`time.time` and the line, of every `data:` line."""

    async def listen(self) -> None:
        """Until the stream ends or this is cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(head("GET", self.path))
            status, _ = await read_head(reader)
            assert status == 200, status
            with contextlib.suppress(asyncio.IncompleteReadError):
                while (line := await reader.readuntil(b"\n")) != b"0\r\n":
                    if line.startswith(b"data: "):
                        self.heard.append((time.time(), line))
        finally:
            writer.close()

    def events(self) -> list[tuple[float, Any]]:
        """When, and what."""
        return [(at_s, json.loads(line[6:])) for at_s, line in self.heard]


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values; nan without any."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
