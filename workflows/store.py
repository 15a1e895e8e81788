"""The artifact store: immutable files under content keys, on any fsspec file system. Knows no job and no database.

Layout under the root, for key `3fa9...`::

    3f/3fa9.../<sha256, 16 digits>.mp4      the bytes
    3f/3fa9.../manifest.json                the commit: names the file, its digest, and how it was made
    checkpoints/3fa9.../                    of attempts that are not finished (`workflows.checkpoints`)

A file is written first and the manifest last, each by an atomic replace; so a reader sees all or nothing, and two
writers of one key (a Director and its zombie) leave one of their two complete results, never a mixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from workflows.checkpoints import DIRECTORY, CheckpointShelf
from workflows.errors import ArtifactCorrupt, ArtifactMissing, InvalidSettings, StoreAway
from workflows.store_outage import StorePatience, outages_of
from workflows.types import Artifact, Json, MediaType

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""fsspec's names for object stores, whose outermost directory is made by an administrator."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a local file."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


class Store:
    """Artifacts by key. Safe to use from several threads and processes at once."""

    def __init__(self, url: str, *, cache_dir: Path | None = None, patience_s: float = 0.0) -> None:
        """Open the store at an fsspec URL or a local path.

        `cache_dir` is where `fetch` keeps local copies of remote files; local stores need none. `patience_s`: how long
        this call, `find`, `put` and `fetch` wait for a store that is away or full, on their caller's thread.
        Raises InvalidSettings when the URL's file system is not installed or the place cannot be written.
        """
        self.url = url
        self._patience = StorePatience(patience_s)
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
            self._patience.insist(self._open_root, "opening it")
        except (ImportError, ValueError) as error:
            raise InvalidSettings(problem=f"store_url {url!r} cannot be used: {error}; "
                                          'for s3 run `pip install "reelray[s3]"`') from error
        except FileNotFoundError as error:
            raise InvalidSettings(problem=f"store_url {url!r}: there is no bucket {self._root.partition('/')[0]!r}; "
                                          "make it, or name another one") from error
        except StoreAway as error:
            raise InvalidSettings(problem=f"store_url {url!r} cannot be written: {error.reason}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._cache_dir = cache_dir
        self._cache_lock = threading.Lock()

    def _open_root(self) -> None:
        names = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        with outages_of(self.url):
            if names & BUCKETS:
                # Makes nothing, and raises where there is no bucket. `makedirs` would make one of a mistyped name.
                with contextlib.suppress(FileExistsError):
                    self._fs.mkdir(f"{self._root}/{DIRECTORY}", create_parents=False)
            else:
                self._fs.makedirs(self._root, exist_ok=True)

    # -- reading ------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Artifact | None:
        """The artifact committed under `key`, or None; also None when its file is gone. Reads one small file.

        Raises StoreAway.
        """
        return self._patience.insist(lambda: self._find(key), f"looking for {key}")

    def manifest(self, key: str) -> Mapping[str, Json] | None:
        """How the artifact under `key` was made: `{"artifact": ..., "made": ...}`; None when there is none."""
        try:
            with outages_of(self.url):
                return _mapping(json.loads(self._fs.cat_file(self._path(key, MANIFEST))))
        except FileNotFoundError:
            return None

    def exists(self, artifact: Artifact) -> bool:
        """Whether the artifact's file is there with the recorded size."""
        try:
            with outages_of(self.url):
                return int(self._fs.info(self._strip(artifact.uri))["size"]) == artifact.size_bytes
        except FileNotFoundError:
            return False

    def open(self, artifact: Artifact) -> BinaryIO:
        """The artifact's bytes as a seekable stream. Raises ArtifactMissing and StoreAway."""
        try:
            with outages_of(self.url):
                stream: BinaryIO = self._fs.open(self._strip(artifact.uri), "rb")
        except FileNotFoundError as error:
            raise ArtifactMissing(uri=artifact.uri) from error
        return stream

    def fetch(self, artifact: Artifact) -> Path:
        """A local file with the artifact's bytes; the store's own file when the store is local. Do not write to it.

        Raises ArtifactMissing, ArtifactCorrupt when size or digest are not the recorded ones, and StoreAway.
        """
        call = self._fetch_local if self._is_local else self._fetch_remote
        return self._patience.insist(lambda: call(artifact), f"reading {artifact.key}")

    # -- writing ------------------------------------------------------------------------------------------------

    def put(self, key: str, source: Path, *, media_type: MediaType, manifest: Mapping[str, Json],
            score: float | None = None) -> Artifact:
        """Commit a local file under `key`; `manifest` says how it was made and is kept beside it; `score`: of a
        measurement.

        The source is copied, not moved. A second commit of the same key replaces the first atomically.
        Raises StoreAway.
        """
        digest = sha256_of(source)
        target = self._path(key, digest[:16] + media_type.suffix)
        uri = target if self._is_local else self._fs.unstrip_protocol(target)
        artifact = Artifact(key=key, uri=uri, sha256=digest, size_bytes=source.stat().st_size, media_type=media_type,
                            score=score)
        body = json.dumps({"artifact": artifact.to_json(), "made": dict(manifest)}, indent=1, ensure_ascii=False)
        self._patience.insist(lambda: self._write(source, target, body), f"writing {key}")
        return artifact

    def discard(self, key: str) -> None:
        """Remove the checkpoints of unfinished attempts at a key; an artifact stays."""
        CheckpointShelf(self.url).drop(key)

    # -- once, without patience ---------------------------------------------------------------------------------

    def _find(self, key: str) -> Artifact | None:
        manifest = self.manifest(key)
        if manifest is None:
            return None
        artifact = Artifact.from_json(_mapping(manifest["artifact"]))
        return artifact if self.exists(artifact) else None

    def _write(self, source: Path, target: str, manifest: str) -> None:
        with outages_of(self.url):
            if self._is_local:
                _commit(source, Path(target), manifest)
            else:  # object stores: one put is atomic
                self._fs.put_file(str(source), target)
                self._fs.pipe_file(f"{target.rpartition('/')[0]}/{MANIFEST}", manifest.encode())

    def _fetch_local(self, artifact: Artifact) -> Path:
        path = Path(self._strip(artifact.uri))
        with outages_of(self.url):
            if not path.is_file():
                raise ArtifactMissing(uri=artifact.uri)
            _check(path, artifact)
        return path

    def _fetch_remote(self, artifact: Artifact) -> Path:
        if self._cache_dir is None:
            raise InvalidSettings(problem=f"store {self.url!r} is remote and needs a cache_dir to fetch files into")
        path = self._cache_dir / f"{artifact.sha256}{artifact.media_type.suffix}"
        with self._cache_lock:
            if path.is_file():
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with outages_of(self.url):
                    _replace(path, lambda tmp: self._fs.get_file(self._strip(artifact.uri), str(tmp)))
                _check(path, artifact)
            except FileNotFoundError as error:
                raise ArtifactMissing(uri=artifact.uri) from error
            except ArtifactCorrupt:
                path.unlink()
                raise
        return path

    # -- paths --------------------------------------------------------------------------------------------------

    def _path(self, key: str, name: str) -> str:
        return f"{self._root}/{key[:2]}/{key}/{name}"

    def _strip(self, uri: str) -> str:
        return str(self._fs._strip_protocol(uri))


def _check(path: Path, artifact: Artifact) -> None:
    if (size := path.stat().st_size) != artifact.size_bytes:
        raise ArtifactCorrupt(uri=artifact.uri, expected=f"{artifact.size_bytes} bytes", found=f"{size} bytes")
    if (found := sha256_of(path)) != artifact.sha256:
        raise ArtifactCorrupt(uri=artifact.uri, expected=artifact.sha256, found=found)


def _mapping(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise ArtifactCorrupt(uri=MANIFEST, expected="a JSON object", found=type(value).__name__)
    return value


def _commit(source: Path, target: Path, manifest: str) -> None:
    """Bytes, then manifest, in the target's directory."""
    for last in (False, False, True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, lambda tmp: shutil.copyfile(source, tmp))
            _replace(target.parent / MANIFEST, lambda tmp: tmp.write_text(manifest, encoding="utf-8"))
        except FileNotFoundError:
            # A collection may remove a directory that has become empty just before something is written to it.
            if last or not source.exists():
                raise
        else:
            _sync_directory(target.parent)
            return


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write(tmp)` fill a temporary file beside `target`, flush it to disk, then take target's place."""
    tmp = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        write(tmp)
        with tmp.open("rb+") as file:
            os.fsync(file.fileno())
        tmp.replace(target)
    finally:
        tmp.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    # Some network file systems cannot fsync a directory; the files themselves are synced already.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
