"""Where a mask node or an edit node of an edit goes: to its card's replicas, or to the CPU. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from workflows.errors import RenderRefused
from workflows.ports import MediaWorker
from workflows.types import CPU_LANE, NodeCall, NodeResult


class EditWorker(Protocol):
    """The deployment of a tracker's or an editor's card. Raises StageFailed and its children; ArtifactMissing,
    ArtifactCorrupt or MediaError for the inputs; nothing else.
    """

    async def run(self, call: NodeCall) -> NodeResult:
        """One mask node or one edit node."""


async def ask_model(call: NodeCall, *, models: Mapping[str, EditWorker], media: MediaWorker,
                    on_cpu: frozenset[str]) -> NodeResult:
    """Run a mask node or an edit node. `models`: by card; `on_cpu`: cards without weights, that the CPU's worker runs
    besides masks that are given.

    Raises RenderRefused for a card that has no replicas here, and what the worker raises.
    """
    card = str(call.payload.get("card", ""))
    if not card or card in on_cpu:
        return await media.run(call)
    if card not in models:
        raise RenderRefused(node_id=call.node_id, reason=(
            f"model card {card} has no replicas here; it was to make the {call.kind.value} nodes of this edit. Those "
            f"that there are: {', '.join([*models, *sorted(on_cpu)])}"))
    return await models[card].run(call)


def lane_of(card: str, on_cpu: frozenset[str]) -> str:
    """Which slots a card's nodes take: its own, or the CPU's."""
    return CPU_LANE if card in on_cpu else card
