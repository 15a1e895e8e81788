"""A language model that runs here as story writer, behind a speaker that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from configs.settings import StorySettings
from serve_app.providers.local import Answer, Question
from serve_app.writers.model import story_writer
from tests.tiny_chat import card_of
from tests.unit.writers.test_model_writer import CARDS, RULES_PROMPTS, SCRIPT, STORY, WRONG, prompts
from workflows.errors import (
    DeadlineExceeded,
    GpuOutOfMemory,
    ModelFailed,
    Overloaded,
    RenderRefused,
    ReplicaLost,
)
from workflows.stages.story import story
from workflows.store import Store
from workflows.story import plan_script, writer_identity
from workflows.storyboard import FilmFields, Storyboard, parse_storyboard
from workflows.types import Json, NodeCall, NodeKind, NodeResult, content_key

CARD = card_of("acme/chat")
Act = Exception | str | Answer | Callable[[], Awaitable[Answer]]


class Speaker:
    """Takes the next act at each question."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.asked: list[Question] = []

    async def answer(self, question: Question) -> Answer:
        self.asked.append(question)
        act = self.acts.pop(0)
        if isinstance(act, Exception):
            raise act
        if isinstance(act, str):
            return Answer(text=act, tokens=100, is_whole=True)
        return act if isinstance(act, Answer) else await act()


def settings_of(**changes: Json) -> StorySettings:
    fields: dict[str, Json] = {"writer": "llm", "card": CARD.name, "max_retry_wait_s": 0.02, **changes}
    return StorySettings.model_validate(fields)


async def tell(speaker: Speaker, directory: Path, *, limit_s: float = 60.0, **changes: Json,
               ) -> tuple[Storyboard, NodeResult]:
    settings = settings_of(**changes)
    node = plan_script(SCRIPT, cards=CARDS, film=FilmFields(seed=7), file="a.txt",
                       writer=writer_identity(settings, CARD))
    call = NodeCall(job_id="film", node_id="story", shot_id="", kind=NodeKind.STORY,
                    key=content_key(node.kind, node.payload, ()), attempt=1, generation=0, payload=node.payload,
                    inputs={}, left_s=limit_s)
    store = Store(str(directory))
    result = await story(call, CARDS, store, story_writer(settings, CARD, speaker))
    return parse_storyboard(store.fetch(result.artifact).read_text(encoding="utf-8"), file="a.json"), result


def lost() -> ReplicaLost:
    return ReplicaLost(node_id="story", reason="the replica died")


async def test_its_story_is_told_and_kept(tmp_path: Path) -> None:
    speaker = Speaker("<think>hm {}</think>```json\n" + json.dumps(STORY) + "\n```")
    storyboard, result = await tell(speaker, tmp_path, temperature=0.3)
    assert prompts(storyboard) == ["tom sleeps on a sofa", "a brown dog runs in"]
    assert result.warnings == ()
    (asked,) = speaker.asked
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.messages[1].content == SCRIPT
    assert asked.temperature == 0.3
    assert (await tell(speaker, tmp_path, temperature=0.3))[0] == storyboard
    assert len(speaker.asked) == 1


async def test_a_wrong_storyboard_is_corrected_once(tmp_path: Path) -> None:
    speaker = Speaker(json.dumps(WRONG), json.dumps(STORY))
    storyboard, result = await tell(speaker, tmp_path)
    assert prompts(storyboard) == ["tom sleeps on a sofa", "a brown dog runs in"]
    assert result.warnings == ()
    assert [message.role for message in speaker.asked[1].messages] == ["system", "user", "assistant", "user"]
    assert "s1" in speaker.asked[1].messages[3].content
    assert {asked.temperature for asked in speaker.asked} == {0.0}


@pytest.mark.parametrize(("acts", "asked", "reason"), [
    (["noise", "noise"], 2, "its storyboard was wrong, and wrong again"),
    ([Answer(text="{", tokens=64, is_whole=False)], 1, "cut off after 64 tokens (answer_tokens of the card); lower"),
    ([" "] * 3, 3, "the answer is empty; use another model"),
    ([RenderRefused(node_id="story", reason="has 9 tokens and 5 are taken")], 1, "has 9 tokens and 5 are taken"),
    ([GpuOutOfMemory(node_id="story", reason="does not fit the GPU")], 1, "does not fit the GPU"),
    ([lost()] * 3, 3, "the replica died; see what the log of its replica says"),
    ([Overloaded(node_id="story", reason="was stopped"), ModelFailed(node_id="story", reason="CUDA error: x"), lost()],
     3, "the replica died"),
], ids=["noise", "cut off", "empty", "too long", "memory", "dies", "all of it"])
async def test_whatever_fails_ends_in_the_rules_story_and_a_warning(
        acts: list[Act], asked: int, reason: str, tmp_path: Path) -> None:
    speaker = Speaker(*acts)
    storyboard, result = await tell(speaker, tmp_path)
    assert prompts(storyboard) == RULES_PROMPTS
    (warning,) = result.warnings
    assert reason in warning
    assert "because the language model tiny-chat did not" in warning
    assert len(speaker.asked) == asked


async def test_what_passes_by_itself_is_tried_again(tmp_path: Path) -> None:
    storyboard, result = await tell(Speaker(lost(), lost(), json.dumps(STORY)), tmp_path)
    assert (prompts(storyboard)[0], result.warnings) == ("tom sleeps on a sofa", ())


@pytest.mark.parametrize("late", [
    DeadlineExceeded(node_id="story", reason="the time limit passed"), None], ids=["the replica says so", "no replica"])
async def test_a_model_that_gives_no_answer_in_time_leaves_time_for_the_rules(
        late: Exception | None, tmp_path: Path) -> None:
    async def never() -> Answer:
        await asyncio.sleep(30 if late is None else 1.2)
        raise late or AssertionError
    started = time.perf_counter()
    storyboard, result = await tell(Speaker(never), tmp_path, limit_s=1.6)
    assert prompts(storyboard) == RULES_PROMPTS
    assert "story.timeout_s" not in result.warnings[0].replace("engine.timeout_s.story", "")
    assert time.perf_counter() - started < 3.0


async def test_prompts_are_written_anew_by_it_too(tmp_path: Path) -> None:
    anew = {"shots": [{"id": "s1", "prompt": "a cat asleep in the sun"}, {"id": "s2", "prompt": "a dog at the door"}]}
    speaker = Speaker(json.dumps(anew))
    storyboard, _ = await tell(speaker, tmp_path, writer="rules", enhance_prompts=True)
    assert prompts(storyboard) == ["a cat asleep in the sun", "a dog at the door"]
    assert [shot.original_prompt for shot in storyboard.shots] == RULES_PROMPTS


def test_the_storys_key_holds_the_card_and_the_knobs() -> None:
    def identity(card: object = CARD, **changes: Json) -> str:
        return json.dumps(writer_identity(settings_of(**changes), card), sort_keys=True)  # type: ignore[arg-type]
    other = card_of("acme/chat", answer_tokens=65)
    assert len({identity(), identity(other), identity(temperature=0.5), identity(max_shots=3),
                identity(enhance_prompts=True)}) == 5
    assert identity() == identity(retries=9, parallel=2)
    assert identity(card_of("acme/chat", title="renamed")) == identity()
    assert writer_identity(settings_of(writer="rules")) == {}
