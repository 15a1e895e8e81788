"""The story stage: a script becomes a storyboard in the store, and the shots' nodes of its own job."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from workflows.ports import ArtifactStore
from workflows.scene import Cards
from workflows.story import RuleWriter, StoryWriter, tell_story
from workflows.storyboard import Storyboard, storyboard_value
from workflows.types import Artifact, MediaType, NodeCall, NodeResult

RULES = RuleWriter()


async def story(call: NodeCall, cards: Cards, store: ArtifactStore, writer: StoryWriter = RULES) -> NodeResult:
    """Break the script into shots; the result carries their nodes, which the engine inserts in the same commit.

    Raises InvalidDocument when the script cannot become a film with these cards.
    """
    storyboard, plan = await tell_story(call.payload, cards=cards, writer=writer)
    artifact = await asyncio.to_thread(_keep, call, storyboard, store)
    return NodeResult(artifact=artifact, warnings=plan.warnings, new_nodes=plan.nodes)


def _keep(call: NodeCall, storyboard: Storyboard, store: ArtifactStore) -> Artifact:
    with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
        path = Path(scratch) / "storyboard.json"
        path.write_text(json.dumps(storyboard_value(storyboard), ensure_ascii=False, indent=1), encoding="utf-8")
        return store.put(call.key, path, media_type=MediaType.JSON, manifest={"kind": call.kind.value})
