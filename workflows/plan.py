"""Storyboard -> a film as nodes: the one door to planning. Pure; runs nothing, stores nothing, reads no file.

Nodes of a shot `s1`: `s1.keyframe` (a drawn first frame), `s1.clip` and for further takes `s1.clip.2` ..., then for the
take that the film uses `s1.score`, `s1.interpolate` and `s1.caption` where asked for. `compose` joins the last node
of every shot but the score. Where a shot is rendered again while its score is too low, every take has its own keyframe
and score (`s1.keyframe.2`, `s1.score.2`), and `s1.pick` stands for the chosen clip.
A job that stops after its pictures has `s1.keyframe` of every shot and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.model_card import ModelCard, Task
from workflows.admission import refuse_too_large, shrink_hints
from workflows.drafts import draft_hints
from workflows.errors import InvalidDocument, Problem
from workflows.hints import Spoken, prompt_hints
from workflows.nodes import clip_node, film_nodes, final_node, keyframe_node, picture_nodes
from workflows.prompt import take_seed
from workflows.references import unused_references
from workflows.retake_rules import refuse_retakes, retake_hints
from workflows.scene import Cards, Film, Scene, decide, decide_pictures
from workflows.source import shortened
from workflows.storyboard import Storyboard
from workflows.types import FILM_STAGES, Artifact, NodeSpec, Stage, content_key


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRef:
    """A picture file that a storyboard names."""

    shot_id: str
    """Empty for a character's."""
    field: str
    path: str
    """As written: relative to the storyboard's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmShape:
    """The finished film, if no shot is missing."""

    width_px: int
    height_px: int
    fps: float
    frames: int
    """0: pictures only."""
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShotPlan:
    """What becomes of one shot."""

    id: str
    prompt: str
    """As the model gets it."""
    task: Task
    """Which model renders the clip, or the picture where there is no clip."""
    card: str
    seed: int
    """Of the take that the film uses."""
    render_frames: int
    frames: int
    """In the film, after interpolation; the fade-in counts."""
    start_frame: int
    """Of the film, where the shot begins to be seen."""
    fade_in_frames: int
    clip_node: str
    """The take that the film uses, as rendered; of pictures the picture."""
    final_node: str
    """What the film shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A film as nodes."""

    nodes: tuple[NodeSpec, ...]
    """Each after all that it depends on; `compose`, if there is one, last."""
    warnings: tuple[str, ...]
    film: FilmShape
    shots: tuple[ShotPlan, ...]
    """In film order."""


def last_stage_of(stages: str) -> Stage:
    """What `story,images` asks for: every stage up to the last one that is wanted, which is images or composition.

    `story` may be left out. Raises InvalidDocument.
    """
    every = [stage.value for stage in FILM_STAGES]
    lists = {last: every[:every.index(last.value) + 1] for last in (Stage.IMAGES, Stage.COMPOSITION)}
    asked = [part.strip() for part in stages.split(",")]
    for last, names in lists.items():
        if asked in (names, names[1:]):
            return last
    raise InvalidDocument(problems=(Problem(
        field="stages", problem=f"are all up to the last one that is wanted, not {shortened(stages)!r}",
        nearest=" or ".join(",".join(names) for names in lists.values())),))


def referenced_pictures(storyboard: Storyboard) -> tuple[PictureRef, ...]:
    """The picture files that must be in the store before the film can be planned."""
    return (*(PictureRef(shot_id=shot.id, field="image", path=shot.image)
              for shot in storyboard.shots if shot.image is not None), *reference_pictures(storyboard))


def reference_pictures(storyboard: Storyboard) -> tuple[PictureRef, ...]:
    """The picture files of its characters: all that pictures are drawn from."""
    return tuple(PictureRef(shot_id="", field=f"characters[{place}].reference", path=who.reference)
                 for place, who in enumerate(storyboard.characters) if who.reference is not None)


def plan_film(
    storyboard: Storyboard, *, cards: Cards, assets: Mapping[str, Artifact] | None = None,
    last_stage: Stage = Stage.COMPOSITION, scorer: ModelCard | None = None,
) -> Plan:
    """Plan a film for the models that answer each task; `assets` are the stored pictures by path as written; `scorer`
    compares the clips of characters with their reference pictures.

    With `last_stage` images only the shots' pictures are made; no other stage can be the last but composition.
    Raises InvalidDocument with everything that the models or the lengths of the clips forbid;
    `workflows.revise.with_lines` finds the lines.
    """
    if last_stage is Stage.IMAGES:
        return _plan_pictures(storyboard, cards, assets or {})
    film, scenes = decide(storyboard, cards, assets or {})
    refuse_too_large(storyboard, scenes, film)
    refuse_retakes(storyboard, scorer)
    film = replace(film, scorer=scorer)
    shots = _shot_plans(scenes, film)
    frames = shots[-1].start_frame + shots[-1].frames
    shape = FilmShape(width_px=film.size.width_px, height_px=film.size.height_px, fps=film.fps, frames=frames,
                      duration_s=frames / film.fps)
    unused = unused_references(storyboard, [(scene.shot, scene.tasks) for scene in scenes])
    return Plan(nodes=film_nodes(scenes, film), film=shape, shots=shots,
                warnings=(*unused, *prompt_hints(_spoken(scenes, film)), *draft_hints(scenes, film),
                          *retake_hints(scenes), *shrink_hints(scenes, film)))


def _plan_pictures(storyboard: Storyboard, cards: Cards, assets: Mapping[str, Artifact]) -> Plan:
    film, scenes = decide_pictures(storyboard, cards, assets)
    refuse_too_large(storyboard, scenes, film)
    shape = FilmShape(width_px=film.size.width_px, height_px=film.size.height_px, fps=film.fps, frames=0, duration_s=0)
    shots = tuple(ShotPlan(
        id=scene.shot.id, prompt=scene.prompt, task=Task.TEXT_TO_IMAGE, card=scene.card.name, seed=scene.seed,
        render_frames=1, frames=1, start_frame=0, fade_in_frames=0, clip_node=keyframe_node(scene),
        final_node=keyframe_node(scene)) for scene in scenes)
    return Plan(nodes=picture_nodes(scenes, film), film=shape, shots=shots,
                warnings=(*_picture_hints(storyboard), *prompt_hints(_spoken(scenes, film)),
                          *draft_hints(scenes, film), *shrink_hints(scenes, film)))


def _picture_hints(storyboard: Storyboard) -> list[str]:
    """What is different from what the film would show."""
    hints = []
    shots = [storyboard.resolved(shot) for shot in storyboard.shots]
    if own := [shot.id for shot in shots if shot.image is not None]:
        hints.append(f"nothing is drawn for shots that start from a picture of their own: {', '.join(own)}")
    if continuing := [shot.id for shot in shots if shot.continues is not None]:
        hints.append("drawn from their own prompts, although in the film they start where another shot ends: "
                     f"{', '.join(continuing)}")
    return hints


def _spoken(scenes: Sequence[Scene], film: Film) -> list[Spoken]:
    return [Spoken(shot_id=scene.shot.id, task=task, card=film.cards[task], prompt=scene.prompt)
            for scene in scenes for task in scene.tasks]


def plan_keys(nodes: Iterable[NodeSpec]) -> dict[str, str]:
    """The content key of every node, if everything succeeds and nothing is forced; nodes in topological order."""
    keys: dict[str, str] = {}
    for node in nodes:
        keys[node.id] = content_key(node.kind, node.payload, tuple(keys[dep] for dep in node.deps))
    return keys


def _shot_plans(scenes: Sequence[Scene], film: Film) -> tuple[ShotPlan, ...]:
    plans: list[ShotPlan] = []
    end_frame = 0
    for scene in scenes:
        start_frame = end_frame - scene.fade_in_frames
        end_frame = start_frame + scene.frames
        plans.append(ShotPlan(
            id=scene.shot.id, prompt=scene.prompt, task=scene.tasks[-1], card=scene.card.name,
            seed=take_seed(scene.seed, scene.take), render_frames=scene.render_frames, frames=scene.frames,
            start_frame=start_frame, fade_in_frames=scene.fade_in_frames, clip_node=clip_node(scene),
            final_node=final_node(scene, film)))
    return tuple(plans)
