"""The path of one shot, measured where it ends: every function of ours between the engine and the pipeline's own call.

Two chains are joined at the RPC: the await chains of the tasks that carry the shot, and the stack of the GPU thread.
Functions that only own a thread (they would carry anything) are named below and not counted.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import CoroutineType, FrameType

from configs.settings import MediaSettings, ModelsSettings
from serve_app.handles import ModelHandle
from serve_app.models.replica import ModelReplica
from tests.fakes import FakeStore
from tests.fakes_models import RememberingSink, ScriptedLoad, scripted_card
from tests.studio import QUICK
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import NewJob
from workflows.ports import RenderCall
from workflows.stages.render import clip
from workflows.types import NodeCall, NodeKind, NodeResult, NodeSpec

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tuple(str(ROOT / room) for room in ("workflows", "serve_app", "actors"))
BUDGET = 11
WRAPPERS = ["ModelDeployment.clip"]
"""What Serve calls in front of the replica; not in this process, so counted by name."""
PLUMBING = {
    "SerialThread.run",  # owns the GPU thread
    "SerialThread._call", "GpuThread._call",
    "Runs.answer",  # the caller's seat while its run (`_produce`) is under way
}


def ours(filename: str) -> bool:
    return filename.startswith(ROOMS)


def await_chain(coroutine: object) -> list[str]:
    """Names of our functions from a task's coroutine down to what it waits for."""
    names = []
    while isinstance(coroutine, CoroutineType):
        if ours(coroutine.cr_code.co_filename):
            names.append(coroutine.cr_code.co_qualname)
        coroutine = coroutine.cr_await
    return names


def stack(frame: FrameType | None) -> list[str]:
    """Names of our functions on this thread, outermost first."""
    names = []
    while frame is not None:
        if ours(frame.f_code.co_filename):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names[::-1]


class LocalMethod:
    """`handle.clip` of a replica in this process: the RPC without the wire."""

    def __init__(self, replica: ModelReplica) -> None:
        self._replica = replica

    def remote(self, call: RenderCall) -> asyncio.Task[NodeResult]:
        return asyncio.create_task(self._replica.clip(call), name="replica")


class LocalHandle:
    def __init__(self, replica: ModelReplica) -> None:
        self.clip = LocalMethod(replica)


async def test_a_shot_passes_through_no_more_functions_than_the_budget(tmp_path: Path) -> None:
    card, load, store = scripted_card(), ScriptedLoad(), FakeStore(tmp_path)
    replica = ModelReplica(card, ModelsSettings(), MediaSettings(), store, RememberingSink(), 0.0, load)
    loop, seen = asyncio.get_running_loop(), []

    def look(step: int) -> None:
        """On the GPU thread, inside the pipeline's call."""
        if not seen:
            chains = [await_chain(task.get_coro()) for task in asyncio.all_tasks(loop)]
            seen.append((chains, stack(sys._getframe())))

    load.pipe.denoise = look
    models = {card.name: ModelHandle(LocalHandle(replica))}  # type: ignore[arg-type]

    async def step(call: NodeCall) -> NodeResult:
        return await clip(call, models)

    ledger = Ledger(f"sqlite:///{tmp_path / 'state.db'}")
    payload = {"card": card.name, "card_digest": card.digest(), "prompt": "a", "negative_prompt": "", "width_px": 64,
               "height_px": 32, "frames": 5, "fps": 8, "steps": 5, "guidance": 3, "seed": 1}
    node = NodeSpec(id="s1.clip", kind=NodeKind.CLIP, shot_id="s1", payload=payload)
    ledger.submit(NewJob(id="film", document={}, nodes=(node,)))
    engine = Engine(ledger, dict.fromkeys(NodeKind, step), store=store, dispatcher=Dispatcher({"cpu": 1}),
                    settings=QUICK)
    running = asyncio.create_task(engine.run())
    async with asyncio.timeout(20):
        while not ledger.job("film").status.is_terminal:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the database sends no signal
    await engine.stop()
    await running
    replica.close()
    ledger.close()

    chains, thread = seen[0]
    carriers = [chain for chain in chains if any(name in chain for name in ("Walk.run_node", "ModelReplica.clip",
                                                                            "ModelReplica._produce"))]
    order = ("Walk.run_node", "ModelReplica.clip", "ModelReplica._produce")
    carriers.sort(key=lambda chain: next(n for n, name in enumerate(order) if name in chain))
    path = WRAPPERS + [name for chain in (*carriers, thread) for name in chain if name not in PLUMBING]
    assert len(carriers) == 3, chains
    assert len(path) <= BUDGET, " -> ".join(path)
    assert len(path) >= 9, "the measurement lost the path: " + " -> ".join(path)
