"""A backup as a directory: which files it has, and what its manifest says. Knows no database and no store.

Layout::

    backup.json                 written last: what it is, counts, SHA-256 of the two files below
    state-<time>.jsonl.gz       all rows (`workflows.durable.dump`)
    objects-<time>.jsonl.gz     `[path, bytes]` of every stored file that belongs to it
    store/3f/3fa9.../           those files; other ones there are of earlier backups

The next backup to the same directory copies only what is new; until its `backup.json` is written, the last one counts.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from workflows.errors import InvalidSettings
from workflows.store import sha256_of

FORMAT = 1
MANIFEST_NAME = "backup.json"
STORE = "store"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupManifest:
    """What a backup says of itself."""

    format: int = FORMAT
    reelray: str
    """The version that made it."""
    revision: str
    """Of the database's tables."""
    made_at_s: float
    store_prefix: str
    """What addresses of stored files began with."""
    rows: dict[str, int]
    """By table."""
    sequences: dict[str, int]
    """By table: the highest number that was given."""
    state: str
    """Name of the file with the rows."""
    state_sha256: str
    objects: str = ""
    """Name of the file with the list of stored files; empty: state only."""
    objects_sha256: str = ""
    object_count: int = 0
    object_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    """Keys of results that rows have and the store had not, or had damaged."""


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Write lines as a compressed file; its SHA-256."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=5) as file:
        for line in lines:
            file.write(line + "\n")
    return sha256_of(path)


def read_lines(path: Path) -> Iterator[str]:
    """The lines again, without their ends."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def write_manifest(directory: Path, manifest: BackupManifest) -> None:
    """From now on this is the backup; what earlier ones had besides is removed."""
    tmp = directory / f".{MANIFEST_NAME}.tmp"
    with tmp.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(manifest), indent=1))
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(directory / MANIFEST_NAME)
    for path in (*directory.glob("state-*.jsonl.gz"), *directory.glob("objects-*.jsonl.gz")):
        if path.name not in (manifest.state, manifest.objects):
            path.unlink()


def read_manifest(directory: Path) -> BackupManifest:
    """Read it, and check the files that it names. Raises InvalidSettings for what is no whole backup."""
    try:
        said = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
        if said.get("format") != FORMAT:
            raise InvalidSettings(problem=f"{directory} is a backup of format {said.get('format')}, and this reelray "
                                          f"reads format {FORMAT}; upgrade reelray")
        manifest = BackupManifest(**said)
    except FileNotFoundError:
        raise InvalidSettings(problem=f"{directory} is no whole backup: it has no {MANIFEST_NAME}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidSettings(problem=f"{directory / MANIFEST_NAME} cannot be read: {error}") from None
    named = [(manifest.state, manifest.state_sha256)]
    if manifest.objects:
        named.append((manifest.objects, manifest.objects_sha256))
    for name, sha256 in named:
        if "/" in name or not (directory / name).is_file() or sha256_of(directory / name) != sha256:
            raise InvalidSettings(problem=f"{directory / name} is missing or damaged: its SHA-256 is not the one in "
                                          f"{MANIFEST_NAME}")
    return manifest
