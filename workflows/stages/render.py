"""The two stages that need a model: a keyframe and a clip. Knows what a call is made of, not where the model runs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from workflows.ports import Model, Party, RenderCall
from workflows.types import SMALLER, Artifact, Json, NodeCall, NodeResult

Models = Mapping[str, Model]
"""By card name."""


async def keyframe(call: NodeCall, models: Models) -> NodeResult:
    """Text to one picture, the first frame of a clip."""
    render = render_call(call)
    async with company(render, call.seats, models[render.card]) as render:
        return await models[render.card].image(render)


async def clip(call: NodeCall, models: Models) -> NodeResult:
    """Text, or text and a first frame, to a clip.

    The first frame is what the node depends on (a keyframe, or the clip whose last frame this one continues), or else
    the picture in its payload.
    """
    render = render_call(call)
    async with company(render, call.seats, models[render.card]) as render:
        return await models[render.card].clip(render)


@asynccontextmanager
async def company(render: RenderCall, seats: Sequence[int], model: Model) -> AsyncIterator[RenderCall]:
    """Around one call that may take several GPUs: others are asked to help, and are free again when this ends.

    What becomes of them is their own affair: a call whose helpers do not come is made without them.
    """
    if len(seats) < 2:
        yield render
        return
    party = Party(id=uuid.uuid4().hex, size=len(seats), rank=0)
    helpers = [asyncio.create_task(model.assist(replace(render, seat=seat, party=replace(party, rank=rank))),
                                   name=f"{render.node_id} helper {rank}")
               for rank, seat in enumerate(seats) if rank]
    try:
        yield replace(render, party=party)
    finally:
        for helper in helpers:
            helper.cancel()  # where the call was made, one that still waits for it has nothing to wait for
        await asyncio.gather(*helpers, return_exceptions=True)


def render_call(call: NodeCall) -> RenderCall:
    """The model's part of a node call; KeyError or ValueError only if the plan wrote a payload it never writes."""
    p = call.payload
    return RenderCall(
        job_id=call.job_id, node_id=call.node_id, shot_id=call.shot_id, attempt=call.attempt, key=call.key,
        left_s=call.left_s, card=str(p["card"]), card_digest=str(p["card_digest"]), prompt=str(p["prompt"]),
        negative_prompt=str(p["negative_prompt"]), width_px=integer(p["width_px"]), height_px=integer(p["height_px"]),
        frames=integer(p["frames"]), fps=number(p["fps"]), steps=integer(p["steps"]), guidance=number(p["guidance"]),
        seed=integer(p["seed"]) + call.generation, first_frame=_first_frame(call), references=_references(call),
        cache_threshold=_cache_threshold(p), avoid=call.avoid, may_shrink=SMALLER in p,
        seat=call.seats[0] if call.seats else None,
    )


def _first_frame(call: NodeCall) -> Artifact | None:
    for artifact in call.inputs.values():
        return artifact
    picture = call.payload.get("image")
    return Artifact.from_json(picture) if isinstance(picture, dict) else None


def _cache_threshold(payload: Mapping[str, Json]) -> float | None:
    cache = payload.get("cache")
    return number(cache["threshold"]) if isinstance(cache, dict) else None


def _references(call: NodeCall) -> tuple[Artifact, ...]:
    pictures = call.payload.get("references")
    if not isinstance(pictures, list):
        return ()
    return tuple(Artifact.from_json(picture) for picture in pictures if isinstance(picture, dict))


def integer(value: Json) -> int:
    """A whole number out of a payload."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"payload holds {value!r} where a whole number belongs")
    return value


def number(value: Json) -> float:
    """A number out of a payload."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"payload holds {value!r} where a number belongs")
    return float(value)
