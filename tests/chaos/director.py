"""A Director in a process of its own, for tests that kill it: an engine whose steps wait and write down their start."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from configs.settings import EngineSettings
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.errors import ModelFailed
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeCall, NodeKind, NodeResult


class Steps:
    """Every kind of node: note the start, wait, store something."""

    def __init__(self, directory: Path, *, step_s: float, flaky: float) -> None:
        self._store = Store(str(directory / "store"))
        self._starts = os.open(directory / "starts", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._scratch = directory / f"scratch-{os.getpid()}"
        self._scratch.mkdir()
        self._step_s = step_s
        self._flaky = flaky

    async def __call__(self, call: NodeCall) -> NodeResult:
        # One write of one line: processes that append at once do not mix.
        line = f"{call.job_id} {call.node_id} {call.key} {os.getpid()} {time.time()}\n"
        os.write(self._starts, line.encode())
        await asyncio.sleep(self._step_s)
        if random.random() < self._flaky:
            raise ModelFailed(node_id=call.node_id, reason="by chance")
        return NodeResult(artifact=await asyncio.to_thread(self._keep, call))

    def _keep(self, call: NodeCall) -> Artifact:
        source = self._scratch / f"{call.job_id}.{call.node_id}"
        source.write_text(call.key)
        return self._store.put(call.key, source, media_type=MediaType.JSON, manifest={})

    @property
    def store(self) -> Store:
        return self._store


def main(url: str, directory: Path, log: Path, options: Mapping[str, float]) -> None:
    """Run until SIGTERM. Artifacts and `starts` go to the directory; options are the engine's and the steps'."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", filename=log)
    asyncio.run(direct(url, directory, dict(options)))


async def direct(url: str, directory: Path, options: dict[str, float]) -> None:
    steps = Steps(directory, step_s=options.pop("step_s"), flaky=options.pop("flaky", 0.0))
    engine = Engine(Ledger(url), dict.fromkeys(NodeKind, steps), store=steps.store, dispatcher=Dispatcher({"cpu": 2}),
                    settings=EngineSettings.model_validate(options))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    running = asyncio.create_task(engine.run())
    logging.info("ready")
    await stopped.wait()
    await engine.stop()
    await running
