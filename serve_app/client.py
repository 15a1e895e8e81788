"""A Python client of the HTTP API. Knows httpx and the wire, nothing of how films are made: quick to import."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import yaml

from configs.load import client_key
from serve_app.client_errors import NOT_REELRAY, ApiError, Problem, ServerAway, Tries, raise_refusal
from serve_app.client_events import Event, alive, events_in
from serve_app.client_pictures import pictures_in, renamed
from serve_app.client_videos import PATIENT, UPLOAD, digest_of, is_elsewhere, pieces_of

__all__ = ["ApiError", "Client", "Event", "Film", "Problem", "ServerAway"]

TYPE_OF_SUFFIX = {".json": "application/json", ".yaml": "application/yaml", ".yml": "application/yaml",
                  ".fountain": "text/fountain", ".spmd": "text/fountain", ".txt": "text/plain", ".md": "text/markdown"}
BOARD_TYPES = frozenset({"application/json", "application/yaml"})
ENDS = frozenset({"succeeded", "partial", "failed", "cancelled"})
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
SHA256_DIGITS = 64
GOES_ON = "the job goes on without you"
LOG_PAUSE_S = 0.5
SILENCE_S = 60.0
"""A stream that is silent for so long, heartbeats included, is taken for dead."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """A storyboard or script as it is sent."""

    name: str
    media_type: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """One request; `again`: it may be sent again when nobody knows what became of it."""

    method: str
    url: str
    again: bool = True
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = None
    """A file is sent piece by piece."""
    timeout: httpx2.Timeout | None = None
    """None: the client's own."""


class Client:
    """Speaks to one server. `api_key` defaults to $REELRAY_API_KEY.

    Every method raises ApiError or ServerAway, and OSError where a file of this machine cannot be read or written. What
    may be sent twice is sent again, in growing pauses or as the server asks, while the server is away or busy.
    """

    def __init__(self, server: str = "http://127.0.0.1:8000", *, api_key: str = "", http: httpx2.Client | None = None,
                 patience_s: float = 60.0) -> None:
        """`patience_s`: how long the server may be away or busy before that is an error; 0: not at all."""
        key = api_key or client_key()
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = http or httpx2.Client(base_url=server.rstrip("/"), timeout=httpx2.Timeout(30.0, read=SILENCE_S))
        self._patience_s = patience_s

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """`status` and `version` of the server."""
        return self._json(_Ask(method="GET", url="/healthz"))

    def upload_picture(self, path: Path) -> dict[str, Any]:
        """Keep a PNG or JPEG there; a shot of a storyboard names it by `image: picture:ID` with its `id`.

        Nothing else leaves this machine: storyboards come from anywhere, and may name any file.
        """
        if path.exists() and not path.is_file():
            raise ApiError(422, "invalid-picture", "this is no file")
        with path.open("rb") as file:
            head = file.read(len(PNG))
            media_type = "image/png" if head == PNG else "image/jpeg" if head.startswith(JPEG) else ""
            if not media_type:
                raise ApiError(422, "invalid-picture", "this is no picture; send a PNG or JPEG file")
            data = head + file.read()
        return self._json(_Ask(method="POST", url="/api/pictures", content=data, headers={"Content-Type": media_type}))

    def upload_video(self, path: Path) -> str:
        """Keep a video there, to be edited; `upload:ID`, what an edit calls it. What is there is not sent again."""
        upload_id = digest_of(path)
        try:
            self._checked(_Ask(method="HEAD", url=f"/api/uploads/{upload_id}"))
        except ApiError as error:
            if error.status != 404:
                raise
            length = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
            self._checked(_Ask(method="POST", url="/api/uploads", content=path, headers=length, timeout=PATIENT))
        return f"{UPLOAD}{upload_id}"

    def edit(self, video: Path | str, wish: Mapping[str, Any], *, idempotency_key: str = "",
             priority: str = "interactive") -> dict[str, Any]:
        """Queue an edit of a video: a file of this machine, which is uploaded, or what the server may read.

        `wish`: `mask_prompt`, `edit_prompt` and the other fields of docs/editing.md; a `mask_video` may be a Path.
        `id`, `warnings` and `links` of the job. One call makes one job, as `submit`.
        """
        key = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._edit(video, wish, {"priority": priority}, key)

    def plan_edit(self, video: Path | str, wish: Mapping[str, Any]) -> dict[str, Any]:
        """What `edit` would do. The video is uploaded all the same; `request` names it by its id."""
        return self._edit(video, wish, {"dry_run": "true"}, {})

    def film(self, path: Path) -> Film:
        """A storyboard or script file as it is sent: pictures that it names are uploaded and named by their ids."""
        media_type = TYPE_OF_SUFFIX.get(path.suffix.lower())
        if media_type is None:
            raise ApiError(415, "unsupported-media-type", f"{path}: a film is a file of {', '.join(TYPE_OF_SUFFIX)}")
        content = path.read_bytes()
        if media_type in BOARD_TYPES and (b"image" in content or b"reference" in content):
            content = self._with_pictures(content, path.parent)
        return Film(name=path.name, media_type=media_type, content=content)

    def submit(self, film: Path | Film, *, idempotency_key: str = "", priority: str = "interactive",
               stages: str = "", tier: str = "") -> dict[str, Any]:
        """Queue a film; `id`, `warnings` and `links` of the job. One call makes one job, however often it must be sent.

        `stages`: `story,images` for pictures alone; `tier`: `draft` for a quick look, before `promote`. With an
        `idempotency_key` of yours, calls within 24 hours are one call.
        """
        key = idempotency_key or uuid.uuid4().hex
        return self._film(film, {"priority": priority, **_given(stages=stages, tier=tier)}, {"Idempotency-Key": key})

    def plan(self, film: Path | Film, *, stages: str = "", tier: str = "") -> dict[str, Any]:
        """What `submit` would do: nodes, what the store has, estimated seconds. Nothing is rendered."""
        return self._film(film, {"dry_run": "true", **_given(stages=stages, tier=tier)}, {})

    def jobs(self, *, status: str = "", limit: int = 50, cursor: str = "") -> dict[str, Any]:
        """A page of jobs, newest first, and `next_cursor`."""
        params = _given(limit=str(limit), status=status, cursor=cursor)
        return self._json(_Ask(method="GET", url="/api/jobs", params=params))

    def job(self, job_id: str) -> dict[str, Any]:
        """The job with its shots."""
        return self._json(_Ask(method="GET", url=_path(job_id)))

    def log(self, job_id: str, *, offset: int = 0, limit: int = 500) -> dict[str, Any]:
        """Lines of the log, and `next_offset`."""
        params = {"offset": str(offset), "limit": str(limit)}
        return self._json(_Ask(method="GET", url=f"{_path(job_id)}/log", params=params))

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End the job at its next denoising step."""
        return self._json(_Ask(method="POST", url=f"{_path(job_id)}/cancel"))

    def retry(self, job_id: str, shots: Sequence[str] = (), *, force: bool = False) -> dict[str, Any]:
        """Run again what did not succeed, or these shots; `force` asks for new takes of them."""
        return self._json(_change("POST", f"{_path(job_id)}/retry", {"shots": list(shots), "force": force}))

    def change_shot(self, job_id: str, shot: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change fields of a shot of a finished film; None takes a field away."""
        return self._json(_change("PATCH", f"/api/films/{quote(job_id, safe='')}/shots/{quote(shot, safe='')}",
                                  changes))

    def promote(self, job_id: str, shots: Sequence[str] = ()) -> dict[str, Any]:
        """Render drafts of a finished film again as final, from their own seeds; no shots: all."""
        chosen = {"shots": list(shots)} if shots else {}
        return self._json(_change("POST", f"/api/films/{quote(job_id, safe='')}/promote", chosen))

    def delete(self, job_id: str) -> None:
        """Forget a finished job."""
        self._checked(_Ask(method="DELETE", url=_path(job_id), again=False))

    def events(self, job_id: str, *, last_id: str = "", all_steps: bool = False) -> Iterator[Event]:
        """Every event until the job is over. A broken connection is taken up again after the last id heard.

        `all_steps`: those too that were made before this call, as far as the server keeps them.
        """
        tries = Tries(self._patience_s, GOES_ON)
        while True:
            failure: ApiError | ServerAway | None = None
            before = last_id
            try:
                for event in self._stream(job_id, last_id, all_steps, tries):
                    last_id = event.id or last_id
                    yield event
                    if event.name == "done":
                        return
            except _Over:
                return
            except (ServerAway, ApiError) as error:
                failure = error
            # A server ends a long stream, and goes on after the last id: that is no failure.
            if failure is not None or last_id == before:
                tries.failed(failure or ServerAway(f"{job_id}: the stream ended early"))

    def log_lines(self, job_id: str, *, offset: int = 0) -> Iterator[str]:
        """Lines of the log from `offset` on as they are written, until the job is over."""
        tries = Tries(self._patience_s, GOES_ON)
        while True:
            try:
                is_over = self.job(job_id)["status"] in ENDS
                page = self.log(job_id, offset=offset)
            except (ServerAway, ApiError) as error:
                tries.failed(error)
                continue
            tries.reached()
            yield from page["lines"]
            offset = page["next_offset"]
            if not page["lines"]:
                if is_over:
                    return
                time.sleep(LOG_PAUSE_S)

    def download(self, job_id: str, to: Path) -> Path:
        """Save the film at `to`, which never holds half a film; a broken download goes on where it stopped."""
        return self._download(job_id, f"{_path(job_id)}/video", to)

    def download_beside(self, job_id: str, what: str, to: Path) -> Path:
        """Save what an edit made beside its video: `mask`, `report` or `plot`."""
        return self._download(job_id, f"{_path(job_id)}/{what}", to)

    def download_picture(self, job_id: str, shot: str, to: Path) -> Path:
        """Save the picture of a shot, as `download` does a film."""
        return self._download(job_id, f"{_path(job_id)}/shots/{quote(shot, safe='')}/keyframe", to)

    def _download(self, job_id: str, url: str, to: Path) -> Path:
        part = to.with_name(f".{to.name}.{job_id}.part")
        tag, tries = "", Tries(self._patience_s, "give the same call again")
        part.unlink(missing_ok=True)
        try:
            while True:
                have = part.stat().st_size if part.exists() else 0
                failure: ApiError | ServerAway = ServerAway(f"{job_id}: the download broke off")
                try:
                    tag, is_whole = self._fetch(url, part, have, tag)
                    if is_whole:
                        part.replace(to)
                        return to
                except (ServerAway, ApiError) as error:
                    failure = error
                if part.exists() and part.stat().st_size > have:
                    tries.reached()
                tries.failed(failure)
        finally:
            part.unlink(missing_ok=True)

    def _fetch(self, url: str, part: Path, have: int, tag: str) -> tuple[str, bool]:
        """Get the rest of the file; its tag, and whether `part` is the whole file now."""
        # If-Range: another take since then comes whole, with 200, and is written from the start.
        wanted = {"Range": f"bytes={have}-", "If-Range": tag} if have and tag else {}
        try:
            with self._http.stream("GET", url, headers={**self._headers, "Accept-Encoding": "identity", **wanted},
                                   ) as reply:
                if reply.status_code == 416:  # nothing is left of it, or it is not what we have the start of
                    return "", self._is_whole(part, tag)
                raise_refusal(reply)
                if reply.status_code not in (200, 206):
                    raise ApiError(reply.status_code, NOT_REELRAY, f"{url} answered {reply.status_code}, and no file")
                tag = reply.headers.get("etag", "")
                with part.open("ab" if reply.status_code == 206 else "wb") as file:
                    try:
                        for piece in reply.iter_bytes():
                            file.write(piece)
                    except httpx2.TransportError:
                        return tag, False
        except httpx2.TransportError as error:
            raise ServerAway(f"{url}: {error}") from error
        length = reply.headers.get("content-length")
        size = part.stat().st_size - (have if reply.status_code == 206 else 0)
        return tag, (length is None or int(length) == size) and self._is_whole(part, tag)

    def _is_whole(self, part: Path, tag: str) -> bool:
        """The server's tags are digests; a file that is another one is thrown away."""
        digest = tag.strip('"')
        if len(digest) != SHA256_DIGITS:
            return True
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                return True
        part.unlink()
        return False

    def _stream(self, job_id: str, last_id: str, all_steps: bool, tries: Tries) -> Iterator[Event]:
        headers = {**self._headers, "Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
        params = {"all_steps": "true"} if all_steps else {}
        try:
            with self._http.stream("GET", f"{_path(job_id)}/events", headers=headers, params=params) as reply:
                raise_refusal(reply)
                if reply.status_code == 204:
                    raise _Over
                yield from events_in(alive(reply.iter_lines(), tries))
        except httpx2.TransportError as error:
            raise ServerAway(f"{job_id}: {error}") from error

    def _film(self, film: Path | Film, params: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, Any]:
        sent = film if isinstance(film, Film) else self.film(film)
        return self._json(_Ask(method="POST", url="/api/films", params=params, content=sent.content,
                               headers={"Content-Type": sent.media_type, **extra}))

    def _edit(self, video: Path | str, wish: Mapping[str, Any], params: Mapping[str, str],
              extra: Mapping[str, str]) -> dict[str, Any]:
        fields = {**wish, "input_video_path": video}
        for name in ("input_video_path", "mask_video"):
            place = fields.get(name)
            if isinstance(place, Path) or (place and not is_elsewhere(str(place))):
                fields[name] = self.upload_video(Path(place))
        return self._json(_Ask(method="POST", url="/api/edits", params=params, content=json.dumps(fields).encode(),
                               headers={"Content-Type": "application/json", **extra}, timeout=PATIENT))

    def _with_pictures(self, content: bytes, directory: Path) -> bytes:
        try:
            text = content.decode("utf-8-sig")
            named = pictures_in(text)
        except (UnicodeDecodeError, yaml.YAMLError):
            return content  # the server says what is wrong with it
        ids: dict[str, str] = {}
        problems: list[Problem] = []
        for one in named:
            try:
                if one.path not in ids:
                    ids[one.path] = self.upload_picture(directory / one.path)["id"]
            except OSError as error:
                problems.append(one.problem(f"{one.path}: {error.strerror or error}"))
            except ApiError as error:
                if error.status not in (413, 422):
                    raise
                problems.append(one.problem(f"{one.path}: {error.detail}"))
        if problems:
            raise ApiError(422, "invalid-document", str(problems[0]), problems)
        return renamed(text, named, ids).encode()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, again: bool = False,
            params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Any other route that speaks JSON; `again`: the request may be sent twice."""
        reply = self._checked(_Ask(
            method=method, url=path, again=again, params=params or {}, headers={"Content-Type": "application/json"},
            content=None if body is None else json.dumps(body, ensure_ascii=False).encode()))
        return {} if not reply.content else self._read(reply)

    def _json(self, ask: _Ask) -> dict[str, Any]:
        return self._read(self._checked(ask))

    def _read(self, reply: httpx2.Response) -> dict[str, Any]:
        try:
            found = reply.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ApiError(reply.status_code, NOT_REELRAY, f"{reply.url} answered with something else than JSON")
        return found

    def _checked(self, ask: _Ask) -> httpx2.Response:
        tries = Tries(self._patience_s if ask.again else 0.0, "")
        while True:
            try:
                content = pieces_of(ask.content) if isinstance(ask.content, Path) else ask.content
                reply = self._http.request(ask.method, ask.url, params=ask.params, content=content,
                                           headers={**self._headers, **ask.headers},
                                           timeout=ask.timeout or httpx2.USE_CLIENT_DEFAULT)
                raise_refusal(reply)
            except httpx2.TransportError as error:
                away = ServerAway(f"{str(self._http.base_url).rstrip('/')}{ask.url}: {error}")
                away.__cause__ = error
                tries.failed(away)
            except ApiError as refused:
                tries.failed(refused)
            else:
                return reply


class _Over(Exception):
    """The job is over and all was heard."""


def _change(method: str, url: str, body: Mapping[str, Any]) -> _Ask:
    return _Ask(method=method, url=url, again=False, content=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"})


def _given(**params: str) -> dict[str, str]:
    return {name: value for name, value in params.items() if value}


def _path(job_id: str) -> str:
    return f"/api/jobs/{quote(job_id, safe='')}"
