"""A question to a language model, and its answer as text. Knows no script and no storyboard."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from configs.load import SettingsError, api_key
from configs.settings import StorySettings
from serve_app.providers.wire import ApiFailure, UnusableAnswer, Wire
from workflows.types import Json

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 4_000_000
"""Four times the longest storyboard, for what surrounds it."""
FIRST_WAIT_S = 1.0
LEAST_S = 1.0
"""With less than this left there is no point in asking."""
NO_TIME = "no time is left (engine.timeout_s.story)"
_STRUCTURE_WORDS = ("response_format", "json_schema", "structured", "schema")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str

    def to_json(self) -> dict[str, Json]:
        """As the API wants it."""
        return {"role": self.role, "content": self.content}


class Chat(Protocol):
    """Who answers questions."""

    async def ask(self, messages: Sequence[Message], *, name: str, schema: Mapping[str, Json], until_s: float) -> str:
        """The answer, which should be JSON of this schema; given up at `until_s` of `time.monotonic()`.

        Raises ApiFailure.
        """


async def patiently(once: Callable[[], Awaitable[str]], settings: StorySettings, until_s: float) -> str:
    """What `once` answers; tried again where that may help and time is left. Raises the last ApiFailure."""
    tries = 0
    while True:
        try:
            return await once()
        except ApiFailure as failure:
            tries += 1
            wait_s = min(max(failure.retry_after_s, FIRST_WAIT_S * 2.0 ** (tries - 1)), settings.max_retry_wait_s)
            if failure.final or tries > settings.retries or time.monotonic() + wait_s + LEAST_S > until_s:
                raise
            log.info("story: asking again in %.1f s: %s", wait_s, failure.reason)
            await asyncio.sleep(wait_s)


class HttpChat:
    """Asks an OpenAI-compatible `chat/completions`; tries again what may pass by itself."""

    def __init__(self, settings: StorySettings) -> None:
        """The key is read at every question, so that a new one needs no restart."""
        self._settings = settings
        self._structured = True
        """False once the server has refused `response_format`: many local servers know no JSON schema."""

    async def ask(self, messages: Sequence[Message], *, name: str, schema: Mapping[str, Json], until_s: float) -> str:
        """See `Chat`."""
        return await patiently(partial(self._as_it_can, messages, name, schema, until_s), self._settings, until_s)

    async def _as_it_can(self, messages: Sequence[Message], name: str, schema: Mapping[str, Json], until_s: float,
                         ) -> str:
        """One request; a second one, without the schema, where the server refuses that."""
        structured = self._structured  # another question may be told meanwhile that the server refuses it
        try:
            return await self._once(messages, name, schema if structured else None, until_s)
        except ApiFailure as failure:
            if not (structured and failure.status in (400, 422) and any(
                    word in failure.reason for word in _STRUCTURE_WORDS)):
                raise
            log.info("story: the server takes no response_format; asking without: %s", failure.reason)
        self._structured = False
        return await self._once(messages, name, None, until_s)

    async def _once(self, messages: Sequence[Message], name: str, schema: Mapping[str, Json] | None, until_s: float,
                    ) -> str:
        """One request; without a schema no `response_format` is sent."""
        settings = self._settings
        try:
            key = await asyncio.to_thread(api_key, settings)
        except SettingsError as error:
            raise ApiFailure(str(error), final=True) from None
        left_s = until_s - time.monotonic()
        if left_s < LEAST_S:
            raise ApiFailure(NO_TIME, final=True)
        wire = Wire(settings, key, timeout_s=min(settings.timeout_s, left_s), max_bytes=MAX_ANSWER_BYTES)
        body: dict[str, Json] = {"model": settings.model_name,
                                 "messages": [message.to_json() for message in messages]}
        if settings.temperature is not None:  # a null is refused by some servers
            body["temperature"] = settings.temperature
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {
                "name": name, "strict": True, "schema": dict(schema)}}
        return _content(await wire.post_json("/chat/completions", body), wire)


def _content(reply: Json, wire: Wire) -> str:
    """The first choice's text. Raises ApiFailure for an answer that is none, was refused, or was cut off."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise UnusableAnswer("the answer has no choices[0].message")
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        raise UnusableAnswer(f"the model refuses: {wire.clean(refusal)}", final=True)
    if choice.get("finish_reason") == "length":
        raise ApiFailure("the answer was cut off for its length: the script is too long for this model, or the server "
                         "allows too few tokens; lower story.max_shots or use a model with more", final=True)
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise UnusableAnswer("the answer is empty")
    return content
