"""A store as files: listed, marked, removed, read and written by their paths. Any fsspec file system; knows no row."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from workflows.errors import InvalidSettings
from workflows.store import MANIFEST
from workflows.upkeep.retention import CONDEMNED, Bundle, File

TIMES = ("mtime", "LastModified", "last_modified", "updated")
"""Under these names file systems say when a file was last written."""


class StoreFiles:
    """The files below one store's root. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        """Open it at an fsspec URL or a local path; it need not exist. Raises InvalidSettings."""
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidSettings(problem=f"store_url {url!r} cannot be used: {error}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)

    @property
    def prefix(self) -> str:
        """What the address of every artifact of this store begins with, before a slash."""
        return self._root if self._is_local else str(self._fs.unstrip_protocol(self._root)).rstrip("/")

    def files(self, below: str = "") -> Iterator[File]:
        """Every file there is, or every one below a directory; what comes or goes meanwhile may or may not be told."""
        start = f"{self._root}/{below}".rstrip("/")
        self._fs.invalidate_cache()
        try:
            found: Mapping[str, Mapping[str, Any]] = self._fs.find(start, detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            with contextlib.suppress(FileNotFoundError):
                yield File(path=path[len(self._root):].lstrip("/"), size_bytes=int(info["size"] or 0),
                           modified_s=self._modified_s(path, info))

    def bundle(self, key: str) -> Bundle:
        """What is under one key now."""
        return Bundle(key=key, files=tuple(self.files(f"{key[:2]}/{key}")))

    def condemn(self, key: str) -> None:
        """From now on nobody finds this key's artifact; its bytes stay."""
        self._move(f"{key[:2]}/{key}/{MANIFEST}", f"{key[:2]}/{key}/{CONDEMNED}")

    def pardon(self, bundle: Bundle) -> None:
        """It is found again; a newer commit stays in force."""
        place = f"{bundle.key[:2]}/{bundle.key}"
        if bundle.has_manifest:
            self.remove(f"{place}/{CONDEMNED}")
        else:
            self._move(f"{place}/{CONDEMNED}", f"{place}/{MANIFEST}")

    def remove(self, path: str) -> None:
        """Remove a file; it may be gone."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{path}")

    def remove_directory(self, path: str) -> None:
        """Where there are such things, and when it is empty."""
        if self._is_local:
            with contextlib.suppress(OSError):
                Path(f"{self._root}/{path}").rmdir()

    def open(self, path: str) -> BinaryIO:
        """A file's bytes. Raises FileNotFoundError."""
        stream: BinaryIO = self._fs.open(f"{self._root}/{path}", "rb")
        return stream

    def write(self, path: str, source: Path) -> None:
        """Copy a local file to this path; a reader sees all of it or nothing."""
        target = f"{self._root}/{path}"
        if not self._is_local:  # object stores: one put is atomic
            self._fs.put_file(str(source), target)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(target).with_name(f".{Path(target).name}.{uuid.uuid4().hex}.tmp")
        try:
            self._fs.put_file(str(source), str(tmp))
            with tmp.open("rb+") as file:
                os.fsync(file.fileno())
            tmp.replace(target)
        finally:
            tmp.unlink(missing_ok=True)

    def _move(self, path: str, to: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._is_local:
                Path(f"{self._root}/{path}").replace(f"{self._root}/{to}")
            else:
                self._fs.mv(f"{self._root}/{path}", f"{self._root}/{to}")

    def _modified_s(self, path: str, info: Mapping[str, Any]) -> float | None:
        said = next((info[name] for name in TIMES if info.get(name)), None)
        if said is None:
            try:
                said = self._fs.modified(path)
            except (NotImplementedError, KeyError):
                return None
        if isinstance(said, str):
            said = datetime.fromisoformat(said)
        if isinstance(said, datetime):
            return (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()
        return float(said)
