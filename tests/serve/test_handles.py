"""Ray's failures become ours, once, at the handle."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_app.handles import ChatHandle, ModelHandle, NodeHandle
from serve_app.providers.local import Answer, Question
from workflows.errors import GpuOutOfMemory, ModelFailed, Overloaded, ReelrayError, ReplicaLost
from workflows.ports import RenderCall
from workflows.types import Artifact, MediaType, NodeCall, NodeKind, NodeResult

RESULT = NodeResult(artifact=Artifact(key="k", uri="u", sha256="0" * 64, size_bytes=1, media_type=MediaType.MP4))
CALL = RenderCall(job_id="j", node_id="s1.clip", shot_id="s1", attempt=1, key="k", left_s=0.0, card="c",
                  card_digest="d", prompt="p", negative_prompt="", width_px=8, height_px=8, frames=1, fps=8.0, steps=1,
                  guidance=1.0, seed=1)


CHUNK = NodeCall(job_id="j", node_id="c1.mask", shot_id="c1", kind=NodeKind.MASK, key="k", attempt=1, generation=0,
                 payload={}, inputs={}, left_s=0.0)


class Response:
    """Awaits to a value, an error, or for ever."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome
        self.cancelled = False

    def __await__(self) -> Generator[object, None, object]:
        return self._answer().__await__()

    async def _answer(self) -> object:
        if self.outcome is None:
            await asyncio.Event().wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    def __init__(self, response: Response) -> None:
        self.response = response
        self.calls: list[object] = []

    def remote(self, call: object) -> Response:
        self.calls.append(call)
        return self.response


class Handle:
    """A deployment handle whose every method gives one response."""

    def __init__(self, outcome: object) -> None:
        self.response = Response(outcome)
        self.image = self.clip = self.run = self.answer = Method(self.response)


def remote_error(error: Exception) -> RayTaskError:
    return RayTaskError("clip", "Traceback of the replica", error).as_instanceof_cause()


async def test_a_result_passes_through() -> None:
    assert await ModelHandle(Handle(RESULT)).clip(CALL) == RESULT
    assert await ModelHandle(Handle(RESULT)).image(CALL) == RESULT
    assert await NodeHandle(Handle(RESULT)).run(CHUNK) == RESULT


@pytest.mark.parametrize(("raised", "expected"), [
    (remote_error(GpuOutOfMemory(node_id="s1.clip", reason="81 frames")), GpuOutOfMemory),
    (remote_error(ValueError("odd")), ModelFailed),
    (ActorDiedError(), ReplicaLost),
    (ActorUnavailableError("gone", None), ReplicaLost),
    (BackPressureError(3, 2), Overloaded),
    (RequestCancelledError(), Overloaded),
], ids=["ours", "theirs", "died", "unavailable", "full", "given back"])
async def test_failures_arrive_as_our_types(raised: Exception, expected: type[ReelrayError]) -> None:
    with pytest.raises(expected) as caught:
        await ModelHandle(Handle(raised)).clip(CALL)
    assert type(caught.value) is expected
    assert "Traceback" not in str(caught.value)


async def test_our_error_keeps_its_fields() -> None:
    raised = remote_error(GpuOutOfMemory(node_id="s1.clip", reason="81 frames do not fit"))
    with pytest.raises(GpuOutOfMemory) as caught:
        await ModelHandle(Handle(raised)).clip(CALL)
    assert (caught.value.node_id, caught.value.reason) == ("s1.clip", "81 frames do not fit")


async def test_cancelling_the_caller_cancels_the_remote_call() -> None:
    handle = Handle(None)
    call = NodeCall(job_id="j", node_id="compose", shot_id="", kind=NodeKind.COMPOSE, key="k", attempt=1, generation=0,
                    payload={}, inputs={}, left_s=0.0)
    waiting = asyncio.create_task(NodeHandle(handle).run(call))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert handle.response.cancelled


async def test_a_question_is_answered_lost_or_cancelled_as_any_call() -> None:
    question, answer = Question(messages=(), temperature=0.0, left_s=0.0), Answer(text="a", tokens=1, is_whole=True)
    assert await ChatHandle(Handle(answer)).answer(question) == answer
    with pytest.raises(ReplicaLost, match="story: "):
        await ChatHandle(Handle(ActorDiedError())).answer(question)
    with pytest.raises(GpuOutOfMemory):
        await ChatHandle(Handle(remote_error(GpuOutOfMemory(node_id="story", reason="x")))).answer(question)
    handle = Handle(None)
    task = asyncio.create_task(ChatHandle(handle).answer(question))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.response.cancelled
