"""Storyboard -> scenes: every shot with its model, prompt, seed and length decided. Makes no nodes, knows no keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from configs.model_card import ModelCard, Task
from workflows.errors import InvalidDocument, Problem
from workflows.failing import Missing, OutOfMemory, Retake
from workflows.prompt import shot_seed, weave_prompt
from workflows.references import reference_problems, referenced
from workflows.shape import Cut, clip_frames, fade_frames, framed_size, interpolated, size_problem
from workflows.source import closest_or_few
from workflows.storyboard import Mode, Shot, Size, Storyboard
from workflows.tiers import Tier
from workflows.types import Artifact

Cards = Mapping[Task, ModelCard]
"""Which model answers which task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Film:
    """What all shots of a film share."""

    cards: Cards
    assets: Mapping[str, Artifact]
    """Stored pictures by path as written."""
    size: Size
    fps: float
    factor: int
    """Clips are rendered at `fps / factor`."""
    missing: Missing
    out_of_memory: OutOfMemory = OutOfMemory.FAIL
    scorer: ModelCard | None = None
    """Compares clips with reference pictures."""

    @property
    def render_fps(self) -> float:
        """Frames per second of a clip as the model renders it."""
        return self.fps / self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A shot with everything decided."""

    shot: Shot
    """With the storyboard's defaults in place."""
    tasks: tuple[Task, ...]
    """The models it needs, the one that renders its clip last."""
    card: ModelCard
    """Of the clip."""
    prompt: str
    """As the models get it."""
    negative_prompt: str | None
    """None: each card's own."""
    seed: int
    """Of the first take."""
    render_frames: int
    frames: int
    """In the film, after interpolation."""
    references: tuple[tuple[str, str], ...] = ()
    """Of its characters that have a reference picture: id, and path as written."""
    fade_in_frames: int = 0
    unused_tier: Tier = Tier.FINAL
    """Of the takes that the film does not use: promoting a shot makes the chosen take final, and no other."""

    @property
    def take(self) -> int:
        """Which take the film uses, from 1."""
        return self.shot.take or 1

    @property
    def retake(self) -> Retake | None:
        """How often it may be rendered again; None where nothing is to be decided by scores."""
        asked = self.shot.retake
        return asked if asked and asked.takes > 1 and self.shot.take is None and self.references else None

    @property
    def tier(self) -> Tier:
        """Draft or final: of its keyframe, and of the take that the film uses."""
        return self.shot.tier or Tier.FINAL


def decide(storyboard: Storyboard, cards: Cards, assets: Mapping[str, Artifact]) -> tuple[Film, tuple[Scene, ...]]:
    """Decide everything about a film, in film order.

    Raises InvalidDocument with all that the models or the lengths of the clips forbid.
    """
    shots = [storyboard.resolved(shot) for shot in storyboard.shots]
    planned = [(shot, tasks_of(shot, cards)) for shot in shots]
    unanswered = [*_missing_cards(shots, cards),
                  *reference_problems(storyboard, planned, cards.get(Task.TEXT_TO_IMAGE), assets)]
    if unanswered:
        raise InvalidDocument(problems=tuple(dict.fromkeys(at_their_source(unanswered, storyboard))))
    used = {cards[task].name: cards[task] for shot in shots for task in tasks_of(shot, cards)}
    film = _film(storyboard, cards, assets, tuple(used.values()))
    problems = [*_wrong_size(film, used.values()), *_missing_pictures(shots, assets),
                *_negative_prompts(storyboard, [(shot, tasks_of(shot, cards)) for shot in shots], cards)]
    scenes: list[Scene] = []
    for shot in shots:
        scene = _scene(storyboard, shot, film)
        if isinstance(scene, Scene):
            scenes.append(scene)
        else:
            problems.append(scene)
    if len(scenes) == len(shots):
        cuts = [Cut(shot_id=scene.shot.id, frames=scene.frames, fade_s=_fade_s(scene.shot)) for scene in scenes]
        fades, wrong_fades = fade_frames(cuts, film.fps)
        problems += wrong_fades
        scenes = [replace(scene, fade_in_frames=fade) for scene, fade in zip(scenes, fades, strict=True)]
    if problems:
        raise InvalidDocument(problems=tuple(dict.fromkeys(at_their_source(problems, storyboard))))
    return film, tuple(scenes)


def decide_pictures(storyboard: Storyboard, cards: Cards, assets: Mapping[str, Artifact],
                    ) -> tuple[Film, tuple[Scene, ...]]:
    """Decide everything about the pictures of a film whose clips are not made: one per shot, but for those that start
    from a picture of their own.

    Their size is the film's, so that the film finds them later. Raises InvalidDocument with all that is forbidden.
    """
    if Task.TEXT_TO_IMAGE not in cards:
        raise InvalidDocument(problems=(_no_card(Task.TEXT_TO_IMAGE, "", field="stages"),))
    card = cards[Task.TEXT_TO_IMAGE]
    every = [storyboard.resolved(shot) for shot in storyboard.shots]
    tasks = (task for shot in every for task in tasks_of(shot, cards))
    film = _film(storyboard, cards, assets, (card, *(cards[task] for task in dict.fromkeys(tasks) if task in cards)))
    shots = [shot for shot in every if shot.image is None]
    drawn = [(shot, (Task.TEXT_TO_IMAGE,)) for shot in shots]
    problems = [*reference_problems(storyboard, drawn, card, assets), *_wrong_size(film, (card,)),
                *_negative_prompts(storyboard, drawn, cards)]
    if not shots:
        problems.append(Problem(field="shots", problem="every shot has a picture of its own, so none is to be drawn"))
    if problems:
        raise InvalidDocument(problems=tuple(dict.fromkeys(at_their_source(problems, storyboard))))
    return film, tuple(_drawn(storyboard, shot, (Task.TEXT_TO_IMAGE,), card) for shot in shots)


def tasks_of(shot: Shot, cards: Cards) -> tuple[Task, ...]:
    """The models that a shot needs, the one that renders its clip last; `shot` with its defaults in place.

    Text to video by a card that only animates pictures (Stable Video Diffusion) is a keyframe first.
    """
    if shot.mode not in (Mode.TEXT_TO_VIDEO, Mode.KEYFRAME):
        return (Task.IMAGE_TO_VIDEO,)
    card = cards.get(Task.TEXT_TO_VIDEO)
    if shot.mode is Mode.TEXT_TO_VIDEO and (card is None or Task.TEXT_TO_VIDEO in card.pipelines):
        return (Task.TEXT_TO_VIDEO,)
    return (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_VIDEO)


def _missing_cards(shots: Sequence[Shot], cards: Cards) -> Iterator[Problem]:
    first_users = {task: shot for shot in reversed(shots) for task in tasks_of(shot, cards)}
    for task, shot in first_users.items():
        if task not in cards:
            yield _no_card(task, shot.id, field="continues" if shot.continues is not None else "mode")


def _no_card(task: Task, shot_id: str, *, field: str) -> Problem:
    return Problem(shot_id=shot_id, field=field,
                   problem=f"no model is configured for {task.value}; choose one with models.{task.value}")


def _negative_prompts(storyboard: Storyboard, shots: Iterable[tuple[Shot, tuple[Task, ...]]], cards: Cards,
                      ) -> Iterator[Problem]:
    for shot, tasks in shots:
        asked = storyboard.negative_prompt if shot.negative_prompt is None else shot.negative_prompt
        deaf = [task for task in tasks if not cards[task].takes_negative_prompt(task)]
        if asked and deaf:
            yield Problem(shot_id="" if shot.negative_prompt is None else shot.id, field="negative_prompt",
                          problem=f"model card {cards[deaf[0]].name} has no negative prompt "
                                  f"({cards[deaf[0]].pipelines[deaf[0]]})", nearest="leave it out")


def _missing_pictures(shots: Sequence[Shot], assets: Mapping[str, Artifact]) -> Iterator[Problem]:
    for shot in shots:
        if shot.image is not None and shot.image not in assets:
            yield Problem(shot_id=shot.id, field="image", problem=f"the picture {shot.image!r} was not found",
                          nearest=closest_or_few(shot.image, list(assets)))


def _film(storyboard: Storyboard, cards: Cards, assets: Mapping[str, Artifact], used: Sequence[ModelCard]) -> Film:
    """Where the storyboard says nothing, size and rate are those of the model that renders the first clip; `used`: all
    that must take the size.
    """
    first = tasks_of(storyboard.resolved(storyboard.shots[0]), cards)[-1]
    main = next(cards[task] for task in (first, Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO, Task.TEXT_TO_IMAGE)
                if task in cards)
    size = storyboard.size or Size(width_px=main.defaults.width_px, height_px=main.defaults.height_px)
    if storyboard.ratio or storyboard.resolution:
        framed = framed_size(storyboard.ratio, storyboard.resolution, size, used)
        if isinstance(framed, Problem):
            raise InvalidDocument(problems=(framed,))
        size = framed
    fps = storyboard.fps or main.defaults.fps * storyboard.interpolate
    return Film(cards=cards, assets=assets, size=size, fps=float(fps), factor=storyboard.interpolate,
                missing=storyboard.missing, out_of_memory=storyboard.on_out_of_memory)


def _wrong_size(film: Film, used: Iterable[ModelCard]) -> Iterator[Problem]:
    problem = size_problem(film.size, used)
    if problem:
        yield problem


def _scene(storyboard: Storyboard, shot: Shot, film: Film) -> Scene | Problem:
    tasks = tasks_of(shot, film.cards)
    card = film.cards[tasks[-1]]
    frames = clip_frames(shot, card, film.render_fps)
    if isinstance(frames, Problem):
        return frames
    return replace(_drawn(storyboard, shot, tasks, card), render_frames=frames,
                   frames=interpolated(frames, film.factor))


def _drawn(storyboard: Storyboard, shot: Shot, tasks: tuple[Task, ...], card: ModelCard) -> Scene:
    """A scene of one picture."""
    people = [(who.id, who.description) for name in shot.characters or () for who in storyboard.characters
              if who.id == name]
    negative_prompt = storyboard.negative_prompt or None if shot.negative_prompt is None else shot.negative_prompt
    return Scene(shot=shot, tasks=tasks, card=card, prompt=weave_prompt(shot.prompt, people, storyboard.style),
                 negative_prompt=negative_prompt,
                 seed=shot_seed(storyboard.seed, shot.id) if shot.seed is None else shot.seed,
                 render_frames=1, frames=1,
                 unused_tier=Tier.DRAFT if Tier.DRAFT in (storyboard.tier, shot.tier) else Tier.FINAL,
                 references=tuple((who.id, who.reference or "") for who in referenced(storyboard, shot)))


def _fade_s(shot: Shot) -> float:
    return 0.0 if shot.transition is None else shot.transition.fade_s


def at_their_source(problems: Iterable[Problem], storyboard: Storyboard) -> Iterator[Problem]:
    """What is wrong with a default is told of `defaults`, not of every shot that takes it."""
    own = {shot.id: {name for name, value in shot if value is not None} for shot in storyboard.shots}
    defaults = {name for name, value in storyboard.defaults if value is not None}
    for problem in problems:
        name = problem.field.partition(".")[0]
        if problem.shot_id and name in defaults - own[problem.shot_id]:
            problem = replace(problem, shot_id="", field=f"defaults.{problem.field}")
        yield problem
