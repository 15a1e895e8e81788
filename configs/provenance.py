"""Where a model's weights come from, and on what terms: what cards of every kind say."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from configs.base import Frozen


class Provenance(Frozen):
    """The part of a card that is about its repo and nothing else."""

    revision: str = ""
    """Pinned commit of a hub repo, 40 hex digits; empty follows its main branch. No branch or tag: they move, and the
    same card would be another model."""
    licence: str = ""
    """Its name, as the hub or SPDX has it."""
    licence_terms: str = ""
    """What it asks for, in plain words; the licence itself is what counts."""
    licence_url: Annotated[str, Field(pattern=r"^(https://.+)?$")] = ""
    gated: bool = False
    """The hub gives it only to accounts that accepted its terms."""
    sources: tuple[str, ...] = ()
    """Where the card's settings and rules come from."""
    notes: str = ""

    @field_validator("revision")
    @classmethod
    def _is_a_commit(cls, revision: str) -> str:
        return pinned(revision)


def pinned(revision: str) -> str:
    """The revision itself, a commit or empty. Raises ValueError for what can move."""
    if revision and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"{revision!r} is not a commit, 40 hex digits, and no branch or tag can be pinned; "
                         "nearest valid: the commit that it is at now, or empty to follow the main branch")
    return revision
