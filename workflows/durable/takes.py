"""Earlier takes: what a shot's clip was before it was drawn anew, so that it can be chosen again. Knows the tables.

A take is kept in the transaction that replaces it. Its files are in the store under the keys they always had: choosing
it again means giving the shot its fields and its nodes their generations of that time, and every result is found.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from workflows.durable import graph
from workflows.durable.database import Database
from workflows.durable.rows import NodeRow
from workflows.durable.tables import take
from workflows.retakes import picked
from workflows.types import Artifact, Json, NodeKind, NodeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One earlier take of a shot."""

    shot_id: str
    number: int
    """From 1, in the order in which they were replaced."""
    key: str
    """Content key of its clip."""
    generations: Mapping[str, int]
    """By node id."""
    shot: Mapping[str, Json] | None
    """The shot's fields at that time; None: those it still has."""
    artifact: Artifact
    """Its clip, before interpolation and caption."""
    kept_at_s: float


class Takes:
    """The takes of one database's jobs."""

    def __init__(self, database: Database) -> None:
        """Read this database."""
        self._database = database

    def of(self, job_id: str, shot_id: str = "") -> tuple[Take, ...]:
        """A job's takes, or one shot's, in order; none for a job that does not exist."""
        with self._database.read() as connection:
            return takes_of(connection, job_id, shot_id)


def takes_of(connection: sa.Connection, job_id: str, shot_id: str = "") -> tuple[Take, ...]:
    """A job's takes, or one shot's, in order."""
    wanted = sa.select(take).where(take.c.job_id == job_id).order_by(take.c.shot_id, take.c.number)
    if shot_id:
        wanted = wanted.where(take.c.shot_id == shot_id)
    return tuple(
        Take(shot_id=row["shot_id"], number=row["number"], key=row["key"], generations=row["generations"],
             shot=row["shot"], artifact=Artifact.from_json(row["artifact"]), kept_at_s=row["kept_at"])
        for row in connection.execute(wanted).mappings())


def keep_takes(connection: sa.Connection, job_id: str, nodes: Sequence[NodeRow], shot_ids: Collection[str]) -> None:
    """Keep the clips that these shots show now, as far as they have one and it was not kept before."""
    for shot_id in shot_ids:
        clip = shown_clip(nodes, shot_id)
        if clip is None or clip.artifact is None or clip.status is not NodeStatus.SUCCEEDED:
            continue
        known = takes_of(connection, job_id, shot_id)
        if clip.key in {kept.key for kept in known}:
            continue
        generations = {node.id: node.generation for node in nodes
                       if node.shot_id == shot_id and node.kind in graph.TAKES}
        connection.execute(sa.insert(take).values(
            job_id=job_id, shot_id=shot_id, number=len(known) + 1, key=clip.key, generations=generations, shot=None,
            artifact=clip.artifact.to_json(), kept_at=time.time()))


def describe_takes(connection: sa.Connection, job_id: str, shot_id: str, shot: Mapping[str, Json]) -> None:
    """Write down the shot's fields with every take that was made with them, before they change."""
    connection.execute(sa.update(take).where(
        take.c.job_id == job_id, take.c.shot_id == shot_id, take.c.shot.is_(None)).values(shot=dict(shot)))


def fresh_generations(
    connection: sa.Connection, job_id: str, nodes: Collection[NodeRow], chosen: Collection[str],
) -> dict[str, int]:
    """For each chosen node that draws, a generation that it never had: another take, not an earlier one again."""
    used: dict[str, int] = {}
    for kept in takes_of(connection, job_id):
        for node_id, generation in kept.generations.items():
            used[node_id] = max(used.get(node_id, 0), generation)
    return {node.id: max(node.generation, used.get(node.id, 0)) + 1
            for node in nodes if node.id in chosen and node.kind in graph.TAKES}


def shown_clip(nodes: Sequence[NodeRow], shot_id: str) -> NodeRow | None:
    """The clip of a shot that the film uses, before interpolation and caption; None for a shot that has none."""
    mine = {node.id: node for node in nodes if node.shot_id == shot_id}
    film = max(nodes, key=lambda node: node.ord)
    at = next((mine[dep] for dep in film.deps if dep in mine), None)
    while at is not None and at.kind is not NodeKind.CLIP:
        before = [mine[dep] for dep in at.deps if dep in mine]
        at = picked([*before, at]) or next(iter(before), None)
    return at
