"""Videos that were uploaded, or read from addresses, by the digest of their bytes. Blocking; knows no HTTP.

They go to disk as they come and are never held in memory. A video that a command of this machine edits and one that was
uploaded have the same key in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import fsspec

from configs.settings import HttpSettings
from serve_app.edit_submit import Given, stored_video, video_key
from workflows.edit_ports import SourceVideo
from workflows.errors import InvalidDocument, MediaError, Problem, UnknownUpload
from workflows.media.source import describe
from workflows.store import Store
from workflows.types import Artifact, Json

SCHEME = "upload:"
"""What an uploaded video's id has before it in a request: `upload:ID`."""
ID = re.compile(r"[0-9a-f]{64}")
PART_SUFFIX = ".part"
STALE_S = 86_400.0
"""Parts of uploads older than this were left behind by a process that died."""
PIECE_BYTES = 1 << 20
MAX_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A video that was taken in."""

    id: str
    """SHA-256 of its bytes, hex."""
    size_bytes: int
    video: SourceVideo


class Incoming:
    """A video while it arrives."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        """Write to `path`, at most so much."""
        self.path = path
        self.size_bytes = 0
        self._most_bytes = most_bytes
        self._hasher = hashlib.sha256()
        self._file = path.open("wb")

    @property
    def sha256(self) -> str:
        """Of what has come so far."""
        return self._hasher.hexdigest()

    def write(self, data: bytes | bytearray) -> None:
        """Take the next bytes. Raises InvalidDocument when they are too many."""
        self.size_bytes += len(data)
        if self.size_bytes > self._most_bytes:
            raise _refusal(f"the video is longer than {self._most_bytes} bytes",
                           f"at most {self._most_bytes} bytes (http.max_video_mb)")
        self._hasher.update(data)
        self._file.write(data)

    def close(self) -> None:
        """There is no more to come."""
        self._file.close()


class Uploads:
    """The uploaded videos of one store."""

    def __init__(self, store: Store, settings: HttpSettings, directory: Path) -> None:
        """`directory`: where they lie while they arrive; on a disk with room for some of them."""
        self._store = store
        self._settings = settings
        self._directory = directory

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Room for one video; what was not kept is gone at the end."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._sweep()
        path = self._directory / f"{uuid.uuid4().hex}{PART_SUFFIX}"
        incoming = Incoming(path, self._settings.max_video_mb * 1_000_000)
        try:
            yield incoming
        finally:
            incoming.close()
            path.unlink(missing_ok=True)

    def keep(self, incoming: Incoming, name: str) -> Upload:
        """Store a video that has arrived; the same bytes have the same id. Raises InvalidDocument for anything else."""
        incoming.close()
        try:
            video = describe(incoming.path)
        except MediaError as error:
            raise _refusal(error.problem) from None
        stored_video(incoming.path, incoming.sha256, self._store, _safe(name))
        return Upload(id=incoming.sha256, size_bytes=incoming.size_bytes, video=video)

    def find(self, upload_id: str) -> Given:
        """The stored video. Raises UnknownUpload."""
        found = self._store.find(video_key(upload_id)) if ID.fullmatch(upload_id) else None
        if found is None:
            raise UnknownUpload(upload_id=upload_id)
        made = (self._store.manifest(found.key) or {}).get("made")
        name = made.get("name") if isinstance(made, dict) else ""
        return Given(artifact=found, name=str(name or "a video"))

    def adopt(self, artifact: Artifact, name: str) -> str:
        """Take in a video of the store as if it had been uploaded; what a request calls it. Raises ArtifactMissing."""
        stored_video(self._store.fetch(artifact), artifact.sha256, self._store, _safe(name))
        return f"{SCHEME}{artifact.sha256}"

    def named(self, field: str, place: str) -> Given:
        """The video that a request names, `upload:ID` or an address that the settings allow.

        Raises InvalidDocument for anything else: a path in a request would name a file of the server.
        """
        try:
            if place.startswith(SCHEME):
                return self.find(place.removeprefix(SCHEME))
            self._require_allowed(place)
            return self._read(place)
        except UnknownUpload as error:
            raise _refusal(str(error), field=field) from None
        except InvalidDocument as error:
            found = error.problems[0]
            raise _refusal(found.problem, found.nearest, field=field) from None

    def _require_allowed(self, place: str) -> None:
        if "://" not in place:
            raise _refusal("over HTTP a path would name a file of the server; upload the video with POST /api/uploads",
                           f"{SCHEME}ID")
        # One level of %-signs is undone by those who open it; a second one would only name another file there.
        plain = unquote(place)
        is_odd = "::" in plain or "\\" in plain or not plain.isprintable() or (
            {"..", "."} & set(plain.partition("://")[2].split("/")))
        if is_odd or not any(place.startswith(source) for source in self._settings.video_sources):
            allowed = ", ".join(f"{source}..." for source in self._settings.video_sources)
            raise _refusal(f"the server reads no videos from {place[:200]!r}; it may be uploaded with POST "
                           "/api/uploads, or the operator adds the address to http.video_sources",
                           f"{SCHEME}ID" + (f" or {allowed}" if allowed else ""))

    def _read(self, place: str) -> Given:
        ends_s = time.monotonic() + self._settings.upload_timeout_s
        name = Path(place.partition("://")[2].partition("?")[0]).name
        with self.incoming() as incoming:
            try:
                with fsspec.open(place, "rb") as source:
                    while data := source.read(PIECE_BYTES):
                        incoming.write(data)
                        if time.monotonic() > ends_s:
                            raise _refusal(f"{place} was not read within {self._settings.upload_timeout_s:g} s "
                                           "(http.upload_timeout_s)")
            except InvalidDocument:
                raise
            except Exception as error:  # noqa: BLE001 - each of fsspec's file systems has errors of its own
                # What they say may name what lies around the video.
                raise _refusal(f"{place} cannot be read: {type(error).__name__}") from None
            return self.find(self.keep(incoming, name).id)

    def _sweep(self) -> None:
        before_s = time.time() - STALE_S
        for path in self._directory.glob(f"*{PART_SUFFIX}"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before_s:
                    path.unlink()


def video_json(video: SourceVideo) -> dict[str, Json]:
    """What a video is, for a reply."""
    return {"width_px": video.width_px, "height_px": video.height_px, "fps": round(float(video.fps), 6),
            "frames": video.timeline_frames, "duration_s": round(video.duration_s, 6),
            "has_sound": bool(video.audio_codecs)}


def _safe(name: str) -> str:
    """The last part of a file's name, without what could be a command or a line of its own."""
    plain = re.sub(r"[^\w .()-]+", "-", name.replace("\\", "/").rpartition("/")[2]).strip(" .-")
    return plain[-MAX_NAME:] or "video"


def _refusal(problem: str, nearest: str = "", *, field: str = "") -> InvalidDocument:
    return InvalidDocument(problems=(Problem(field=field, problem=problem, nearest=nearest),))
