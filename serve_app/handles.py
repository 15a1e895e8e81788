"""DeploymentHandle -> port: one RPC, and Ray's own failures turned into ours, once.

| what Ray raises                                   | what a stage sees                                             |
|---------------------------------------------------|---------------------------------------------------------------|
| RayTaskError around one of our errors             | that error                                                    |
| ActorDiedError, ActorUnavailableError, node death | ReplicaLost (free retry; counts towards poison)               |
| BackPressureError, replica drained under the call | Overloaded (free retry)                                       |
| anything else                                     | ModelFailed with the remote exception's type and text         |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RequestCancelledError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from serve_app.providers.local import Answer, Question
from workflows.errors import ModelFailed, Overloaded, ReelrayError, ReplicaLost
from workflows.ports import Model, RenderCall
from workflows.types import NodeCall, NodeResult


class ModelHandle:
    """A model deployment as the port that stages know."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """Wrap the handle of one card's deployment."""
        self._handle = handle

    async def image(self, call: RenderCall) -> NodeResult:
        """Text to one picture."""
        async with _one_call(self._handle.image.remote(call), call.node_id) as response:
            result: NodeResult = await response
        return result

    async def clip(self, call: RenderCall) -> NodeResult:
        """Text, or text and first frame, to one clip."""
        async with _one_call(self._handle.clip.remote(call), call.node_id) as response:
            result: NodeResult = await response
        return result

    async def assist(self, call: RenderCall) -> None:
        """Help with a call."""
        async with _one_call(self._handle.assist.remote(call), call.node_id) as response:
            await response


class NodeHandle:
    """A deployment that does whole nodes, the media worker's, a tracker's or an editor's; `run` is a step as the engine
    knows it.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        """Wrap the handle."""
        self._handle = handle

    async def run(self, call: NodeCall) -> NodeResult:
        """One node."""
        async with _one_call(self._handle.run.remote(call), call.node_id) as response:
            result: NodeResult = await response
        return result


class ChatHandle:
    """A language model's deployment as the port that the story writer knows."""

    def __init__(self, handle: DeploymentHandle) -> None:
        """Wrap the handle."""
        self._handle = handle

    async def answer(self, question: Question) -> Answer:
        """The answer to one question."""
        async with _one_call(self._handle.answer.remote(question), question.label) as response:
            result: Answer = await response
        return result


def model_handles(handles: Mapping[str, DeploymentHandle]) -> dict[str, Model]:
    """Ports by card name."""
    return {card: ModelHandle(handle) for card, handle in handles.items()}


@asynccontextmanager
async def _one_call(response: DeploymentResponse, node_id: str) -> AsyncIterator[DeploymentResponse]:
    """Around the one await of a response: cancels the remote call with ours, translates what it raises."""
    try:
        yield response
    except asyncio.CancelledError:
        response.cancel()  # reaches the replica's coroutine, which stops the GPU between two steps
        raise
    except RayTaskError as error:
        original = error.cause
        if isinstance(original, ReelrayError):
            raise original from None
        raise ModelFailed(node_id=node_id, reason=f"{type(original).__name__}: {original}"[:500]) from None
    except BackPressureError as error:
        raise Overloaded(node_id=node_id, reason=str(error)[:500]) from None
    except (RequestCancelledError, TaskCancelledError):
        raise Overloaded(node_id=node_id, reason="the replica was stopped and gave the call back") from None
    except RayActorError as error:
        raise ReplicaLost(node_id=node_id, reason=_first_line(error)) from None
    except RayError as error:
        raise ReplicaLost(node_id=node_id, reason=f"{type(error).__name__}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
