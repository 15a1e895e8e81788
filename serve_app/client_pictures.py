"""The picture files that a storyboard names, found in its text and renamed in place: no line of it moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from serve_app.client_errors import Problem

PICTURE = "picture:"
"""Before the id of an uploaded picture."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A picture file that a storyboard names, and where in its text."""

    path: str
    start: int
    end: int
    line: int
    pointer: str
    """`/shots/0/image` or `/characters/0/reference`."""

    def problem(self, detail: str) -> Problem:
        """What is wrong with it."""
        return Problem(detail=detail, pointer=f"#{self.pointer}", line=self.line)


def pictures_in(text: str) -> list[Named]:
    """In order of their places. JSON is read as the YAML that it is, but for tabs, which YAML does not have."""
    board = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    found = []
    for parts, field in (("shots", "image"), ("characters", "reference")):
        rows = _value_of(board, parts)
        for number, row in enumerate(rows.value if isinstance(rows, yaml.SequenceNode) else ()):
            image = _value_of(row, field)
            if (isinstance(image, yaml.ScalarNode) and image.tag == "tag:yaml.org,2002:str" and image.value
                    and image.style not in ("|", ">") and not image.value.startswith(PICTURE)):
                found.append(Named(path=image.value, start=image.start_mark.index, end=image.end_mark.index,
                                   line=image.start_mark.line + 1, pointer=f"/{parts}/{number}/{field}"))
    return sorted(found, key=lambda one: one.start)


def renamed(text: str, named: Sequence[Named], ids: Mapping[str, str]) -> str:
    """The text with the ids of uploaded pictures in place of the paths."""
    for one in reversed(named):  # from the end, so that the places before stay where they are
        text = f'{text[:one.start]}"{PICTURE}{ids[one.path]}"{text[one.end:]}'
    return text


def _value_of(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for key, value in pairs if key.value == name), None)
