"""A language model of the real classes, tiny and random: loaded, asked, limited, stopped, and how it fails."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from configs.chat_card import ChatCard
from configs.load import load_all_cards, load_settings
from configs.model_card import GPU_SIZES_GB
from configs.settings import ModelsSettings
from serve_app.models import chat_model, weights
from serve_app.models.chat_model import ChatModel
from serve_app.models.chat_replica import ChatReplica
from serve_app.models.lifecycle import CancelToken
from serve_app.providers.chat import Message
from serve_app.providers.local import Answer, Question
from tests import tiny_chat
from workflows.deadline import NEVER, Deadline
from workflows.errors import (
    DeadlineExceeded,
    GpuOutOfMemory,
    InvalidDocument,
    ModelFailed,
    RenderCancelled,
    RenderRefused,
)

SETTINGS = ModelsSettings(torch_threads=1, stall_s=600)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat.build(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def replica(repo: Path) -> Iterator[ChatReplica]:
    made = ChatReplica(tiny_chat.card_of(repo, answer_tokens=6000), SETTINGS, 0)
    yield made
    made.close()


@pytest.fixture
def broken(repo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repo, tmp_path / "broken"))


def question(*words: str, temperature: float = 0.0, left_s: float = 60.0) -> Question:
    messages = (Message(role="system", content="You write."), *(Message(role="user", content=word) for word in words))
    return Question(messages=messages, temperature=temperature, left_s=left_s)


def said_by(model: ChatModel, asked: Question) -> Answer:
    return model.answer(asked, deadline=NEVER, cancel=CancelToken(), beat=lambda: None)


# -- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(tiny_chat.FAMILIES))
def test_without_a_temperature_an_answer_is_always_the_same_and_cut_off_at_its_limit(
        family: str, tmp_path: Path) -> None:
    model = chat_model.load(tiny_chat.card_of(tiny_chat.build(tmp_path, family), answer_tokens=24), "cpu")
    first, again = (said_by(model, question("Hello", "you")) for _ in range(2))
    assert first == again
    assert (first.tokens, first.is_whole) == (24, False)
    drawn = {said_by(model, question("Hello", temperature=2.0)).text for _ in range(3)}
    assert len(drawn) == 3


def test_what_a_checkpoint_prefers_decides_no_story(broken: Path) -> None:
    path = broken / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True, "temperature": 1.9,
                                "repetition_penalty": 1.8, "max_new_tokens": 3}))
    card = tiny_chat.card_of(broken, answer_tokens=24)
    plain = chat_model.load(tiny_chat.card_of(tiny_chat.build(broken.parent), answer_tokens=24), "cpu")
    assert said_by(chat_model.load(card, "cpu"), question("x")) == said_by(plain, question("x"))


def test_an_answer_that_ends_is_whole(broken: Path) -> None:
    # Noise never ends by itself: the first token that it says is made the one that ends an answer.
    card = tiny_chat.card_of(broken)
    first = chat_model.load(card, "cpu").answer(question("x"), deadline=NEVER, cancel=CancelToken(),
                                                beat=lambda: None, most_tokens=1)
    (token,) = PreTrainedTokenizerFast.from_pretrained(broken).encode(first.text)
    path = broken / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [tiny_chat.BYTES + 2, token]}))
    answer = said_by(chat_model.load(card, "cpu"), question("x"))
    assert (answer.tokens, answer.is_whole) == (1, True)


def test_a_script_cannot_speak_with_the_models_control_words(repo: Path) -> None:
    model = chat_model.load(tiny_chat.card_of(repo), "cpu")
    plain, forged = ([Message(role="user", content=f"x{word}y")] for word in ("|im_end|", "<|im_end|>"))
    # One token for the template's own; in a script each is ten letters, as any other word.
    assert model.count(forged) == model.count(plain) + len("<>")


class Old(PreTrainedTokenizerFast):
    """As before there was such protection: the argument goes to the template, which does not ask for it."""

    def apply_chat_template(self, conversation: list[dict[str, str]], sanitize_control_tokens: bool = False,
                            **more: object) -> object:
        return super().apply_chat_template(conversation, **more)


def test_a_tokenizer_that_does_not_keep_them_apart_is_noticed(repo: Path) -> None:
    model = Qwen2ForCausalLM.from_pretrained(repo)
    tokenizers = (PreTrainedTokenizerFast, Old)
    assert [ChatModel(tiny_chat.card_of(repo), tokenizer.from_pretrained(repo), model).can_be_ended_by_a_script()
            for tokenizer in tokenizers] == [False, True]


@pytest.mark.parametrize("name", ["truncation", "sanitize_control_tokens"])
def test_a_card_cannot_change_how_its_template_is_filled_in(name: str, repo: Path) -> None:
    with pytest.raises(InvalidDocument, match=rf"template\.{name}: is not for the chat template"):
        chat_model.load(tiny_chat.card_of(repo, template={name: True}), "cpu")


def test_arguments_of_the_template_come_from_the_card(tmp_path: Path) -> None:
    repo = tiny_chat.build(tmp_path, chat=tiny_chat.CHAT_TEMPLATE + "{% if brief %}in short:{% endif %}")
    long, brief = (chat_model.load(tiny_chat.card_of(repo, template=template), "cpu")
                   for template in ({}, {"brief": True}))
    asked = [Message(role="user", content="x")]
    assert brief.count(asked) == long.count(asked) + len("in short:")


async def test_a_question_that_is_too_long_is_refused_with_both_numbers(replica: ChatReplica) -> None:
    limit = tiny_chat.PLACES - 6000
    with pytest.raises(RenderRefused, match=rf"has 2\d\d\d tokens, and model card tiny-chat takes {limit}"):
        await replica.answer(question("x" * limit))


# -- stopping ----------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_stops_the_generation_and_the_next_one_is_answered(replica: ChatReplica) -> None:
    task = asyncio.create_task(replica.answer(question("x")))
    waiting = asyncio.create_task(replica.answer(question("y", left_s=0.5)))
    await asyncio.sleep(0.3)
    started = time.perf_counter()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.perf_counter() - started < 3.0  # 6000 tokens take longer
    with pytest.raises(DeadlineExceeded):  # it had begun: its own time ends it
        await waiting


@pytest.mark.parametrize("off_s", [3600.0, -3600.0], ids=["ahead", "behind"])
async def test_a_machine_whose_clock_is_an_hour_off_answers_as_always_and_a_deadline_ends_it(
        off_s: float, repo: Path) -> None:
    card = tiny_chat.card_of(repo, answer_tokens=200)
    replica = ChatReplica(card, SETTINGS, 0, clock=lambda: time.monotonic() + off_s)
    assert (await replica.answer(question("x", left_s=60.0))).tokens > 0
    with pytest.raises(DeadlineExceeded, match="stopped between two tokens"):
        await replica.answer(question("x", left_s=0.01))
    replica.close()


async def test_a_deadline_ends_a_generation(replica: ChatReplica) -> None:
    started = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match="stopped between two tokens"):
        await replica.answer(question("x", left_s=0.2))
    assert time.perf_counter() - started < 2.0


async def test_closing_ends_what_runs(repo: Path) -> None:
    replica = ChatReplica(tiny_chat.card_of(repo, answer_tokens=6000), SETTINGS, 0)
    task = asyncio.create_task(replica.answer(question("x")))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(replica.close)
    with pytest.raises(RenderCancelled):
        await task


# -- failures ----------------------------------------------------------------------------------------------------


class Scripted(ChatModel):
    """Fails as a test says, after the warm-up."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def answer(self, question: Question, *, deadline: Deadline, cancel: CancelToken, beat: Callable[[], None],
               most_tokens: int = 0) -> Answer:
        if deadline == NEVER:
            return Answer(text="", tokens=most_tokens, is_whole=False)
        raise self.error


@pytest.mark.parametrize(("error", "kind", "text", "is_well"), [
    (torch.OutOfMemoryError("20 GiB"), GpuOutOfMemory, "does not fit the GPU beside tiny-chat", True),
    (ValueError("odd\nmore"), ModelFailed, "ValueError: odd", True),
    (RuntimeError("CUDA error: an illegal memory access"), ModelFailed, "illegal memory access", False),
], ids=["memory", "anything", "fatal"])
async def test_failures_become_ours_and_a_broken_gpu_is_noticed(
        error: Exception, kind: type[ModelFailed], text: str, is_well: bool, repo: Path) -> None:
    replica = ChatReplica(tiny_chat.card_of(repo), SETTINGS, 0, load=lambda card, device: Scripted(error))
    with pytest.raises(kind, match=text):
        await replica.answer(question("x"))
    if is_well:
        await replica.check_health()
    else:
        with pytest.raises(RuntimeError, match="tiny-chat: the GPU context is broken"):
            await replica.check_health()
    replica.close()


def test_a_checkpoint_that_is_not_this_model_is_refused(broken: Path) -> None:
    path = broken / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InvalidDocument, match="lacks 1 of the model's tensors"):
        chat_model.load(tiny_chat.card_of(broken), "cpu")


def test_code_that_comes_with_a_checkpoint_is_not_run(broken: Path) -> None:
    (broken / "evil.py").write_text("raise SystemExit('run')")
    path = broken / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "evil", "auto_map": {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(InvalidDocument, match="cannot be loaded"):
        chat_model.load(tiny_chat.card_of(broken), "cpu")


@pytest.mark.parametrize(("chat", "message"), [
    ("", "has no chat template, so it is no chat model"),
    ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x", "no system role"),
])
def test_a_template_that_does_not_take_our_questions_is_refused_at_the_start(
        chat: str, message: str, tmp_path: Path) -> None:
    repo = tiny_chat.build(tmp_path, chat=chat)
    with pytest.raises(InvalidDocument, match=message):
        chat_model.load(tiny_chat.card_of(repo), "cpu")


def test_more_context_than_the_model_has_places_is_refused(repo: Path) -> None:
    with pytest.raises(InvalidDocument, match="9000 tokens, and the model has 8192 places; nearest valid: 8192"):
        chat_model.load(tiny_chat.card_of(repo, context_tokens=9000), "cpu")


# -- files -------------------------------------------------------------------------------------------------------


def test_a_whole_checkpoint_has_no_gaps_and_what_is_missing_is_named(broken: Path) -> None:
    card = tiny_chat.card_of(broken)
    assert weights.gaps(broken, card) == ()
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-1])
    (broken / "tokenizer.json").unlink()
    assert weights.gaps(broken, card) == ("no tokenizer.json", "model.safetensors: cut short")
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(b"pickle")
    assert weights.gaps(broken, card)[1] == "no safetensors"
    (broken / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}))
    assert weights.gaps(broken, card)[1:] == ("model-00001-of-00002.safetensors: missing",
                                              "model-00002-of-00002.safetensors: missing")


def test_of_a_repo_only_the_model_at_its_top_is_taken() -> None:
    taken = ["config.json", "merges.txt", "chat_template.jinja", "tokenizer.json", "model.safetensors.index.json",
             "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    left = ["README.md", "pytorch_model.bin", "consolidated.safetensors", "modeling.py", "onnx/config.json",
            "original/model.safetensors", "model.gguf", "adapter_model.safetensors"]
    files = [weights.RemoteFile(path=path, size_bytes=1) for path in [*taken, *left]]
    assert [file.path for file in weights.wanted_at_top(files)] == taken


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument, match=r"is not a transformers checkpoint: it has no config\.json"):
        weights.require(tiny_chat.card_of(tmp_path))


def test_a_cards_digest_follows_what_changes_a_story_and_nothing_else(repo: Path) -> None:
    card = tiny_chat.card_of(repo)
    same: dict[str, object] = {"title": "other", "licence": "MIT", "resources": {"num_gpus": 2}, "notes": "x"}
    assert tiny_chat.card_of(repo, **same).digest() == card.digest()
    changes: list[dict[str, object]] = [{"revision": "a" * 40}, {"dtype": "bfloat16"}, {"answer_tokens": 65},
                                        {"sampling": {"top_k": 5}}, {"template": {"x": 1}}]
    digests = {ChatCard.digest(tiny_chat.card_of(repo, **change)) for change in changes}
    assert len({card.digest(), *digests}) == 6


SHIPPED = {name: card for name, card in load_all_cards(load_settings("laptop", environ={})).items()
           if isinstance(card, ChatCard)}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_card_names_its_licence_its_sources_its_memory_and_the_page_says_the_same(name: str) -> None:
    card = SHIPPED[name]
    assert "" not in (card.licence, card.licence_terms, card.licence_url)
    assert card.sources
    assert len(card.revision) == 40
    assert card.memory is not None
    peak = min(card.memory.peaks, key=lambda peak: peak.gb)
    assert peak.gb > card.memory.total_gb
    page = (Path(__file__).resolve().parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    smallest = next(size for size in GPU_SIZES_GB if card.memory.fit(size) == "fits")
    assert f"| {card.memory.total_gb:.1f} | {peak.gb:g} ({peak.how}) | {smallest} | [{card.licence}]" in row
    assert f"{card.question_tokens} tokens of question, {card.answer_tokens} of answer" in row


def test_the_chat_cards_that_are_shipped() -> None:
    assert set(SHIPPED) == {"qwen2.5-7b-instruct", "qwen3-4b-instruct"}
