"""Batches: many jobs as one unit, and the verbs on them. Knows the tables, not who runs the jobs or what they make.

A batch is rows: its own, one per file, and its jobs, which carry its id. What a Director may do with them follows from
those rows (`batch_rules`), so a pause or a limit holds in every process and after every restart. Every verb on the
batch is one transaction; those that go through its jobs are one per job, and may be given again.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from workflows.durable.batch_rules import OPEN_JOBS, Held, spent_s
from workflows.durable.ledger import Ledger, check_job, cursor_after, insert_job, read_cursor
from workflows.durable.rows import NewJob
from workflows.durable.tables import FILE_CHARS, batch, batch_file, job
from workflows.errors import BatchConflict, InvalidDocument, JobConflict, Problem, UnknownBatch, UnknownJob
from workflows.types import JobStatus, Priority, digest

MAX_FILES = 5000
"""In one batch at once."""
MAX_NAME_CHARS = 100
MAX_CONCURRENCY = 10_000
TRIES = 3
"""Two processes may make the same batch in one moment; the second then joins the first."""
UNSUCCESSFUL = frozenset({JobStatus.PARTIAL, JobStatus.FAILED, JobStatus.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a batch may use; None leaves a limit as it is, at first none."""

    concurrency: int | None = None
    """Nodes at the same time, over all its jobs; 0 takes the limit away."""
    gpu_budget_s: float | None = None
    """GPU-seconds in all; infinity takes the limit away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file of a batch, planned."""

    file: str
    """As its submitter calls it; unique in the batch."""
    job: NewJob
    """Its id must follow from the batch and the plan (`job_id_in`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch as submitted."""

    id: str
    name: str
    key_id: str = ""
    limits: BatchLimits = BatchLimits()
    files: tuple[NewFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """A batch as it stands."""

    id: str
    name: str
    key_id: str
    held: Held
    concurrency: int | None
    gpu_budget_s: float | None
    created_at_s: float

    @classmethod
    def of(cls, row: sa.RowMapping) -> BatchRow:
        """From a row of the `batch` table."""
        return cls(id=row["id"], name=row["name"], key_id=row["key_id"] or "", held=Held(row["held"]),
                   concurrency=row["concurrency"], gpu_budget_s=row["gpu_budget_s"], created_at_s=row["created_at"])


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """A file of a batch, and the job that it is."""

    file: str
    job_id: str
    title: str
    status: JobStatus
    error: str
    """Why the job failed; empty: it did not."""
    created_at_s: float
    finished_at_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What a submission did."""

    batch: BatchRow
    new: tuple[str, ...]
    """Files that are new jobs."""
    changed: tuple[str, ...]
    """Of those, files that the batch knew with other content; what they were is cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    """Some batches, newest first."""

    batches: tuple[BatchRow, ...]
    next_cursor: str


def batch_id_of(name: str, key_id: str, slug: str) -> str:
    """The batch of this name, of this API key; `slug` is what people read of it."""
    return f"{slug}-{digest({'batch': name, 'key': key_id})[:8]}"


def job_id_in(batch_id: str, mark: str) -> str:
    """The job of a plan in a batch, whichever of its files it is; `mark` is all that makes two plans the same."""
    return f"{batch_id}-{digest({'batch': batch_id, 'plan': mark})[:12]}"


class Batches:
    """The batches of one database."""

    def __init__(self, ledger: Ledger) -> None:
        """Read and write its database."""
        self._ledger = ledger
        self._database = ledger.database

    def submit(self, new: NewBatch) -> Submitted:
        """Make a batch, or join the one that is there: files it knows are as they were, others are queued behind them.

        All or nothing. Raises InvalidDocument for a name, a limit or files that cannot be, and whatever
        `Ledger.submit` raises.
        """
        _check(new)
        for tries_left in reversed(range(TRIES)):
            try:
                with self._database.write() as connection:
                    submitted, replaced = _submit(connection, new)
                break
            except IntegrityError:
                if not tries_left:
                    raise
        for job_id in replaced:
            self._ledger.cancel(job_id)
        # A file that is again what it was: its job was cancelled when the file changed.
        self._reopen(found.job_id for found in self.files(new.id)
                     if found.file in submitted.changed and found.status is JobStatus.CANCELLED)
        return submitted

    def get(self, batch_id: str) -> BatchRow:
        """One batch; raises UnknownBatch."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(batch).where(batch.c.id == batch_id)).mappings().first()
        if row is None:
            raise UnknownBatch(batch_id=batch_id)
        return BatchRow.of(row)

    def page(self, *, limit: int = 50, cursor: str = "", key_id: str = "") -> BatchPage:
        """Batches, newest first, of one API key where given. Raises InvalidDocument for a wrong cursor."""
        wanted = sa.select(batch).order_by(batch.c.created_at.desc(), batch.c.id.desc()).limit(limit + 1)
        if key_id:
            wanted = wanted.where(batch.c.key_id == key_id)
        if cursor:
            created_at, last_id = read_cursor(cursor)
            wanted = wanted.where(sa.tuple_(batch.c.created_at, batch.c.id) < sa.tuple_(
                sa.literal(created_at, sa.Double), sa.literal(last_id, sa.String)))
        with self._database.read() as connection:
            rows = tuple(BatchRow.of(row) for row in connection.execute(wanted).mappings())
        return BatchPage(batches=rows[:limit], next_cursor=cursor_after(rows[limit - 1]) if len(rows) > limit else "")

    def files(self, batch_id: str) -> tuple[FileRow, ...]:
        """The files of a batch in order, each with the job that it is now."""
        wanted = (sa.select(batch_file.c.file, job.c.id, job.c.title, job.c.status, job.c.error, job.c.created_at,
                            job.c.finished_at)
                  .join(job, job.c.id == batch_file.c.job_id)
                  .where(batch_file.c.batch_id == batch_id, batch_file.c.replaced_at.is_(None))
                  .order_by(batch_file.c.ord, batch_file.c.file))
        with self._database.read() as connection:
            return tuple(FileRow(
                file=row.file, job_id=row.id, title=row.title, status=JobStatus(row.status),
                error=row.error["message"] if row.error else "", created_at_s=row.created_at,
                finished_at_s=row.finished_at) for row in connection.execute(wanted))

    def pause(self, batch_id: str) -> BatchRow:
        """Start no further node; what runs finishes. Raises UnknownBatch, and BatchConflict when it is over."""
        return self._hold(batch_id, Held.PAUSED)

    def resume(self, batch_id: str) -> BatchRow:
        """Go on. Raises UnknownBatch, and BatchConflict when its GPU-seconds are used up."""
        return self._hold(batch_id, Held.NO)

    def change(self, batch_id: str, limits: BatchLimits) -> BatchRow:
        """Give it other limits; a batch that stopped for its budget goes on when it has more.

        Raises UnknownBatch and InvalidDocument.
        """
        _check_limits(limits)
        with self._database.write() as connection:
            _change(connection, _locked(connection, batch_id), limits)
        return self.get(batch_id)

    def cancel(self, batch_id: str) -> tuple[str, ...]:
        """End every job that is not over; their ids. What runs stops at its next denoising step."""
        self.get(batch_id)
        with self._database.read() as connection:
            wanted = (sa.select(job.c.id).where(job.c.batch_id == batch_id, job.c.status.in_(OPEN_JOBS))
                      .order_by(job.c.created_at, job.c.id))
            open_ids = tuple(connection.execute(wanted).scalars())
        for job_id in reversed(open_ids):  # those that wait first: none of them shall start meanwhile
            try:
                self._ledger.cancel(job_id)
            except UnknownJob:
                continue
        with self._database.write() as connection:
            connection.execute(sa.update(batch).where(batch.c.id == batch_id).values(held=Held.NO.value))
        return open_ids

    def retry(self, batch_id: str) -> Mapping[str, tuple[str, ...]]:
        """Run again what did not succeed, in every job that is over; nodes by job id. Raises UnknownBatch."""
        self.get(batch_id)
        return self._reopen(found.job_id for found in self.files(batch_id) if found.status in UNSUCCESSFUL)

    def delete(self, batch_id: str) -> None:
        """Forget a batch and its jobs; the store keeps files. Raises UnknownBatch, BatchConflict while it is open."""
        with self._database.write() as connection:
            # Jobs before their batch, as everywhere.
            rows = connection.execute(sa.select(job.c.status).where(job.c.batch_id == batch_id).order_by(job.c.id)
                                      .with_for_update()).scalars().all()
            _locked(connection, batch_id)
            running = sum(not JobStatus(status).is_terminal for status in rows)
            if running:
                raise BatchConflict(batch_id=batch_id, problem=f"{running} of its jobs are not over; cancel it first")
            connection.execute(sa.delete(job).where(job.c.batch_id == batch_id))
            connection.execute(sa.delete(batch).where(batch.c.id == batch_id))

    def _reopen(self, job_ids: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """What was opened; a job that somebody else opens or forgets meanwhile is left to them."""
        opened: dict[str, tuple[str, ...]] = {}
        for job_id in dict.fromkeys(job_ids):
            try:
                if nodes := self._ledger.rerun(job_id):
                    opened[job_id] = nodes
            except (JobConflict, UnknownJob):
                continue
        return opened

    def _hold(self, batch_id: str, held: Held) -> BatchRow:
        with self._database.write() as connection:
            row = _locked(connection, batch_id)
            is_open = connection.scalar(sa.select(job.c.id).where(
                job.c.batch_id == batch_id, job.c.status.in_(OPEN_JOBS)).limit(1)) is not None
            if held is Held.PAUSED and not is_open:
                raise BatchConflict(batch_id=batch_id, problem="is over; there is nothing to pause")
            if held is Held.NO and row.gpu_budget_s is not None and is_open:
                used_s = spent_s(connection, batch_id)
                if used_s >= row.gpu_budget_s:
                    raise BatchConflict(batch_id=batch_id, problem=(
                        f"has used {used_s:.1f} of its {row.gpu_budget_s:g} GPU-seconds; give it more: `reelray batch "
                        f"change {batch_id} --gpu-seconds MORE`"))
            connection.execute(sa.update(batch).where(batch.c.id == batch_id).values(held=held.value))
        return replace(row, held=held)


def _submit(connection: sa.Connection, new: NewBatch) -> tuple[Submitted, list[str]]:
    # The order in which Directors lock: jobs, then their batch. A file's row refers to its job.
    wanted = sorted({found.job.id for found in new.files})
    there = set(connection.execute(sa.select(job.c.id).where(job.c.id.in_(wanted)).order_by(job.c.id)
                                   .with_for_update()).scalars())
    row = connection.execute(sa.select(batch).where(batch.c.id == new.id).with_for_update()).mappings().first()
    if row is None:
        connection.execute(sa.insert(batch).values(id=new.id, name=new.name, key_id=new.key_id or None,
                                                   held=Held.NO.value, created_at=time.time()))
        row = connection.execute(sa.select(batch).where(batch.c.id == new.id)).mappings().one()
    found = _change(connection, BatchRow.of(row), new.limits)
    rows = connection.execute(sa.select(batch_file).where(batch_file.c.batch_id == new.id)).mappings().all()
    known = {(row["file"], row["job_id"]): row["replaced_at"] for row in rows}
    places = {row["file"]: row["ord"] for row in rows}
    files = frozenset(places)
    fresh: list[str] = []
    for file in new.files:
        if file.job.id not in there:
            insert_job(connection, replace(file.job, batch_id=new.id, key_id=new.key_id, priority=Priority.BATCH))
            there.add(file.job.id)
        here = (file.file, file.job.id)
        if here in known and known[here] is None:
            continue
        fresh.append(file.file)
        place = places.setdefault(file.file, max(places.values(), default=-1) + 1)
        _point(connection, new.id, file, place, is_known=here in known)
    return Submitted(batch=found, new=tuple(fresh), changed=tuple(name for name in fresh if name in files)), (
        _replaced(connection, new.id))


def _point(connection: sa.Connection, batch_id: str, file: NewFile, ord: int, *, is_known: bool) -> None:
    """Make a job the one of its file."""
    mine = sa.and_(batch_file.c.batch_id == batch_id, batch_file.c.file == file.file)
    connection.execute(sa.update(batch_file).where(mine, batch_file.c.replaced_at.is_(None))
                       .values(replaced_at=time.time()))
    if is_known:
        connection.execute(sa.update(batch_file).where(mine, batch_file.c.job_id == file.job.id)
                           .values(replaced_at=None))
    else:
        connection.execute(sa.insert(batch_file).values(batch_id=batch_id, file=file.file, job_id=file.job.id, ord=ord))


def _replaced(connection: sa.Connection, batch_id: str) -> list[str]:
    """Open jobs that are no file's any more."""
    current = sa.select(batch_file.c.job_id).where(batch_file.c.batch_id == batch_id,
                                                   batch_file.c.replaced_at.is_(None))
    return list(connection.execute(sa.select(job.c.id).where(
        job.c.batch_id == batch_id, job.c.status.in_(OPEN_JOBS), job.c.id.not_in(current))).scalars())


def _locked(connection: sa.Connection, batch_id: str) -> BatchRow:
    row = connection.execute(sa.select(batch).where(batch.c.id == batch_id).with_for_update()).mappings().first()
    if row is None:
        raise UnknownBatch(batch_id=batch_id)
    return BatchRow.of(row)


def _change(connection: sa.Connection, row: BatchRow, limits: BatchLimits) -> BatchRow:
    changed = row
    if limits.concurrency is not None:
        changed = replace(changed, concurrency=limits.concurrency or None)
    if limits.gpu_budget_s is not None:
        budget_s = None if math.isinf(limits.gpu_budget_s) else limits.gpu_budget_s
        is_enough = budget_s is None or spent_s(connection, row.id) < budget_s
        held = Held.NO if row.held is Held.BUDGET and is_enough else row.held
        changed = replace(changed, gpu_budget_s=budget_s, held=held)
    if changed != row:
        connection.execute(sa.update(batch).where(batch.c.id == row.id).values(
            concurrency=changed.concurrency, gpu_budget_s=changed.gpu_budget_s, held=changed.held.value))
    return changed


def _check(new: NewBatch) -> None:
    problems: list[Problem] = []
    if not 0 < len(new.name) <= MAX_NAME_CHARS or not new.name.isprintable():
        problems.append(Problem(field="name", problem=f"{new.name[:40]!r} is no name",
                                nearest=f"1 to {MAX_NAME_CHARS} printable characters"))
    if not 0 < len(new.files) <= MAX_FILES:
        problems.append(Problem(field="films", problem=f"{len(new.files)} files", nearest=f"1 to {MAX_FILES}"))
    twice = [name for name, times in Counter(file.file for file in new.files).items() if times > 1]
    problems += [Problem(file=name, problem="is there twice") for name in twice]
    problems += [Problem(file=file.file[:80], problem=f"has a name of {len(file.file)} characters",
                         nearest=f"1 to {FILE_CHARS}") for file in new.files if not 0 < len(file.file) <= FILE_CHARS]
    if problems:
        raise InvalidDocument(problems=tuple(problems))
    _check_limits(new.limits)
    for file in new.files:
        check_job(file.job)


def _check_limits(limits: BatchLimits) -> None:
    most = limits.concurrency
    if most is not None and not 0 <= most <= MAX_CONCURRENCY:
        raise _refused("concurrency", str(most), "0" if most < 0 else str(MAX_CONCURRENCY))
    if limits.gpu_budget_s is not None and not limits.gpu_budget_s >= 0:
        raise _refused("gpu_seconds", str(limits.gpu_budget_s), "0")


def _refused(field: str, found: str, nearest: str) -> InvalidDocument:
    return InvalidDocument(problems=(Problem(field=field, problem=f"{found} is no value for it", nearest=nearest),))
