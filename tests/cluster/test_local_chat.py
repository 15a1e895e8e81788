"""A language model that runs here writes stories through the real application: its own, corrected; or the rules'.

The model is a tiny one of the real classes that was taught its answers word for word. All else is what a real one runs
through: the checkpoint's files, the chat template, the GPU thread, the handle, the checks, the film.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from ray import serve

from configs.chat_card import ChatCard
from configs.load import casting, load_cards, load_settings, story_card
from configs.settings import StorySettings
from serve_app.providers.chat import HttpChat, Message
from serve_app.providers.local import Question
from serve_app.writers.model import ModelWriter
from serve_app.writers.wording import repair, story_question
from tests import tiny_chat
from tests.cluster.conftest import APP, Deploy, Running
from workflows.durable.rows import NewJob
from workflows.errors import DeadlineExceeded, InvalidDocument
from workflows.scene import Cards
from workflows.story import plan_script, writer_identity
from workflows.storyboard import FilmFields, parse_storyboard
from workflows.types import JobStatus, NodeStatus

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
    return chosen(card, directory)


def chosen(card: ChatCard, directory: Path) -> list[str]:
    (directory / "tiny-chat.yaml").write_text(card.model_dump_json(exclude_unset=True))
    return [f"models.card_dirs=[{directory}]", "story.writer=llm", "story.card=tiny-chat", "story.retries=1",
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


def test_a_killed_replica_is_asked_again_and_a_cancelled_job_lets_go_of_it(deploy: Deploy, tmp_path: Path) -> None:
    """The model says noise without end: a dead replica's warning would speak of its death, the next one's of length."""
    running = deploy(chosen(tiny_chat.card_of(tiny_chat.build(tmp_path), answer_tokens=6000), tmp_path))

    def is_asked(job_id: str) -> bool:
        return any(node.status is NodeStatus.RUNNING for node in running.ledger.nodes(job_id))

    submit(running, "killed", CAT)
    running.until(lambda: is_asked("killed"))
    time.sleep(1.0)
    (replica,) = running.processes("model-tiny-chat")
    replica.kill()
    killed = running.wait("killed")
    assert killed.status is JobStatus.SUCCEEDED
    assert "the answer was cut off after 6000 tokens" in killed.warnings[0]
    submit(running, "cancelled", DOG)
    running.until(lambda: is_asked("cancelled"))
    time.sleep(1.0)
    running.director.cancel.remote("cancelled").result(timeout_s=20)
    assert running.wait("cancelled").status is JobStatus.CANCELLED
    started = time.perf_counter()
    question = Question(messages=(Message(role="user", content="x"),), temperature=0.0, left_s=0.5)
    with pytest.raises(DeadlineExceeded):
        serve.get_deployment_handle("model-tiny-chat", APP).answer.remote(question).result(timeout_s=60)
    assert time.perf_counter() - started < 4.0  # 6000 tokens take longer
