"""Somebody else's API on a port of its own, in this process: a test scripts its answers and reads what was asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from workflows.types import Json

KEY = "sk-test-9f8e7d6c5b4a39281706f5e4"
Answer = Response | Callable[[Request], Awaitable[Response]]


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Provider:
    """Answers each path with the next of its answers, the last one again and again."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    origin: str = ""
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def will(self, path: str, *answers: Answer) -> None:
        """Script a path (below `/v1`)."""
        self.answers[path] = list(answers)

    def bodies(self, path: str) -> list[Any]:
        """What was sent there."""
        return [asked.body for asked in self.asked if asked.path == path]

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        path = request.url.path.removeprefix("/v1")
        self.asked.append(Asked(method=request.method, path=path, headers=dict(request.headers),
                                body=json.loads(body) if body[:1] == b"{" else body))
        waiting = self.answers.get(path)
        if not waiting:
            return JSONResponse({"error": {"message": f"no route {path}"}}, 404)
        answer = waiting[0] if len(waiting) == 1 else waiting.pop(0)
        return answer if isinstance(answer, Response) else await answer(request)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """An ASGI application on a free port of loopback, in a thread; its origin."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    server.config.load()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until_s = time.time() + 10
        while not server.started and time.time() < until_s:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider at work."""
    made = Provider()
    app = Starlette(routes=[Route("/{path:path}", made.answer, methods=["GET", "POST", "DELETE"])])
    with serving(app) as origin:
        made.origin, made.url = origin, f"{origin}/v1"
        yield made


def said(content: Json, *, finish_reason: str = "stop") -> Response:
    """A chat completion; anything but text is written as JSON."""
    text = content if isinstance(content, str) else json.dumps(content)
    return JSONResponse({"id": "c1", "object": "chat.completion", "choices": [
        {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}]})


def refused(status: int, message: str = "no", **headers: str) -> Response:
    """An error in OpenAI's envelope."""
    return JSONResponse({"error": {"message": message, "type": "error"}}, status,
                        headers={name.replace("_", "-"): value for name, value in headers.items()})


async def hang(request: Request) -> Response:
    """No answer for longer than any test waits."""
    await asyncio.sleep(20)
    return Response()


async def endless(request: Request) -> Response:
    """More bytes than anybody should take."""
    return Response(b" " * 8_000_000, media_type="application/json")
