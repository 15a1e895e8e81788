"""The story stage: a script becomes a storyboard in the store, and the shots' nodes of its own job."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

from workflows.errors import ArtifactCorrupt, ArtifactMissing, InvalidDocument
from workflows.ports import ArtifactStore
from workflows.scene import Cards
from workflows.story import LAST_STAGE, RuleWriter, Story, StoryWriter, Told, check_submitted, planned, tell_story
from workflows.storyboard import parse_storyboard, storyboard_value
from workflows.tiers import TIER
from workflows.types import Artifact, Json, MediaType, NodeCall, NodeResult, content_key, substitute_key

RULES = RuleWriter()
_RESERVE = 0.1
"""Of the stage's time, what a writer leaves for planning and storing."""


async def story(call: NodeCall, cards: Cards, store: ArtifactStore, writer: StoryWriter = RULES) -> NodeResult:
    """Break the script into shots; the result carries their nodes, which the engine inserts in the same commit.

    What a writer other than the rules has told is told again from the store: a model would tell another story.
    Raises InvalidDocument when the script cannot become a film with these cards.
    """
    until_s = time.monotonic() + (1 - _RESERVE) * call.left_s
    check_submitted(call.payload, cards=cards, writer=writer)
    known = await asyncio.to_thread(_known, call, cards, store) if call.payload.get("writer") else None
    if known is not None:
        artifact, found = known
        return NodeResult(artifact=artifact, warnings=found.warnings, new_nodes=found.plan.nodes)
    made = await tell_story(call.payload, cards=cards, writer=writer, until_s=until_s)
    artifact = await asyncio.to_thread(_keep, call, made, store)
    return NodeResult(artifact=artifact, warnings=made.warnings, new_nodes=made.plan.nodes)


def _known(call: NodeCall, cards: Cards, store: ArtifactStore) -> tuple[Artifact, Story] | None:
    """The story kept under the call's key; None when there is none that can be read."""
    artifact = store.find(_key(call))
    if artifact is None:
        return None
    try:
        storyboard = parse_storyboard(store.fetch(artifact).read_text(encoding="utf-8"), file="storyboard.json")
        return artifact, planned(Told(storyboard=storyboard), call.payload, cards=cards)
    except (InvalidDocument, ArtifactMissing, ArtifactCorrupt):
        return None


def _key(call: NodeCall) -> str:
    """The same for pictures, for drafts, and for the film that is made of them later: it must be the same story."""
    payload = {name: value for name, value in call.payload.items() if name not in (LAST_STAGE, TIER)}
    return content_key(call.kind, payload, (), call.generation)


def _keep(call: NodeCall, made: Story, store: ArtifactStore) -> Artifact:
    # A fallback under the node's own key would stand in for the model's story for ever.
    key = _key(call) if made.told.is_own else substitute_key(call.key)
    manifest: dict[str, Json] = {"kind": call.kind.value, "writer": call.payload.get("writer", {}),
                                 "warnings": list(made.told.warnings)}
    with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
        path = Path(scratch) / "storyboard.json"
        text = json.dumps(storyboard_value(made.told.storyboard), ensure_ascii=False, indent=1)
        path.write_text(text, encoding="utf-8")
        return store.put(key, path, media_type=MediaType.JSON, manifest=manifest)
