"""Step checkpoints beside the artifacts: what an attempt had made when it died, for the next one. Knows no torch.

Layout under the store's root, for the node's key `3fa9...`::

    checkpoints/3fa9.../0002-5b1c9a04.ckpt      attempt 2; the second part is drawn for each run

A run has one file and replaces it atomically, so that two runs of one key (an attempt and its zombie) never write the
same one. Every checkpoint with the right label leads to the same pixels, whoever wrote it: a reader takes the one that
is furthest, and one that comes late harms nobody. A file carries its own checksum; whatever does not read as it was
written is as good as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import posixpath
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from workflows.errors import InvalidSettings
from workflows.types import Json, canonical_json

log = logging.getLogger(__name__)

MAGIC = b"reelray checkpoint 1\n"
LENGTH_BYTES = 8
DIRECTORY = "checkpoints"
SUFFIX = ".ckpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One checkpoint, and what it is good for."""

    label: Mapping[str, Json]
    """All that must be equal where it is used: key, card, versions, device. See `serve_app.models.keeping`."""
    step: int
    """Denoising steps in it."""
    attempt: int
    """Who wrote it."""
    spent_s: float
    """What the steps had cost, over all attempts that led to it."""
    body: bytes

    def to_bytes(self) -> bytes:
        """As a file: magic, length of the header, header, body."""
        return self.head_bytes() + self.body

    def head_bytes(self) -> bytes:
        """All of the file before the body."""
        head = canonical_json({"label": dict(self.label), "step": self.step, "attempt": self.attempt,
                               "spent_s": self.spent_s, "sha256": hashlib.sha256(self.body).hexdigest()}).encode()
        return b"".join((MAGIC, len(head).to_bytes(LENGTH_BYTES, "big"), head))

    @classmethod
    def from_bytes(cls, content: bytes) -> Kept:
        """The inverse. Raises ValueError for anything that is not such a file, whole and unchanged."""
        start = len(MAGIC) + LENGTH_BYTES
        if not content.startswith(MAGIC) or len(content) < start:
            raise ValueError("it is no checkpoint, or only its beginning")
        end = start + int.from_bytes(content[len(MAGIC):start], "big")
        head, body = json.loads(content[start:end]), content[end:]
        if hashlib.sha256(body).hexdigest() != head.pop("sha256"):
            raise ValueError("its checksum is another")
        return cls(**head, body=body)


class CheckpointShelf:
    """Checkpoints by key, on any fsspec file system. Safe to use from several threads and processes at once."""

    def __init__(self, url: str) -> None:
        """Open the shelf of the store at an fsspec URL or a local path.

        Raises InvalidSettings when the URL's file system is not installed.
        """
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidSettings(problem=f"store_url {url!r} cannot be used: {error}") from error
        self._root = f"{root}/{DIRECTORY}"
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def put(self, key: str, run: str, kept: Kept) -> None:
        """Keep a run's newest checkpoint in place of its last one. Raises what the file system raises."""
        path = f"{self._root}/{key}/{kept.attempt:04d}-{run}{SUFFIX}"
        if not self._is_local:  # object stores: one put is atomic
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            self._fs.pipe_file(path, kept.to_bytes())
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        tmp = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with tmp.open("wb") as file:
                file.write(kept.head_bytes())
                file.write(kept.body)
                file.flush()
                os.fsync(file.fileno())
            tmp.replace(target)
        finally:
            tmp.unlink(missing_ok=True)

    def furthest(self, key: str, label: Mapping[str, Json]) -> Kept | None:
        """The checkpoint with the most steps among those with exactly this label; None when there is none.

        Others are left alone, damaged ones too; each is logged. Raises what the file system raises.
        """
        found: list[Kept] = []
        for path in self._files(f"{self._root}/{key}"):
            if not path.endswith(SUFFIX):
                continue
            try:
                kept = Kept.from_bytes(self._fs.cat_file(path))
            except FileNotFoundError:
                continue  # removed meanwhile
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                log.warning("checkpoint %s is ignored: %s", path, error)
                continue
            if other := differing(kept.label, label):
                log.info("checkpoint %s is not used here: another %s", path, ", ".join(other))
                continue
            found.append(kept)
        return max(found, key=lambda kept: kept.step, default=None)

    def drop(self, key: str) -> None:
        """Remove all checkpoints of a key; there may be none. Raises what the file system raises."""
        for path in self._files(f"{self._root}/{key}"):
            self._remove(path)
        self._remove_directory(f"{self._root}/{key}")

    def sweep(self, older_than_s: float) -> int:
        """Remove what nobody has written to for so long, and say how many files that were.

        Their attempts were never finished, or a zombie wrote them after the commit.
        """
        removed, before = 0, time.time() - older_than_s
        for directory in self._files(self._root):
            for path in self._files(directory):
                with contextlib.suppress(FileNotFoundError):
                    if self._fs.modified(path).timestamp() < before:
                        self._remove(path)
                        removed += 1
            self._remove_directory(directory)
        return removed

    def _files(self, directory: str) -> list[str]:
        try:
            self._fs.invalidate_cache(directory)
            return [str(name) for name in self._fs.ls(directory, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def _remove_directory(self, directory: str) -> None:
        """Where there are such things, and when it is empty: somebody may be writing there again."""
        if self._is_local:
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def differing(one: Mapping[str, Json], other: Mapping[str, Json]) -> list[str]:
    """Names under which the two do not say the same."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
