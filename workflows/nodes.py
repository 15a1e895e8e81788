"""Scenes -> nodes: ids, edges, payloads and costs. Payloads are content keys: they hold what decides a result, no more.

So a new caption or transition renders no clip again, and neither does a new place in the film.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from configs.memory import smaller_sizes
from configs.model_card import ModelCard, Task
from workflows.drafts import Effort, effort
from workflows.failing import Missing, OutOfMemory
from workflows.prompt import one_line, take_seed
from workflows.references import mentioned
from workflows.retakes import of_take
from workflows.scene import Film, Scene
from workflows.types import ONLY_BELOW, SMALLER, Json, NodeKind, NodeSpec

# CPU-seconds per frame of 832x480 pixels on one core, measured: optical flow for a new frame; decoding, drawing on and
# encoding a captioned frame; a frame of the film, of which most are copied.
_INTERPOLATE_S, _CAPTION_S, _COMPOSE_S = 0.015, 0.01, 0.001
_MEASURED_PX = 832 * 480
_LEAST_COST_S = 0.01
_SCORED_FRAMES = 8
"""Of a clip, compared with reference pictures."""


def film_nodes(scenes: Sequence[Scene], film: Film) -> tuple[NodeSpec, ...]:
    """All nodes of a film, each after those that it depends on.

    A shot that continues another depends on that shot's chosen clip, before interpolation and caption.
    """
    chosen = {scene.shot.id: clip_node(scene) for scene in scenes}
    shots = [node for scene in _after_what_they_continue(scenes) for node in _shot_nodes(scene, film, chosen)]
    return (*shots, _compose(scenes, film))


def picture_nodes(scenes: Sequence[Scene], film: Film) -> tuple[NodeSpec, ...]:
    """The keyframe of every scene and nothing else; they are those that the film itself would have."""
    return tuple(_keyframe(scene, film) for scene in scenes)


def keyframe_node(scene: Scene, take: int = 1) -> str:
    """Id of the drawn first frame; all takes share one, unless a score decides about them."""
    return of_take(f"{scene.shot.id}.keyframe", take)


def clip_node(scene: Scene) -> str:
    """Id of the node whose clip the film uses: a take, or what picks one."""
    return f"{scene.shot.id}.pick" if scene.retake else _clip_id(scene, scene.take)


def final_node(scene: Scene, film: Film) -> str:
    """Id of the node whose result the film shows."""
    if scene.shot.caption:
        return f"{scene.shot.id}.caption"
    return f"{scene.shot.id}.interpolate" if film.factor > 1 else clip_node(scene)


def _after_what_they_continue(scenes: Sequence[Scene]) -> Iterator[Scene]:
    waiting = {scene.shot.id: scene for scene in scenes}
    for scene in scenes:
        chain: list[Scene] = []
        link = waiting.pop(scene.shot.id, None)
        while link is not None:
            chain.append(link)
            link = waiting.pop(link.shot.continues or "", None)
        yield from reversed(chain)


def _clip_id(scene: Scene, take: int) -> str:
    return of_take(f"{scene.shot.id}.clip", take)


def _score_id(scene: Scene, take: int) -> str:
    return of_take(f"{scene.shot.id}.score", take)


def _shot_nodes(scene: Scene, film: Film, chosen: dict[str, str]) -> Iterator[NodeSpec]:
    """Keyframes and clips of its takes, and for the take that the film uses interpolation and caption."""
    shot = scene.shot
    before = () if shot.continues is None else (chosen[shot.continues],)
    yield from (_retakes if shot.retake else _takes)(scene, film, before)
    last = clip_node(scene)
    if film.factor > 1:
        cost = _cpu_cost(_INTERPOLATE_S, scene.frames - scene.render_frames, film)
        yield NodeSpec(id=f"{shot.id}.interpolate", kind=NodeKind.INTERPOLATE, shot_id=shot.id, deps=(last,),
                       payload={"factor": film.factor}, cost=cost)
        last = f"{shot.id}.interpolate"
    if shot.caption:
        yield NodeSpec(id=f"{shot.id}.caption", kind=NodeKind.CAPTION, shot_id=shot.id, deps=(last,),
                       payload={"text": shot.caption}, cost=_cpu_cost(_CAPTION_S, scene.frames, film))


def _takes(scene: Scene, film: Film, before: tuple[str, ...]) -> Iterator[NodeSpec]:
    """All that are asked for, from one keyframe; the one that the film uses is measured."""
    if Task.TEXT_TO_IMAGE in scene.tasks:
        yield _keyframe(scene, film)
        before = (keyframe_node(scene),)
    for take in range(1, (scene.shot.takes or 1) + 1):
        yield _clip(scene, film, take, before)
    if film.scorer is not None and scene.references:
        yield replace(_score(scene, film, film.scorer, scene.take), id=_score_id(scene, 1))


def _retakes(scene: Scene, film: Film, before: tuple[str, ...]) -> Iterator[NodeSpec]:
    """Take after take, each only where the one before scored too low, and what picks one; or the chosen take alone.

    Each take has a keyframe of its own: who is seen, and how, is decided there.
    """
    retake = scene.retake
    takes = range(1, retake.takes + 1) if retake else (scene.take,)
    for take in takes:
        only: dict[str, Json] = {}
        if retake and take > 1:
            only = {ONLY_BELOW: {"score": _score_id(scene, take - 1), "below": retake.below}}
        deps = before
        if Task.TEXT_TO_IMAGE in scene.tasks:
            yield _only(_keyframe(scene, film, take), only)
            # Of a drawn frame that was not needed no clip is needed either.
            deps, only = (keyframe_node(scene, take),), {}
        yield _only(_clip(scene, film, take, deps), only)
        if film.scorer is not None:
            yield _score(scene, film, film.scorer, take)
    if retake:
        yield NodeSpec(id=clip_node(scene), kind=NodeKind.PICK, shot_id=scene.shot.id, cost=_LEAST_COST_S,
                       deps=tuple(name for take in takes for name in (_clip_id(scene, take), _score_id(scene, take))),
                       payload={"below": retake.below}, accepts_missing=True)


def _only(node: NodeSpec, only: Mapping[str, Json]) -> NodeSpec:
    return replace(node, payload={**node.payload, **only})


def _keyframe(scene: Scene, film: Film, take: int = 1) -> NodeSpec:
    """One picture, for all takes or for one; steps and guidance are its card's: the shot's are for the clip's model."""
    card = film.cards[Task.TEXT_TO_IMAGE]
    given = effort(card, scene.tier)
    payload: dict[str, Json] = {
        **_render_payload(scene, film, card), "frames": 1, "fps": 1.0, **given.payload(),
        "seed": take_seed(scene.seed, take),
    }
    if card.batch > 1:
        payload["batch"] = card.batch
    if scene.references:
        payload["prompt"] = mentioned(scene.prompt, card, [who for who, _ in scene.references])
        payload["references"] = [film.assets[path].to_json() for _, path in scene.references]
    return NodeSpec(id=keyframe_node(scene, take), kind=NodeKind.KEYFRAME, shot_id=scene.shot.id, payload=payload,
                    lane=card.name, cost=_render_cost(card, given, 1, film))


def _clip(scene: Scene, film: Film, take: int, deps: tuple[str, ...]) -> NodeSpec:
    shot, card = scene.shot, scene.card
    tier = scene.tier if take == scene.take or scene.retake else scene.unused_tier
    given = effort(card, tier, shot.steps, shot.guidance)
    payload: dict[str, Json] = {
        **_render_payload(scene, film, card), "frames": scene.render_frames, "fps": film.render_fps,
        **given.payload(), "seed": take_seed(scene.seed, take),
    }
    if shot.image is not None:
        payload["image"] = film.assets[shot.image].to_json()
    return NodeSpec(id=_clip_id(scene, take), kind=NodeKind.CLIP, shot_id=shot.id, deps=deps, payload=payload,
                    lane=card.name, cost=_render_cost(card, given, scene.render_frames, film))


def _score(scene: Scene, film: Film, scorer: ModelCard, take: int) -> NodeSpec:
    """Of one take's clip, before interpolation and caption."""
    payload: dict[str, Json] = {"card": scorer.name, "card_digest": scorer.digest(), "frames": _SCORED_FRAMES,
                                "characters": [{"id": who, "reference": film.assets[path].to_json()}
                                               for who, path in scene.references]}
    pictures = min(_SCORED_FRAMES, scene.render_frames) + len(scene.references)
    return NodeSpec(id=_score_id(scene, take), kind=NodeKind.SCORE, shot_id=scene.shot.id,
                    deps=(_clip_id(scene, take),), payload=payload,
                    cost=max(scorer.seconds_per_step * pictures, _LEAST_COST_S))


def _render_payload(scene: Scene, film: Film, card: ModelCard) -> dict[str, Json]:
    negative_prompt = card.defaults.negative_prompt if scene.negative_prompt is None else scene.negative_prompt
    smaller: list[Json] = []
    if film.out_of_memory is OutOfMemory.SMALLER:
        smaller += [list(size) for size in smaller_sizes(card.size, film.size.width_px, film.size.height_px)]
    shared_out: dict[str, Json] = {"gpus": card.parallel.degree} if card.parallel else {}
    return {"card": card.name, "card_digest": card.digest(), "prompt": scene.prompt,
            "negative_prompt": one_line(negative_prompt), "width_px": film.size.width_px,
            "height_px": film.size.height_px, **shared_out,
            **({SMALLER: smaller} if smaller else {})}


def _compose(scenes: Sequence[Scene], film: Film) -> NodeSpec:
    slates = film.missing is Missing.SLATE
    parts: list[Json] = [
        {"shot": scene.shot.id, "node": final_node(scene, film), "frames": scene.frames,
         "fade_in_frames": scene.fade_in_frames, "text": one_line(scene.shot.prompt) if slates else ""}
        for scene in scenes]
    payload: dict[str, Json] = {"width_px": film.size.width_px, "height_px": film.size.height_px, "fps": film.fps,
                                "missing": film.missing.value, "parts": parts}
    frames = sum(scene.frames for scene in scenes)
    return NodeSpec(id="compose", kind=NodeKind.COMPOSE, deps=tuple(final_node(scene, film) for scene in scenes),
                    payload=payload, cost=_cpu_cost(_COMPOSE_S, frames, film), accepts_missing=True)


def _render_cost(card: ModelCard, given: Effort, frames: int, film: Film) -> float:
    """Expected seconds: steps at their rate, by how much larger or smaller the clip is than the card's default."""
    default = card.defaults
    asked_px = film.size.width_px * film.size.height_px * frames
    return given.steps * given.seconds_per_step * asked_px / (default.width_px * default.height_px * default.frames)


def _cpu_cost(seconds_per_frame: float, frames: int, film: Film) -> float:
    """Expected seconds on one core; never nothing, so that every node moves the job's progress."""
    share = film.size.width_px * film.size.height_px / _MEASURED_PX
    return max(seconds_per_frame * frames * share, _LEAST_COST_S)
