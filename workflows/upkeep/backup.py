"""A backup while everything runs: rows first, in one snapshot, then the stored files that those rows mention.

A result is stored before its row is committed, so whatever the snapshot mentions is in the store by then. The other way
round a row could name a file that came after the copying. Files are immutable under their names: what an earlier backup
in the same directory has is not copied again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from workflows.durable.dump import facts_of, lines
from workflows.durable.ledger import Ledger
from workflows.durable.mentions import mentioned
from workflows.durable.tables import node, take
from workflows.store import CHUNK_BYTES, MANIFEST
from workflows.upkeep.files import StoreFiles
from workflows.upkeep.related import Related, all_keys, none_related
from workflows.upkeep.retention import CONDEMNED, Bundle, File, Wanted, decide
from workflows.upkeep.shelf import STORE, BackupManifest, write_lines, write_manifest

THREADS = 8
SHA_DIGITS = 16
"""So many of a file's digest are its name."""
SMALLEST_WHOLE = 2
"""Files of an artifact: its bytes and its manifest."""



@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    """What a backup did."""

    manifest: BackupManifest
    copied: int
    """Stored files that were new."""
    copied_bytes: int


def back_up(ledger: Ledger, files: StoreFiles | None, directory: Path, *, version: str,
            related: Related = none_related) -> BackedUp:
    """Copy state, and store unless `files` is None, to a directory; `related`: as in `all_keys`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    now_s = time.time()
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_s))}-{int(now_s * 1000) % 1000:03d}"
    state = f"state-{stamp}.jsonl.gz"
    with ledger.database.snapshot() as connection:
        facts = facts_of(connection)
        state_sha256 = write_lines(directory / state, lines(connection))
        keys = all_keys(mentioned(connection), related)
        results = _result_keys(connection)
    more: dict[str, Any] = {}
    copies: list[_Copy] = []
    if files is not None:
        copies = _copy_all(files, directory / STORE, keys)
        found = sorted((file.path, file.size_bytes) for copy in copies for file in copy.kept)
        objects = f"objects-{stamp}.jsonl.gz"
        whole = {copy.key for copy in copies if copy.kept}
        more = {"objects": objects, "objects_sha256": write_lines(directory / objects, map(json.dumps, found)),
                "object_count": len(found), "object_bytes": sum(size for _, size in found),
                "missing": sorted(results - whole)}
    manifest = BackupManifest(
        reelray=version, revision=facts.revision, made_at_s=now_s, rows=dict(facts.counts),
        sequences=dict(facts.sequences), store_prefix=files.prefix if files else "", state=state,
        state_sha256=state_sha256, **more)
    write_manifest(directory, manifest)
    return BackedUp(manifest=manifest, copied=sum(copy.new for copy in copies),
                    copied_bytes=sum(copy.new_bytes for copy in copies))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """What became of one key."""

    key: str
    kept: tuple[File, ...] = ()
    """Empty when it has no manifest, or nothing beside one."""
    new: int = 0
    new_bytes: int = 0


def _copy_all(files: StoreFiles, root: Path, keys: frozenset[str]) -> list[_Copy]:
    # Sorted by the same eyes as garbage is; nothing is wanted or young here.
    plan = decide(files.files(), Wanted(keys=frozenset(), open_keys=frozenset()), before_s=float("inf"))
    bundles = [bundle for bundle in (*plan.bundles, *plan.pardoned) if bundle.key in keys]
    there = {file.path: file for file in StoreFiles(str(root)).files()}
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda bundle: _copy(bundle, files, root, there), bundles))


def _copy(bundle: Bundle, files: StoreFiles, root: Path, there: Mapping[str, File]) -> _Copy:
    """The bytes first, the manifest last, as the store itself does."""
    kept: list[File] = []
    new: list[File] = []
    for file in sorted(bundle.files, key=lambda file: file.name == MANIFEST):
        if file.name == CONDEMNED:
            continue
        if not _is_there(file, there.get(file.path)):
            if not _copied(file, files, root / file.path):
                continue
            new.append(file)
        kept.append(file)
    if len(kept) < SMALLEST_WHOLE or kept[-1].name != MANIFEST:
        return _Copy(key=bundle.key)
    return _Copy(key=bundle.key, kept=tuple(kept), new=len(new), new_bytes=sum(file.size_bytes for file in new))


def _is_there(file: File, old: File | None) -> bool:
    """A manifest is the one file that may be written again under its name."""
    if old is None or old.size_bytes != file.size_bytes:
        return False
    return file.name != MANIFEST or (file.modified_s or 0.0) <= (old.modified_s or 0.0)


def _copied(file: File, files: StoreFiles, target: Path) -> bool:
    """False for a file that is gone or damaged: its name says what its digest begins with."""
    target.parent.mkdir(parents=True, exist_ok=True)
    tmp = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        hasher = hashlib.sha256()
        with files.open(file.path) as source, tmp.open("wb") as copy:
            while data := source.read(CHUNK_BYTES):
                hasher.update(data)
                copy.write(data)
            copy.flush()
            os.fsync(copy.fileno())
        if file.name != MANIFEST and hasher.hexdigest()[:SHA_DIGITS] != file.name.partition(".")[0]:
            return False
        tmp.replace(target)
    except FileNotFoundError:
        return False
    finally:
        tmp.unlink(missing_ok=True)
    return True


def _result_keys(connection: sa.Connection) -> set[str]:
    """Keys of results that rows have."""
    return {str(artifact["key"]) for table in (node, take)
            for artifact in connection.scalars(sa.select(table.c.artifact)) if artifact}
