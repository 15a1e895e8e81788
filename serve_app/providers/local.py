"""A question to a language model that runs here, as a deployment of its own. Knows no Ray, no torch and no script.

    LocalChat (a Chat: tries, time, failures in words) -> Speaker (a handle, or a test's) -> the replica's GPU
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from configs.settings import StorySettings
from serve_app.providers.chat import LEAST_S, NO_TIME, Message, patiently
from serve_app.providers.wire import ApiFailure, UnusableAnswer
from workflows.errors import GpuOutOfMemory, RenderRefused, StageFailed
from workflows.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Everything that a replica needs for one answer; small enough for one RPC."""

    messages: tuple[Message, ...]
    temperature: float
    """0: the likeliest word, always."""
    left_s: float
    """Seconds until the answer is given up; the replica counts them from its arrival, by its own clock."""
    label: str = "story"
    """For errors and log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said."""

    text: str
    tokens: int
    """Length of it, with the token that ends it."""
    is_whole: bool
    """False: cut off at the card's `answer_tokens`."""


class Speaker(Protocol):
    """A language model's deployment, seen from the Director. Raises StageFailed and its children, nothing else."""

    async def answer(self, question: Question) -> Answer:
        """The answer to one question; a cancelled one is stopped between two tokens."""


class LocalChat:
    """Asks a model that runs here; implements `Chat`. No schema is enforced: answers are checked as anybody's are."""

    def __init__(self, settings: StorySettings, speaker: Speaker) -> None:
        """Ask this one."""
        self._settings = settings
        self._speaker = speaker

    async def ask(self, messages: Sequence[Message], *, name: str, schema: Mapping[str, Json], until_s: float) -> str:
        """See `Chat`."""
        return await patiently(partial(self._once, tuple(messages), until_s), self._settings, until_s)

    async def _once(self, messages: tuple[Message, ...], until_s: float) -> str:
        left_s = until_s - time.monotonic()
        if left_s < LEAST_S:
            raise ApiFailure(NO_TIME, final=True)
        question = Question(messages=messages, temperature=self._settings.temperature or 0.0, left_s=left_s)
        try:
            # The replica counts the seconds itself; here it also ends the wait for one that does not come up.
            async with asyncio.timeout(left_s):
                answer = await self._speaker.answer(question)
        except TimeoutError:
            raise ApiFailure(f"it gave no answer within {left_s:.0f} s (engine.timeout_s.story)", final=True) from None
        except StageFailed as error:
            # The same question fills the same memory again; whatever else happened may not happen twice.
            raise ApiFailure(error.reason, final=isinstance(error, RenderRefused | GpuOutOfMemory)) from None
        if not answer.is_whole:
            raise ApiFailure(f"the answer was cut off after {answer.tokens} tokens (answer_tokens of the card); lower "
                             "story.max_shots, or raise answer_tokens in a card of your own", final=True)
        if not answer.text.strip():
            raise UnusableAnswer("the answer is empty")
        return answer.text
