"""A film that somebody sent: read, planned, estimated, submitted; and one of its shots changed. Blocking, no HTTP."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from configs.load import casting, load_cards, scorer_of, story_card
from configs.model_card import ModelCard, Task
from configs.settings import Settings
from serve_app.service.forecast import Forecast
from serve_app.service.pictures import Pictures
from serve_app.service.previews import foretold
from serve_app.submit import REFERENCES, kept_references, plan_digest, slug_of, storyboard_document
from workflows.document import parse_document
from workflows.durable.ledger import Ledger
from workflows.durable.overview import Overview
from workflows.durable.revisions import Revision, Revisions
from workflows.durable.rows import JobRow, Limits, NewJob, NodeRow
from workflows.durable.takes import Takes
from workflows.errors import InvalidDocument, JobConflict, Problem, UnknownPart
from workflows.plan import Plan, plan_film, reference_pictures, referenced_pictures
from workflows.retakes import picked, take_of
from workflows.revise import at_tier, change_shot, drafts_in, promoted, with_lines
from workflows.source import closest_or_few
from workflows.store import Store
from workflows.story import LAST_STAGE, last_stage_in, script_node, story_nodes, told_at, writer_identity
from workflows.storyboard import (
    MAX_PROBLEMS,
    FilmFields,
    Storyboard,
    parse_storyboard,
    shot_values,
    storyboard_value,
)
from workflows.storyboard_rules import shot_ids
from workflows.tiers import TIER, TIERS, Tier, film_tier, kept_tiers
from workflows.types import Artifact, Json, NodeKind, NodeSpec, Priority, Stage

RESTORE = "restore_take"
FORETOLD = ("a language model will break this script into shots or write their prompts anew; what is foretold here are "
            "the shots and prompts of the rules, which stand where it fails")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A film as text."""

    text: str
    file: str
    """A name that says what it is: `film.json`, `film.yaml`, `script.fountain`, `script.txt`."""
    is_script: bool
    title: str = ""
    """Of a script; empty: its own."""
    film: FilmFields | None = None
    """Of a script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How a film is to be made."""

    token: str
    """Hex digits; the same draft with the same token is the same job."""
    key_id: str
    """The API key that pays for it; empty where nobody is asked."""
    priority: Priority = Priority.INTERACTIVE
    webhook_url: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A film that can be submitted."""

    title: str
    document: Mapping[str, Json]
    nodes: tuple[NodeSpec, ...]
    """What is submitted; of a script only the node that tells it."""
    plan: Plan
    """The whole film."""
    notes: tuple[str, ...] = ()
    """What cannot be foretold."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What will be done otherwise than asked, or than foretold."""
        return (*self.notes, *self.plan.warnings)


class Films:
    """Films of one ledger and one store, planned for one cast of models."""

    def __init__(  # noqa: PLR0913 - where films are put together; each is one port or one choice of the settings
        self, ledger: Ledger, store: Store, forecast: Forecast, cast: Mapping[Task, ModelCard], pictures: Pictures,
        writer: Mapping[str, Json], scorer: ModelCard | None = None,
    ) -> None:
        """`cast`: which model answers which task; `pictures`: those that storyboards may name; `writer`: identity of
        who breaks scripts into shots; `scorer`: compares clips with reference pictures.
        """
        self._scorer = scorer
        self._writer = writer
        self._ledger = ledger
        self._store = store
        self._forecast = forecast
        self._cast = cast
        self._pictures = pictures
        self._revisions = Revisions(ledger.database)
        self._takes = Takes(ledger.database)

    def draft(self, sent: Sent, last_stage: Stage = Stage.COMPOSITION, tier: Tier | None = None) -> Draft:
        """Read and plan, up to composition or images; `tier` is that of the shots that do not say their own, None: as
        the document has it. Raises InvalidDocument with everything that is wrong.
        """
        kept: dict[str, Json] = {LAST_STAGE: last_stage.value}
        if sent.is_script:
            storyboard, plan = story_nodes(sent.text, cards=self._cast, film=sent.film, file=sent.file,
                                           last_stage=last_stage, tier=tier)
            node = script_node(sent.text, cards=self._cast, film=sent.film, file=sent.file, last_stage=last_stage,
                               writer=self._writer)
            kept |= {"script": sent.text, **kept_tiers(storyboard.tier, {})}
            return Draft(title=sent.title or storyboard.title, document=kept, nodes=(told_at(node, tier),),
                         plan=plan, notes=(FORETOLD,) if self._writer else ())
        storyboard = at_tier(parse_storyboard(sent.text, file=sent.file), tier)
        try:
            assets = self._pictures.named(referenced_pictures(storyboard), {})
            plan = plan_film(storyboard, cards=self._cast, assets=assets, last_stage=last_stage,
                             scorer=self._scorer)
        except InvalidDocument as error:
            raise with_lines(error, sent.text, file=sent.file) from None
        document: dict[str, Json] = {**storyboard_document(storyboard), "warnings": list(plan.warnings), **kept,
                                     **kept_references(storyboard, assets)}
        return Draft(title=storyboard.title, document=document, nodes=plan.nodes, plan=plan)

    def submit(self, draft: Draft, order: Order) -> JobRow:
        """Queue the film."""
        return self._ledger.submit(NewJob(
            id=f"{slug_of(draft.title)}-{order.token[:10]}", title=draft.title, priority=order.priority,
            document=draft.document, document_digest=plan_digest(draft.nodes), nodes=draft.nodes, key_id=order.key_id,
            webhook_url=order.webhook_url, limits=order.limits))

    def preview(self, draft: Draft) -> dict[str, Json]:
        """What submitting the draft would do, as the dry run's reply."""
        plan = foretold(draft.plan.nodes, self._store, self._forecast.pace)
        film = draft.plan.film
        return {
            "title": draft.title, "document_digest": plan_digest(draft.nodes), **plan,
            "warnings": list(draft.warnings),
            "film": {"width_px": film.width_px, "height_px": film.height_px, "fps": film.fps, "frames": film.frames,
                     "duration_s": film.duration_s},
        }

    def change_shot(self, job_id: str, shot_id: str, changes: Mapping[str, Json]) -> tuple[str, ...]:
        """Change a shot of a finished film, or show an earlier take of it; returns the nodes that will run.

        Raises UnknownJob, UnknownPart, InvalidDocument, and JobConflict as `Revisions.apply` does.
        """
        job, nodes = self._ledger.job(job_id), self._ledger.nodes(job_id)
        storyboard = self._storyboard(job, nodes)
        before = next((shot for shot in shot_values(storyboard_value(storyboard)) if shot["id"] == shot_id), None)
        if before is None:
            ids = ", ".join(shot.id for shot in storyboard.shots[:10])
            raise UnknownPart(job_id=job_id, problem=f"has no shot {shot_id!r}", nearest=ids)
        generations: Mapping[str, int] = {}
        if RESTORE in changes:
            changes, generations = self._restored(job_id, shot_id, before, changes)
        _refuse_fields(shot_id, changes)
        changed = change_shot(storyboard, shot_id, changes)
        revision = self._revision(job, nodes, storyboard, changed, [shot_id])
        return self._revisions.apply(replace(revision, generations=generations))

    def promote(self, job_id: str, shots: Collection[str] = ()) -> tuple[str, ...]:
        """Make shots of a finished film final, or all that are drafts; returns the nodes that will run.

        Seeds and generations stay, so the result is what the film would be had it been rendered so at once. Shots that
        are final already stay as they are; of takes that scores decided about the chosen one is made final. Raises
        UnknownJob, InvalidDocument for shots that do not exist, and JobConflict as `Revisions.apply` does, or when
        other models answer now than made the drafts.
        """
        job, nodes = self._ledger.job(job_id), self._ledger.nodes(job_id)
        storyboard = self._storyboard(job, nodes)
        known, wanted = {shot.id: None for shot in storyboard.shots}, frozenset(shots)
        if unknown := [name for name in dict.fromkeys(shots) if name not in known]:
            raise InvalidDocument(problems=tuple(
                Problem(field="shots", problem=f"job {job_id} has no shot {name!r}",
                        nearest=closest_or_few(name, list(known))) for name in unknown[:MAX_PROBLEMS]))
        chosen = [shot_id for shot_id in drafts_in(storyboard) if not wanted or shot_id in wanted]
        if not chosen:
            return ()
        changed = promoted(storyboard, chosen, _picked_takes(nodes))
        revision = self._revision(job, nodes, storyboard, changed, chosen)
        _require_same_models(job_id, nodes, revision)
        return self._revisions.apply(revision)

    def _revision(self, job: JobRow, nodes: tuple[NodeRow, ...], storyboard: Storyboard, changed: Storyboard,
                  shot_ids: Collection[str]) -> Revision:
        """What puts a storyboard in which these shots were changed in place of the job's, `storyboard`."""
        last_stage = last_stage_in(job.document)
        # Where only pictures are drawn nothing starts from one, and no node remembers which file was meant.
        wanted = (reference_pictures if last_stage is Stage.IMAGES else referenced_pictures)(changed)
        assets = self._pictures.named(wanted, {**_planned_pictures(storyboard, nodes), **_kept_pictures(job)})
        plan = plan_film(changed, cards=self._cast, assets=assets, last_stage=last_stage, scorer=self._scorer)
        kept = {name: value for name, value in job.document.items() if name not in (TIER, TIERS)}
        return Revision(
            job_id=job.id, based_on=job.document_digest, document_digest=plan_digest(plan.nodes), nodes=plan.nodes,
            shots=_fields(storyboard, shot_ids), generations={},
            document={**kept, **storyboard_document(changed), "warnings": list(plan.warnings)})

    def storyboard_of(self, job_id: str) -> Storyboard:
        """The storyboard in force. Raises UnknownJob, and JobConflict for a script that was not told yet."""
        return self._storyboard(self._ledger.job(job_id), self._ledger.nodes(job_id))

    def _storyboard(self, job: JobRow, nodes: tuple[NodeRow, ...]) -> Storyboard:
        """The storyboard in force: sent, revised, or made of a script."""
        text = job.document.get("storyboard")
        if isinstance(text, str):
            return _parsed(text)
        told = next((node.artifact for node in nodes if node.kind is NodeKind.STORY), None)
        if told is None:
            raise JobConflict(job_id=job.id, problem="its script was not broken into shots yet, or it has none")
        # The story is the same for drafts and for the final film; which of them this is, the job knows.
        return at_tier(_parsed(self._store.fetch(told).read_text(encoding="utf-8")), film_tier(job.document))

    def _restored(self, job_id: str, shot_id: str, before: Mapping[str, Json], changes: Mapping[str, Json],
                  ) -> tuple[Mapping[str, Json], Mapping[str, int]]:
        """The changes that give a shot the fields, and its nodes the generations, of an earlier take."""
        if len(changes) > 1:
            raise _refusal(RESTORE, "stands alone: a take has its own fields", shot_id)
        number = changes[RESTORE]
        takes = self._takes.of(job_id, shot_id)
        kept = next((kept for kept in takes if kept.number == number and not isinstance(number, bool)), None)
        if kept is None:
            raise UnknownPart(job_id=job_id, problem=f"shot {shot_id} has no take {number!r}",
                              nearest=", ".join(str(kept.number) for kept in takes))
        fields = before if kept.shot is None else kept.shot
        return {**dict.fromkeys(before), **fields}, kept.generations


def local_films(settings: Settings, ledger: Ledger, store: Store) -> Films:
    """For who needs no service around it: estimates are the cards' own. Raises SettingsError for the cards."""
    every = load_cards(settings)
    return Films(ledger, store, Forecast(Overview(ledger.database), {}), casting(settings, every),
                 Pictures(store, settings.http), writer_identity(settings.story, story_card(settings)),
                 scorer_of(settings, every))


def _require_same_models(job_id: str, nodes: Iterable[NodeRow], revision: Revision) -> None:
    """A draft promises what its own model would make of the shot; another one's is another film."""
    made_by = {found.id: found.payload.get("card_digest") for found in nodes}
    for spec in revision.nodes:
        if spec.kind is NodeKind.SCORE:
            continue  # changes no picture
        if spec.id in made_by and made_by[spec.id] != spec.payload.get("card_digest"):
            raise JobConflict(job_id=job_id, problem=(
                f"the models were changed since this film was planned: {spec.id} would be made by "
                f"{spec.payload.get('card')} now; promote it with the settings that made it (--profile, --set), "
                "or submit the film anew"))


@lru_cache(maxsize=16)
def _parsed(text: str) -> Storyboard:
    """Long ones take a second, and the page asks for the same one at every shot that moves."""
    return parse_storyboard(text)


def _fields(storyboard: Storyboard, shot_ids: Collection[str]) -> dict[str, Mapping[str, Json]]:
    """The fields of these shots, with the tier where the film's is not the usual one: takes keep what they are."""
    tier: dict[str, Json] = {} if storyboard.tier is Tier.FINAL else {"tier": storyboard.tier.value}
    return {str(shot["id"]): {**tier, **shot} for shot in shot_values(storyboard_value(storyboard))
            if shot["id"] in shot_ids}


def shot_ids_in(sent: Sent) -> list[str]:
    """The shots of a storyboard's text in order, as far as it can be read."""
    if sent.is_script:
        return []
    try:
        return shot_ids(parse_document(sent.text, file=sent.file).value)
    except InvalidDocument:
        return []


def read_json(text: str, file: str) -> Json:
    """JSON with precise problems. Raises InvalidDocument."""
    document = parse_document(text, file=file)
    if document.findings:
        raise InvalidDocument(file=file, problems=tuple(
            Problem(problem=found.problem, line=found.line or document.line_of(found.path), nearest=found.nearest)
            for found in document.findings))
    return document.value


def _refuse_fields(shot_id: str, changes: Mapping[str, Json]) -> None:
    if changes.get("id", shot_id) != shot_id:
        raise _refusal("id", "a shot keeps its id", shot_id, nearest=shot_id)


def _refusal(field: str, problem: str, shot_id: str, nearest: str = "") -> InvalidDocument:
    return InvalidDocument(problems=(Problem(field=field, problem=problem, shot_id=shot_id, nearest=nearest),))


def _picked_takes(nodes: tuple[NodeRow, ...]) -> dict[str, int]:
    """By shot the take that was chosen by scores."""
    shots = {node.shot_id for node in nodes if node.kind is NodeKind.PICK}
    chosen = {shot_id: picked(node for node in nodes if node.shot_id == shot_id) for shot_id in shots}
    return {shot_id: take_of(clip.id) for shot_id, clip in chosen.items() if clip}


def _planned_pictures(storyboard: Storyboard, nodes: tuple[NodeRow, ...]) -> dict[str, Artifact]:
    """The stored pictures that the film was planned with, by path as written: no other file is looked at."""
    stored = {node.shot_id: node.payload["image"] for node in nodes
              if node.kind is NodeKind.CLIP and "image" in node.payload}
    return {shot.image: Artifact.from_json(picture) for shot in storyboard.shots
            if shot.image is not None and isinstance(picture := stored.get(shot.id), dict)}


def _kept_pictures(job: JobRow) -> dict[str, Artifact]:
    """The stored pictures of its characters."""
    kept = job.document.get(REFERENCES)
    pictures = kept.items() if isinstance(kept, dict) else ()
    return {path: Artifact.from_json(picture) for path, picture in pictures if isinstance(picture, dict)}
