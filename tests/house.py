"""Real replicas behind a real engine and a real store, without Ray: what a film needs from end to end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from configs.model_card import ModelCard
from configs.settings import MediaSettings, ModelsSettings
from serve_app.handles import ModelHandle
from serve_app.models.replica import ModelReplica
from tests.fakes_models import RememberingSink
from tests.studio import QUICK
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import JobRow, NewJob, NodeRow
from workflows.media.encode import EncodeOptions
from workflows.placement import Candidate, Placement, Wanted
from workflows.ports import Model, RenderCall
from workflows.stages.finish import Finisher
from workflows.stages.pick import pick
from workflows.stages.render import clip, keyframe
from workflows.stages.score import Embedder, Scorer
from workflows.store import Store
from workflows.types import NodeCall, NodeKind, NodeResult, NodeSpec


class Router:
    """A deployment's handle that places calls as the product's router does."""

    def __init__(self, replicas: Sequence[ModelReplica]) -> None:
        self.asked: list[int] = []
        self._replicas = replicas
        self._placement = Placement()
        self._numbers = itertools.count()
        self.image = _Method(self._image)
        self.clip = _Method(self._clip)

    async def _image(self, call: RenderCall) -> NodeResult:
        return await self._place(call).image(call)

    async def _clip(self, call: RenderCall) -> NodeResult:
        return await self._place(call).clip(call)

    def _place(self, call: RenderCall) -> ModelReplica:
        wanted = Wanted(id=f"call {next(self._numbers)}", key=call.key, avoid=call.avoid)
        names = [replica.name for replica in self._replicas]
        able = [Candidate(name=name, room=2) for name in names]
        chosen = self._placement.choose(wanted, able) or self._placement.choose(Wanted(id=wanted.id), able)
        assert chosen is not None
        self.asked.append(names.index(chosen.name))
        # Who is busy plays no part in what these tests are for.
        self._placement.over(wanted.id, chosen.name)
        return self._replicas[self.asked[-1]]


class _Method:
    def __init__(self, ask: Callable[[RenderCall], Coroutine[Any, Any, NodeResult]]) -> None:
        self._ask = ask

    def remote(self, call: RenderCall) -> asyncio.Task[NodeResult]:
        return asyncio.create_task(self._ask(call))


class House:
    """A ledger, a store, an engine and whatever replicas a test puts in."""

    def __init__(self, directory: Path) -> None:
        self.ledger = Ledger(f"sqlite:///{directory / 'state.db'}")
        self.store = Store(str(directory / "store"))
        self.models: dict[str, Model] = {}
        self.replicas: list[ModelReplica] = []
        self.embedder: Embedder | None = None

    def replica(self, card: ModelCard, load: Any, room: float | None = None) -> ModelReplica:
        self.replicas.append(ModelReplica(
            card, ModelsSettings(torch_threads=1), MediaSettings(preset="ultrafast"), self.store, RememberingSink(),
            0.0, load, room_gb=lambda device, gpus: room, name=f"replica {len(self.replicas)}"))
        return self.replicas[-1]

    def serve(self, card: ModelCard, *replicas: ModelReplica) -> Router:
        router = Router(replicas)
        self.models[card.name] = ModelHandle(router)  # type: ignore[arg-type]
        return router

    async def render(self, job_id: str, nodes: Sequence[NodeSpec], *, limit_s: float = 60.0) -> JobRow:
        """Submit a job and run it to its end, which must come within `limit_s`."""
        finisher = Finisher(self.store, EncodeOptions(preset="ultrafast"))

        async def finish(call: NodeCall) -> NodeResult:
            return await asyncio.to_thread(finisher.run, call, lambda done, total: None)

        self.ledger.submit(NewJob(id=job_id, document={"job": job_id}, nodes=tuple(nodes)))
        steps = {**dict.fromkeys(NodeKind, finish), NodeKind.SCORE: self._score, NodeKind.PICK: pick,
                 NodeKind.KEYFRAME: partial(keyframe, models=self.models),
                 NodeKind.CLIP: partial(clip, models=self.models)}
        engine = Engine(self.ledger, steps, store=self.store, settings=QUICK,
                        dispatcher=Dispatcher({"cpu": 2, **dict.fromkeys(self.models, 4)}))
        running = asyncio.create_task(engine.run())
        async with asyncio.timeout(limit_s):
            while not (row := self.ledger.job(job_id)).status.is_terminal:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the database sends no signal
        await engine.stop()
        await running
        return row

    async def _score(self, call: NodeCall) -> NodeResult:
        return await asyncio.to_thread(Scorer(self.store, self.embedder).run, call, lambda done, total: None)

    def nodes(self, job_id: str) -> Mapping[str, NodeRow]:
        return {node.id: node for node in self.ledger.nodes(job_id)}
