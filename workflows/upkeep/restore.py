"""A backup brought back: files first, rows last, in one transaction; so a row never names a missing file.

The database must be empty. The store may hold what an interrupted restore has brought already, and nothing else: a
store belongs to one database. Addresses in rows and manifests become those of the new place; keys stay, and so
everything that was rendered is found.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from workflows.durable.dump import Facts, load, require_empty
from workflows.durable.ledger import Ledger
from workflows.durable.migrations import migrate
from workflows.errors import ArtifactCorrupt, InvalidSettings
from workflows.store import MANIFEST, sha256_of
from workflows.types import Json
from workflows.upkeep.files import StoreFiles
from workflows.upkeep.retention import ARTIFACT
from workflows.upkeep.shelf import STORE, BackupManifest, read_lines, read_manifest

THREADS = 8
SHA_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did."""

    manifest: BackupManifest
    written: int
    """Stored files that were not there yet."""


def restore(directory: Path, ledger: Ledger, files: StoreFiles, *, with_store: bool = True) -> Restored:
    """Bring a backup back.

    Raises InvalidSettings for a backup that is not whole or newer than this code, for a database that is not empty,
    and for a store with files of others; ArtifactCorrupt for a damaged file. Nothing is in the database then.
    """
    manifest = read_manifest(directory)
    if not migrate.is_known(manifest.revision):
        raise InvalidSettings(problem=f"{directory} was made by reelray {manifest.reelray} at revision "
                                      f"{manifest.revision}, newer than this one; upgrade reelray")
    with ledger.database.read() as connection:
        require_empty(ledger.database, connection)
    move = Move(manifest.store_prefix, files.prefix)
    written = 0
    if with_store and manifest.objects:
        written = _restore_files(directory, manifest, files, move)
    facts = Facts(revision=manifest.revision, counts=manifest.rows, sequences=manifest.sequences)
    load(ledger.database, read_lines(directory / manifest.state), facts, move.change)
    return Restored(manifest=manifest, written=written)


class Move:
    """From one store's addresses to another's."""

    def __init__(self, old_prefix: str, new_prefix: str) -> None:
        """Addresses begin with `old_prefix`, a slash, and an artifact's place; anything else is left as it is."""
        self._old = f"{old_prefix}/"
        self._new = f"{new_prefix}/"
        self._is_none = not old_prefix or old_prefix == new_prefix

    def change(self, value: Json) -> Json:
        """The same value with its addresses changed, however deep they are."""
        if self._is_none:
            return value
        if isinstance(value, dict):
            return {name: self.change(part) for name, part in value.items()}
        if isinstance(value, list):
            return [self.change(part) for part in value]
        if isinstance(value, str) and value.startswith(self._old) and ARTIFACT.fullmatch(value[len(self._old):]):
            return self._new + value[len(self._old):]
        return value


def _restore_files(directory: Path, manifest: BackupManifest, files: StoreFiles, move: Move) -> int:
    wanted: dict[str, int] = dict(json.loads(line) for line in read_lines(directory / manifest.objects))
    there = {file.path: file.size_bytes for file in files.files() if ARTIFACT.fullmatch(file.path)}
    _require_ours(there, {_key_of(path) for path in wanted})
    manifests = [path for path in wanted if path.endswith(f"/{MANIFEST}")]
    bytes_ = [path for path in wanted if not path.endswith(f"/{MANIFEST}") and there.get(path) != wanted[path]]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda path: _write(directory / STORE / path, path, wanted[path], files), bytes_))
        # Only now are they results.
        list(pool.map(lambda path: _write_manifest(directory / STORE / path, path, files, move), manifests))
    return len(bytes_) + len([path for path in manifests if path not in there])


def _require_ours(there: Iterable[str], keys: set[str]) -> None:
    others: Sequence[str] = [path for path in there if _key_of(path) not in keys]
    if others:
        raise InvalidSettings(problem=f"the store holds {len(others)} files that are not in the backup, e.g. "
                                      f"{others[0]}; restore into an empty one, or the state alone with --no-store")


def _write(source: Path, path: str, size_bytes: int, files: StoreFiles) -> None:
    """Check a file of the backup and copy it. Raises ArtifactCorrupt."""
    expected = f"{size_bytes} bytes with SHA-256 {path.rpartition('/')[2].partition('.')[0]}..."
    if not source.is_file() or source.stat().st_size != size_bytes:
        raise ArtifactCorrupt(uri=str(source), expected=expected, found="another size, or nothing")
    digest = sha256_of(source)
    if digest[:SHA_DIGITS] != source.name.partition(".")[0]:
        raise ArtifactCorrupt(uri=str(source), expected=expected, found=digest)
    files.write(path, source)


def _write_manifest(source: Path, path: str, files: StoreFiles, move: Move) -> None:
    try:
        said = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactCorrupt(uri=str(source), expected="a manifest", found=str(error)) from None
    with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
        moved = Path(scratch) / MANIFEST
        moved.write_text(json.dumps(move.change(said), indent=1, ensure_ascii=False), encoding="utf-8")
        files.write(path, moved)


def _key_of(path: str) -> str:
    return path.split("/")[1]
