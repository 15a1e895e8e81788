"""Whatever JSON an API answers, a request ends with a result or an ApiFailure, and a writer with a storyboard."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.responses import Response

from configs.endpoint import RemoteModel
from configs.model_card import CallDefaults, ModelCard, Task
from configs.settings import StorySettings
from serve_app.providers.chat import HttpChat, Message
from serve_app.providers.studio import draw_picture, film_video
from serve_app.providers.wire import ApiFailure, message_of, retry_after_s
from serve_app.writers.model import ModelWriter
from tests.provider import Provider, provider
from workflows.script import parse_script
from workflows.storyboard import FilmFields
from workflows.types import Json

TEXT = st.sampled_from(["", "s1", "completed", "queued", "..", "v/1", "http://[", "http://169.254.169.254/",
                        "file:///a", "\x00", "\ud800", "QUJD", "a cat", "crossfade"])
WORDS = st.sampled_from(["data", "choices", "message", "content", "b64_json", "url", "id", "status", "progress",
                         "error", "detail", "shots", "prompt", "title", "characters", "duration_s", "transition",
                         "continues"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=12)
PICTURE = st.fixed_dictionaries({"data": st.lists(
    st.fixed_dictionaries({}, optional={"url": TEXT, "b64_json": TEXT | VALUES}), min_size=1, max_size=2)})
VIDEO = st.fixed_dictionaries({"id": TEXT, "status": VALUES}, optional={"progress": VALUES, "error": VALUES})
CHAT = st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": VALUES}), max_size=2)})
STORY = st.fixed_dictionaries({"shots": st.lists(st.dictionaries(WORDS, VALUES, max_size=4), max_size=3)})
QUICK = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
CARD = ModelCard(name="any", title="x", repo="x/x", pipelines={Task.TEXT_TO_VIDEO: "WanPipeline"},
                 defaults=CallDefaults(width_px=96, height_px=64, frames=17, fps=8))
CARDS = {Task.TEXT_TO_VIDEO: CARD}


def ends_well(work: Coroutine[None, None, object]) -> None:
    """With a result, or with an ApiFailure whose words a database can hold."""
    try:
        asyncio.run(work)
    except ApiFailure as failure:
        said = failure.reason
    else:
        said = "a result"
    assert said.encode()
    assert said.isprintable()


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with provider() as made:
        yield made


def remote_of(server: Provider) -> RemoteModel:
    return RemoteModel(api_url=server.url, model_name="x", poll_s=0.05, video_timeout_s=0.1)


@QUICK
@example(value={"data": [{"url": "http://["}]})
@example(value={"data": [{"url": "http://\ud800/"}]})
@example(value={"data": [{"b64_json": "\ud800"}]})
@given(value=VALUES | PICTURE)
def test_any_answer_for_a_picture(server: Provider, value: Json) -> None:
    server.will("/images/generations", Response(json.dumps(value)))
    ends_well(draw_picture(remote_of(server), "", {}))


@QUICK
@example(value={"id": "s1", "status": []})
@example(value={"id": "\ud800", "status": "queued"})
@example(value={"id": "..", "status": "completed"})
@example(value={"id": "s1", "status": "failed", "error": {"message": "\ud800\x00"}})
@given(value=VIDEO)
def test_any_answer_for_a_video(server: Provider, value: Json) -> None:
    server.will("/videos", Response(json.dumps(value)))
    for path in ("/videos/s1", "/videos/completed", "/videos/queued", "/videos/QUJD", "/videos/crossfade"):
        server.will(path, Response(json.dumps(value)))
    ends_well(film_video(remote_of(server), "", {}, lambda percent: None))


@QUICK
@given(value=VALUES | CHAT)
def test_any_answer_in_a_chat(server: Provider, value: Json) -> None:
    server.will("/chat/completions", Response(json.dumps(value)))
    chat = HttpChat(StorySettings(writer="llm", api_url=server.url, model_name="x", retries=0))
    ends_well(chat.ask([Message(role="user", content="?")], name="n", schema={}, until_s=time.monotonic() + 9))


class Saying:
    """A chat that always says the same."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def ask(self, *args: object, **kwargs: object) -> str:
        return self.text


@QUICK
@given(value=VALUES | STORY, enhance=st.booleans())
def test_any_storyboard_of_a_model(value: Json, enhance: bool) -> None:
    writer = ModelWriter(StorySettings(writer="llm", api_url="http://x/v1", model_name="x", enhance_prompts=enhance),
                         Saying(json.dumps(value)))
    told = asyncio.run(writer.write("A cat.", file="a.txt", film=FilmFields(), cards=CARDS,
                                    until_s=time.monotonic() + 9))
    assert told.is_own or told.warnings
    assert told.is_own or enhance or told.storyboard == parse_script("A cat.", file="a.txt")


@given(body=st.binary(max_size=300), header=st.text(max_size=40))
@QUICK
def test_any_error_body_and_any_retry_after(body: bytes, header: str) -> None:
    assert isinstance(message_of(body), str)
    assert retry_after_s(header) >= 0
