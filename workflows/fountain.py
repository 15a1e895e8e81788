"""Screenplays in Fountain notation (fountain.io) as a list of elements. Knows the notation, not what a shot is.

Understood: title page, scene headings (INT. EXT. EST. INT./EXT. I/E, or forced by a leading full stop), action (or
forced by !), characters (a line in capitals before a line of text, or forced by @) with dialogue and parentheticals,
lyrics (~), transitions (a line in capitals that ends in TO:, FADE IN:, FADE OUT., or forced by >), centred text (> <)
and emphasis. Left out: notes [[ ]], boneyard /* */, sections #, synopses =, page breaks ===, scene numbers #1#.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from workflows.prompt import one_line

_TITLE_KEYS = ("title", "credit", "author", "authors", "source", "notes", "draft date", "date", "contact", "copyright",
               "revision", "format")
_TITLE_LINE = re.compile(rf"({'|'.join(_TITLE_KEYS)})[ \t]*:(.*)", re.IGNORECASE)
_HEADING = re.compile(r"(?:(?P<where>INT\.?/EXT|EXT\.?/INT|I/E|INT|EXT|EST)[. ]|\.(?=\w)) *(?P<place>\S.*)",
                      re.IGNORECASE)
_SCENE_NUMBER = re.compile(r"#[\w.-]{1,20}#$")
_EXTENSION = re.compile(r"\([^()]*\)")
_FADE_LINES = frozenset({"FADE IN:", "FADE OUT.", "FADE OUT:", "FADE TO BLACK.", "FADE TO BLACK:"})
_LEFT_OUT = ("#", "=")
"""Sections and synopses."""
_EMPHASIS = re.compile(r"(?<!\\)\*|(?<![\w\\])_|(?<!\\)_(?!\w)")


class Kind(StrEnum):
    """What a part of a screenplay is."""

    HEADING = "heading"
    ACTION = "action"
    DIALOGUE = "dialogue"
    TRANSITION = "transition"


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One part of a screenplay, on one line, without marks."""

    kind: Kind
    text: str
    line: int
    """1-based line where it begins."""
    speaker: str = ""
    """Who says a dialogue; empty for sung lines without a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Screenplay:
    """A screenplay taken apart."""

    title: str
    elements: tuple[Element, ...]


def is_fountain(text: str) -> bool:
    """A scene heading, or a title page that begins with its title, tells a screenplay from plain paragraphs."""
    lines = text.splitlines()
    if lines and re.match(r"title[ \t]*:", lines[0], re.IGNORECASE):
        return True
    return any((match := _HEADING.match(line)) and match["where"] and match["where"].isupper() for line in lines)


def read_fountain(text: str) -> Screenplay:
    """Take a screenplay apart; every text is one, so nothing is refused."""
    lines = without(without(text, "/*", "*/"), "[[", "]]").splitlines()
    title, start = _title_page(lines)
    return Screenplay(title=title, elements=tuple(_elements(lines, start)))


def without(text: str, opening: str, closing: str) -> str:
    """The text without what stands between two marks; line breaks stay, so that line numbers do."""
    parts: list[str] = []
    at = 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
        parts += [text[at:start], "\n" * text.count("\n", start, end)]
        at = end + len(closing)
    return "".join([*parts, text[at:]])


def unmarked(text: str) -> str:
    """The text without emphasis marks (*, _) and their escapes."""
    return re.sub(r"\\([*_\\])", r"\1", _EMPHASIS.sub("", text))


def place_words(heading: str) -> str:
    """`INT. KITCHEN - NIGHT` as words for a prompt: `Interior, kitchen, night`."""
    match = _HEADING.match(one_line(heading))
    mark, place = ((match["where"] or "").upper(), match["place"]) if match else ("", heading)
    where = {"INT": "Interior", "EXT": "Exterior", "EST": "Exterior", "": ""}.get(mark, "Interior and exterior")
    parts = [part.strip(" .") for part in re.split(r" [-\u2013\u2014]{1,3} ", _SCENE_NUMBER.sub("", place))]
    parts = [part.lower() if part.isupper() else part for part in parts]
    words = ", ".join(part for part in (where, *parts) if part)
    return words[:1].upper() + words[1:]


def _title_page(lines: Sequence[str]) -> tuple[str, int]:
    """The title, and the index of the first line of the play."""
    if not lines or not _TITLE_LINE.match(lines[0]):
        return "", 0
    title: list[str] = []
    key = ""
    for index, line in enumerate(lines):
        if not line.strip():
            return " ".join(title), index
        match = _TITLE_LINE.match(line)
        if match:
            key = match[1].lower()
        text = unmarked(match[2] if match else line).strip()
        if key == "title" and text:
            title.append(text)
    return " ".join(title), len(lines)


def _elements(lines: Sequence[str], start: int) -> Iterator[Element]:
    index = start
    while index < len(lines):
        stripped = lines[index].strip()
        alone = index == start or not lines[index - 1].strip() or lines[index - 1].lstrip().startswith(_LEFT_OUT)
        followed = index + 1 < len(lines) and bool(lines[index + 1].strip())
        if not stripped or stripped.startswith(_LEFT_OUT):
            index += 1
        elif alone and (single := _single_line(stripped, followed, index + 1)):
            yield single
            index += 1
        elif stripped.startswith("~") or (alone and followed and _is_character(stripped)):
            element, index = _dialogue(lines, index)
            yield element
        else:
            element, index = _action(lines, index)
            yield element


def _single_line(line: str, followed: bool, number: int) -> Element | None:
    """A heading or a transition, when the line is one."""
    if _HEADING.match(line):
        return Element(kind=Kind.HEADING, text=line, line=number)
    if line.startswith(">") and not line.endswith("<"):
        return Element(kind=Kind.TRANSITION, text=line[1:].strip().upper(), line=number)
    if not followed and line.isupper() and (line.endswith("TO:") or line in _FADE_LINES):
        return Element(kind=Kind.TRANSITION, text=line, line=number)
    return None


def _is_character(line: str) -> bool:
    name = _name(line)
    return line.startswith("@") or (not line.startswith(("!", ">")) and name.isupper())


def _name(cue: str) -> str:
    """`@McAvoy (V.O.) ^` -> `McAvoy`."""
    return one_line(_EXTENSION.sub("", cue)).removeprefix("@").removesuffix("^").strip()


def _dialogue(lines: Sequence[str], index: int) -> tuple[Element, int]:
    """What is said until the next empty line; a line of two spaces is a pause, not the end."""
    number, spoken, speaker = index + 1, [], ""
    if not lines[index].strip().startswith("~"):
        speaker = unmarked(_name(lines[index]))
        index += 1
    while index < len(lines) and (lines[index].strip() or lines[index] == "  "):
        line = lines[index].strip().removeprefix("~").strip()
        if not (line.startswith("(") and line.endswith(")")):
            spoken.append(unmarked(line))
        index += 1
    return Element(kind=Kind.DIALOGUE, text=one_line(" ".join(spoken)), line=number, speaker=speaker), index


def _action(lines: Sequence[str], index: int) -> tuple[Element, int]:
    """A paragraph up to the next empty line, sung line, section or synopsis."""
    number, told = index + 1, []
    while index < len(lines) and (line := lines[index].strip()) and not line.startswith(("~", *_LEFT_OUT)):
        line = line.removeprefix("!")
        if line.startswith(">") and line.endswith("<"):
            line = line[1:-1]
        told.append(unmarked(line))
        index += 1
    return Element(kind=Kind.ACTION, text=one_line(" ".join(told)), line=number), index
