"""Whether all machines of a cluster can reach what they must share: the database and the store. Imports no ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from configs.settings import Settings
from workflows.errors import InvalidSettings

LOCAL = frozenset({"", "file", "local"})
"""fsspec's names for the file system of the machine that asks."""
PROCESS = "memory"
"""Its name for what only one process has."""


def machines_of(nodes: Iterable[Mapping[str, Any]]) -> int:
    """How many of these nodes (`ray.nodes()`) are alive."""
    return sum(bool(node["Alive"]) for node in nodes)


def require_shared(settings: Settings, *, machines: int = 1) -> None:
    """Refuse a database or a store that only one of several machines has.

    A node's result would be looked for where it is not, and two Directors would each believe in a database of their
    own. `machines`: how many the cluster has now. Raises InvalidSettings with every problem and its way out.
    """
    if machines <= 1 and not settings.ray.several_machines:
        return
    problems = []
    if settings.database.startswith("sqlite"):
        problems.append("the database is a SQLite file, which no other machine can use, not even over NFS; set "
                        "database_url=postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    kind = _kind(settings.store)
    if kind == PROCESS or (kind in LOCAL and not settings.store_is_shared):
        way_out = "set store_url=s3://BUCKET/PREFIX (or another file system that fsspec knows)"
        if kind in LOCAL:
            way_out += ("; if it is a directory that all of them have mounted under this path, say "
                        "store_is_shared=true")
        problems.append(f"the store is {settings.store}, on one machine; {way_out}")
    if problems:
        found = f"has {machines} machines" if machines > 1 else "is to have several machines (ray.several_machines)"
        raise InvalidSettings(problem=f"the cluster {found}, and " + "; and ".join(problems))


def _kind(url: str) -> str:
    """The file system that a store's URL or path names; of a chain (`simplecache::s3://...`) the last."""
    scheme, separator, _ = url.rpartition("::")[2].partition("://")
    return scheme if separator else ""
