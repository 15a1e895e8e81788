"""Which keys stand behind what rows mention. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workflows.types import substitute_key

Related = Callable[[str], Iterable[str]]
"""Further keys that a digest (64 hex digits) in a row stands for."""
DIGEST_CHARS = 64


def none_related(_: str) -> tuple[str, ...]:
    """A digest is only a digest."""
    return ()


def all_keys(mentions: Iterable[str], related: Related) -> frozenset[str]:
    """The mentions, where results are kept that were made in place of theirs, and what digests stand for."""
    found: set[str] = set()
    for name in mentions:
        found.add(name)
        found.update(related(name) if len(name) == DIGEST_CHARS else (substitute_key(name),))
    return frozenset(found)
