"""Carries one webhook to its endpoint: one connection, one request, the first bytes of the reply. Knows no database.

Written on sockets because of what a general client does unasked: it asks the resolver a second time (which may answer
otherwise then), follows redirects, reads proxies from the environment, and reads replies of any length.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import h11

from serve_app.webhooks.guard import Guard, Target
from workflows.errors import InvalidDocument, WebhookFailed

MAX_REPLY_BYTES = 4096
"""Of the reply's body; the rest is never read."""
CHUNK_BYTES = 4096
RESOLVERS = 32
"""Threads of their own: a resolver that hangs holds up nothing else in this process, and few of its own kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an endpoint answered."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """Its beginning."""


class Courier(Protocol):
    """Sends one request; redirects are replies like any other."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Raises WebhookFailed when there is no reply: refused by the guard, no connection, no answer in time."""


class SocketCourier:
    """A Courier on sockets of its own."""

    def __init__(self, guard: Guard, *, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        """`timeout_s` covers the whole attempt; `tls` None trusts whom the machine trusts."""
        self._guard = guard
        self._timeout_s = timeout_s
        self._tls = tls or ssl.create_default_context()
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="reelray-dns")

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """See `Courier`."""
        try:
            target = self._guard.parse(url)
        except InvalidDocument as error:
            raise WebhookFailed(reason=str(error)) from None
        reply: list[Reply] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._talk(target, headers, body, reply)
        except TimeoutError:
            if not reply:
                raise WebhookFailed(reason=f"no reply within {self._timeout_s:g} s") from None
        except h11.ProtocolError as error:
            if not reply:
                raise WebhookFailed(reason=f"what it sent is no HTTP reply: {error}") from None
        except OSError as error:
            if not reply:
                raise WebhookFailed(reason=f"{type(error).__name__}: {error}") from None
        if not reply:
            raise WebhookFailed(reason="the connection was closed without a reply")
        # A status that has come decides; a body that drips or breaks off changes nothing.
        return reply[-1]

    async def _talk(self, target: Target, headers: Mapping[str, str], body: bytes, reply: list[Reply]) -> None:
        loop = asyncio.get_running_loop()
        # Asked once: what was checked is what is connected to.
        addresses = await loop.run_in_executor(self._threads, self._guard.addresses, target)
        reader, writer = await self._connect(target, addresses)
        try:
            talk = h11.Connection(h11.CLIENT)
            request = h11.Request(method="POST", target=target.path, headers=[
                ("Host", target.authority), ("Content-Length", str(len(body))), ("Connection", "close"),
                *headers.items()])
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                writer.write(talk.send(event) or b"")
            await _drain(writer)
            await _listen(reader, talk, reply)
        finally:
            # Not closed politely: an endpoint that does not read must not keep us.
            writer.transport.abort()

    async def _connect(self, target: Target,
                       addresses: tuple[str, ...]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        secure = target.scheme == "https"
        last: OSError | None = None
        for address in addresses:
            try:
                # The certificate is checked against the name, although the number is what is connected to.
                return await asyncio.open_connection(
                    address, target.port, flags=socket.AI_NUMERICHOST, ssl=self._tls if secure else None,
                    server_hostname=target.host if secure else None)
            except OSError as error:
                last = error
        raise last or OSError("no address")


async def _drain(writer: asyncio.StreamWriter) -> None:
    # An endpoint may answer and hang up before it has read all.
    with contextlib.suppress(ConnectionError):
        await writer.drain()


async def _listen(reader: asyncio.StreamReader, talk: h11.Connection, reply: list[Reply]) -> None:
    """Read the reply into `reply`, again with every piece of its body."""
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(CHUNK_BYTES)
            if not data:
                return
            talk.receive_data(data)
        elif isinstance(event, h11.Response):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            reply.append(Reply(status=event.status_code, headers=headers, body=b""))
        elif isinstance(event, h11.Data):
            body = (reply[-1].body + bytes(event.data))[:MAX_REPLY_BYTES]
            reply[-1] = Reply(status=reply[-1].status, headers=reply[-1].headers, body=body)
            if len(body) >= MAX_REPLY_BYTES:
                return
        elif not isinstance(event, h11.InformationalResponse):
            return
