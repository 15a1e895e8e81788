"""A multipart form as it arrives (RFC 7578): values are kept, files go where they are told, piece by piece. Knows no
route; `forms` reads those that are short enough to be held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from email import policy
from email.message import Message
from email.parser import BytesParser
from typing import Protocol

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app.http.forms import MAX_PARTS, PLAIN
from serve_app.http.problems import Detail, Refused

PIECE_BYTES = 1 << 20
"""What is handed on at once: fewer changes of thread, and no more memory than this per form."""
MAX_HEAD_BYTES = 4000
MAX_VALUE_BYTES = 200_000
"""Of one value; two hundred points take 12,000."""
MAX_BOUNDARY = 70
Take = Callable[[bytes], Awaitable[None]]


class Sink(Protocol):
    """Where a file goes. May raise anything that the route answers with."""

    def write(self, data: bytes) -> None:
        """Take the next bytes; may block."""


Room = Callable[[str, str], Sink]
"""Makes room for a file: name of its part, name that it was sent with. May block."""


async def read_form(pieces: AsyncIterator[bytes], content_type: str, files: Collection[str],
                    room: Room) -> dict[str, str]:
    """The form's values by name; files in parts of these names are written to the room that is made for each.

    Raises Refused for a form that cannot be read, is cut off, gives a name twice or a file under another name.
    """
    mark = b"\r\n--" + _boundary(content_type)
    body = _Body(pieces)
    values: dict[str, str] = {}
    seen: set[str] = set()
    await body.until(mark, _nowhere)
    while (after := await body.exactly(2)) != b"--":
        if after != b"\r\n":
            raise _unreadable("what follows a boundary is no part")
        name, filename = _head(await body.short(b"\r\n\r\n", MAX_HEAD_BYTES, "the head of a part"))
        if name in seen or len(seen) == MAX_PARTS:
            text = f"{name[:100]} is given twice" if name in seen else f"the form has more than {MAX_PARTS} parts"
            raise Refused(400, "invalid-form", text, errors=[Detail(detail=text, parameter=name[:100])])
        seen.add(name)
        if filename is None:
            values[name] = _text(await body.short(mark, MAX_VALUE_BYTES, f"the value {name[:100]}"))
        elif name in files:
            await body.until(mark, _to(await asyncio.to_thread(room, name, filename)))
        else:
            text = f"{name[:100]}: no file is taken here, except as {', '.join(files)}"
            raise Refused(400, "invalid-form", text, errors=[Detail(detail=text, parameter=name[:100])])
    return values


async def arriving(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Refused where its sender hangs up, which is no failure of ours."""
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise Refused(400, "cut-off", "the client has gone before all of the body had come") from None


class _Body:
    """What has come and was not read yet."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        # The first boundary has no line end before it.
        self._pieces, self._data = pieces, bytearray(b"\r\n")

    async def until(self, mark: bytes, take: Take) -> None:
        """Hand on all up to `mark`, and go past it."""
        looked = 0
        while (at := self._data.find(mark, looked)) < 0:
            keep = len(mark) - 1
            if len(self._data) > PIECE_BYTES:
                await take(bytes(self._data[:-keep]))
                del self._data[:-keep]
            looked = max(len(self._data) - keep, 0)
            await self._more()
        await take(bytes(self._data[:at]))
        del self._data[:at + len(mark)]

    async def exactly(self, count: int) -> bytes:
        """So many bytes."""
        while len(self._data) < count:
            await self._more()
        found = bytes(self._data[:count])
        del self._data[:count]
        return found

    async def short(self, mark: bytes, most: int, what: str) -> bytes:
        """All up to `mark`, which must be short."""
        while (at := self._data.find(mark)) < 0 and len(self._data) <= most + len(mark):
            await self._more()
        if at < 0 or at > most:
            raise _unreadable(f"{what} is longer than {most} bytes")
        found = bytes(self._data[:at])
        del self._data[:at + len(mark)]
        return found

    async def _more(self) -> None:
        async for piece in self._pieces:
            if piece:
                self._data += piece
                return
        raise _unreadable("it is cut off")


def _to(sink: Sink) -> Take:
    async def take(data: bytes) -> None:
        await asyncio.to_thread(sink.write, data)

    return take


async def _nowhere(data: bytes) -> None:
    """What stands before the first boundary means nothing."""


def _boundary(content_type: str) -> bytes:
    head = Message()
    head["content-type"] = content_type
    boundary = head.get_boundary("")
    if not 0 < len(boundary) <= MAX_BOUNDARY or not boundary.isascii():
        raise _unreadable("its content type has no boundary")
    return boundary.encode()


def _head(head: bytes) -> tuple[str, str | None]:
    """The name of a part, and of the file in it; None: it is a value."""
    message = BytesParser(policy=policy.HTTP).parsebytes(head + b"\r\n\r\n", headersonly=True)
    header = message["content-disposition"]
    name = str(message.get_param("name", "", "content-disposition"))
    encoding = message.get("content-transfer-encoding", PLAIN[0])
    if header is None or header.defects or message.defects or encoding not in PLAIN or not name:
        raise _unreadable("the head of a part cannot be read: send it as browsers do, named and unencoded")
    return name, message.get_filename()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _unreadable("a value is no UTF-8") from None


def _unreadable(why: str) -> Refused:
    return Refused(400, "invalid-form", f"the form cannot be read: {why}")
