"""Attempts at a node that no GPU had the memory for: how many more, and of what size. Pure; the row says it all.

    as it is, `engine.attempts` times, each on a replica that did not fail yet -> smaller -> smaller still -> failed

A smaller one is what a smaller film would have: it is kept under the key of that, and never found in place of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from configs.settings import EngineSettings
from workflows.durable.rows import NodeRow
from workflows.errors import GpuOutOfMemory
from workflows.types import SMALLER, Json, NodeResult


def sizes_of(node: NodeRow) -> Sequence[tuple[int, int]]:
    """Width and height that may stand in for the node's own, largest first."""
    said = node.payload.get(SMALLER)
    pairs = [size for size in said if isinstance(size, list)] if isinstance(said, list) else []
    return [(int(str(width_px)), int(str(height_px))) for width_px, height_px in pairs]


def tries(error: Exception, node: NodeRow, settings: EngineSettings) -> int:
    """How many failed attempts end the node, if the last one failed so."""
    return settings.attempts + (len(sizes_of(node)) if isinstance(error, GpuOutOfMemory) else 0)


def payload_of(node: NodeRow, settings: EngineSettings) -> dict[str, Json]:
    """What the next attempt renders: the node's own payload, or that of a smaller one after its tries were in vain."""
    payload, sizes = dict(node.payload), sizes_of(node)
    if node.failures < settings.attempts or not sizes:
        return payload
    width_px, height_px = sizes[min(node.failures - settings.attempts, len(sizes) - 1)]
    return {**payload, "width_px": width_px, "height_px": height_px}


def told(result: NodeResult, node: NodeRow, payload: dict[str, Json]) -> tuple[str, ...]:
    """The warnings of a result, with what was done because memory was short; `node` as it was before the attempt."""
    if node.error is None or node.error.type != GpuOutOfMemory.__name__:
        return result.warnings
    own, made = (f"{size['width_px']}x{size['height_px']}" for size in (node.payload, payload))
    if own == made:
        return (*result.warnings, f"{node.id}: ran out of GPU memory before, and fitted when tried again, by another "
                                  f"replica where there is one ({node.error.message})")
    return (*result.warnings, f"{node.id}: {own} fits no GPU here, so it was rendered at {made}; the film shows it "
                              f"scaled up ({node.error.message})")
