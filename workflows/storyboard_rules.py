"""What the parts of a storyboard must be to each other: ids, references, circles, fields that exclude each other.

Works on plain data that may still be wrong in type, so that these problems are told together with those of the schema.
Knows no model card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from workflows.source import DocPath, Finding, closest_or_few, shortened
from workflows.types import Json

ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
Fields = Mapping[str, Json]


def shot_ids(value: Json) -> list[str]:
    """The id of every shot, in order: its own where it is right, else `s` and its number, counted from 1."""
    return [_id_of(shot) or f"s{place}" for place, shot in enumerate(_members(value, "shots"), start=1)]


def rule_findings(value: Json) -> Iterator[Finding]:
    """Everything wrong between the parts of a storyboard."""
    shots = _members(value, "shots")
    ids = shot_ids(value)
    defaults = _mapping(value.get("defaults")) if isinstance(value, dict) else {}
    yield from _taken_ids("characters", [_id_of(character) for character in _members(value, "characters")])
    yield from _taken_ids("shots", ids)
    yield from _both_sizes(_mapping(value))
    yield from _both_lengths(defaults, ("defaults",))
    yield from _cut_with_duration(defaults, ("defaults",))
    people = [_id_of(character) for character in _members(value, "characters")]
    yield from _unknown_characters(defaults, people, ("defaults",))
    yield from _both_takes(defaults, ("defaults",))
    for place, shot in enumerate(shots):
        path: DocPath = ("shots", place)
        yield from _both_lengths(shot, path)
        yield from _first_frame(shot, defaults, path)
        yield from _unknown_characters(shot, people, path)
        yield from _both_takes(shot, path)
        yield from _chosen_take(shot, defaults, path)
        yield from _cut_with_duration(shot, path)
    if shots and _transition(shots[0]) == "crossfade":
        yield Finding(path=("shots", 0, "transition"), problem="the first shot has nothing to fade from", nearest="cut")
    yield from _broken_continuity(shots, ids)


def _members(value: Json, name: str) -> list[Fields]:
    items = value.get(name) if isinstance(value, dict) else None
    return [_mapping(item) for item in items] if isinstance(items, list) else []


def _mapping(value: Json) -> Fields:
    return value if isinstance(value, dict) else {}


def _id_of(fields: Fields) -> str:
    own = fields.get("id")
    return own if isinstance(own, str) and ID_PATTERN.fullmatch(own) else ""


def _taken_ids(group: str, ids: Sequence[str]) -> Iterator[Finding]:
    first: dict[str, int] = {}
    taken = set(ids)
    for place, name in enumerate(ids):
        if name and name in first:
            free = next(f"{name}-{n}" for n in range(2, len(ids) + 2) if f"{name}-{n}" not in taken)
            owner = f"{group.removesuffix('s')} {first[name] + 1}"
            yield Finding(path=(group, place, "id"), problem=f"the id {name} is taken by {owner}", nearest=free)
        first.setdefault(name, place)


def _both_sizes(film: Fields) -> Iterator[Finding]:
    for name in ("ratio", "resolution"):
        if _given(film, "size") and _given(film, name):
            yield Finding(path=(name,), problem=f"give size or {name}, not both")


def _both_lengths(fields: Fields, path: DocPath) -> Iterator[Finding]:
    if _given(fields, "frames") and _given(fields, "duration_s"):
        yield Finding(path=(*path, "frames"), problem="give frames or duration_s, not both")


def _first_frame(shot: Fields, defaults: Fields, path: DocPath) -> Iterator[Finding]:
    """At most one of `continues`, `image` and a drawn keyframe says what the clip starts from."""
    mode = shot.get("mode")
    if _given(shot, "continues"):
        if _given(shot, "image"):
            yield Finding(path=(*path, "image"), problem="give image or continues, not both")
        if _given(shot, "mode"):
            problem = "a shot that continues another starts from that shot's last frame; remove mode"
            yield Finding(path=(*path, "mode"), problem=problem)
    elif _given(shot, "image"):
        if mode in ("text_to_video", "keyframe"):
            yield Finding(path=(*path, "mode"), problem=f"a shot with an image cannot be {mode}", nearest="image")
    elif mode == "image" or (mode is None and defaults.get("mode") == "image"):
        yield Finding(path=(*path, "image"), problem="mode image needs the path of a picture here")


def _unknown_characters(fields: Fields, people: Sequence[str], path: DocPath) -> Iterator[Finding]:
    named = fields.get("characters")
    seen: set[str] = set()
    for place, name in enumerate(named if isinstance(named, list) else []):
        if not isinstance(name, str):
            continue
        where = (*path, "characters", place)
        if name not in people:
            yield Finding(path=where, problem=f"no character has the id {shortened(name)!r}",
                          nearest=closest_or_few(name, people))
        elif name in seen:
            yield Finding(path=where, problem=f"{name} is named twice")
        seen.add(name)


def _both_takes(fields: Fields, path: DocPath) -> Iterator[Finding]:
    if _given(fields, "takes") and _given(fields, "retake"):
        yield Finding(path=(*path, "takes"), problem="give takes or retake, not both")


def _chosen_take(shot: Fields, defaults: Fields, path: DocPath) -> Iterator[Finding]:
    take = shot.get("take")
    said = shot if _given(shot, "takes") or _given(shot, "retake") else defaults
    retake = _mapping(said.get("retake"))
    takes = retake.get("takes", 3) if retake else said.get("takes", 1)
    if isinstance(take, int) and isinstance(takes, int) and 1 <= takes < take:
        yield Finding(path=(*path, "take"), problem=f"take {take} is chosen, but takes is {takes}", nearest=str(takes))


def _cut_with_duration(fields: Fields, path: DocPath) -> Iterator[Finding]:
    transition = _mapping(fields.get("transition"))
    if transition.get("type") == "cut" and _given(transition, "duration_s"):
        yield Finding(path=(*path, "transition", "duration_s"), problem="a cut takes no time; remove it")


def _transition(fields: Fields) -> Json:
    transition = fields.get("transition")
    return transition.get("type") if isinstance(transition, dict) else transition


def _broken_continuity(shots: Sequence[Fields], ids: Sequence[str]) -> Iterator[Finding]:
    """References to shots that do not exist, then circles."""
    before: dict[str, str] = {}
    known = set(ids)
    for place, shot in enumerate(shots):
        other = shot.get("continues")
        path: DocPath = ("shots", place, "continues")
        if not isinstance(other, str):
            continue
        if other == ids[place]:
            yield Finding(path=path, problem="a shot cannot continue itself")
        elif other not in known:
            others = [name for name in ids if name != ids[place]]
            yield Finding(path=path, problem=f"no shot has the id {shortened(other)!r}",
                          nearest=closest_or_few(other, others))
        else:
            before.setdefault(ids[place], other)
    for circle in _circles(before, ids):
        shown = circle if len(circle) <= 8 else [*circle[:6], "..."]
        yield Finding(path=("shots", ids.index(circle[0]), "continues"),
                      problem=f"the shots continue each other in a circle: {' -> '.join([*shown, circle[0]])}")


def _circles(before: Mapping[str, str], ids: Sequence[str]) -> Iterator[list[str]]:
    """Each circle once, from its first shot in film order."""
    seen: set[str] = set()
    for start in ids:
        trail: list[str] = []
        name: str | None = start
        while name is not None and name not in seen:
            seen.add(name)
            trail.append(name)
            name = before.get(name)
        if name in trail:
            circle = trail[trail.index(name) :]
            first = circle.index(min(circle, key=ids.index))
            yield circle[first:] + circle[:first]


def _given(fields: Fields, name: str) -> bool:
    return fields.get(name) is not None
