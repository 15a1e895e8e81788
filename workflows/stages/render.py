"""The two stages that need a model: a keyframe and a clip. Knows what a call is made of, not where the model runs."""

from __future__ import annotations

from collections.abc import Mapping

from workflows.ports import Model, RenderCall
from workflows.types import SMALLER, Artifact, Json, NodeCall, NodeResult

Models = Mapping[str, Model]
"""By card name."""


async def keyframe(call: NodeCall, models: Models) -> NodeResult:
    """Text to one picture, the first frame of a clip."""
    render = render_call(call)
    return await models[render.card].image(render)


async def clip(call: NodeCall, models: Models) -> NodeResult:
    """Text, or text and a first frame, to a clip.

    The first frame is what the node depends on (a keyframe, or the clip whose last frame this one continues), or else
    the picture in its payload.
    """
    render = render_call(call)
    return await models[render.card].clip(render)


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
        seat=call.seat,
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
