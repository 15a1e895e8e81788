"""The storyboard: what a film is made of, as people write it. Knows no model card: what a model can do is the plan's.

    title: A ball at sea
    size: 96x64
    characters:
      - {id: hero, description: a small red ball}
    defaults: {duration_s: 2}
    shots:
      - prompt: a red ball moves left over a blue background
        characters: [hero]
      - prompt: a red ball falls down over a blue background
        continues: s1
        transition: {type: crossfade, duration_s: 0.5}
        caption: The end

YAML or JSON. A key without value (or null) in a shot counts as not given. Everything wrong with a document is told at
once, with line, shot, field and the nearest valid value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from configs.base import Frozen
from workflows.document import parse_document, plain_scalar
from workflows.errors import InvalidDocument, Problem
from workflows.explain import Owner, Owners, not_one_of, refused, say, schema_findings
from workflows.failing import MAX_TAKES, Missing, OutOfMemory, Retake
from workflows.failing import Part as _Part
from workflows.framing import Ratio, Resolution
from workflows.source import Document, Finding, dotted, shortened
from workflows.storyboard_rules import ID_PATTERN, rule_findings, shot_ids
from workflows.tiers import Tier
from workflows.types import Json

MAX_SHOTS = 1000
MAX_SEED = 2**32 - 1
"""Seeds are what any random generator takes: 32 bits."""
MAX_CROSSFADE_S = 10.0
MAX_PROBLEMS = 100
"""Problems told at once; a document with more has one cause behind them."""


class Mode(StrEnum):
    """What a clip starts from, unless it continues another shot."""

    TEXT_TO_VIDEO = "text_to_video"
    """From the prompt alone."""
    KEYFRAME = "keyframe"
    """From a first frame that the text-to-image model draws from the same prompt."""
    IMAGE = "image"
    """From a picture file."""


class TransitionType(StrEnum):
    """How a shot begins."""

    CUT = "cut"
    CROSSFADE = "crossfade"


def _id(text: str) -> str:
    if ID_PATTERN.fullmatch(text):
        return text
    problem = f"{shortened(text)!r} is no id: 1 to 64 letters, digits, _ or -"
    raise refused(problem, re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:64])


def _words(text: str) -> str:
    if not text.strip():
        raise refused("is empty")
    return text


def _mapping(value: Any, wanted: str) -> Any:
    """What may stand for itself: a mapping, the value itself in code, or nothing."""
    if value is None or isinstance(value, Mapping | Frozen):
        return value
    raise refused(f"must be {wanted}, not {say(value)}")


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return _mapping(value, "WIDTHxHEIGHT in pixels, e.g. 96x64")
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", value)
    if match is None:
        numbers = re.findall(r"[0-9]{1,5}", value)
        nearest = f"{numbers[0]}x{numbers[1]}" if len(numbers) == 2 else ""
        raise refused(f"{shortened(value)!r} is not WIDTHxHEIGHT in pixels, e.g. 96x64", nearest)
    return {"width_px": int(match[1]), "height_px": int(match[2])}


def _transition(value: Any) -> Any:
    if not isinstance(value, str):
        return _mapping(value, "cut, crossfade or {type: crossfade, duration_s: 0.5}")
    if value not in set(TransitionType):
        problem, nearest = not_one_of(value, list(TransitionType))
        raise refused(problem, nearest)
    return {"type": value}


Id = Annotated[str, AfterValidator(_id)]
Words = Annotated[str, AfterValidator(_words)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Size(_Part):
    """Width and height of the film; written `96x64` or `{width_px: 96, height_px: 64}`."""

    width_px: Annotated[int, Field(ge=1, le=8192)]
    height_px: Annotated[int, Field(ge=1, le=8192)]

    @model_serializer
    def text(self) -> str:
        """`96x64`."""
        return f"{self.width_px}x{self.height_px}"


class Transition(_Part):
    """How a shot begins: `cut`, `crossfade`, or `{type: crossfade, duration_s: 0.5}`."""

    type: TransitionType
    duration_s: Annotated[float, Field(ge=0.01, le=MAX_CROSSFADE_S)] | None = None
    """Of a crossfade; not given: half a second."""

    @property
    def fade_s(self) -> float:
        """Seconds during which two shots are seen at once; 0 for a cut."""
        if self.type is TransitionType.CUT:
            return 0.0
        return 0.5 if self.duration_s is None else self.duration_s

    @model_serializer
    def _short(self) -> str | dict[str, str | float]:
        if self.duration_s is None:
            return self.type.value
        return {"type": self.type.value, "duration_s": self.duration_s}


class Character(_Part):
    """Somebody or something that looks the same in several shots."""

    id: Id
    description: Words
    """How it looks; woven into the prompt of every shot that names it."""
    reference: Words | None = None
    """Path of a picture of it, relative to the storyboard's file; what is drawn of it looks like that picture."""


class ShotFields(_Part):
    """What may be said once for all shots, under `defaults`, and again in a shot, which wins."""

    negative_prompt: str | None = None
    """What must not be seen; not given: the film's, then the model card's."""
    duration_s: Annotated[float, Field(ge=0.01, le=3600)] | None = None
    """Length of the rendered clip; instead of `frames`."""
    frames: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Length of the clip as the model renders it, before interpolation."""
    mode: Mode | None = None
    """Not given: `image` when the shot has a picture, `keyframe` when a character of it has a reference picture, else
    `text_to_video`."""
    characters: tuple[str, ...] | None = None
    """Ids of the characters to be seen."""
    transition: Annotated[Transition, BeforeValidator(_transition)] | None = None
    """Into this shot from the one before; not given: a cut. As a default it passes over the first shot."""
    caption: Annotated[str, Field(max_length=500)] | None = None
    """Burned into the clip at its lower edge; an empty text takes a default caption away."""
    seed: Seed | None = None
    """Of the first take; not given: derived from the film's seed and the shot's id."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps of the clip; not given: the model card's. A keyframe takes its own card's."""
    guidance: Annotated[float, Field(ge=0, le=50)] | None = None
    """Classifier-free guidance scale of the clip; not given: the model card's. A keyframe takes its own card's."""
    takes: Annotated[int, Field(ge=1, le=MAX_TAKES)] | None = None
    """How many versions are rendered, each from its own seed; not given: 1."""
    retake: Retake | None = None
    """Instead of `takes`; as a default it passes over shots without reference pictures."""


class Shot(ShotFields):
    """One shot."""

    id: Id
    """In a document, not given: `s1`, `s2` ... by position."""
    prompt: Words
    """What is seen and what moves."""
    original_prompt: str | None = None
    """What `prompt` was before a language model wrote it anew; kept to be read, and in no key."""
    image: Words | None = None
    """Path of the first frame, relative to the storyboard's file."""
    continues: str | None = None
    """Id of the shot whose last frame is this one's first."""
    take: Annotated[int, Field(ge=1, le=MAX_TAKES)] | None = None
    """Which take the film uses; not given: 1, or the best where there is a `retake`."""
    tier: Tier | None = None
    """Draft or final; not given: the film's. Takes that the film does not use are drafts where either is."""


class FilmFields(_Part):
    """What holds for the whole film; a script takes these from outside."""

    style: str = ""
    """How everything looks; woven into every prompt."""
    size: Annotated[Size, BeforeValidator(_size)] | None = None
    """Not given: the video model card's default, or as `ratio` and `resolution` say."""
    ratio: Ratio | None = None
    """Width to height, instead of `size`; without `resolution` about as many pixels as the default has."""
    resolution: Resolution | None = None
    """Longer side, about 1024, 2048 or 4096 px, instead of `size`; without `ratio` in the default's."""
    fps: Annotated[float, Field(ge=1, le=240)] | None = None
    """Frames per second of the film; not given: the video model card's default times `interpolate`."""
    seed: Seed = 0
    negative_prompt: str = ""
    """What must not be seen in any shot."""
    interpolate: Annotated[int, Field(ge=1, le=8)] = 1
    """Clips are rendered at `fps / interpolate` and raised to `fps` by optical flow."""
    missing: Missing = Missing.CUT
    """What the film shows where a shot failed."""
    on_out_of_memory: OutOfMemory = OutOfMemory.FAIL
    """What becomes of a shot that fits no GPU, whatever is done."""


class Storyboard(FilmFields):
    """A film before it is planned. Raises pydantic's ValidationError when built wrong in code."""

    title: Annotated[str, Field(max_length=200)] = ""
    tier: Tier = Tier.FINAL
    """Of every shot that does not say its own."""
    characters: Annotated[tuple[Character, ...], Field(max_length=200)] = ()
    defaults: ShotFields = ShotFields()
    shots: Annotated[tuple[Shot, ...], Field(min_length=1, max_length=MAX_SHOTS)]

    def resolved(self, shot: Shot) -> Shot:
        """The shot with everything from `defaults`, and the tier, that it does not say itself.

        Its mode is None only if it continues another shot.
        """
        own = {name for name, value in shot if value is not None}
        taken = {name: value for name, value in self.defaults if value is not None and name not in own}
        if own & {"frames", "duration_s"}:
            taken = {name: value for name, value in taken.items() if name not in ("frames", "duration_s")}
        names = shot.characters or taken.get("characters") or ()
        pictured = any(who.reference is not None for who in self.characters if who.id in names)
        for name, drop in (("transition", shot.id == self.shots[0].id), ("takes", "retake" in own),
                           ("retake", "takes" in own or not pictured)):
            if drop:
                taken.pop(name, None)
        if shot.continues is not None:
            taken.pop("mode", None)
        elif shot.image is not None:
            taken["mode"] = Mode.IMAGE
        elif shot.mode is None:
            taken.setdefault("mode", Mode.KEYFRAME if pictured else Mode.TEXT_TO_VIDEO)
        taken["tier"] = shot.tier or self.tier
        return shot.model_copy(update=taken)

    @model_validator(mode="after")
    def _parts_fit(self) -> Storyboard:
        for finding in rule_findings(storyboard_value(self)):
            raise refused(f"{dotted(finding.path)}: {finding.problem}", finding.nearest)
        return self


def parse_storyboard(text: str, *, file: str = "") -> Storyboard:
    """Read a storyboard from YAML or JSON.

    `file` is its name for messages; one that ends in `.json` must be JSON. Raises InvalidDocument with all problems.
    """
    return checked_storyboard(parse_document(text, file=file), file=file)


def checked_storyboard(document: Document, *, file: str = "") -> Storyboard:
    """The storyboard that a document holds. Raises InvalidDocument with all problems, in the order of its lines."""
    value = _with_ids(document.value)
    findings = [*document.findings]
    checked: list[Finding] = []
    storyboard: Storyboard | None = None
    if isinstance(value, dict):
        checked += islice(rule_findings(value), MAX_PROBLEMS)
        try:
            storyboard = Storyboard.model_validate_json(json.dumps(value))
        except ValidationError as error:
            # The rules that a built Storyboard checks are among the findings already.
            checked += [f for f in schema_findings(error, document, _OWNERS, limit=MAX_PROBLEMS) if f.path]
    else:
        checked.append(Finding(path=(), problem=f"a storyboard is a mapping with `shots`, not {say(value)}"))
    findings += [finding for finding in checked if document.has_read(finding.path)]
    if storyboard is None or findings:
        raise InvalidDocument(file=file, problems=_problems(findings, document))
    return storyboard


def storyboard_value(storyboard: Storyboard) -> dict[str, Json]:
    """The storyboard as plain data, without what is not given; what `dump_storyboard` writes."""
    value: dict[str, Json] = storyboard.model_dump(mode="json", exclude_defaults=True)
    value["shots"] = [_sorted(shot, _OWNERS["shots",]) for shot in shot_values(value)]
    return _sorted(value, _OWNERS[()])


def dump_storyboard(storyboard: Storyboard) -> str:
    """YAML that `parse_storyboard` reads back as an equal value."""
    return yaml.dump(storyboard_value(storyboard), Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)


def _order(part: type[_Part], *first: str) -> tuple[str, ...]:
    """The part's fields, those that a reader looks for first in front."""
    return (*first, *(name for name in part.model_fields if name not in first))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that would read back as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Rare line breaks, which PyYAML writes between single quotes and reads back as others.
_RARE_BREAK = re.compile("[\r\x85\u2028\u2029]")


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(plain_scalar(text), str) and not _RARE_BREAK.search(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_text)

_OWNERS: Owners = {
    (): Owner("the film", _order(Storyboard, "title", "style")),
    ("shots",): Owner("a shot", _order(Shot, "id", "prompt")),
    ("defaults",): Owner("`defaults`", _order(ShotFields)),
    ("characters",): Owner("a character", _order(Character)),
    ("shots", "transition"): Owner("a transition", _order(Transition)),
    ("defaults", "transition"): Owner("a transition", _order(Transition)),
    ("shots", "retake"): Owner("`retake`", _order(Retake)),
    ("defaults", "retake"): Owner("`retake`", _order(Retake)),
    ("size",): Owner("size", _order(Size)),
}


def shot_values(value: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The shots of a storyboard as plain data."""
    shots = value.get("shots")
    return [shot for shot in shots if isinstance(shot, dict)] if isinstance(shots, list) else []


def _sorted(value: Mapping[str, Json], owner: Owner) -> dict[str, Json]:
    return {name: value[name] for name in owner.fields if name in value}


def _with_ids(value: Json) -> Json:
    """The document with the ids that its shots have by position."""
    shots = value.get("shots") if isinstance(value, dict) else None
    for shot, name in zip(shots if isinstance(shots, list) else [], shot_ids(value), strict=False):
        if isinstance(shot, dict) and shot.get("id") is None:
            shot["id"] = name
    return value


def _problems(findings: Iterable[Finding], document: Document) -> tuple[Problem, ...]:
    """In the order of the document's lines."""
    ids = shot_ids(document.value)
    problems = []
    for finding in findings:
        path, shot_id = finding.path, ""
        place = path[1] if len(path) > 1 and path[0] == "shots" else None
        if isinstance(place, int):
            path, shot_id = path[2:], ids[place]
        line = finding.line or document.line_of(finding.path)
        problems.append(Problem(problem=finding.problem, field=dotted(path), shot_id=shot_id, line=line,
                                nearest=finding.nearest))
    problems.sort(key=lambda problem: problem.line or 0)
    if len(problems) > MAX_PROBLEMS:
        more = Problem(problem=f"and {len(problems) - MAX_PROBLEMS} problems or more besides these")
        problems = [*problems[:MAX_PROBLEMS], more]
    return tuple(problems)
