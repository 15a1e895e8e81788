"""A file as a job: read, refuse, store the pictures it names, plan. Nothing is submitted here; knows no Ray."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.load import casting, load_cards, scorer_of, story_card
from configs.model_card import ModelCard
from configs.references import size_problem
from configs.settings import Settings
from workflows.durable.rows import NewJob
from workflows.errors import InvalidDocument, MediaError, Problem
from workflows.media.decode import read_picture
from workflows.plan import PictureRef, plan_film, reference_pictures, referenced_pictures
from workflows.revise import at_tier, with_lines
from workflows.scene import Cards
from workflows.script import looks_like_script
from workflows.source import read_text
from workflows.store import Store, sha256_of
from workflows.story import LAST_STAGE, plan_script, told_at, writer_identity
from workflows.storyboard import Storyboard, dump_storyboard, parse_storyboard
from workflows.tiers import TIER, TIERS, Tier, kept_tiers
from workflows.types import Artifact, Json, MediaType, NodeSpec, Stage, digest

REFERENCES = "references"
"""In a job's document: the stored pictures of its characters by path as written, used by a shot or not."""
PICTURE_TYPES = {".png": MediaType.PNG, ".jpg": MediaType.JPEG, ".jpeg": MediaType.JPEG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job ready to be submitted, and what to tell the user about it."""

    new: NewJob
    warnings: tuple[str, ...]


def film_job(path: Path, settings: Settings, store: Store, *, last_stage: Stage = Stage.COMPOSITION,
             tier: Tier | None = None) -> Submission:
    """Plan the film of a storyboard or script file, or its pictures alone; `tier` is that of the shots that do not say
    their own, None: as the file has it.

    The job's id follows from the plan: the same file with the same models is the same job. Raises InvalidDocument with
    every problem, SettingsError for the cards.
    """
    return FilmPlanner(settings, store).plan(path, last_stage=last_stage, tier=tier)


class FilmPlanner:
    """Plans films of files for one set of models; reads the cards once, however many files there are."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Raises SettingsError for the cards."""
        every = load_cards(settings)
        self._store = store
        self._cards = casting(settings, every)
        self._scorer = scorer_of(settings, every)
        self._writer = writer_identity(settings.story, story_card(settings))

    def plan(self, path: Path, *, last_stage: Stage = Stage.COMPOSITION, tier: Tier | None = None) -> Submission:
        """As `film_job`."""
        text = read_text(path)
        if looks_like_script(text, path.name):
            node = plan_script(text, cards=self._cards, file=path.name, last_stage=last_stage, writer=self._writer)
            document = {"script": text, LAST_STAGE: last_stage.value, **kept_tiers(tier or Tier.FINAL, {})}
            return _submission(path, path.stem, document, (told_at(node, tier),), ())
        storyboard = at_tier(parse_storyboard(text, file=path.name), tier)
        return _storyboard_job(storyboard, text, path, self._cards, self._store, last_stage, self._scorer)


def _storyboard_job(  # noqa: PLR0913 - all that decides the job's plan
    storyboard: Storyboard, text: str, path: Path, cards: Cards, store: Store, last_stage: Stage,
    scorer: ModelCard | None,
) -> Submission:
    try:
        assets = _store_pictures(referenced_pictures(storyboard), path.parent, store)
        plan = plan_film(storyboard, cards=cards, assets=assets, last_stage=last_stage, scorer=scorer)
    except InvalidDocument as error:
        raise with_lines(error, text, file=path.name) from None
    document: dict[str, Json] = {**storyboard_document(storyboard), LAST_STAGE: last_stage.value,
                                 **kept_references(storyboard, assets)}
    return _submission(path, storyboard.title or path.stem, document, plan.nodes, plan.warnings)


def _submission(
    path: Path, title: str, document: Mapping[str, Json], nodes: Sequence[NodeSpec], warnings: tuple[str, ...],
) -> Submission:
    identity = plan_digest(nodes)
    # A model without drafts makes the same of both; still they are two films, of which one is to be promoted.
    tiers = {name: document[name] for name in (TIER, TIERS) if name in document}
    mark = digest({"plan": identity, **tiers}) if tiers else identity
    new = NewJob(id=f"{slug_of(path.stem)}-{mark[:8]}", title=title, document_digest=identity,
                 document={**document, "file": path.name, "warnings": list(warnings)}, nodes=tuple(nodes))
    return Submission(new=new, warnings=warnings)


def storyboard_document(storyboard: Storyboard) -> dict[str, Json]:
    """What a job's document holds of a storyboard."""
    tiers = kept_tiers(storyboard.tier, {shot.id: shot.tier for shot in storyboard.shots})
    return {"storyboard": dump_storyboard(storyboard), **tiers}


def plan_digest(nodes: Sequence[NodeSpec]) -> str:
    """What makes two plans the same film."""
    return digest([[node.id, node.kind.value, node.lane, list(node.deps), dict(node.payload)] for node in nodes])


def slug_of(name: str) -> str:
    """The readable part of a job's id."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "film"


def picture_key(sha256: str) -> str:
    """The store's key of a picture with these bytes, wherever it came from."""
    return digest({"picture": sha256})[:32]


def kept_references(storyboard: Storyboard, assets: Mapping[str, Artifact]) -> dict[str, Json]:
    """What a job's document keeps of its characters' pictures, so that a changed shot finds them; empty without any."""
    kept: dict[str, Json] = {ref.path: assets[ref.path].to_json() for ref in reference_pictures(storyboard)}
    return {REFERENCES: kept} if kept else {}


def _store_pictures(pictures: Sequence[PictureRef], directory: Path, store: Store) -> dict[str, Artifact]:
    """Put every picture that can be read into the store; raise with all that cannot."""
    assets: dict[str, Artifact] = {}
    problems: list[Problem] = []
    for ref in pictures:
        source = directory / ref.path
        media_type = PICTURE_TYPES.get(source.suffix.lower())
        if media_type is None:
            problem = f"{ref.path!r} is not a PNG or JPEG file"
            problems.append(Problem(shot_id=ref.shot_id, field=ref.field, problem=problem))
            continue
        try:
            height_px, width_px = read_picture(source).shape[:2]
        except MediaError as error:
            problems.append(Problem(shot_id=ref.shot_id, field=ref.field, problem=error.problem + f" ({ref.path})"))
            continue
        problem, nearest = ("", "") if ref.shot_id else size_problem(width_px, height_px)
        if problem:
            problems.append(Problem(field=ref.field, problem=f"{problem} ({ref.path})", nearest=nearest))
            continue
        key = picture_key(sha256_of(source))
        assets[ref.path] = store.find(key) or store.put(key, source, media_type=media_type,
                                                        manifest={"picture": source.name})
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    return assets
