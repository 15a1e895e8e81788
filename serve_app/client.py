"""A Python client of the HTTP API. Knows httpx and the wire, nothing of how films are made: quick to import."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from configs.load import client_key

TYPE_OF_SUFFIX = {".json": "application/json", ".yaml": "application/yaml", ".yml": "application/yaml",
                  ".fountain": "text/fountain", ".spmd": "text/fountain", ".txt": "text/plain", ".md": "text/markdown"}
SILENCE_S = 60.0
"""A stream that is silent for so long, heartbeats included, is taken for dead."""
LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One entry of a refusal's `errors[]`."""

    detail: str
    pointer: str = ""
    parameter: str = ""
    shot: str = ""
    line: int | None = None
    nearest: str = ""

    def __str__(self) -> str:
        place = ", ".join(part for part in (f"line {self.line}" if self.line else "",
                                            f"shot {self.shot}" if self.shot else "",
                                            self.pointer or self.parameter) if part)
        text = f"{place}: {self.detail}" if place else self.detail
        return f"{text} (nearest: {self.nearest})" if self.nearest else text


class ApiError(Exception):
    """The server refused. `status` is HTTP's, `code` the problem's name, `problems` what is wrong and where."""

    def __init__(self, status: int, code: str, detail: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(status, code, detail, tuple(problems))
        self.status, self.code, self.detail, self.problems = status, code, detail, tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems) or f"{self.detail} ({self.status} {self.code})"


class ServerAway(Exception):
    """The server could not be reached, or the connection to it broke."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event; `id` is empty where another event of the same cause follows."""

    id: str
    name: str
    data: Mapping[str, Any]


class Client:
    """Speaks to one server. `api_key` defaults to $REELRAY_API_KEY; every method raises ApiError or ServerAway.

    A film whose suffix is not in TYPE_OF_SUFFIX is a ValueError before anything is sent.
    """

    def __init__(self, server: str = "http://127.0.0.1:8000", *, api_key: str = "", http: httpx2.Client | None = None,
                 patience_s: float = 60.0) -> None:
        """`patience_s`: how long `events` and `download` try to reach a server that is away."""
        key = api_key or client_key()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or httpx2.Client(base_url=server.rstrip("/"), timeout=httpx2.Timeout(30.0, read=SILENCE_S))
        self._patience_s = patience_s

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, path: Path, *, idempotency_key: str = "", priority: str = "interactive") -> dict[str, Any]:
        """Queue the film of a storyboard or script file; `id`, `warnings` and `links` of the job."""
        extra = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._film(path, {"priority": priority}, extra)

    def plan(self, path: Path) -> dict[str, Any]:
        """What `submit` would do: nodes, what the store has, estimated seconds. Nothing is done."""
        return self._film(path, {"dry_run": "true"}, {})

    def jobs(self, *, status: str = "", limit: int = 50, cursor: str = "") -> dict[str, Any]:
        """A page of jobs, newest first, and `next_cursor`."""
        asked = {"limit": str(limit), "status": status, "cursor": cursor}
        params = {name: value for name, value in asked.items() if value}
        return self._json("GET", "/api/jobs", params=params)

    def job(self, job_id: str) -> dict[str, Any]:
        """The job with its shots."""
        return self._json("GET", _path(job_id))

    def log(self, job_id: str, *, offset: int = 0, limit: int = 500) -> dict[str, Any]:
        """Lines of the log, and `next_offset`."""
        return self._json("GET", f"{_path(job_id)}/log", params={"offset": str(offset), "limit": str(limit)})

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End the job at its next denoising step."""
        return self._json("POST", f"{_path(job_id)}/cancel")

    def retry(self, job_id: str, shots: Sequence[str] = (), *, force: bool = False) -> dict[str, Any]:
        """Run again what did not succeed, or these shots; `force` asks for new takes of them."""
        return self._json("POST", f"{_path(job_id)}/retry", body={"shots": list(shots), "force": force})

    def change_shot(self, job_id: str, shot: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change fields of a shot of a finished film; None takes a field away."""
        return self._json("PATCH", f"/api/films/{quote(job_id, safe='')}/shots/{quote(shot, safe='')}", body=changes)

    def delete(self, job_id: str) -> None:
        """Forget a finished job."""
        self._checked("DELETE", _path(job_id))

    def events(self, job_id: str, *, last_id: str = "") -> Iterator[Event]:
        """Every event until the job is over. A broken connection is taken up again after the last id heard."""
        tries = _Tries(self._patience_s)
        while True:
            try:
                for event in self._stream(job_id, last_id):
                    tries.reached()
                    last_id = event.id or last_id
                    yield event
                    if event.name == "done":
                        return
            except _Over:
                return
            except ServerAway:
                tries.failed()
            except ApiError as error:
                if error.status != 503:
                    raise
                tries.failed()
            else:
                tries.failed()

    def download(self, job_id: str, to: Path) -> Path:
        """Save the film at `to`, which never holds half a film; a broken download goes on where it stopped."""
        part = to.with_name(f".{to.name}.{job_id}.part")
        tag, tries = "", _Tries(self._patience_s)
        part.unlink(missing_ok=True)
        while True:
            have = part.stat().st_size if part.exists() else 0
            try:
                tag, complete = self._fetch(f"{_path(job_id)}/video", part, have, tag)
            except ServerAway:
                tries.failed()
                continue
            if complete:
                part.replace(to)
                return to
            if part.stat().st_size > have:
                tries.reached()
            tries.failed()

    def _fetch(self, url: str, part: Path, have: int, tag: str) -> tuple[str, bool]:
        # If-Range: another take since then comes whole, with 200, and is written from the start.
        headers = {**self._headers, **({"Range": f"bytes={have}-", "If-Range": tag} if have and tag else {})}
        try:
            with self._http.stream("GET", url, headers=headers) as reply:
                _raise_refusal(reply)
                tag = reply.headers.get("etag", "")
                goes_on = reply.status_code == 206
                wanted = int(reply.headers["content-length"]) + (have if goes_on else 0)
                with part.open("ab" if goes_on else "wb") as file:
                    try:
                        for piece in reply.iter_bytes():
                            file.write(piece)
                    except httpx2.TransportError:
                        return tag, False
        except httpx2.TransportError as error:
            raise ServerAway(f"{url}: {error}") from error
        return tag, part.stat().st_size == wanted

    def _stream(self, job_id: str, last_id: str) -> Iterator[Event]:
        headers = {**self._headers, "Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        try:
            with self._http.stream("GET", f"{_path(job_id)}/events", headers=headers) as reply:
                _raise_refusal(reply)
                if reply.status_code == 204:
                    raise _Over
                yield from _events(reply.iter_lines())
        except httpx2.TransportError as error:
            raise ServerAway(f"{job_id}: {error}") from error

    def _film(self, path: Path, params: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, Any]:
        media_type = TYPE_OF_SUFFIX.get(path.suffix.lower())
        if media_type is None:
            raise ValueError(f"{path}: a film comes as one of {', '.join(TYPE_OF_SUFFIX)}")
        reply = self._checked("POST", "/api/films", params=params, content=path.read_bytes(),
                              extra={"Content-Type": media_type, **extra})
        found: dict[str, Any] = reply.json()
        return found

    def _json(self, method: str, url: str, *, params: Mapping[str, str] | None = None,
              body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        extra = {} if body is None else {"Content-Type": "application/json"}
        found: dict[str, Any] = self._checked(method, url, params=params, content=content, extra=extra).json()
        return found

    def _checked(self, method: str, url: str, *, params: Mapping[str, str] | None = None,
                 content: bytes | None = None, extra: Mapping[str, str] | None = None) -> httpx2.Response:
        try:
            reply = self._http.request(method, url, params=params, content=content,
                                       headers={**self._headers, **(extra or {})})
        except httpx2.TransportError as error:
            raise ServerAway(f"{url}: {error}") from error
        _raise_refusal(reply)
        return reply


class _Over(Exception):
    """The job is over and all was heard."""


class _Tries:
    """Pauses between tries, longer each time; gives up after `patience_s` without success."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.reached()

    def reached(self) -> None:
        self._pause_s, self._since = 0.2, time.monotonic()

    def failed(self) -> None:
        if time.monotonic() - self._since + self._pause_s > self._patience_s:
            raise ServerAway(f"the server was away for {self._patience_s:g} s; the job goes on without you")
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def _path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"


def _events(lines: Iterator[str]) -> Iterator[Event]:
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


def _raise_refusal(reply: httpx2.Response) -> None:
    if reply.status_code < 400:
        return
    reply.read()
    try:
        body = reply.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(reply.status_code, "not-reelray", f"{reply.url} answered {reply.status_code}")
    problems = [Problem(detail=str(found.get("detail", "")), pointer=str(found.get("pointer", "")),
                        parameter=str(found.get("parameter", "")), shot=str(found.get("shot", "")),
                        line=found.get("line"), nearest=str(found.get("nearest", "")))
                for found in body.get("errors", ())]
    raise ApiError(reply.status_code, str(body.get("code", "")), str(body.get("detail", "")), problems)
