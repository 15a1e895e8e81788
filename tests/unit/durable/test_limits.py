"""What a job sets itself: how many of its nodes run at the same time, and how long one try may take."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.studio import Studio, film
from workflows.durable.rows import Limits
from workflows.types import JobStatus, NodeCall, NodeKind, NodeResult


class Crowd:
    """An act that counts how many calls are inside at the same time."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._inside = 0
        self.most = 0

    async def __call__(self, call: NodeCall) -> NodeResult:
        self._inside += 1
        self.most = max(self.most, self._inside)
        await asyncio.sleep(0.02)
        self._inside -= 1
        return self._studio.step.result(call)


async def test_a_job_runs_no_more_nodes_at_once_than_it_asks_for(studio: Studio) -> None:
    crowds = {}
    for job_id, limits in (("narrow", Limits(concurrency=2)), ("wide", Limits())):
        crowds[job_id] = Crowd(studio)
        studio.step.script = {f"s{shot}.keyframe": [crowds[job_id]] for shot in range(1, 7)}
        new = film(job_id, shots=6)
        nodes = tuple(replace(node, payload={"prompt": f"{job_id} {node.shot_id}"}) for node in new.nodes)
        studio.ledger.submit(replace(new, nodes=nodes, limits=limits))
        assert (await studio.render(job_id)).status is JobStatus.SUCCEEDED
    assert crowds["narrow"].most == 2
    assert crowds["wide"].most > 2


async def test_a_try_that_takes_longer_than_the_job_allows_is_ended(studio: Studio) -> None:
    async def hang(call: NodeCall) -> NodeResult:
        await asyncio.sleep(60)
        raise AssertionError

    studio.step.script["s1.keyframe"] = [hang] * studio.settings.attempts
    new = film(shots=1, compose=False)
    rendering = tuple(replace(node, lane="model") for node in new.nodes)
    studio.ledger.submit(replace(new, nodes=rendering, limits=Limits(attempt_timeout_s=0.05)))
    job = await studio.render()
    assert job.error is not None
    assert job.error.message.endswith("no result after 0.05 s (the job's timeout_s)")


async def test_what_no_model_makes_has_its_own_time(studio: Studio) -> None:
    """Joining a long film takes longer than one picture may."""
    async def join(call: NodeCall) -> NodeResult:
        await asyncio.sleep(0.2)
        return studio.step.result(call)

    studio.step.script["compose"] = [join]
    studio.ledger.submit(replace(film(shots=1), limits=Limits(attempt_timeout_s=0.1)))
    assert (await studio.render()).status is JobStatus.SUCCEEDED


async def test_nodes_with_one_key_are_made_once(studio: Studio) -> None:
    crowd = Crowd(studio)
    studio.step.script = {f"s{shot}.keyframe": [crowd] for shot in (1, 2, 3)}
    new = film(compose=False)
    nodes = tuple(replace(node, payload={"prompt": "the same"}) for node in new.nodes
                  if node.kind is NodeKind.KEYFRAME)
    studio.ledger.submit(replace(new, nodes=nodes))
    assert (await studio.render()).status is JobStatus.SUCCEEDED
    assert len(studio.step.calls) == 1
    assert sum(node.cached for node in studio.ledger.nodes("film")) == 2
