"""Batches as users have them: many files read, refused or taken whole; how far they are; what they cost. Blocking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from serve_app.service.batch_report import Report, report_of
from serve_app.service.batch_view import BatchView, FilmView
from serve_app.service.films import Films, Sent, shot_ids_in
from serve_app.service.forecast import Forecast
from serve_app.service.links import batch_links
from serve_app.submit import plan_digest, slug_of
from workflows.durable.batch_reads import BatchReads
from workflows.durable.batch_rules import Held, status_of
from workflows.durable.batches import Batches, BatchLimits, BatchRow, NewBatch, NewFile, batch_id_of, job_id_in
from workflows.durable.ledger import Ledger
from workflows.durable.rows import NewJob
from workflows.errors import InvalidDocument
from workflows.progress import UNFINISHED_CEILING, job_fraction
from workflows.script import looks_like_script
from workflows.tiers import TIER, TIERS, Tier
from workflows.types import JobStatus, Json, Stage, digest


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A storyboard or script as text, under its name."""

    file: str
    """Its ending says what it is, as on a disk."""
    text: str
    is_storyboard: bool = False
    """Whatever its name says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """What is asked for, besides the files."""

    name: str
    """Of one API key's batches; the same name again joins the batch."""
    key_id: str = ""
    limits: BatchLimits = field(default_factory=BatchLimits)
    last_stage: Stage = Stage.COMPOSITION
    tier: Tier | None = None


class RefusedFiles(Exception):
    """Files that cannot be rendered; nothing was taken."""

    def __init__(self, refused: Sequence[tuple[int, InvalidDocument, Sequence[str]]]) -> None:
        """Each with its place among the files, what is wrong with it, and its shots in order."""
        super().__init__(f"{len(refused)} files were refused")
        self.refused = tuple(refused)


class BatchDesk:
    """The batches of one ledger."""

    def __init__(self, ledger: Ledger, forecast: Forecast) -> None:
        """`forecast` says how long is left."""
        self.rows = Batches(ledger)
        self._reads = BatchReads(ledger.database)
        self._forecast = forecast

    def submit(self, films: Films, order: BatchOrder, sent: Sequence[SentFile]) -> dict[str, Json]:
        """Read and plan every file, then queue them all, or none. Raises RefusedFiles and InvalidDocument."""
        batch_id = batch_id_of(order.name, order.key_id, slug_of(order.name))
        planned: list[NewFile] = []
        warnings: dict[str, Json] = {}
        refused: list[tuple[int, InvalidDocument, Sequence[str]]] = []
        for place, one in enumerate(sent):
            film = Sent(text=one.text, file=one.file, is_script=(
                not one.is_storyboard and looks_like_script(one.text, one.file)))
            try:
                draft = films.draft(film, order.last_stage, order.tier)
            except InvalidDocument as error:
                refused.append((place, error, shot_ids_in(film)))
                continue
            planned.append(in_batch(batch_id, one.file, NewJob(
                id="", title=draft.title, document=draft.document, document_digest=plan_digest(draft.nodes),
                nodes=draft.nodes)))
            if draft.warnings:
                warnings[one.file] = list(draft.warnings)
        if refused:
            raise RefusedFiles(refused)
        done = self.rows.submit(NewBatch(id=batch_id, name=order.name, key_id=order.key_id, limits=order.limits,
                                         files=tuple(planned)))
        return {**self.view(batch_id).to_json(), "new": list(done.new), "changed": list(done.changed),
                "warnings": warnings}

    def view(self, batch_id: str) -> BatchView:
        """A batch as it is, with its films. Raises UnknownBatch."""
        row = self.rows.get(batch_id)
        files, shares, errors = self.rows.files(batch_id), self._reads.shares(batch_id), self._reads.errors(batch_id)
        films = tuple(FilmView(
            file=found.file, job_id=found.job_id, title=found.title, status=found.status,
            error=found.error or errors.get(found.job_id, ""),
            progress=job_fraction(shares.get(found.job_id, ()), finished=found.status.is_terminal)) for found in files)
        weights = {job_id: sum(share.cost for share in found) for job_id, found in shares.items()}
        current = {film.job_id: film for film in films}
        whole = sum(weights.get(job_id, 0.0) for job_id in current)
        done = sum(weights.get(job_id, 0.0) * film.progress for job_id, film in current.items())
        seen = self._listed([row])[0]
        progress = 1.0 if seen.status.is_terminal else min(done / whole if whole else 0.0, UNFINISHED_CEILING)
        nodes = () if seen.status.is_terminal or row.held is not Held.NO else self._reads.open_nodes(batch_id)
        return replace(seen, films=films, progress=progress, running_nodes=self._reads.running(batch_id),
                       eta=self._forecast.eta_of_batch(nodes, row.concurrency) if nodes else None)

    def page(self, limit: int, cursor: str, key_id: str) -> dict[str, Json]:
        """Some batches, newest first, without their films. Raises InvalidDocument for a wrong cursor."""
        page = self.rows.page(limit=limit, cursor=cursor, key_id=key_id)
        return {"batches": [_line_json(view) for view in self._listed(page.batches)],
                "next_cursor": page.next_cursor}

    def listed(self, limit: int) -> list[BatchView]:
        """So many of the newest, without films, progress and time left."""
        return self._listed(self.rows.page(limit=limit).batches)

    def report(self, batch_id: str, price_per_gpu_hour: float) -> Report:
        """What it has cost so far. Raises UnknownBatch."""
        self.rows.get(batch_id)
        return report_of(self._reads, batch_id, price_per_gpu_hour)

    def tally(self) -> Mapping[str, int]:
        """Batches by state, for measurements."""
        return self._reads.tally()

    def _listed(self, rows: Sequence[BatchRow]) -> list[BatchView]:
        ids = [row.id for row in rows]
        jobs, spent = self._reads.counts(ids), self._reads.spent_s(ids)
        return [_without_films(row, jobs[row.id], spent.get(row.id, 0.0)) for row in rows]


def in_batch(batch_id: str, file: str, new: NewJob) -> NewFile:
    """A planned film as the file of a batch: the same plan in the same batch is the same job."""
    # A model without drafts makes the same of both; still they are two films, of which one is to be promoted.
    tiers = {name: new.document[name] for name in (TIER, TIERS) if name in new.document}
    mark = digest({"plan": new.identity, **tiers})
    return NewFile(file=file, job=replace(new, id=job_id_in(batch_id, mark), title=new.title or PurePath(file).stem,
                                          document={**new.document, "file": file}))


def _line_json(view: BatchView) -> dict[str, Json]:
    data = view.to_json()
    left_out = ("films", "progress", "eta", "running_nodes")
    return {**{name: data[name] for name in data if name not in left_out}, "links": {**batch_links(view.id)}}


def _without_films(row: BatchRow, jobs: Mapping[JobStatus, int], used_s: float) -> BatchView:
    return BatchView(
        id=row.id, name=row.name, status=status_of(jobs, row.held), held=row.held, progress=0.0, eta=None, jobs=jobs,
        running_nodes=0, concurrency=row.concurrency, gpu_budget_s=row.gpu_budget_s, gpu_used_s=used_s,
        created_at_s=row.created_at_s)
