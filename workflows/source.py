"""Texts people write: their limits, and plain data that remembers where in the text it stood. Knows no notation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workflows.errors import InvalidDocument, Problem
from workflows.types import Json

DocPath = tuple[str | int, ...]
"""Keys and list positions (from 0) that lead to a value: ("shots", 2, "frames")."""

MAX_BYTES = 1_000_000
"""Longest document or script; a thousand shots of 150 words each."""
MAX_DEPTH = 12
"""Deepest nesting; a storyboard needs four levels."""
MAX_VALUES = 100_000
"""Most keys and list items; a thousand shots with every field have 20,000."""

_LONGEST_QUOTE = 40
_BYTE_ORDER_MARK = "\ufeff"
# Control characters other than tab, line feed and carriage return; halves of surrogate pairs; non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem at a place in a document."""

    path: DocPath
    problem: str
    nearest: str = ""
    line: int | None = None
    """1-based; None: the line of `path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document as plain data, and where in its text everything is."""

    value: Json
    lines: Mapping[DocPath, int] = field(default_factory=dict)
    """1-based line of each key and list item."""
    spellings: Mapping[DocPath, str] = field(default_factory=dict)
    """How values that are not text are written: `yes` for True."""
    findings: tuple[Finding, ...] = ()
    unread: frozenset[DocPath] = frozenset()
    """Values that could not be taken; None stands in their place, and a finding says why."""

    def line_of(self, path: DocPath) -> int | None:
        """Line of a value, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def has_read(self, path: DocPath) -> bool:
        """Nothing on the way to `path` was left out."""
        return not any(path[: len(place)] == place for place in self.unread)


class Recorder:
    """What a reader notes while it reads; counts depth and values, so that no text can make it work without end."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lines: dict[DocPath, int] = {}
        self._spellings: dict[DocPath, str] = {}
        self._findings: list[Finding] = []
        self._unread: set[DocPath] = set()
        self._values = 0

    def enter(self, path: DocPath, line: int) -> None:
        """Note where a value stands. Raises InvalidDocument when it lies too deep or is one too many."""
        self._lines.setdefault(path, line)
        self._values += 1
        if len(path) > MAX_DEPTH:
            raise refusal(f"nested deeper than {MAX_DEPTH} levels", file=self._file, line=line)
        if self._values > MAX_VALUES:
            raise refusal(f"more than {MAX_VALUES} values", file=self._file, line=line)

    def spelled(self, path: DocPath, text: str) -> None:
        """Note how a value that is not text is written."""
        self._spellings.setdefault(path, text)

    def find(self, path: DocPath, problem: str, *, nearest: str = "", line: int | None = None) -> None:
        """Note a problem; the value at `path` stays in use."""
        self._findings.append(Finding(path=path, problem=problem, nearest=nearest, line=line))

    def refuse(self, path: DocPath, problem: str, *, nearest: str = "", line: int | None = None) -> None:
        """Note a problem with a value that is therefore not taken."""
        self.find(path, problem, nearest=nearest, line=line)
        self._unread.add(path)

    def text(self, path: DocPath, text: str) -> str | None:
        """The text, or None and a finding when an escape put a character into it that no document may hold."""
        bad = _FORBIDDEN.search(text)
        if bad is None:
            return text
        self.refuse(path, f"the character {_code_point(bad[0])} is not allowed; remove it")
        return None

    def key(self, path: DocPath, key: str, line: int) -> bool:
        """Enter a key of the mapping at `path`; False and a finding when it holds a forbidden character."""
        bad = _FORBIDDEN.search(key)
        self.enter((*path, key), line)
        if bad:
            self.find(path, f"a key holds the character {_code_point(bad[0])}; remove it", line=line)
        return bad is None

    def document(self, value: Json) -> Document:
        """Everything noted, around the value read."""
        return Document(value=value, lines=self._lines, spellings=self._spellings, findings=tuple(self._findings),
                        unread=frozenset(self._unread))


def read_text(path: Path) -> str:
    """The text of a file that somebody named. Raises InvalidDocument when it cannot be read or is no such text."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise refusal("there is no such file", file=str(path), nearest=closest(path.name, beside)) from error
    except OSError as error:
        raise refusal(f"cannot be read: {error.strerror}", file=str(path)) from error
    return decode_text(data, file=str(path))


def decode_text(data: bytes, *, file: str = "") -> str:
    """Bytes of a document or script as text. Raises InvalidDocument when they are too many or not UTF-8."""
    if len(data) > MAX_BYTES:
        raise _too_large(file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise refusal(problem, file=file, line=line) from error


def checked_text(text: str, *, file: str = "") -> str:
    """The text without its byte order mark. Raises InvalidDocument when it is too long or holds control characters."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise _too_large(file)
    text = text.removeprefix(_BYTE_ORDER_MARK)
    bad = _FORBIDDEN.search(text)
    if bad:
        raise refusal(f"the character {_code_point(bad[0])} is not allowed; remove it", file=file,
                      line=text.count("\n", 0, bad.start()) + 1)
    return text


def refusal(problem: str, *, file: str = "", line: int | None = None, nearest: str = "") -> InvalidDocument:
    """The one problem that ends the reading of a document."""
    return InvalidDocument(file=file, problems=(Problem(problem=problem, line=line, nearest=nearest),))


def closest(word: str, choices: Iterable[str]) -> str:
    """The choice most like `word`; empty when none is like it."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return close[0] if close else ""


def closest_or_few(word: str, choices: Sequence[str]) -> str:
    """The choice most like `word`; where none is like it, all of at most six choices, or nothing of more."""
    return closest(word, choices) or (", ".join(choices) if len(choices) <= 6 else "")


def dotted(path: DocPath) -> str:
    """`characters[0].id`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_named(part)}" for part in path)
    return text.removeprefix(".")


def _named(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,40}", key) else repr(shortened(key))


def shortened(text: str) -> str:
    """At most 40 characters of a text."""
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "..."


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def _too_large(file: str) -> InvalidDocument:
    return refusal(f"longer than {MAX_BYTES} bytes", file=file)
