"""A language model breaks scripts into shots and writes prompts anew; the rules stand behind it. Knows no HTTP.

    script -> question -> answer -> checked as a user's storyboard is
                 ^                       | wrong, once: the exact problems
                 +-----------------------+ wrong again, or no answer: the rules, and a warning
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from configs.chat_card import ChatCard
from configs.settings import StorySettings
from serve_app.providers.chat import Chat, HttpChat
from serve_app.providers.local import LocalChat, Speaker
from serve_app.providers.wire import ApiFailure, UnusableAnswer
from serve_app.writers.wording import (
    CHARACTER_FIELDS,
    FILM_FIELDS,
    PROMPTS_SCHEMA,
    SHOT_FIELDS,
    STORY_SCHEMA,
    prompts_question,
    repair,
    story_question,
)
from workflows.document import parse_document
from workflows.errors import InvalidDocument
from workflows.plan import plan_film
from workflows.prompt import one_line
from workflows.revise import with_lines
from workflows.scene import Cards
from workflows.script import parse_script
from workflows.source import Document, Finding
from workflows.story import RuleWriter, StoryWriter, Told, writer_identity
from workflows.storyboard import (
    FilmFields,
    Shot,
    Storyboard,
    checked_storyboard,
    shot_values,
    storyboard_value,
)
from workflows.types import Json

log = logging.getLogger(__name__)

ANSWER = "answer.json"
SHOTS_PER_QUESTION = 40
"""Prompts written anew at a time; more would be cut off by many servers."""
_FILM_DECIDES = frozenset(Storyboard.model_fields) - set(FILM_FIELDS)
_SHOT_DECIDES = frozenset(Shot.model_fields) - set(SHOT_FIELDS)


def story_writer(settings: StorySettings, card: ChatCard | None = None, speaker: Speaker | None = None) -> StoryWriter:
    """Who breaks scripts into shots under these settings; `card` and `speaker` are of a model that runs here."""
    if not settings.asks_model:
        return RuleWriter()
    return ModelWriter(settings, HttpChat(settings) if speaker is None else LocalChat(settings, speaker), card)


class ModelWriter:
    """Implements `workflows.story.StoryWriter` with a language model."""

    def __init__(self, settings: StorySettings, chat: Chat, card: ChatCard | None = None) -> None:
        """`card` is that of `story.card`, as part of the identity."""
        self._settings = settings
        self._chat = chat
        self._identity = writer_identity(settings, card)

    @property
    def identity(self) -> Mapping[str, Json]:
        """Which model, asked how."""
        return self._identity

    async def write(self, script: str, *, file: str, film: FilmFields, cards: Cards, until_s: float) -> Told:
        """See `StoryWriter`. Raises InvalidDocument only where the rules do."""
        rules = Told(storyboard=parse_script(script, file=file, film=film))
        told = rules if self._settings.writer == "rules" else await self._told(script, film, cards, until_s, rules)
        if self._settings.enhance_prompts and told.is_own:
            told = await self._enhanced(told, cards, until_s)
        return told

    async def _told(self, script: str, film: FilmFields, cards: Cards, until_s: float, rules: Told) -> Told:
        messages = story_question(script, film, cards, self._settings.max_shots)
        try:
            answer = await self._chat.ask(messages, name="storyboard", schema=STORY_SCHEMA, until_s=until_s)
            try:
                return Told(storyboard=self._read(answer, film, cards))
            except InvalidDocument as refused:
                log.info("story: the model is told what is wrong with its storyboard: %s", refused)
                answer = await self._chat.ask([*messages, *repair(answer, refused)], name="storyboard",
                                              schema=STORY_SCHEMA, until_s=until_s)
            return Told(storyboard=self._read(answer, film, cards))
        except ApiFailure as failure:
            why = f"{failure.reason}; {self._advice(failure)}"
        except InvalidDocument as refused:
            first = refused.problems[0].render()
            why = f"its storyboard was wrong, and wrong again when it was told so ({first}); use another model"
        text = (f"the rules broke this script into shots, because the language model {self._settings.called} did "
                f"not: {why}. After that `reelray retry ID --shots story` asks it again")
        log.warning("story: %s", text)
        return replace(rules, warnings=(text,), is_own=False)

    def _read(self, answer: str, film: FilmFields, cards: Cards) -> Storyboard:
        """The answer as a storyboard that these models can render. Raises InvalidDocument with all problems."""
        text = json_part(answer)
        document = parse_document(text, file=ANSWER)
        if isinstance(document.value, dict):
            given = film.model_dump(mode="json", exclude_defaults=True)
            document = replace(document, value={**document.value, **given},
                               findings=(*document.findings, *self._overreach(document)))
        storyboard = checked_storyboard(document, file=ANSWER)
        try:
            plan_film(storyboard, cards=cards)
        except InvalidDocument as error:
            raise with_lines(error, text, file=ANSWER) from None
        return storyboard

    def _overreach(self, document: Document) -> list[Finding]:
        """Where the model decides what is not a writer's to decide: sizes, files, how much is rendered."""
        assert isinstance(document.value, dict)
        found = [Finding(path=(name,), problem="is not the writer's to decide; leave it out")
                 for name in document.value if name in _FILM_DECIDES]
        shots = document.value.get("shots")
        for place, shot in enumerate(shots if isinstance(shots, list) else []):
            found += [Finding(path=("shots", place, name), problem="is not the writer's to decide; leave it out")
                      for name in (shot if isinstance(shot, dict) else {}) if name in _SHOT_DECIDES]
        people = document.value.get("characters")
        for place, who in enumerate(people if isinstance(people, list) else []):
            found += [Finding(path=("characters", place, name), problem="is not the writer's to decide; leave it out")
                      for name in (who if isinstance(who, dict) else {}) if name not in CHARACTER_FIELDS]
        if isinstance(shots, list) and len(shots) > self._settings.max_shots:
            found.append(Finding(path=("shots",), problem=f"{len(shots)} shots",
                                 nearest=f"at most {self._settings.max_shots}"))
        return found

    async def _enhanced(self, told: Told, cards: Cards, until_s: float) -> Told:
        """The same film with prompts written anew, as far as the model can be had."""
        value = storyboard_value(told.storyboard)
        shots = shot_values(value)
        try:
            for start in range(0, len(shots), SHOTS_PER_QUESTION):
                part = shots[start : start + SHOTS_PER_QUESTION]
                for shot, prompt in zip(part, await self._prompts(part, cards, until_s), strict=True):
                    shot["original_prompt"], shot["prompt"] = shot["prompt"], prompt
        except ApiFailure as failure:
            why = f"{failure.reason}; {self._advice(failure)}"
        except InvalidDocument as refused:
            why = f"its answer was wrong ({refused.problems[0].render()}); use another model"
        else:
            why = ""
        enhanced = checked_storyboard(Document(value={**value, "shots": [*shots]}))
        if not why:
            return replace(told, storyboard=enhanced)
        text = (f"not all prompts were written anew, because the language model {self._settings.called} failed: "
                f"{why}. After that `reelray retry ID --shots story` asks it again")
        log.warning("story: %s", text)
        return replace(told, storyboard=enhanced, warnings=(*told.warnings, text), is_own=False)

    async def _prompts(self, shots: list[dict[str, Json]], cards: Cards, until_s: float) -> list[str]:
        """New prompts, in the shots' order. Raises InvalidDocument for an answer that is not about these shots."""
        asked = [(str(shot["id"]), str(shot["prompt"])) for shot in shots]
        text = json.dumps({"shots": [{"id": name, "prompt": prompt} for name, prompt in asked]}, ensure_ascii=False)
        answer = await self._chat.ask(prompts_question(asked, text, cards), name="prompts", schema=PROMPTS_SCHEMA,
                                      until_s=until_s)
        # The same reading as a storyboard's: ids, empty prompts and forbidden characters are found there.
        given = checked_storyboard(parse_document(json_part(answer), file=ANSWER), file=ANSWER)
        found = {shot.id: one_line(shot.prompt) for shot in given.shots}
        missing = [name for name, _ in asked if name not in found]
        if missing or len(found) != len(asked):
            raise UnusableAnswer(f"it answered for {len(found)} shots and was asked for {len(asked)}")
        return [found[name] for name, _ in asked]

    def _advice(self, failure: ApiFailure) -> str:
        """What to do about it."""
        settings = self._settings
        if isinstance(failure, UnusableAnswer):
            return "use another model"
        if settings.card and not failure.final:
            return "see what the log of its replica says, or raise engine.timeout_s.story"
        if failure.status in (401, 403):
            where = settings.key_place or "story.api_key_env, which is not set"
            return f"see that the key in {where} is right, where the Director runs"
        if failure.status == 404:
            return "see that story.api_url and story.model_name are right"
        if failure.status == 429:
            return "wait, or raise the account's limit"
        if failure.final:
            return "mend that"
        return "see that the server is up, or raise story.timeout_s"


def json_part(answer: str) -> str:
    """The JSON in an answer: without a model's thoughts before it, and without the fence around it."""
    text = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text.strip()
