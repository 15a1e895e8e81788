"""Shots that are rendered again while they score too low: the words that all rooms share. Knows no storyboard.

    shots:
      - prompt: rex runs through tall grass
        characters: [rex]
        retake: {below: 0.6, takes: 3}

The second take is rendered only if the first one's score is below 0.6, the third only if the second one's is too. Then
`s1.pick` says which the film uses. Takes that were not needed are nodes without a result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from workflows.types import Artifact, NodeKind


class Made(Protocol):
    """What telling takes apart needs of a node."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def kind(self) -> NodeKind:
        """What it does."""

    @property
    def artifact(self) -> Artifact | None:
        """Its result."""


Node = TypeVar("Node", bound=Made)


def of_take(name: str, take: int) -> str:
    """`s1.clip` -> `s1.clip`, `s1.clip.2` ... by take, counted from 1."""
    return name if take == 1 else f"{name}.{take}"


def take_of(node_id: str) -> int:
    """The take that a node belongs to, by its id; shots' ids have no dots."""
    parts = node_id.split(".")
    return int(parts[2]) if len(parts) > 2 else 1


def picked(nodes: Iterable[Node]) -> Node | None:
    """The clip that a shot's pick chose, among the shot's nodes; None where nothing picks, or not yet."""
    mine = list(nodes)
    choice = next((node.artifact for node in mine if node.kind is NodeKind.PICK), None)
    if choice is None:
        return None
    return next((node for node in mine if node.kind is NodeKind.CLIP and node.artifact is not None
                 and node.artifact.key == choice.key), None)


def scores_of(nodes: Iterable[Made]) -> dict[int, float]:
    """What was measured of a shot's takes, by take."""
    return {take_of(node.id): node.artifact.score for node in nodes
            if node.kind is NodeKind.SCORE and node.artifact is not None and node.artifact.score is not None}
