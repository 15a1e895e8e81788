"""Clients that dawdle, on real sockets: the application behind uvicorn, as Serve's proxy runs it, and bytes by hand.

What only Serve's own proxy does is in tests/cluster/test_http.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from serve_app.http.schemas import Problem
from serve_app.service.films import Order, Sent
from tests.desk import TWO_SHOTS, Shop, open_shop, step
from workflows.durable.journal import Journal
from workflows.durable.leases import Leases
from workflows.types import Priority

HEAD = "Host: 127.0.0.1\r\n"
POST = f"POST /api/films HTTP/1.1\r\n{HEAD}Content-Type: text/plain\r\n"
WINDOW = 50
"""Events kept for watchers."""
STEPS, BATCH = 4000, 20
KEPT_BYTES = 200_000
"""What may wait for a reader that does not read: the sockets' buffers, and 64 KiB of uvicorn's."""
IDLE = 200


@dataclass
class Line:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, text: str | bytes) -> None:
        self.writer.write(text.encode("latin-1") if isinstance(text, str) else text)

    async def head(self) -> tuple[int, str]:
        """Status and header lines of the reply."""
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        return int(text.split(" ")[1]), text

    async def reply(self) -> tuple[int, bytes]:
        """Status and body of a reply that has a length."""
        status, head = await self.head()
        length = re.search(r"content-length: (\d+)", head)
        return status, await self.reader.readexactly(int(length[1]) if length else 0)


@dataclass
class House:
    """A shop on a port of its own."""

    shop: Shop
    port: int

    async def line(self, *, receive_buffer: int = 0) -> Line:
        """A new connection; `receive_buffer`: bytes that this end takes without being read."""
        end = socket.socket()
        if receive_buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=end, limit=1 << (16 if not receive_buffer else 12))
        return Line(reader, writer)

    async def ask(self, text: str | bytes) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        line = await self.line()
        line.send(text)
        reply = await line.reply()
        line.writer.close()
        return reply


@asynccontextmanager
async def open_house(shop: Shop) -> AsyncIterator[House]:
    """The application on a port, until the test is over."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(shop.client.app, lifespan="off", access_log=False, log_config=None,
                                               timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        async with asyncio.timeout(60):
            while not server.started:  # noqa: ASYNC110 - uvicorn sends no signal
                await asyncio.sleep(0.01)
            yield House(shop, listening.getsockname()[1])
        await shop.desk.close()
        server.should_exit = True
        await serving


@pytest.fixture
async def house(closed_shop: Shop) -> AsyncIterator[House]:
    """With short limits."""
    place: Path = closed_shop.settings.data_dir
    shop = open_shop(place, place / "state.db", f"http.window={WINDOW}", "http.body_timeout_s=1",
                     "http.heartbeat_s=1000")
    async with open_house(shop) as house:
        yield house
    shop.ledger.close()


def running_film(shop: Shop) -> str:
    """A film whose second shot runs, without an engine."""
    sent = Sent(text=json.dumps(TWO_SHOTS), file="film.json", is_script=False)
    film_id = shop.desk.films.submit(shop.desk.films.draft(sent), Order(token="a" * 32, key_id="")).id
    [claim] = Leases(shop.ledger.database, lease_s=60, interruption_limit=3).claim(1, Priority.INTERACTIVE)
    node = next(node for node in shop.ledger.nodes(film_id) if node.id == "s2.clip")
    Journal(shop.ledger.database).start(claim, node, key="k")
    return film_id


async def until(line: Line, word: bytes) -> bytes:
    """What comes, up to this word."""
    told = b""
    while word not in told:
        piece = await line.reader.read(1 << 16)
        assert piece, told[-2000:]
        told += piece
    return told


class TestSlowSenders:
    @pytest.mark.parametrize("head", [f"{POST}Content-Length: 1000\r\n\r\n",
                                      f"{POST}Transfer-Encoding: chunked\r\n\r\n",
                                      f"POST /v1/videos HTTP/1.1\r\n{HEAD}Content-Length: 1000\r\n\r\n"],
                             ids=["with a length", "chunked", "/v1"])
    async def test_a_body_that_drips_is_ended_after_the_limit(self, house: House, head: str) -> None:
        line = await house.line()
        line.send(head)
        drops = asyncio.create_task(drip(line, "1\r\nx\r\n" if "chunked" in head else "x"))
        status, body = await line.reply()
        assert status == 408
        assert json.loads(body).get("code", "too_slow").replace("-", "_") == "too_slow"
        drops.cancel()
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                assert await line.reader.read() == b"", "the connection is closed"

    async def test_heads_that_drip_hold_up_nobody(self, house: House) -> None:
        lines = [await house.line() for _ in range(IDLE)]
        for line in lines:
            line.send("GET /api/jobs HTTP/1.1\r\nHost: 127.0")
        async with asyncio.timeout(5):
            for _ in range(20):
                assert (await house.ask(f"GET /api/jobs HTTP/1.1\r\n{HEAD}\r\n"))[0] == 200
        for line in lines:
            line.writer.close()

    @pytest.mark.parametrize("path", ["/api/jobs/{}/events", "/api/jobs/{}/log?follow=true"])
    async def test_a_stream_whose_request_never_ends_is_ended(self, house: House, path: str) -> None:
        """The reply has begun: the client can only be let go."""
        line = await house.line()
        film_id = await asyncio.to_thread(running_film, house.shop)
        line.send(f"GET {path.format(film_id)} HTTP/1.1\r\n{HEAD}Content-Length: 10\r\n\r\n")
        assert (await line.head())[0] == 200
        async with asyncio.timeout(10):
            await line.reader.read()

    async def test_a_body_that_is_too_long_is_refused_without_waiting_for_its_end(self, house: House) -> None:
        line = await house.line()
        line.send(f"{POST}Content-Length: 1100001\r\n\r\n")
        status, body = await line.reply()
        assert (status, Problem.model_validate_json(body).code) == (413, "too-large")
        line = await house.line()
        line.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(12):
            line.send(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
        status, body = await line.reply()
        assert (status, Problem.model_validate_json(body).code) == (413, "too-large")


async def drip(line: Line, drop: str) -> None:
    for _ in range(100):
        line.send(drop)
        await asyncio.sleep(0.05)


class TestSlowReaders:
    async def test_one_that_never_reads_costs_a_bounded_buffer_and_holds_up_nobody(self, house: House) -> None:
        """It gets what the sockets hold, and then one snapshot for all that it missed."""
        film_id = await asyncio.to_thread(running_film, house.shop)
        ask = f"GET /api/jobs/{film_id}/events HTTP/1.1\r\n{HEAD}\r\n"
        quick, slow = await house.line(), await house.line(receive_buffer=4096)
        for line in (quick, slow):
            line.send(ask)
            assert (await line.head())[0] == 200
        told = b""
        for first in range(1, STEPS + 1, BATCH):
            last = first + BATCH - 1
            await house.shop.board.board.report(
                [step(film_id, "s2.clip", n, total=STEPS) for n in range(first, last + 1)])
            told += await until(quick, b'"step":%d,' % last)
        assert told.count(b"event: shot_update") == STEPS + 1
        kept = await until(slow, b"event: snapshot")
        assert len(kept) < KEPT_BYTES < len(told) / 5, "the rest was never written for it"
        for line in (quick, slow):
            line.writer.close()
        feed = await house.shop.desk.hub.feed(film_id)
        while feed.watchers:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.01)

    async def test_two_hundred_idle_watchers_cost_one_long_poll_and_hear_the_same(self, house: House) -> None:
        film_id = await asyncio.to_thread(running_film, house.shop)
        lines = [await house.line() for _ in range(IDLE)]
        for line in lines:
            line.send(f"GET /api/jobs/{film_id}/events HTTP/1.1\r\n{HEAD}\r\n")
        assert {(await line.head())[0] for line in lines} == {200}
        for line in lines:
            await until(line, b'"step":0')
        await asyncio.sleep(0.5)
        assert (house.shop.board.histories, house.shop.board.polls) == (1, 1), "all wait on one question"
        for n in range(1, 11):
            await house.shop.board.board.report([step(film_id, "s2.clip", n)])
            await asyncio.sleep(0.02)
        heard = {await until(line, b'"step":10,') for line in lines}
        assert len({re.sub(rb"\r\n[0-9a-f]+\r\n|^[0-9a-f]+\r\n", b"", text).split(b'"step":10,')[0]
                    for text in heard}) == 1
        assert house.shop.board.polls <= 12, "one after every batch, whoever listens"
        for line in lines:
            line.writer.close()


class TestNonsense:
    @pytest.mark.parametrize(("asked", "statuses"), [
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", {400}),
        ("GET http://evil.example/api/jobs HTTP/1.1\r\nHost: evil.example\r\n\r\n", {421}),
        ("GET /api/jobs HTTP/1.1\r\n\r\n", {400, 421}), (f"GET /../../etc/passwd HTTP/1.1\r\n{HEAD}\r\n", {404}),
        (f"GET /static/../../../../etc/passwd HTTP/1.1\r\n{HEAD}\r\n", {404}),
        (f"GET /static/..%2f..%2ftemplates/base.html HTTP/1.1\r\n{HEAD}\r\n", {404}),
        (f"GET //etc/passwd HTTP/1.1\r\n{HEAD}\r\n", {404}), (f"GET /api/jobs\0 HTTP/1.1\r\n{HEAD}\r\n", {400, 404}),
        (f"POST /api/films HTTP/1.1\r\n{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         {400, 415}),
        (f"POST /api/films HTTP/1.1\r\n{HEAD}Content-Length: -5\r\n\r\n", {400}),
        (f"POST /api/films HTTP/1.1\r\n{HEAD}Content-Length: {'9' * 40}\r\n\r\n", {400, 413}),
        (f"GET /api/jobs HTTP/1.1\r\n{HEAD}X-A: a\r\n b: c\r\n\r\n", {200, 400}),
        (f"GET /api/jobs HTTP/1.1\r\n{HEAD}X-Long: {'x' * 200_000}\r\n\r\n", {200, 400, 431}),
        (f"NONSENSE / HTTP/1.1\r\n{HEAD}\r\n", {400, 405}),
        ("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", {400}),
        ("GET\r\n\r\n", {400}), (f"GET /api/jobs HTTP/9.9\r\n{HEAD}\r\n", {400, 200, 505}),
    ], ids=["two hosts", "another site in full", "no host", "up", "up from the page's files", "up, encoded", "slashes",
            "nul", "two lengths", "a negative length", "an endless length", "a folded header", "a long header",
            "no method", "TLS", "no request", "no version"])
    async def test_a_request_that_is_none_is_refused_and_the_next_one_is_not(
            self, house: House, asked: str, statuses: set[int]) -> None:
        status, body = await house.ask(asked)
        assert status in statuses, body
        assert b"root:" not in body
        assert (await house.ask(f"GET /healthz HTTP/1.1\r\n{HEAD}\r\n"))[0] == 200
