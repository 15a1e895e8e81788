"""Pure questions about a job's DAG: is it one, what hangs on what. Knows no database and no clock."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from workflows.durable.rows import NodeRow
from workflows.durable.tables import ID_CHARS
from workflows.errors import InvalidDocument, Problem
from workflows.types import ONLY_BELOW, NodeKind, NodeSpec, NodeStatus, canonical_json

FAN_OUT = frozenset({NodeKind.STORY})
"""Kinds whose result may insert nodes. Only the stage can say which, so a stored artifact never stands in for it."""

TAKES = frozenset({NodeKind.STORY, NodeKind.KEYFRAME, NodeKind.CLIP, NodeKind.EDIT})
"""Kinds whose result depends on a draw; a forced rerun asks them for another take. The rest follow by their keys."""

BESIDE = frozenset({NodeKind.PREVIEW, NodeKind.REPORT, NodeKind.PLOT})
"""Kinds whose result only tells of a job's result: without them it is there all the same, with them alone it is not."""


def check_graph(specs: Sequence[NodeSpec], *, known: Collection[str] = ()) -> None:
    """Refuse nodes that cannot be walked; `known` are ids that exist already.

    Raises InvalidDocument with every id given twice or too long, every dependency that does not exist, every cost that
    is not above 0, every payload that is not JSON (NaN is not), and one cycle if there is any.
    """
    problems: list[Problem] = []
    ids = set(known)
    for spec in specs:
        if spec.id in ids:
            problems.append(Problem(problem=f"node {spec.id!r} exists twice", shot_id=spec.shot_id))
        if not 0 < len(spec.id) <= ID_CHARS:
            problems.append(Problem(problem=f"node id of {len(spec.id)} characters: {spec.id[:40]!r}...",
                                    shot_id=spec.shot_id, nearest=f"1 to {ID_CHARS} characters"))
        if not spec.cost > 0:
            problems.append(Problem(problem=f"node {spec.id!r} costs {spec.cost:g}", shot_id=spec.shot_id,
                                    nearest="a number above 0"))
        try:
            canonical_json(spec.payload)
        except (ValueError, TypeError) as error:
            problems.append(Problem(problem=f"node {spec.id!r} has a payload that is not JSON: {error}",
                                    shot_id=spec.shot_id))
        ids.add(spec.id)
    problems += [
        Problem(problem=f"node {spec.id!r} needs {dep!r}, which does not exist", shot_id=spec.shot_id)
        for spec in specs for dep in spec.deps if dep not in ids
    ]
    try:
        TopologicalSorter({spec.id: spec.deps for spec in specs}).prepare()
    except CycleError as cycle:
        problems.append(Problem(problem=f"nodes wait for each other: {' -> '.join(cycle.args[1])}"))
    if problems:
        raise InvalidDocument(problems=tuple(problems))


def waits_for(node: NodeRow) -> tuple[str, ...]:
    """The nodes that must be settled before this one starts: what it needs, what says whether it is needed, and the one
    that inserted it.

    A parent that runs again may replace its children, so they wait for it even when they use nothing of it.
    """
    condition = _condition(node)
    others = (condition[0] if condition else "", node.parent_id)
    return (*node.deps, *dict.fromkeys(other for other in others if other and other not in node.deps))


def needs(node: NodeRow) -> tuple[str, ...]:
    """Those without whose results it cannot run."""
    if node.kind is NodeKind.PICK:
        # Of the takes only the first is rendered in any case.
        return node.deps[:1]
    if node.accepts_missing:
        return (node.parent_id,) if node.parent_id else ()
    return waits_for(node)


def not_needed(node: NodeRow, nodes: Mapping[str, NodeRow]) -> str:
    """Why a node whose others are settled is not to run although it could; empty when it is to run."""
    if node.accepts_missing:
        return ""
    for dep in node.deps:
        if _is_idle(nodes[dep]):
            return f"{dep} was not needed"
    condition = _condition(node)
    if condition is None:
        return ""
    name, below = condition
    if _is_idle(nodes[name]):
        return f"{name} was not needed"
    artifact = nodes[name].artifact
    score = None if artifact is None else artifact.score
    return "" if score is None or score < below else f"{name} is {score:.2f}, and {below:g} is enough"


def _is_idle(node: NodeRow) -> bool:
    """Settled without a result, because none was needed."""
    return node.status is NodeStatus.SUCCEEDED and node.artifact is None


def _condition(node: NodeRow) -> tuple[str, float] | None:
    """The score that decides whether the node runs, and below what it does."""
    said = node.payload.get(ONLY_BELOW)
    return (str(said["score"]), float(str(said["below"]))) if isinstance(said, dict) else None


def cone(nodes: Iterable[NodeRow], chosen: Collection[str]) -> tuple[str, ...]:
    """The chosen nodes and everything downstream of them, in the job's order."""
    rows = sorted(nodes, key=lambda node: node.ord)
    dependants: dict[str, list[str]] = {}
    for node in rows:
        for dep in waits_for(node):
            dependants.setdefault(dep, []).append(node.id)
    found, open_ids = set(chosen), list(chosen)
    while open_ids:
        for dependant in dependants.get(open_ids.pop(), ()):
            if dependant not in found:
                found.add(dependant)
                open_ids.append(dependant)
    return tuple(node.id for node in rows if node.id in found)


def select(nodes: Sequence[NodeRow], selection: Collection[str], *, job_id: str) -> frozenset[str]:
    """The node ids that a selection of node ids and shot ids means; a shot means all its nodes.

    Raises InvalidDocument that names the valid ids when one is unknown.
    """
    shots = list(dict.fromkeys(node.shot_id for node in nodes if node.shot_id))
    ids = [node.id for node in nodes]
    unknown = [name for name in selection if name not in shots and name not in ids]
    if unknown:
        nearest = ", ".join([*shots, *(node.id for node in nodes if not node.shot_id)])
        raise InvalidDocument(problems=tuple(
            Problem(field="shots", problem=f"job {job_id} has no shot or node {name!r}", nearest=nearest)
            for name in unknown))
    return frozenset(node.id for node in nodes if node.id in selection or (node.shot_id and node.shot_id in selection))
