"""What a schema refused, in words for the writer of the document. Knows pydantic's errors, no particular schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from workflows.source import DocPath, Document, Finding, closest, shortened
from workflows.types import Json


@dataclass(frozen=True, slots=True)
class Owner:
    """What has fields: its name in a sentence, and theirs."""

    name: str
    fields: Sequence[str]


Owners = Mapping[tuple[str, ...], Owner]
"""By path without list positions: {("shots",): Owner("a shot", ("id", "prompt", ...))}."""

OWN_ERROR = "reelray"
"""Type of the errors that our validators raise."""


def refused(problem: str, nearest: str = "") -> PydanticCustomError:
    """What a validator raises to say in its own words what is wrong and what would be right."""
    return PydanticCustomError(OWN_ERROR, "{problem}; nearest valid: {nearest}" if nearest else "{problem}",
                               {"problem": problem, "nearest": nearest})


def schema_findings(error: ValidationError, document: Document, owners: Owners, *, limit: int) -> list[Finding]:
    """The first `limit` errors of a validation, in words, each at its place in the document."""
    findings = []
    for details in error.errors(include_url=False)[:limit]:
        path: DocPath = tuple(details["loc"])
        if _is_echo(details):
            continue
        spelling = document.spellings.get(path, "")
        if details["type"] == "extra_forbidden":
            problem, nearest = _unknown_field(path, owners)
        else:
            problem, nearest = _explain(details, spelling)
        findings.append(Finding(path=path, problem=problem, nearest=nearest))
    return findings


def say(value: Json, spelling: str = "") -> str:
    """A value as it reads in a sentence; `spelling` is how the document writes it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"the true/false value {spelling or json.dumps(value)}"
        case int() | float():
            return f"the number {spelling or number(value)}"
        case str():
            return f"the text {shortened(value)!r}"
        case list() | tuple():
            return "a list"
    return "a mapping"


def number(value: float) -> str:
    """A number without needless digits: 16, 0.5, 23.976."""
    if isinstance(value, int):
        return shortened(str(value))
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def not_one_of(value: str, choices: Sequence[str]) -> tuple[str, str]:
    """Problem and nearest valid value for a choice that does not exist."""
    return f"{shortened(value)!r} is not one of {', '.join(choices)}", closest(value, choices)


def _is_echo(details: ErrorDetails) -> bool:
    """A list that is short only because its items were refused is no error of its own."""
    return details["type"] == "too_short" and bool(details["input"])


def _unknown_field(path: DocPath, owners: Owners) -> tuple[str, str]:
    name = str(path[-1])
    place = tuple(part for part in path[:-1] if isinstance(part, str))
    elsewhere = [*dict.fromkeys(owner.name for owner in owners.values() if name in owner.fields)]
    if elsewhere:
        others = " or ".join([", ".join(elsewhere[:-1]), elsewhere[-1]] if len(elsewhere) > 1 else elsewhere)
        return f"unknown field here; it belongs to {others}", ""
    return "unknown field", closest(name, owners[place].fields)


def _explain(details: ErrorDetails, spelling: str) -> tuple[str, str]:
    """Problem and nearest valid value of any error but an unknown field."""
    value: Json = details["input"]
    context = details.get("ctx", {})
    if details["type"] == "missing":
        return "is required", ""
    if details["type"] == OWN_ERROR:
        return str(context["problem"]), str(context["nearest"])
    if value is None:
        return "has no value", ""
    if details["type"] in _WRONG_TYPE:
        wanted, nearest = _WRONG_TYPE[details["type"]]
        return f"must be {wanted}, not {say(value, spelling)}", nearest(value, spelling)
    if details["type"] in _BOUNDS:
        word, key = _BOUNDS[details["type"]]
        bound = number(context[key])
        return f"{spelling or number(float(str(value)))} is {word} {bound}", bound
    if details["type"] == "enum":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return not_one_of(value, choices) if isinstance(value, str) else _not_a_choice(value, spelling, choices)
    return _wrong_length(details), ""


def _wrong_length(details: ErrorDetails) -> str:
    value: Json = details["input"]
    context = details.get("ctx", {})
    match details["type"]:
        case "string_too_long":
            return f"has {len(str(value))} characters; at most {context['max_length']} are taken"
        case "too_long" if isinstance(value, list):
            return f"has {len(value)} entries; at most {context['max_length']} are taken"
        case "too_short":
            return f"is empty; at least {context['min_length']} is needed"
    return details["msg"]


def _not_a_choice(value: Json, spelling: str, choices: Sequence[str]) -> tuple[str, str]:
    return f"must be one of {', '.join(choices)}, not {say(value, spelling)}", ""


def _quoted(value: Json, spelling: str) -> str:
    return f'"{spelling}"' if spelling else ""


def _whole(value: Json, spelling: str) -> str:
    if isinstance(value, float):
        return " or ".join(str(whole) for whole in sorted({math.floor(value), math.ceil(value)}))
    return value if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else ""


def _numeric(value: Json, spelling: str) -> str:
    return value if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) else ""


def _in_brackets(value: Json, spelling: str) -> str:
    return f"[{value}]" if isinstance(value, str) and re.fullmatch(r"[\w-]{1,40}", value) else ""


def _none(value: Json, spelling: str) -> str:
    return ""


_WRONG_TYPE: Mapping[str, tuple[str, Callable[[Json, str], str]]] = {
    "string_type": ("text", _quoted),
    "int_type": ("a whole number", _whole),
    "float_type": ("a number", _numeric),
    "bool_type": ("true or false", _none),
    "finite_number": ("a finite number", _none),
    "tuple_type": ("a list", _in_brackets),
    "model_type": ("a mapping of fields", _none),
}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than_equal": ("below", "ge"),
    "less_than_equal": ("above", "le"),
}
