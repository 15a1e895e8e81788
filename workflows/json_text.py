"""JSON text as plain data with the line of every value; knows nothing of what a document means.

The standard library's reader neither tells lines nor refuses duplicate keys, and YAML readers stumble over tabs,
escapes and exponents of JSON; hence this one.
"""

from __future__ import annotations

import json
import math
import re

from workflows.source import DocPath, Document, Recorder, shortened
from workflows.types import Json

_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?(?![0-9A-Za-z_.+-])")
_WORD = re.compile(r"[-+]?[A-Za-z_]+")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_ENDLESS = frozenset({"NaN", "Infinity", "-Infinity"})
_LONGEST_NUMBER = 40


class JsonSyntaxError(ValueError):
    """The text is not JSON."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


def read_json(text: str, *, file: str = "") -> Document:
    """Read one JSON value.

    Raises JsonSyntaxError, or InvalidDocument for text that is too deep or holds too many values. Duplicate keys and
    numbers that are not finite are findings.
    """
    return _JsonReader(text, Recorder(file)).read()


class _JsonReader:
    """Recursive descent over one text; the recorder bounds its depth."""

    def __init__(self, text: str, notes: Recorder) -> None:
        self._text = text
        self._notes = notes
        self._at = 0
        self._line = 1

    def read(self) -> Document:
        self._peek()
        self._notes.enter((), self._line)
        value = self._value(())
        if self._peek():
            raise self._wrong("nothing may follow the closing bracket")
        return self._notes.document(value)

    def _value(self, path: DocPath) -> Json:
        first = self._peek()
        if first == "{":
            return self._object(path)
        if first == "[":
            return self._array(path)
        if first == '"':
            return self._notes.text(path, self._string())
        return self._number_or_word(path)

    def _object(self, path: DocPath) -> Json:
        found: dict[str, Json] = {}
        first_lines: dict[str, int] = {}
        self._take("{")
        while self._peek() != "}":
            if first_lines:
                self._comma("}")
            if self._peek() != '"':
                raise self._wrong('expected a key in double quotes, or "}"')
            line = self._line
            key = self._string()
            usable = self._notes.key(path, key, line)
            if self._peek() != ":":
                raise self._wrong(f"expected : after the key {key!r}")
            self._take(":")
            value = self._value((*path, key))
            if key in first_lines:
                self._notes.find((*path, key), f"is given twice, first on line {first_lines[key]}", line=line)
            first_lines.setdefault(key, line)
            if usable:
                found.setdefault(key, value)
        self._take("}")
        return found

    def _array(self, path: DocPath) -> Json:
        found: list[Json] = []
        self._take("[")
        while self._peek() != "]":
            if found:
                self._comma("]")
                self._peek()
            place = (*path, len(found))
            self._notes.enter(place, self._line)
            found.append(self._value(place))
        self._take("]")
        return found

    def _comma(self, closing: str) -> None:
        if self._peek() != ",":
            raise self._wrong(f"expected , or {closing}")
        self._take(",")
        if self._peek() == closing:
            raise self._wrong(f"a comma before {closing} is one too many")

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:
            raise self._wrong("a text in double quotes is not closed on its line, or has an unknown \\ escape")
        self._at = match.end()
        return str(json.loads(match[0]))

    def _number_or_word(self, path: DocPath) -> Json:
        match = _NUMBER.match(self._text, self._at) or _WORD.match(self._text, self._at)
        if match is None or (match.re is _WORD and match[0] not in _WORDS and match[0] not in _ENDLESS):
            raise self._wrong("expected a value: text in double quotes, a number, a list or a mapping")
        self._at = match.end()
        self._notes.spelled(path, match[0])
        if match[0] in _WORDS:
            return _WORDS[match[0]]
        number = math.inf
        if match.re is _NUMBER and len(match[0]) <= _LONGEST_NUMBER:
            number = float(match[0]) if match[1] or match[2] else int(match[0])
        if isinstance(number, float) and not math.isfinite(number):
            self._notes.refuse(path, f"{shortened(match[0])} is not a number that can be used")
            return None
        return number

    def _peek(self) -> str:
        """The next character that is not space, or nothing at the end; the line counter follows."""
        match = _SPACE.match(self._text, self._at)
        if match:
            self._line += self._text.count("\n", match.start(), match.end())
            self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> None:
        self._at += len(character)

    def _wrong(self, problem: str) -> JsonSyntaxError:
        return JsonSyntaxError(problem, self._line)
