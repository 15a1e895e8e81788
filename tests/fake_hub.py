"""A model hub on loopback that speaks what huggingface_hub asks for, and misbehaves when told. Knows no reelray."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0de"
LARGE_BYTES = 2000
"""From here on a file is stored with a SHA-256, as the hub does with large ones."""


@dataclass(slots=True)
class FakeHub:
    """Repos by name, each a directory; what goes wrong; what was asked for."""

    repos: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)
    """Paths whose bytes are changed on the way, length kept."""
    break_once: dict[str, int] = field(default_factory=dict)
    """Path -> bytes after which the connection breaks, the first time."""
    stall: set[str] = field(default_factory=set)
    """Paths of which the first half arrives and then nothing."""
    gets: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def files(self, repo: str) -> dict[str, bytes]:
        """Path -> content."""
        root = self.repos[repo]
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    """One request; `hub` is set by the subclass that a hub makes."""

    hub: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if authorization := self.headers.get("Authorization"):
            self.hub.tokens.add(authorization)
        if repo not in self.hub.repos:
            self.refuse(404, "RepoNotFound")
        elif repo in self.hub.gated:
            self.refuse(403, "GatedRepo")
        elif parts[0] == "api":
            self.api(repo, parts[4:])
        else:
            self.resolve(repo, parts[3], "/".join(parts[4:]), body=body)

    def api(self, repo: str, rest: list[str]) -> None:
        if rest[:1] == ["revision"] and rest[1] not in (COMMIT, "main"):
            self.refuse(404, "RevisionNotFound")
            return
        files = self.hub.files(repo)
        if rest[:1] == ["tree"]:
            self.say([{"type": "file", "path": path, "size": len(data), "oid": oid(data),
                       **({"lfs": {"oid": sha(data), "size": len(data), "pointerSize": 130}} if large(data) else {})}
                      for path, data in files.items()])
            return
        self.say({"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": [
            {"rfilename": path, "size": len(data), "blobId": oid(data),
             **({"lfs": {"sha256": sha(data), "size": len(data), "pointerSize": 130}} if large(data) else {})}
            for path, data in files.items()]})

    def resolve(self, repo: str, revision: str, path: str, *, body: bool) -> None:
        data = self.hub.files(repo).get(path)
        if data is None or revision not in (COMMIT, "main"):
            self.refuse(404, "EntryNotFound")
            return
        etag = sha(data) if large(data) else oid(data)
        start = 0
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(f"{path} {wanted}")
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.hub.gets[path] += 1
            self.send(path, data, start)

    def send(self, path: str, data: bytes, start: int) -> None:
        if path in self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if path in self.hub.break_once:
            self.wfile.write(data[start:self.hub.break_once.pop(path)])
            self.close_connection = True
        elif path in self.hub.stall:
            self.wfile.write(data[start:len(data) // 2])
            self.wfile.flush()
            while path in self.hub.stall:
                time.sleep(0.02)
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def say(self, tree: object) -> None:
        data = json.dumps(tree).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers until the block is left."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.stall.clear()
        server.shutdown()
        server.server_close()
        thread.join()


def large(data: bytes) -> bool:
    return len(data) >= LARGE_BYTES


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def oid(data: bytes) -> str:
    """Git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
