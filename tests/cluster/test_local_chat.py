"""A language model that runs here writes stories through the real application: its own, corrected; or the rules'.

The model is a tiny one of the real classes that was taught its answers word for word. All else is what a real one runs
through: the checkpoint's files, the chat template, the GPU thread, the handle, the checks, the film.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.load import casting, load_cards, load_settings, story_card
from configs.settings import StorySettings
from serve_app.providers.chat import HttpChat, Message
from serve_app.writers.model import ModelWriter
from serve_app.writers.wording import repair, story_question
from tests import tiny_chat
from tests.cluster.conftest import Deploy, Running
from workflows.durable.rows import NewJob
from workflows.errors import InvalidDocument
from workflows.scene import Cards
from workflows.story import plan_script, writer_identity
from workflows.storyboard import FilmFields, parse_storyboard
from workflows.types import JobStatus

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CAT, DOG = "A cat sleeps.\n\nA dog comes in.\n", "A dog sleeps.\n"
FIRST = json.dumps({"shots": [{"id": "s1", "prompt": "a cat", "steps": 9}]})
CORRECTED = json.dumps({"title": "Two", "shots": [
    {"id": "s1", "prompt": "a cat naps"}, {"id": "s2", "prompt": "a dog barks"}]})
PLACEHOLDERS = [f"models.{task}=placeholder" for task in ("text_to_image", "text_to_video", "image_to_video")]
FILM = FilmFields.model_validate({"size": "96x64", "fps": 8})


def dialogue(script: str, first: str, cards: Cards) -> tuple[list[Message], list[Message]]:
    """The question, and the one after an answer that was wrong."""
    question = story_question(script, FILM, cards, 60)
    elsewhere = StorySettings(writer="llm", api_url="http://127.0.0.1:9/v1", model_name="x")
    with pytest.raises(InvalidDocument) as refused:
        ModelWriter(elsewhere, HttpChat(elsewhere))._read(first, FILM, cards)
    return question, [*question, *repair(first, refused.value)]


def taught(directory: Path) -> list[str]:
    """A model that corrects itself about the cat and has no story of the dog; the settings that name it."""
    settings = load_settings("ci", PLACEHOLDERS, {})
    cards = casting(settings, load_cards(settings))
    repo = tiny_chat.build(directory)
    (cat, cat_again), (dog, dog_again) = dialogue(CAT, FIRST, cards), dialogue(DOG, "No.", cards)
    tiny_chat.teach(repo, [(cat, FIRST), (cat_again, CORRECTED), (dog, "No."), (dog_again, "No!")])
    card = tiny_chat.card_of(repo, answer_tokens=400, resources={"num_gpus": 0.5, "num_cpus": 0.1})
    (directory / "tiny-chat.yaml").write_text(card.model_dump_json(exclude_unset=True))
    return [f"models.card_dirs=[{directory}]", "story.writer=llm", "story.card=tiny-chat", "story.retries=0",
            "models.by_card.tiny-chat.replicas=1"]


def submit(running: Running, job_id: str, script: str) -> None:
    settings = running.settings
    node = plan_script(script, cards=casting(settings, load_cards(settings)), film=FILM, file="a.txt",
                       writer=writer_identity(settings.story, story_card(settings)))
    running.ledger.submit(NewJob(id=job_id, title=job_id, document={"script": script}, nodes=(node,)))
    running.director.wake.remote().result(timeout_s=20)


def test_its_story_becomes_a_film_and_what_is_no_story_the_rules_film(deploy: Deploy, tmp_path: Path) -> None:
    running = deploy(taught(tmp_path))
    submit(running, "cat", CAT)
    submit(running, "dog", DOG)
    cat, dog = running.wait("cat"), running.wait("dog")
    assert (cat.status, dog.status) == (JobStatus.SUCCEEDED, JobStatus.SUCCEEDED)
    assert cat.result is not None

    def prompts(job_id: str) -> list[str]:
        (told,) = [node for node in running.ledger.nodes(job_id) if node.id == "story"]
        assert told.artifact is not None
        text = running.store.fetch(told.artifact).read_text(encoding="utf-8")
        return [shot.prompt for shot in parse_storyboard(text, file="storyboard.json").shots]

    assert prompts("cat") == ["a cat naps", "a dog barks"]
    assert cat.warnings == ()
    assert prompts("dog") == ["A dog sleeps."]
    (warning,) = dog.warnings
    assert "the language model tiny-chat did not: its storyboard was wrong, and wrong again" in warning
