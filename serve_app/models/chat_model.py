"""A language model from its files to an answer: loading, chat template, limits, one generation. Knows no job, no Ray.

Weights are read from safetensors files only, and no code that comes with a checkpoint is ever run. What a user wrote is
never read as one of the model's own control words (`<|im_start|>`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from configs.chat_card import ChatCard
from serve_app.models import weights
from serve_app.models.lifecycle import CancelToken
from serve_app.models.repo import refused
from serve_app.providers.chat import Message
from serve_app.providers.local import Answer, Question
from workflows.deadline import Deadline
from workflows.errors import DeadlineExceeded, RenderCancelled, RenderRefused

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROLES = ("system", "user", "assistant", "user")
"""Of a question that is asked a second time: a chat template must take them in this order."""


class ChatModel:
    """A loaded model with its tokenizer. Keeps nothing between two answers; one answer at a time."""

    def __init__(self, card: ChatCard, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        """See `load`."""
        self._card = card
        self._tokenizer = tokenizer
        self._model = model
        own = model.generation_config
        ends = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
        self._ends: list[int] = [ends] if isinstance(ends, int) else list(ends or ())
        self._pad = self._ends[0] if own.pad_token_id is None else own.pad_token_id
        # What generate() is not told it takes from here: a checkpoint's own habits would decide stories unseen.
        model.generation_config = GenerationConfig(eos_token_id=self._ends, pad_token_id=self._pad,
                                                   bos_token_id=own.bos_token_id)

    def count(self, messages: Sequence[Message]) -> int:
        """Length of a question in tokens, with what the chat template adds."""
        return int(self._encoded(messages)["input_ids"].shape[1])

    def can_be_ended_by_a_script(self) -> bool:
        """Whether a script that spells the word which ends a turn would end its own."""
        control = set(self._ends) & set(self._tokenizer.all_special_ids)

        def ends_in(text: str) -> int:
            encoded = self._encoded([Message(role="user", content=text)])["input_ids"][0]
            return sum(token in control for token in encoded.tolist())
        return ends_in(f"x{self._tokenizer.decode(sorted(control))}") > ends_in("x")

    def answer(self, question: Question, *, deadline: Deadline, cancel: CancelToken, beat: Callable[[], None],
               most_tokens: int = 0) -> Answer:
        """Generate; `beat` is called at every token. `most_tokens`: less than the card allows; 0: what it allows.

        Raises RenderRefused for a question that is too long, RenderCancelled and DeadlineExceeded between two tokens.
        """
        encoded = self._encoded(question.messages)
        length = int(encoded["input_ids"].shape[1])
        if length > self._card.question_tokens:
            raise RenderRefused(node_id=question.label, reason=(
                f"the script with its instructions has {length} tokens, and model card {self._card.name} takes "
                f"{self._card.question_tokens}; shorten it, or raise context_tokens in a card of your own"))
        with torch.inference_mode():
            output = self._model.generate(
                **encoded.to(self._model.device), generation_config=self._config(question, most_tokens),
                stopping_criteria=StoppingCriteriaList([_Stop(question.label, deadline, cancel, beat)]))
        said = output[0, length:].tolist()
        return Answer(text=self._tokenizer.decode(said, skip_special_tokens=True), tokens=len(said),
                      is_whole=bool(said) and said[-1] in self._ends)

    def _encoded(self, messages: Sequence[Message]) -> Any:
        return self._tokenizer.apply_chat_template(
            [message.to_json() for message in messages], add_generation_prompt=True, return_dict=True,
            return_tensors="pt", sanitize_control_tokens=True, **self._card.template)

    def _config(self, question: Question, most_tokens: int) -> GenerationConfig:
        length = {"max_new_tokens": most_tokens or self._card.answer_tokens, "eos_token_id": self._ends,
                  "pad_token_id": self._pad}
        if question.temperature == 0:
            return GenerationConfig(do_sample=False, **length)
        sampling = self._card.sampling
        return GenerationConfig(do_sample=True, temperature=question.temperature, top_p=sampling.top_p,
                                top_k=sampling.top_k, **length)


class _Stop(StoppingCriteria):
    """Between two tokens: a sign of life, and whether to go on. Stops by raising: half an answer is none."""

    def __init__(self, label: str, deadline: Deadline, cancel: CancelToken, beat: Callable[[], None]) -> None:
        self._label = label
        self._deadline = deadline
        self._cancel = cancel
        self._beat = beat

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Called by transformers after each token, with arguments of its own choosing."""
        self._beat()
        if self._cancel.is_set:
            raise RenderCancelled(node_id=self._label, reason="cancelled between two tokens")
        if self._deadline.is_over:
            raise DeadlineExceeded(node_id=self._label, reason="the time limit passed; stopped between two tokens")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def load(card: ChatCard, device: str) -> ChatModel:
    """The card's model on `device`, in the card's dtype. Downloads nothing.

    Raises InvalidDocument when weights are missing or not this model's, when there is no chat template, or when the
    card allows more tokens than the model has places for.
    """
    where = weights.require(card)
    # A replica's log is no terminal; its own line says how long loading took.
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(where), trust_remote_code=False, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            str(where), dtype=DTYPES[card.dtype], use_safetensors=True, trust_remote_code=False, local_files_only=True,
            device_map=device.partition(":")[0], output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        # OSError is also what a file with a wrong content raises, KeyError an unknown architecture.
        text = str(error).strip() or type(error).__name__
        raise refused(card, "repo", f"{where} cannot be loaded: {text.splitlines()[0]}") from error
    if absent := sorted(report["missing_keys"]):
        raise refused(card, "repo", f"{where} lacks {len(absent)} of the model's tensors ({absent[0]} ...)")
    _check(card, tokenizer, model)
    chat = ChatModel(card, tokenizer, model.eval())
    try:
        chat.count([Message(role=role, content="x") for role in ROLES])
    except Exception as error:  # a template is a program; it raises what it likes
        raise refused(card, "template", f"the chat template of {card.repo} does not take the roles "
                                        f"{', '.join(ROLES)}: {error}") from error
    if chat.can_be_ended_by_a_script():
        # The argument that prevents it is younger than transformers 5, and an older one passes over it in silence.
        raise refused(card, "loader", f"transformers {transformers.__version__} reads a script's words as the model's "
                                      "control words; upgrade it")
    return chat


def _check(card: ChatCard, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    if not tokenizer.chat_template:
        raise refused(card, "repo", f"the tokenizer of {card.repo} has no chat template, so it is no chat model")
    if tokenizer.eos_token_id is None and model.generation_config.eos_token_id is None:
        raise refused(card, "repo", f"{card.repo} names no token that ends an answer (eos_token_id)")
    own = set(inspect.signature(tokenizer.apply_chat_template).parameters)
    if taken := sorted(own & set(card.template)):
        raise refused(card, f"template.{taken[0]}",
                      "is not for the chat template but for who fills it in; leave it out")
    places = model.config.get_text_config().max_position_embeddings
    if card.context_tokens > places:
        raise refused(card, "context_tokens", f"{card.context_tokens} tokens, and the model has {places} places",
                      str(places))
