"""Which files a batch command means, and what the batch is called. Knows no database and no Ray."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from serve_app.submit import slug_of
from workflows.errors import InvalidDocument, Problem
from workflows.tiers import Tier
from workflows.types import Stage, digest

IN_DIRECTORIES = frozenset({".yaml", ".yml", ".json", ".fountain", ".spmd"})
"""Endings that are looked for in a directory; what else is a script must be named, since it may be a README."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """A file on this machine, and what it is called in the batch."""

    path: Path
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a command names."""

    name: str
    """The same for the same command on the same machine, whatever the files hold by now."""
    files: tuple[BatchFile, ...]


def named_files(given: Sequence[Path], *, name: str = "", last_stage: Stage = Stage.COMPOSITION,
                tier: Tier | None = None) -> Named:
    """The files of a command, those of a directory by name; `name`: what the user calls the batch.

    Raises InvalidDocument for a directory without any, and for two files whose films would have one name.
    """
    found: list[BatchFile] = []
    problems: list[Problem] = []
    for path in given:
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if one.suffix.lower() in IN_DIRECTORIES and one.is_file()]
            found += [BatchFile(path=one, file=one.name if len(given) == 1 else _called(one)) for one in inside]
            if not inside:
                problems.append(Problem(file=str(path), problem="holds no storyboard and no screenplay "
                                        f"({', '.join(sorted(IN_DIRECTORIES))}); name other files one by one"))
        else:
            found.append(BatchFile(path=path, file=_called(path)))
    found = list({one.path.resolve(): one for one in found}.values())
    problems += _same_films(found)
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    return Named(name=name or _name(given, last_stage, tier), files=tuple(found))


def film_name(file: str) -> PurePath:
    """Where the film of a file goes, below the directory of all of them; without an ending."""
    parts = [part for part in PurePath(file).parts if part not in ("..", "/", ".")]
    return PurePath(*parts).with_suffix("") if parts else PurePath("film")


def _called(path: Path) -> str:
    """As it was given, which is how its problems are told."""
    return path.as_posix()


def _same_films(files: Sequence[BatchFile]) -> list[Problem]:
    names = [(one.file, film_name(one.file)) for one in files]
    times = Counter(name for _, name in names)
    return [Problem(file=file, problem=f"its film would be called {name} like another one's; rename one of the files")
            for file, name in names if times[name] > 1]


def _name(given: Sequence[Path], last_stage: Stage, tier: Tier | None) -> str:
    places = sorted({str(path.resolve()) for path in given})
    mark = digest({"at": socket.gethostname(), "files": [*places], "last_stage": last_stage.value,
                   "tier": tier.value if tier else ""})
    first = given[0].resolve()
    readable = first.parent.name if len(given) > 1 else first.name if first.is_dir() else first.stem
    return f"{slug_of(readable)}-{mark[:6]}"
