"""Draft or final: how much is spent on a shot. Part of no seed, and of a key only through what it changes.

    tier: draft            # the film's
    shots:
      - prompt: a red ball
        tier: final        # a shot's own

A job's document keeps both beside the storyboard, so that whoever shows a job need not read its storyboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from workflows.types import Json

TIER, TIERS = "tier", "tiers"
"""Of a job's document: the film's tier, and by shot those that differ."""


class Tier(StrEnum):
    """How much is spent on a shot."""

    DRAFT = "draft"
    """To be looked at: fewer steps, as the model's card says, from the seeds of the final film."""
    FINAL = "final"


def kept_tiers(film: Tier, shots: Mapping[str, Tier | None]) -> dict[str, Json]:
    """What a job's document keeps: nothing of a film without drafts."""
    own: dict[str, Json] = {shot_id: tier.value for shot_id, tier in shots.items() if tier not in (None, film)}
    kept: dict[str, Json] = {TIER: film.value} if film is not Tier.FINAL else {}
    return {**kept, TIERS: own} if own else kept


def film_tier(document: Mapping[str, Json]) -> Tier:
    """What holds for the shots of a job that do not say their own; also what a story node's payload says."""
    return Tier(str(document.get(TIER, Tier.FINAL.value)))


def tier_of(document: Mapping[str, Json], shot_id: str) -> Tier:
    """A shot's tier, as its job's document has it."""
    own = document.get(TIERS)
    told = own.get(shot_id) if isinstance(own, dict) else None
    return film_tier(document) if told is None else Tier(str(told))
