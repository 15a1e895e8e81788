"""The load generator of the HTTP benchmark: what it reports is what clients wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.bench.load import CONNECTIONS, Listener, offer, percentile


@asynccontextmanager
async def server(delay_s: float, reply: bytes) -> AsyncIterator[int]:
    """Answers every request after the delay; the port."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(delay_s)
                writer.write(reply)
        except asyncio.IncompleteReadError:
            writer.close()

    running = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()


async def test_every_request_that_was_due_is_counted_from_when_it_was_due() -> None:
    """Twice as many as the connections carry, all due at once: the second half waits for the first."""
    async with server(0.2, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") as port:
        answers = await offer(port, "/", per_s=CONNECTIONS * 200, seconds=0.01)
    assert (len(answers.latencies_s), answers.failures) == (2 * CONNECTIONS, 0)
    assert percentile(answers.latencies_s, 0.25) >= 0.2
    assert percentile(answers.latencies_s, 0.75) >= 0.38
    assert answers.answered_per_s < answers.offered_per_s / 20


async def test_other_statuses_and_broken_connections_are_failures() -> None:
    async with server(0.0, b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n") as port:
        assert (await offer(port, "/", per_s=10, seconds=0.3)).failures == 3
    assert (await offer(port, "/", per_s=10, seconds=0.3)).failures == 3


async def test_a_listener_hears_the_events_of_a_chunked_stream() -> None:
    event = b'event: info\ndata: {"type":"info"}\n\n'
    stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)
    async with server(0.0, stream) as port:
        listener = Listener(port=port, path="/")
        await listener.listen()
    assert [event for _, event in listener.events()] == [{"type": "info"}]
