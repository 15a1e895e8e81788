"""The same films made at one go in this process, with nobody who kills: what the others' frames are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from configs.load import casting, load_cards, load_settings
from serve_app.models import pipelines
from tests.chaos.crowd import SAME
from tests.chaos.invariants import frames_digest
from tests.house import House
from workflows.durable.rows import NodeRow
from workflows.types import JobStatus, NodeKind, NodeSpec

LIMIT_S = 600.0
"""For one film, on a machine that does other things too."""
FILMS = (NodeKind.CLIP, NodeKind.COMPOSE)


def spec_of(node: NodeRow) -> NodeSpec:
    """The plan in a row."""
    return NodeSpec(id=node.id, kind=node.kind, shot_id=node.shot_id, deps=node.deps, payload=node.payload,
                    lane=node.lane, cost=node.cost, accepts_missing=node.accepts_missing)


def calm_frames(jobs: Mapping[str, Sequence[NodeRow]], directory: Path) -> dict[str, dict[str, str]]:
    """Job -> node -> digest of the frames, of each clip and each film."""
    if not jobs:
        return {}
    house = House(directory)
    settings = load_settings("ci", SAME)
    cards = {card.name: card for card in casting(settings, load_cards(settings)).values()}
    for card in cards.values():
        house.serve(card, house.replica(card, pipelines.load))
    try:
        return {job_id: asyncio.run(_frames(house, job_id, nodes)) for job_id, nodes in jobs.items()}
    finally:
        for replica in house.replicas:
            replica.close()
        house.ledger.close()


async def _frames(house: House, job_id: str, nodes: Iterable[NodeRow]) -> dict[str, str]:
    row = await house.render(job_id, [spec_of(node) for node in nodes], limit_s=LIMIT_S)
    if row.status is not JobStatus.SUCCEEDED:
        raise RuntimeError(f"the undisturbed {job_id} is {row.status.value}: {row.error}")
    made = house.nodes(job_id).values()
    return {node.id: frames_digest(house.store.fetch(node.artifact)) for node in made
            if node.kind in FILMS and node.artifact is not None}
