"""What of a store may go, decided from lists alone: which files there are, what rows mention, how late it is. Pure.

A file may go when no row mentions its key and nobody has written under that key for as long as the bound says. The age
is what protects a file that was just written and whose row is on its way.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from workflows.checkpoints import DIRECTORY, SUFFIX
from workflows.store import MANIFEST
from workflows.types import SUFFIXES, MediaType

CONDEMNED = "condemned.json"
"""A manifest under this name is read by nobody who looks for a result; under its own name again, it is one again."""
ARTIFACT = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{30})/([^/]+)")
CHECKPOINT = re.compile(rf"{DIRECTORY}/([0-9a-f]{{32}})/([^/]+)")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


class Kind(StrEnum):
    """What a file is, for people."""

    VIDEO = "videos"
    PICTURE = "pictures"
    DATA = "data"
    UPLOAD = "uploaded videos"
    CHECKPOINT = "checkpoints"
    TEMPORARY = "temporary files"


KINDS: Mapping[str, Kind] = {SUFFIXES[media_type]: kind for media_type, kind in (
    (MediaType.MP4, Kind.VIDEO), (MediaType.PNG, Kind.PICTURE), (MediaType.JPEG, Kind.PICTURE),
    (MediaType.VIDEO, Kind.UPLOAD))}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a store."""

    path: str
    """Below the store's root, with slashes."""
    size_bytes: int
    modified_s: float | None
    """Unix time of the last write, as the store says; None: it does not say, and the file is never old."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All files under one key, but temporary ones."""

    key: str
    files: tuple[File, ...]

    @property
    def is_condemned(self) -> bool:
        """An earlier collection was about to remove it."""
        return any(file.name == CONDEMNED for file in self.files)

    @property
    def has_manifest(self) -> bool:
        """It is found by its key."""
        return any(file.name == MANIFEST for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return sum(file.size_bytes for file in self.files)

    @property
    def kind(self) -> Kind:
        """By the endings of its files."""
        found = {KINDS.get(PurePosixPath(file.path).suffix, Kind.DATA) for file in self.files}
        return min(found - {Kind.DATA}, default=Kind.DATA)

    def is_older_than(self, before_s: float) -> bool:
        """Nobody has written anything here since; the mark of an earlier collection does not count."""
        return all(_is_old(file, before_s) for file in self.files if file.name != CONDEMNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What rows hold on to."""

    keys: Set[str]
    """Artifacts with these keys stay."""
    open_keys: Set[str]
    """Checkpoints of these stay: their nodes may go on from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What may go, and what stays."""

    bundles: tuple[Bundle, ...] = ()
    """Artifacts that no row mentions, and that are old enough."""
    checkpoints: tuple[File, ...] = ()
    """Old ones of nodes that are over or unknown."""
    temporary: tuple[File, ...] = ()
    """Left by writers that died."""
    pardoned: tuple[Bundle, ...] = ()
    """An earlier collection condemned them and died, and they are wanted, or written anew."""
    kept: int = 0
    """Artifacts that stay."""
    strange: int = 0
    """Files that are none of reelray's; they are left alone."""

    def goes(self) -> dict[Kind, tuple[int, int]]:
        """By kind: how many artifacts or files go, and how many bytes they take."""
        sums: defaultdict[Kind, list[int]] = defaultdict(lambda: [0, 0])
        for kind, size_bytes in self._going():
            sums[kind][0] += 1
            sums[kind][1] += size_bytes
        return {kind: (sums[kind][0], sums[kind][1]) for kind in Kind if kind in sums}

    def _going(self) -> Iterator[tuple[Kind, int]]:
        yield from ((bundle.kind, bundle.size_bytes) for bundle in self.bundles)
        yield from ((Kind.CHECKPOINT, file.size_bytes) for file in self.checkpoints)
        yield from ((Kind.TEMPORARY, file.size_bytes) for file in self.temporary)


def decide(files: Iterable[File], wanted: Wanted, *, before_s: float) -> Plan:
    """Sort a store's files; what was last written at or after unix time `before_s` stays, whatever it is."""
    keyed: defaultdict[str, list[File]] = defaultdict(list)
    checkpoints: list[File] = []
    temporary: list[File] = []
    strange = 0
    for file in files:
        artifact, checkpoint = ARTIFACT.fullmatch(file.path), CHECKPOINT.fullmatch(file.path)
        if artifact is None and checkpoint is None:
            strange += 1
        elif TEMPORARY.fullmatch(file.name):
            if _is_old(file, before_s):
                temporary.append(file)
        elif artifact is not None:
            keyed[artifact[2]].append(file)
        elif checkpoint is not None and file.name.endswith(SUFFIX) and _is_old(file, before_s):
            checkpoints += [file] if checkpoint[1] not in wanted.open_keys else []
    bundles = [Bundle(key=key, files=tuple(found)) for key, found in keyed.items()]
    going = [bundle for bundle in bundles if bundle.key not in wanted.keys and bundle.is_older_than(before_s)
             and not (bundle.is_condemned and bundle.has_manifest)]
    gone = {bundle.key for bundle in going}
    return Plan(bundles=tuple(going), checkpoints=tuple(checkpoints), temporary=tuple(temporary),
                pardoned=tuple(bundle for bundle in bundles if bundle.is_condemned and bundle.key not in gone),
                kept=len(bundles) - len(going), strange=strange)


def _is_old(file: File, before_s: float) -> bool:
    return file.modified_s is not None and file.modified_s < before_s
