"""The closed vocabulary of a small model: what it has ever seen, told to users and checked at the door."""

from __future__ import annotations

import re
from collections.abc import Iterable

from configs.base import Frozen


class PromptWorld(Frozen):
    """The closed vocabulary of a small model: what it has ever seen."""

    objects: dict[str, tuple[str, ...]]
    """Object name -> the words that mean it (its own name among them)."""
    colours: dict[str, tuple[int, int, int]]
    """Object colours, RGB 0-255."""
    backgrounds: dict[str, tuple[int, int, int]]
    """Background colours, RGB 0-255."""
    motions: dict[str, tuple[str, ...]]
    """Motion name -> the phrases that mean it."""
    background_phrases: tuple[str, ...]
    """How a background is named; `{b}` stands for its colour."""
    fillers: tuple[str, ...] = ()
    """Words that may appear and change nothing."""

    def words(self) -> frozenset[str]:
        """Every word the model knows."""
        phrases = [word for group in (*self.objects.values(), *self.motions.values()) for word in group]
        phrases += [phrase.replace("{b}", " ") for phrase in self.background_phrases]
        text = " ".join([*phrases, *self.colours, *self.backgrounds, *self.fillers])
        return frozenset(re.findall(r"[^\W\d_]+", text.lower()))

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """The prompt's words that mean nothing to the model, in order, without repeats."""
        known = self.words()
        return tuple(dict.fromkeys(w for w in re.findall(r"[^\W\d_]+", prompt.lower()) if w not in known))

    def describe(self) -> str:
        """The whole world in a few lines, for `reelray models list` and for hints."""
        return "\n".join([
            "objects:     " + _with_synonyms(self.objects.items()),
            "colours:     " + ", ".join(self.colours),
            "backgrounds: " + ", ".join(self.backgrounds),
            "motions:     " + _with_synonyms([(phrases[0], phrases) for phrases in self.motions.values()]),
        ])


def _with_synonyms(meanings: Iterable[tuple[str, Iterable[str]]]) -> str:
    """`circle (ball, disc), square (box)`."""
    told = []
    for name, phrases in meanings:
        others = ", ".join(phrase for phrase in phrases if phrase != name)
        told.append(f"{name} ({others})" if others else name)
    return ", ".join(told)
