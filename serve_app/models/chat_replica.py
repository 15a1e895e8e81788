"""One replica of one chat card, behind the Speaker port: one answer at a time on the GPU thread. Knows no Ray."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable

from configs.chat_card import ChatCard
from configs.settings import ModelsSettings
from serve_app.models import chat_model, weights
from serve_app.models.lifecycle import (
    CancelToken,
    GpuThread,
    Heartbeat,
    free_memory,
    is_out_of_memory,
    pick_device,
    set_torch_threads,
)
from serve_app.providers.chat import Message
from serve_app.providers.local import Answer, Question
from workflows.deadline import NEVER, Clock, Deadline
from workflows.errors import GpuOutOfMemory, ModelFailed, ReelrayError, StageFailed

log = logging.getLogger(__name__)

LoadChat = Callable[[ChatCard, str], chat_model.ChatModel]
"""`load(card, device)`: `chat_model.load`, or a test's own."""
WARM_UP_TOKENS = 2
"""The first after the question was read, the second from the cache: both ways through the model."""


class ChatReplica:
    """Implements `serve_app.providers.local.Speaker`.

    A caller that is cancelled stops its generation within one token; `answer` lets go only when the GPU is free.
    """

    def __init__(self, card: ChatCard, settings: ModelsSettings, assigned_gpus: float,
                 load: LoadChat = chat_model.load, clock: Clock = time.monotonic) -> None:
        """Load, and generate two tokens; a replica that exists can answer.

        `clock`: what the seconds that a question has left are counted by.

        Raises ImpossibleResources for the device, InvalidDocument for the card, and whatever the warm-up raises.
        """
        self._card = card
        self._clock = clock
        self._heartbeat = Heartbeat(stall_s=settings.stall_s, step="token")
        self._gpu = GpuThread(self._heartbeat)
        self._running: set[CancelToken] = set()
        device = pick_device(settings.device, assigned_gpus)
        set_torch_threads(settings)
        if settings.auto_download:
            weights.ensure(card, say=log.info)
        started = time.perf_counter()
        self._model = load(card, device)
        loaded = time.perf_counter()
        self._gpu.run_now(self._warm_up)
        log.info("%s: loaded in %.1f s on %s, warm after %.1f s more", card.name, loaded - started, device,
                 time.perf_counter() - loaded)

    async def answer(self, question: Question) -> Answer:
        """See `Speaker`."""
        cancel, deadline = CancelToken(), Deadline.after(question.left_s, self._clock)
        self._running.add(cancel)
        try:
            return await self._gpu.run(functools.partial(self._generate, question, deadline, cancel), cancel=cancel)
        finally:
            self._running.discard(cancel)

    async def check_health(self) -> None:
        """Raise when this process cannot answer any more: a broken GPU context, or no token for too long."""
        if problem := self._heartbeat.problem():
            raise RuntimeError(f"{self._card.name}: {problem}")

    def close(self) -> None:
        """Stop what runs, end the thread, give the memory back."""
        for cancel in self._running:
            cancel.set()
        self._gpu.close()
        free_memory()

    def _warm_up(self) -> None:
        question = Question(messages=(Message(role="user", content="x"),), temperature=0.0, left_s=math.inf)
        self._model.answer(question, deadline=NEVER, cancel=CancelToken(), beat=self._heartbeat.beat,
                           most_tokens=WARM_UP_TOKENS)

    def _generate(self, question: Question, deadline: Deadline, cancel: CancelToken) -> Answer:
        """On the GPU thread."""
        failure: StageFailed
        started = time.perf_counter()
        try:
            answer = self._model.answer(question, deadline=deadline, cancel=cancel, beat=self._heartbeat.beat)
            log.info("%s: %d tokens in %.1f s", question.label, answer.tokens, time.perf_counter() - started)
            return answer
        except ReelrayError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                failure = GpuOutOfMemory(node_id=question.label, reason=(
                    f"the question does not fit the GPU beside {self._card.name}; lower context_tokens in a card of "
                    f"your own, or give it more of a GPU: {short(error)}"))
            else:
                log.exception("%s: the language model failed", question.label)
                self._heartbeat.note(error)
                failure = ModelFailed(node_id=question.label, reason=short(error))
        # Raised out here because the handled exception's traceback holds the tensors that are to be freed.
        free_memory()
        raise failure


def short(error: BaseException) -> str:
    """The error's type and first line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]
