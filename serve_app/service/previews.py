"""What submitting a plan would do: what of it the store has, how long the rest takes. Knows no kind of job."""

from __future__ import annotations

from collections.abc import Sequence

from serve_app.service.forecast import work_of
from workflows.durable.graph import FAN_OUT
from workflows.durable.rows import NodeRow
from workflows.estimate import Pace
from workflows.plan import plan_keys
from workflows.store import Store
from workflows.types import NO_MODEL_LANES, Json, NodeSpec


def foretold(specs: Sequence[NodeSpec], store: Store, pace: Pace) -> dict[str, Json]:
    """The part of a dry run's reply that every kind of job has. Reads one small file per node."""
    keys = plan_keys(specs)
    nodes: list[Json] = []
    gpu_s = cpu_s = 0.0
    hits = 0
    for spec in specs:
        cached = spec.kind not in FAN_OUT and store.find(keys[spec.id]) is not None
        seconds = 0.0 if cached else pace.expected_s(work_of(NodeRow.planned("", spec, ord=0), None))
        hits += cached
        if spec.lane in NO_MODEL_LANES:
            cpu_s += seconds
        else:
            gpu_s += seconds
        nodes.append({"id": spec.id, "kind": spec.kind.value, "shot": spec.shot_id, "deps": list(spec.deps),
                      "lane": spec.lane, "cached": cached, "estimated_seconds": round(seconds, 3)})
    return {"nodes": nodes, "cache_hits": hits, "estimated_gpu_seconds": round(gpu_s, 3),
            "estimated_cpu_seconds": round(cpu_s, 3)}
