"""A language model as story writer, asked over real HTTP: every way in which it fails ends in a film and a warning."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from configs.draft import DraftCall
from configs.model_card import CallDefaults, FrameRule, ModelCard, Task
from configs.settings import StorySettings
from serve_app.providers.chat import HttpChat, Message
from serve_app.writers.model import json_part, story_writer
from serve_app.writers.wording import prompts_question, story_question
from tests.provider import KEY, Provider, endless, hang, refused, said
from workflows.errors import InvalidDocument
from workflows.script import parse_script
from workflows.stages.story import story
from workflows.store import Store
from workflows.story import plan_script, told_at, writer_identity
from workflows.storyboard import FilmFields, Storyboard, parse_storyboard
from workflows.tiers import Tier
from workflows.types import Artifact, Json, NodeCall, NodeKind, NodeResult, Stage, content_key

CARD = ModelCard(name="any", title="x", repo="x/x", pipelines={Task.TEXT_TO_VIDEO: "WanPipeline"},
                 defaults=CallDefaults(width_px=96, height_px=64, frames=17, fps=8),
                 frames=FrameRule(step=4, offset=1, max_frames=33))
CARDS = {Task.TEXT_TO_VIDEO: CARD}
SCRIPT = "A cat sleeps.\n\nA dog comes in.\n"
CHAT = "/chat/completions"
STORY: Json = {"title": "Cat and dog", "characters": [{"id": "tom", "description": "a grey cat"}], "shots": [
    {"id": "s1", "prompt": "tom sleeps on a sofa", "characters": ["tom"], "duration_s": None, "caption": None,
     "transition": None, "continues": None},
    {"id": "s2", "prompt": "a brown dog runs in", "characters": None, "duration_s": 2, "caption": "DOG: Wuff!",
     "transition": "crossfade", "continues": None}]}
WRONG: Json = {"title": "Cat", "characters": [{"id": "tom", "description": "a cat", "reference": "/etc/tom.png"}],
               "shots": [
    {"prompt": "a cat", "duration_s": 1.4, "steps": 900}, {"prompt": "", "image": "/etc/passwd"}]}
RULES_PROMPTS = ["A cat sleeps.", "A dog comes in."]


def settings_of(server: Provider, **changes: Json) -> StorySettings:
    fields: dict[str, Json] = {"writer": "llm", "api_url": server.url, "model_name": "chatty", "timeout_s": 2.0,
                               "max_retry_wait_s": 0.05}
    return StorySettings.model_validate({**fields, **changes}, strict=False)


class Desk:
    """One story node over one store."""

    def __init__(self, settings: StorySettings, directory: Path) -> None:
        self.settings = settings
        self.store = Store(str(directory / "store"))
        self.writer = story_writer(settings)

    def call(self, script: str = SCRIPT, *, limit_s: float = 60.0, generation: int = 0) -> NodeCall:
        node = plan_script(script, cards=CARDS, film=FilmFields(seed=7), file="a.txt",
                           writer=writer_identity(self.settings))
        return NodeCall(job_id="film", node_id="story", shot_id="", kind=NodeKind.STORY,
                        key=content_key(node.kind, node.payload, (), generation), attempt=1, generation=generation,
                        payload=node.payload, inputs={}, left_s=limit_s)

    def damage(self, artifact: Artifact) -> None:
        Path(artifact.uri).write_bytes(b"{" * artifact.size_bytes)

    async def tell(self, call: NodeCall | None = None) -> tuple[Storyboard, NodeResult]:
        result = await story(call or self.call(), CARDS, self.store, self.writer)
        text = self.store.fetch(result.artifact).read_text(encoding="utf-8")
        return parse_storyboard(text, file="a.json"), result


@pytest.fixture
def desk(server: Provider, tmp_path: Path) -> Desk:
    return Desk(settings_of(server), tmp_path)


def prompts(storyboard: Storyboard) -> list[str]:
    return [shot.prompt for shot in storyboard.shots]


async def test_the_model_breaks_the_script_into_shots(server: Provider, desk: Desk) -> None:
    server.will(CHAT, said(STORY))
    storyboard, result = await desk.tell()
    assert (storyboard.title, storyboard.seed) == ("Cat and dog", 7)
    assert prompts(storyboard) == ["tom sleeps on a sofa", "a brown dog runs in"]
    assert [node.id for node in result.new_nodes] == ["s1.clip", "s2.clip", "s2.caption", "compose"]
    assert result.warnings == ()
    (asked,) = server.bodies(CHAT)
    assert asked["model"] == "chatty"
    assert asked["response_format"]["type"] == "json_schema"
    assert asked["messages"][1] == {"role": "user", "content": SCRIPT}
    assert "at most 60 shots" in asked["messages"][0]["content"]
    assert "0.5, 1, 1.5" in asked["messages"][0]["content"]


async def test_a_told_story_is_told_again_from_the_store_and_anew_only_when_asked(server: Provider, desk: Desk) -> None:
    other = {"title": "Other", "characters": [], "shots": [{"prompt": "a bird"}]}
    server.will(CHAT, said(STORY), said(other))
    first, _ = await desk.tell()
    again, result = await desk.tell()
    assert again == first
    assert [node.id for node in result.new_nodes] == ["s1.clip", "s2.clip", "s2.caption", "compose"]
    assert len(server.asked) == 1
    forced, _ = await desk.tell(desk.call(generation=1))
    assert prompts(forced) == ["a bird"]


async def test_pictures_a_draft_and_the_film_made_of_them_later_tell_one_story(server: Provider, desk: Desk) -> None:
    server.will(CHAT, said(STORY))
    quick = CARD.model_copy(update={"draft": DraftCall(steps=2, approximations="rough")})
    cards = {**dict.fromkeys(CARDS, quick), Task.TEXT_TO_IMAGE: quick}
    node = plan_script(SCRIPT, cards=cards, last_stage=Stage.IMAGES, writer=writer_identity(desk.settings))
    film = plan_script(SCRIPT, cards=cards, writer=writer_identity(desk.settings))
    made = [await story(replace(desk.call(), key=content_key(spec.kind, spec.payload, ()), payload=spec.payload), cards,
                        desk.store, desk.writer) for spec in (node, told_at(film, Tier.DRAFT), film)]
    clips = ["s1.clip", "s2.clip", "s2.caption", "compose"]
    assert [[one.id for one in result.new_nodes] for result in made] == [["s1.keyframe", "s2.keyframe"], clips, clips]
    assert [result.new_nodes[0].payload["steps"] for result in made[1:]] == [2, CARD.defaults.steps]
    assert len(server.asked) == 1


def test_where_a_drawn_picture_is_animated_the_prompts_are_for_who_draws_it() -> None:
    animator = CARD.model_copy(update={"name": "animator", "pipelines": {Task.IMAGE_TO_VIDEO: "x"}})
    painter = CARD.model_copy(update={"name": "painter", "pipelines": {Task.TEXT_TO_IMAGE: "x"}, "prompt_words": 57,
                                      "frames": FrameRule(max_frames=1)})
    cards = {Task.TEXT_TO_IMAGE: painter, Task.TEXT_TO_VIDEO: animator, Task.IMAGE_TO_VIDEO: animator}
    told = story_question(SCRIPT, FilmFields(), cards, 60)[0].content
    assert "A prompt has at most 57 words." in told
    assert "0.5, 1, 1.5" in told
    assert "A prompt has at most 57 words." in prompts_question([("s1", "a cat")], "[]", cards)[0].content
    own = {**cards, Task.TEXT_TO_VIDEO: CARD}
    assert "A prompt has at most 400 words." in story_question(SCRIPT, FilmFields(), own, 60)[0].content


async def test_a_wrong_storyboard_is_corrected_once_with_the_exact_problems(server: Provider, desk: Desk) -> None:
    server.will(CHAT, said(WRONG), said(STORY))
    storyboard, result = await desk.tell()
    assert prompts(storyboard) == ["tom sleeps on a sofa", "a brown dog runs in"]
    assert result.warnings == ()
    messages = server.bodies(CHAT)[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert json.loads(messages[2]["content"]) == WRONG
    told = messages[3]["content"]
    assert "shot s1: steps: is not the writer's to decide; leave it out" in told
    assert "shot s2: image: is not the writer's to decide; leave it out" in told
    assert "shot s2: prompt: is empty" in told
    assert "characters[0].reference: is not the writer's to decide; leave it out" in told


async def test_what_the_video_model_cannot_do_is_among_the_problems(server: Provider, desk: Desk) -> None:
    long = {"title": "", "characters": [], "shots": [{"prompt": "a cat", "duration_s": 1.4}]}
    server.will(CHAT, said(long), said(STORY))
    await desk.tell()
    assert "duration_s: 1.4 s at 8 fps is 11 or 12 frames" in server.bodies(CHAT)[1]["messages"][3]["content"]
    assert "nearest valid: 1" in server.bodies(CHAT)[1]["messages"][3]["content"]


@pytest.mark.parametrize(("answer", "reason"), [
    (said(WRONG), "wrong again when it was told so"), (said("I am sorry, I cannot."), "wrong again"),
    (said({"title": "", "characters": [], "shots": [{"prompt": "a cat"}] * 61}), "61 shots; nearest valid: at most 60"),
    (said([]), "wrong again")], ids=["twice wrong", "no JSON", "too many shots", "a list"])
async def test_wrong_twice_is_the_rules_story_with_a_warning(server: Provider, desk: Desk, answer: Response,
                                                             reason: str) -> None:
    server.will(CHAT, answer)
    storyboard, result = await desk.tell()
    assert storyboard == parse_script(SCRIPT, file="a.txt", film=FilmFields(seed=7))
    assert len(server.asked) == 2
    (warning,) = result.warnings
    assert warning.startswith("the rules broke this script into shots, because the language model chatty did not: ")
    assert reason in warning
    assert "`reelray retry ID --shots story` asks it again" in warning


async def test_a_fallback_is_not_kept_as_the_models_story(server: Provider, desk: Desk) -> None:
    server.will(CHAT, refused(401, "bad key"), said(STORY))
    fallback, _ = await desk.tell()
    assert prompts(fallback) == RULES_PROMPTS
    own, result = await desk.tell()
    assert own.title == "Cat and dog"
    assert result.artifact.key == desk.call().key


@pytest.mark.parametrize(("failure", "tries", "reason"), [
    (refused(429, "slow down", Retry_After="600"), 3, "answers 429: slow down; wait, or raise the account's limit"),
    (refused(500, "boom"), 3, "answers 500: boom; see that the server is up"),
    (refused(404, "no such model"), 1, "answers 404: no such model; see that story.api_url and story.model_name"),
    (refused(403, "no"), 1, "story.api_key_env, which is not set"),
    (RedirectResponse("http://elsewhere.example/v1"), 1, "answers with a redirect (307), which is not followed"),
    (Response("<html>oops"), 3, "answers something that is no JSON"),
    (JSONResponse({"choices": []}), 3, "the answer has no choices[0].message; use another model"),
    (said(" "), 3, "the answer is empty; use another model"),
    (said("{", finish_reason="length"), 1, "the answer was cut off for its length"),
], ids=["429", "500", "404", "403", "redirect", "garbage", "no choice", "empty", "cut off"])
async def test_what_may_pass_is_asked_again_and_what_is_final_is_not(
    server: Provider, desk: Desk, failure: Response, tries: int, reason: str) -> None:
    server.will(CHAT, failure)
    started_s = time.time()
    storyboard, result = await desk.tell()
    assert time.time() - started_s < 5, "Retry-After is bounded"
    assert prompts(storyboard) == RULES_PROMPTS
    assert len(server.asked) == tries
    assert reason in result.warnings[0]


async def test_a_server_that_recovers_costs_nothing_but_time(server: Provider, desk: Desk) -> None:
    server.will(CHAT, refused(429, "slow down", Retry_After="0"), refused(503), said(STORY))
    storyboard, result = await desk.tell()
    assert (storyboard.title, result.warnings) == ("Cat and dog", ())


async def test_a_server_that_hangs_is_given_up(server: Provider, tmp_path: Path) -> None:
    server.will(CHAT, hang)
    desk = Desk(settings_of(server, timeout_s=0.3, retries=1), tmp_path)
    storyboard, result = await desk.tell()
    assert prompts(storyboard) == RULES_PROMPTS
    assert "gave no answer within 0.3 s (timeout_s); see that the server is up, or raise story.timeout_s" in (
        result.warnings[0])


async def test_the_stages_own_limit_is_kept_with_time_for_the_rules(server: Provider, tmp_path: Path) -> None:
    server.will(CHAT, hang)
    desk = Desk(settings_of(server, timeout_s=60), tmp_path)
    started_s = time.monotonic()
    storyboard, _ = await desk.tell(desk.call(limit_s=2.5))
    assert prompts(storyboard) == RULES_PROMPTS
    assert time.monotonic() - started_s < 2.5


async def test_an_answer_without_end_is_cut(server: Provider, desk: Desk) -> None:
    server.will(CHAT, endless)
    assert "answers more than 4 MB" in (await desk.tell())[1].warnings[0]


async def test_a_server_that_is_down_is_said_so(server: Provider, tmp_path: Path) -> None:
    desk = Desk(settings_of(server, api_url="http://127.0.0.1:9/v1", retries=0), tmp_path)
    assert "127.0.0.1:9 cannot be asked" in (await desk.tell())[1].warnings[0]


async def test_a_server_without_response_format_is_asked_without(server: Provider, desk: Desk) -> None:
    server.will(CHAT, refused(400, "response_format json_schema is not supported"),
                said(f"<think>{{}}</think>\n```json\n{json.dumps(STORY)}\n```"))
    storyboard, _ = await desk.tell()
    assert storyboard.title == "Cat and dog"
    assert ["response_format" in body for body in server.bodies(CHAT)] == [True, False]


async def test_questions_under_way_when_a_server_refuses_response_format_are_asked_again_too(server: Provider,
                                                                                             ) -> None:
    under_way = 0
    all_here = asyncio.Event()

    async def strict(request: Request) -> Response:
        nonlocal under_way
        if "response_format" not in await request.json():
            return said("yes")
        under_way += 1
        if under_way == 3:
            all_here.set()
        await all_here.wait()
        return refused(400, "response_format is not supported")

    server.will(CHAT, strict)
    chat = HttpChat(settings_of(server))
    question = Message(role="user", content="Well?")
    answers = await asyncio.gather(*(chat.ask([question], name="answer", schema={}, until_s=time.monotonic() + 20)
                                     for _ in range(3)))
    assert answers == ["yes"] * 3


async def test_without_a_temperature_the_server_takes_its_own(server: Provider, tmp_path: Path) -> None:
    server.will(CHAT, said(STORY))
    for number, changes in enumerate(({}, {"temperature": 0.5})):
        (tmp_path / str(number)).mkdir()
        await Desk(settings_of(server, **changes), tmp_path / str(number)).tell()
    assert [body.get("temperature", "none") for body in server.bodies(CHAT)] == ["none", 0.5]


async def test_the_key_is_sent_and_never_told(server: Provider, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    desk = Desk(settings_of(server, api_key_file=str(file)), tmp_path)
    server.will(CHAT, refused(401, f"Incorrect API key provided: {KEY}."))
    _, result = await desk.tell()
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert "provided: [key].; see that the key in the file in api_key_file is right" in result.warnings[0]
    assert KEY not in repr(desk.settings) + repr(desk.call())


async def test_a_key_that_is_not_there_is_a_warning(server: Provider, tmp_path: Path) -> None:
    desk = Desk(settings_of(server, api_key_env="NOBODY_SETS_THIS"), tmp_path)
    assert "$NOBODY_SETS_THIS holds no key; set it where the Director" in (await desk.tell())[1].warnings[0]
    assert server.asked == []


async def test_prompts_are_written_anew_beside_the_old_ones(server: Provider, tmp_path: Path) -> None:
    desk = Desk(settings_of(server, writer="rules", enhance_prompts=True), tmp_path)
    server.will(CHAT, said({"shots": [{"id": "s2", "prompt": "a brown dog\ntrots in"},
                                      {"id": "s1", "prompt": "a cat naps"}]}))
    storyboard, result = await desk.tell()
    assert [(shot.original_prompt, shot.prompt) for shot in storyboard.shots] == [
        ("A cat sleeps.", "a cat naps"), ("A dog comes in.", "a brown dog trots in")]
    assert result.new_nodes[0].payload["prompt"] == "a cat naps"
    assert result.warnings == ()


@pytest.mark.parametrize("answer", [refused(500), said({"shots": [{"id": "s1", "prompt": "only one"}]}),
                                    said({"shots": [{"id": "s1", "prompt": " "}]})], ids=["500", "one of two", "empty"])
async def test_prompts_stay_as_they_are_where_the_model_fails(server: Provider, tmp_path: Path, answer: Response,
                                                                    ) -> None:
    desk = Desk(settings_of(server, writer="rules", enhance_prompts=True, retries=0), tmp_path)
    server.will(CHAT, answer)
    storyboard, result = await desk.tell()
    assert storyboard == parse_script(SCRIPT, file="a.txt", film=FilmFields(seed=7))
    assert result.warnings[0].startswith("not all prompts were written anew, because the language model chatty failed")


async def test_story_and_prompts_by_the_model(server: Provider, tmp_path: Path) -> None:
    desk = Desk(settings_of(server, enhance_prompts=True), tmp_path)
    server.will(CHAT, said(STORY), said({"shots": [{"id": "s1", "prompt": "one"}, {"id": "s2", "prompt": "two"}]}))
    storyboard, _ = await desk.tell()
    assert prompts(storyboard) == ["one", "two"]
    assert storyboard.shots[0].original_prompt == "tom sleeps on a sofa"


def test_another_writer_is_another_story_and_another_key_is_not(server: Provider, tmp_path: Path) -> None:
    def key(**changes: Json) -> str:
        return Desk(settings_of(server, **changes), tmp_path).call().key

    rules = key(writer="rules")
    assert len({rules, key(), key(model_name="other"), key(enhance_prompts=True), key(temperature=0.1)}) == 5
    assert key() == key(api_key_env="OTHER", timeout_s=9, retries=0)
    # A film of the rules keeps the key that it had before there were other writers.
    payload = Desk(settings_of(server, writer="rules"), tmp_path).call().payload
    assert set(payload) == {"script", "suffix", "film", "cards"}


def test_a_story_that_waits_for_a_model_holds_up_no_work_of_the_cpu(server: Provider) -> None:
    asked, ruled = (plan_script(SCRIPT, cards=CARDS, writer=writer_identity(settings_of(server, writer=writer)))
                    for writer in ("llm", "rules"))
    assert (asked.lane, ruled.lane) == ("story", "cpu")


async def test_a_script_submitted_for_another_writer_is_refused_and_one_for_the_rules_is_told(
    server: Provider, desk: Desk, tmp_path: Path) -> None:
    other = Desk(settings_of(server, model_name="other"), tmp_path)
    with pytest.raises(InvalidDocument, match=r"the story writer \(settings story\.\*\) was changed"):
        await desk.tell(other.call())
    rules = Desk(settings_of(server, writer="rules"), tmp_path)
    storyboard, _ = await desk.tell(rules.call())
    assert prompts(storyboard) == RULES_PROMPTS
    assert server.asked == []


async def test_a_damaged_story_is_told_anew(server: Provider, desk: Desk) -> None:
    server.will(CHAT, said(STORY))
    _, result = await desk.tell()
    desk.damage(result.artifact)
    storyboard, _ = await desk.tell()
    assert storyboard.title == "Cat and dog"
    assert len(server.asked) == 2


@pytest.mark.parametrize(("answer", "part"), [
    ('{"a": 1}', '{"a": 1}'), ('Here:\n```json\n{"a": {}}\n```\nDone.', '{"a": {}}'), ("none", "none"),
    ('<think>{maybe}</think>{"a": 1}', '{"a": 1}')])
def test_the_json_in_an_answer_is_found(answer: str, part: str) -> None:
    assert json_part(answer) == part


async def test_a_story_that_is_cancelled_lets_go_at_once(server: Provider, tmp_path: Path) -> None:
    server.will(CHAT, hang)
    running = asyncio.create_task(Desk(settings_of(server, timeout_s=60), tmp_path).tell())
    while not server.asked:  # noqa: ASYNC110 - the server has a thread of its own
        await asyncio.sleep(0.01)
    started_s = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started_s < 2
