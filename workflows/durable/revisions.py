"""A finished job with another plan: what changed runs again, and what hangs on it; all the rest stays. One transaction.

Knows the tables and the DAG, not how the plan came about.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from workflows.durable import graph
from workflows.durable.database import Database
from workflows.durable.reopening import check_inputs, lock_finished, nodes_of, reopen
from workflows.durable.rows import NodeRow
from workflows.durable.tables import job, node
from workflows.durable.takes import describe_takes, keep_takes, shown_clip
from workflows.errors import JobConflict
from workflows.types import Json, NodeKind, NodeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A job's next plan, made from the one whose digest it names."""

    job_id: str
    based_on: str
    """Digest of the document that was changed; another one by now means that somebody else was quicker."""
    document: Mapping[str, Json]
    document_digest: str
    nodes: tuple[NodeSpec, ...]
    """All of them, in order."""
    shots: Mapping[str, Mapping[str, Json]]
    """The shots that were changed, with their fields until now: they stay with the takes made from them."""
    generations: Mapping[str, int] = field(default_factory=dict)
    """By node id, where an earlier take is chosen."""


class Revisions:
    """Revises jobs of one database."""

    def __init__(self, database: Database) -> None:
        """Write to this database."""
        self._database = database

    def apply(self, revision: Revision) -> tuple[str, ...]:
        """Put the new plan in place of the old; return the ids of the nodes that will run, in the job's order.

        A clip that a changed shot showed and that is drawn anew is kept among its takes. Nothing runs, and () is
        returned, when no node differs. Raises UnknownJob, InvalidDocument when the nodes are no DAG, and JobConflict
        while the job is active, when it was revised meanwhile, when other shots would change too, or when a node lacks
        what it needs.
        """
        graph.check_graph(revision.nodes)
        job_id = revision.job_id
        with self._database.write() as connection:
            row = lock_finished(connection, job_id)
            if row["document_digest"] != revision.based_on:
                raise JobConflict(job_id=job_id, problem="was changed by somebody else meanwhile; look at it again")
            before = {found.id: found for found in nodes_of(connection, job_id)}
            after = [_planned(job_id, ord, spec, before.get(spec.id)) for ord, spec in enumerate(revision.nodes)]
            changed = _changed(before, after, revision.generations)
            reached = frozenset(graph.cone(after, changed))
            _check_reach(revision, after, reached)
            check_inputs(job_id, after, reached)
            drawn = {found.shot_id for found in after if found.id in changed and found.kind in graph.TAKES}
            rows, kept = tuple(before.values()), {found.id for found in after}
            drawn |= {shot for shot in revision.shots if (shown := shown_clip(rows, shot)) and shown.id not in kept}
            keep_takes(connection, job_id, rows, [shot for shot in revision.shots if shot in drawn])
            for shot_id, fields in revision.shots.items():
                describe_takes(connection, job_id, shot_id, fields)
            _write(connection, job_id, before, after)
            connection.execute(sa.update(job).where(job.c.id == job_id).values(
                document=dict(revision.document), document_digest=revision.document_digest))
            if reached:
                reopen(connection, row, [found for found in after if found.id in reached], revision.generations)
        return tuple(found.id for found in after if found.id in reached)


def _planned(job_id: str, ord: int, spec: NodeSpec, known: NodeRow | None) -> NodeRow:
    """The node as planned now, with what became of it so far."""
    plan = NodeRow.planned(job_id, spec, ord=ord)
    if known is None:
        return plan
    return replace(known, ord=ord, parent_id="", kind=plan.kind, shot_id=plan.shot_id, deps=plan.deps,
                   payload=plan.payload, lane=plan.lane, cost=plan.cost, accepts_missing=plan.accepts_missing)


def _changed(before: Mapping[str, NodeRow], after: Sequence[NodeRow], generations: Mapping[str, int]) -> frozenset[str]:
    """Nodes that are new, or whose result would be another one."""
    def decides(found: NodeRow) -> tuple[object, ...]:
        return found.kind, found.shot_id, found.deps, found.payload, found.accepts_missing

    return frozenset(
        found.id for found in after
        if found.id not in before or decides(found) != decides(before[found.id])
        or generations.get(found.id, found.generation) != found.generation)


def _check_reach(revision: Revision, after: Sequence[NodeRow], reached: Collection[str]) -> None:
    """A shot's change reaches the shot, what continues it, and the film. More means that the models are others now."""
    own = frozenset(graph.cone(after, [found.id for found in after if found.shot_id in revision.shots]))
    strangers = [found.id for found in after if found.id in reached and found.id not in own and found.shot_id
                 and found.kind is not NodeKind.SCORE]  # a scorer that was switched on later changes no picture
    if strangers:
        raise JobConflict(job_id=revision.job_id, problem=(
            f"the models were changed since this film was planned, so {', '.join(strangers[:3])} would be rendered "
            "again too; submit the film anew"))


def _write(connection: sa.Connection, job_id: str, before: Mapping[str, NodeRow], after: Sequence[NodeRow]) -> None:
    kept = {found.id for found in after}
    gone = [node_id for node_id in before if node_id not in kept]
    if gone:
        connection.execute(sa.delete(node).where(node.c.job_id == job_id, node.c.id.in_(gone)))
    for found in after:
        if found.id in before:
            connection.execute(sa.update(node).where(node.c.job_id == job_id, node.c.id == found.id)
                               .values(**found.plan_columns()))
        else:
            connection.execute(sa.insert(node).values(**found.plan_columns(), **found.state_columns()))
