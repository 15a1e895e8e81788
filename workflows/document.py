"""YAML or JSON text as plain data with the line of every value; knows nothing of what a document means.

Stricter than YAML on purpose. What two YAML readers would read differently is a finding (dates, base-60, octal and
grouped numbers without quotes), and so are duplicate keys, aliases and tags. Text that cannot be read at all ends in
InvalidDocument. Unquoted `yes no on off` are true and false, as in YAML 1.1, so that text fields can refuse them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from workflows.errors import InvalidDocument
from workflows.json_text import JsonSyntaxError, read_json
from workflows.source import DocPath, Document, Recorder, checked_text, refusal, shortened
from workflows.types import Json

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {spelling: value for word, value in
          (("true", True), ("yes", True), ("on", True), ("false", False), ("no", False), ("off", False))
          for spelling in (word, word.capitalize(), word.upper())}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NUMBER = re.compile(rf"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?|{_ENDLESS.pattern}")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?(([Tt]|[ \t]+)\d\d?:\d\d:\d\d(\.\d*)?([ \t]*(Z|[-+]\d\d?(:\d\d)?))?)?", re.ASCII)
_BASE60 = re.compile(r"[-+]?[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?")
# A leading 0 (octal in YAML 1.1, decimal in 1.2), hex, binary, octal, and digits grouped by underscores.
_ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+|[0-9][0-9_.]*_[0-9_.]*)")
_QUOTE_THESE = ((_DATE, "a date in YAML"), (_BASE60, "a base-60 number in YAML"),
                (_ODD_NUMBER, "read as different numbers by different YAML readers"))
_LONGEST_NUMBER = 40
_TEXT_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str"})
_YAML_TAG = "tag:yaml.org,2002:"


def parse_document(text: str, *, file: str = "") -> Document:
    """Read YAML, or JSON: a file called `*.json`, or text that starts with a bracket and is JSON.

    Raises InvalidDocument for text that cannot be read at all; a document that could be read carries its findings.
    """
    text = checked_text(text, file=file)
    if not text.strip():
        raise refusal("the document is empty", file=file, line=1)
    only_json = file.lower().endswith(".json")
    if not only_json and not text.lstrip().startswith(("{", "[")):
        return read_yaml(text, file=file)
    try:
        return read_json(text, file=file)
    except JsonSyntaxError as error:
        not_json = refusal(f"not JSON: {error.problem}", file=file, line=error.line)
        if only_json:
            raise not_json from error
        try:
            return read_yaml(text, file=file)
        except InvalidDocument:
            # A quoted first key is how JSON starts: then its own error helps more than YAML's.
            if re.match(r'\s*\{\s*"', text):
                raise not_json from error
            raise


def read_yaml(text: str, *, file: str = "") -> Document:
    """Read one YAML document. Raises InvalidDocument as `parse_document` does."""
    try:
        return _YamlReader(text, file).read()
    except yaml.YAMLError as error:
        problem, line = _explain(error, text)
        raise refusal(problem, file=file, line=line) from error


@dataclass(frozen=True, slots=True)
class Odd:
    """An unquoted value that cannot be taken."""

    problem: str
    nearest: str = ""


def plain_scalar(text: str) -> str | int | float | bool | Odd | None:
    """What unquoted text means; text only where no YAML reader would take it for something else."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    for pattern, meaning in _QUOTE_THESE:
        if pattern.fullmatch(text):
            return Odd(f"{text} without quotes is {meaning}", f'"{text}"')
    if not _NUMBER.fullmatch(text):
        return text
    if len(text) <= _LONGEST_NUMBER:
        if _INT.fullmatch(text):
            return int(text)
        if not _ENDLESS.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
    return Odd(f"{shortened(text)} is not a number that can be used")


class _YamlReader:
    """Builds plain data from libyaml's events: no constructors, so no tag can ever run anything."""

    def __init__(self, text: str, file: str) -> None:
        # libyaml is 20 times faster than the Python scanner on a document of a thousand shots.
        loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
        self._events: Iterator[Event] = yaml.parse(text, Loader=loader)
        self._notes = Recorder(file)
        self._file = file

    def read(self) -> Document:
        """The one document of the text."""
        next(self._events)
        if isinstance(next(self._events), StreamEndEvent):
            raise refusal("the document is empty", file=self._file, line=1)
        first = next(self._events)
        self._notes.enter((), _line(first))
        value = self._value(first, ())
        next(self._events)
        after = next(self._events)
        if isinstance(after, DocumentStartEvent):
            raise refusal("a second document starts here; a file holds one", file=self._file, line=_line(after))
        return self._notes.document(value)

    def _value(self, event: Event, path: DocPath) -> Json:
        value: Json = None
        tag: str | None = None
        match event:
            case AliasEvent():
                problem = f"the alias *{event.anchor} is not followed; write the value here"
                self._notes.refuse(path, problem, line=_line(event))
            case ScalarEvent():
                value, tag = self._scalar(event, path), event.tag
            case MappingStartEvent():
                value, tag = self._mapping(path), event.tag
            case SequenceStartEvent():
                value, tag = self._sequence(path), event.tag
        if tag not in _TEXT_TAGS:
            name = str(tag).replace(_YAML_TAG, "!!")
            self._notes.refuse(path, f"the YAML tag {name} is not allowed; remove it", line=_line(event))
            return None
        return value

    def _scalar(self, event: ScalarEvent, path: DocPath) -> Json:
        if not event.implicit[0] or event.tag:
            return self._notes.text(path, event.value)
        value = plain_scalar(event.value)
        if isinstance(value, Odd):
            self._notes.refuse(path, value.problem, nearest=value.nearest)
            return None
        if not isinstance(value, str):
            self._notes.spelled(path, event.value)
        return value

    def _sequence(self, path: DocPath) -> Json:
        items: list[Json] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            place = (*path, len(items))
            self._notes.enter(place, _line(event))
            items.append(self._value(event, place))
        return items

    def _mapping(self, path: DocPath) -> Json:
        found: dict[str, Json] = {}
        first_lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            line = _line(event)
            if not isinstance(event, ScalarEvent):
                self._skip_entry(event, path)
                continue
            key = str(event.value)
            usable = self._notes.key(path, key, line)
            value = self._value(next(self._events), (*path, key))
            if key in first_lines:
                self._notes.find((*path, key), f"is given twice, first on line {first_lines[key]}", line=line)
            first_lines.setdefault(key, line)
            if usable:
                found.setdefault(key, value)
        return found

    def _skip_entry(self, key: Event, path: DocPath) -> None:
        """Read past an entry whose key is not text, at a place of its own."""
        self._notes.find(path, "a key must be text, not a list, a mapping or an alias", line=_line(key))
        place = (*path, "?")
        self._notes.enter(place, _line(key))
        self._value(key, place)
        self._value(next(self._events), place)


def _line(event: Event) -> int:
    """1-based; events of the stream itself have no mark and no line is asked of them."""
    return event.start_mark.line + 1 if event.start_mark is not None else 1


def _explain(error: yaml.YAMLError, text: str) -> tuple[str, int | None]:
    """A syntax error in words for a writer of storyboards, and its line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "not YAML", None
    line = min(error.problem_mark.line + 1, text.count("\n") + 1)
    problem = str(error.problem)
    begun = ""
    if error.context_mark is not None and error.context_mark.line + 1 < line:
        begun = f" (begun on line {error.context_mark.line + 1})"
    if "mapping values are not allowed" in problem:
        return "a colon stands where none can; quote the text around it, or check the indentation", line
    if "cannot start any token" in problem:
        character = text[error.problem_mark.index : error.problem_mark.index + 1]
        if character == "\t":
            return "a tab cannot indent YAML; use spaces", line
        return f"text without quotes cannot start with {character}; quote it", line
    if "unexpected end of stream" in problem:
        opened = error.context_mark or error.problem_mark
        return "a quote that is opened here is never closed", opened.line + 1
    return f"not YAML: {problem}{begun}", line
