"""What a model is told: woven prompts, their length, and the seeds of takes. Pure; knows no storyboard and no card."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

# Han, kana and hangul are written without spaces; text encoders read about one token per character of them.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_STOPS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")


def weave_prompt(prompt: str, characters: Sequence[tuple[str, str]], style: str) -> str:
    """One line of text from a shot's own words, its characters (id, description) and the film's style, in this order.

    The shot's own words come first, because small text encoders read only the beginning. A character that the prompt
    names by its id is introduced by it (`Rex: a small brown dog`), otherwise only described. Line breaks and repeated
    spaces count as one space, so that wrapping a text anew does not change its picture. A prompt with no characters
    and no style is passed on as it is.
    """
    own = one_line(prompt)
    parts = [own]
    for name, description in characters:
        named = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", own, re.IGNORECASE)
        parts.append(f"{name}: {one_line(description)}" if named else one_line(description))
    parts.append(one_line(style))
    given = [part for part in parts if part]
    return " ".join([*(closed(part) for part in given[:-1]), *given[-1:]])


def one_line(text: str) -> str:
    """The text with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def closed(sentence: str) -> str:
    """The sentence with a full stop, unless it ends in a mark of its own."""
    return sentence if sentence.endswith(_STOPS) else f"{sentence}."


def count_words(text: str) -> int:
    """Words between spaces; each Chinese, Japanese or Korean character counts as one."""
    return len(_WORD.findall(text))


def shot_seed(film_seed: int, shot_id: str) -> int:
    """The seed (31 bits) of a shot that has none of its own: the same wherever the shot stands in the film."""
    return _seed(f"{film_seed}/{shot_id}")


def take_seed(seed: int, take: int) -> int:
    """The seed of a shot's take, counted from 1; the first take has the shot's own seed."""
    return seed if take == 1 else _seed(f"{seed}/take {take}")


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
