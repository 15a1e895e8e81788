"""Points and boxes of an edit as people write them into a form: `120,80; not 40,30@24`. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workflows.errors import InvalidDocument, Problem
from workflows.source import shortened
from workflows.types import Json

POINTS, BOXES = "points", "boxes"
SIDES = ("left", "top", "right", "bottom")
PLACE = re.compile(r"(not\s+)?(-?[\d.]+(?:\s*,\s*-?[\d.]+)*)\s*(?:@\s*(\d{1,9}))?")
EXAMPLES = {POINTS: "120,80; not 40,30@24", BOXES: "10,20,110,90@24"}


def places_of(field: str, text: str) -> list[Json]:
    """What a request has as its `points` or `boxes`. Raises InvalidDocument."""
    names = ("x", "y") if field == POINTS else SIDES
    return [_place(field, one.strip(), names) for one in text.split(";") if one.strip()]


def text_of(field: str, places: Sequence[Mapping[str, Any]]) -> str:
    """The inverse of `places_of`."""
    names = ("x", "y") if field == POINTS else SIDES
    return "; ".join(("" if one.get("inside", True) else "not ") + ",".join(f"{one[name]:g}" for name in names)
                     + (f"@{one['frame']}" if one.get("frame") else "") for one in places)


def _place(field: str, text: str, names: Sequence[str]) -> Json:
    match = PLACE.fullmatch(text)
    try:
        numbers = [float(part) for part in match[2].split(",")] if match else []
    except ValueError:
        numbers = []
    if match is None or len(numbers) != len(names) or (match[1] and field == BOXES):
        told = f"{shortened(text)!r}: {len(names)} numbers are needed, and a frame after @ where it is not the first"
        raise InvalidDocument(problems=(Problem(field=field, problem=told, nearest=EXAMPLES[field]),))
    found: dict[str, Json] = {**dict(zip(names, numbers, strict=True)), "frame": int(match[3] or 0)}
    return found if field == BOXES else {**found, "inside": not match[1]}
