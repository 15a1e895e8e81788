"""The verbs on jobs that any process may call: submit, cancel, rerun, look. Knows the tables, not who runs the nodes.

Every verb is one transaction, synchronous, and safe to call from several threads and processes. All of them take
their job's row lock first, as the engine's own writes do, so that verbs and node commits never interleave.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from workflows.durable import graph
from workflows.durable.database import Database
from workflows.durable.events import Note, append, log_notes
from workflows.durable.hooks import add_hook
from workflows.durable.reopening import check_inputs, lock_finished, lock_job, nodes_of, reopen
from workflows.durable.rows import EventRow, EventType, JobRow, Level, LogPage, NewJob, NodeRow, Page
from workflows.durable.tables import ID_CHARS, event, job, node
from workflows.durable.takes import fresh_generations, keep_takes
from workflows.durable.usage import charge_running, note_cancelled
from workflows.errors import InvalidDocument, JobConflict, Problem, UnknownJob
from workflows.types import JobStatus, NodeStatus, advance_job

MAX_LIMIT = 5000
"""Rows in one reply."""
OPEN_JOBS = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
OPEN_NODES = (NodeStatus.PENDING.value, NodeStatus.RUNNING.value)


class Listed(Protocol):
    """A row of a list that comes in pages."""

    @property
    def id(self) -> str:
        """Unique."""

    @property
    def created_at_s(self) -> float:
        """Unix time."""


class Ledger:
    """All jobs of one database."""

    def __init__(self, url: str) -> None:
        """Open the database at a SQLAlchemy URL; raises InvalidSettings when it cannot be used."""
        self.database = Database(url)

    def close(self) -> None:
        """Close the database's connections."""
        self.database.close()

    def submit(self, new: NewJob) -> JobRow:
        """Queue a job; the same id with the same document again returns the job as it is.

        Raises JobConflict when the id belongs to another document, InvalidDocument when the nodes are no DAG.
        """
        check_job(new)
        try:
            with self.database.write() as connection:
                insert_job(connection, new)
        except IntegrityError:
            # The id is taken. Not asked beforehand: another process may be quicker than question and answer.
            found = self.job(new.id)
            if found.document_digest != new.identity:
                raise JobConflict(job_id=new.id, problem="exists already with another document; "
                                                         "submit under another id") from None
        return self.job(new.id)

    def cancel(self, job_id: str) -> JobRow:
        """Ask for the end of a job; a job that no live Director holds ends at once. A finished job stays as it is.

        Raises UnknownJob.
        """
        with self.database.write() as connection:
            row = lock_job(connection, job_id)
            if JobStatus(row["status"]).is_terminal:
                return JobRow.of(row)
            if not row["cancel_requested"]:
                append(connection, job_id, [Note(type=EventType.JOB_CANCEL_REQUESTED, line="job: cancel requested")])
            now_s = connection.scalar(sa.select(self.database.now_s()))
            if row["owner"] is None or row["lease_until"] < now_s:
                close_cancelled(connection, job_id, JobStatus(row["status"]))
            else:
                connection.execute(sa.update(job).where(job.c.id == job_id).values(cancel_requested=True))
        return self.job(job_id)

    def rerun(self, job_id: str, selection: Collection[str] = (), *, force: bool = False) -> tuple[str, ...]:
        """Queue a finished job again; return the ids of the nodes that will run, in the job's order.

        `selection` names nodes or shots (a shot means all its nodes); they and everything downstream run again.
        Empty: everything that has not succeeded, and what is downstream; () when there is nothing to do.
        A result that is still in the store is reused, unless `force` asks the chosen keyframes and clips for another
        take; the one they had is kept among the shot's takes.
        Raises UnknownJob, JobConflict while the job is active or when a chosen node lacks what it needs, and
        InvalidDocument when the selection names something unknown.
        """
        with self.database.write() as connection:
            row = lock_finished(connection, job_id)
            nodes = nodes_of(connection, job_id)
            chosen = graph.select(nodes, selection, job_id=job_id) if selection else frozenset(
                found.id for found in nodes if found.status is not NodeStatus.SUCCEEDED)
            reached = graph.cone(nodes, chosen)
            if reached:
                check_inputs(job_id, nodes, frozenset(reached))
                generations = fresh_generations(connection, job_id, nodes, chosen if force else ())
                keep_takes(connection, job_id, nodes, {found.shot_id for found in nodes if found.id in generations})
                reopen(connection, row, [found for found in nodes if found.id in reached], generations)
        return reached

    def delete(self, job_id: str) -> None:
        """Forget a finished job, its log and its takes; files stay in the store, where other films may use them.

        Raises UnknownJob, and JobConflict while the job is active.
        """
        with self.database.write() as connection:
            lock_finished(connection, job_id)
            connection.execute(sa.delete(job).where(job.c.id == job_id))

    def job(self, job_id: str) -> JobRow:
        """One job; raises UnknownJob."""
        with self.database.read() as connection:
            row = connection.execute(sa.select(job).where(job.c.id == job_id)).mappings().first()
        if row is None:
            raise UnknownJob(job_id=job_id)
        return JobRow.of(row)

    def nodes(self, job_id: str) -> tuple[NodeRow, ...]:
        """The job's nodes in order; raises UnknownJob."""
        with self.database.read() as connection:
            found = nodes_of(connection, job_id)
        if not found:
            raise UnknownJob(job_id=job_id)
        return found

    def nodes_of_jobs(self, job_ids: Collection[str]) -> dict[str, tuple[NodeRow, ...]]:
        """The nodes of each of these jobs in order, by one query; an unknown job has none."""
        wanted = sa.select(node).where(node.c.job_id.in_(job_ids)).order_by(node.c.job_id, node.c.ord)
        found: dict[str, list[NodeRow]] = defaultdict(list)
        with self.database.read() as connection:
            for row in connection.execute(wanted).mappings():
                found[row["job_id"]].append(NodeRow.of(row))
        return {job_id: tuple(found[job_id]) for job_id in job_ids}

    def jobs(self, status: JobStatus | None = None, *, kind: str | Collection[str] = "", limit: int = 50,
             cursor: str = "", key_id: str = "") -> Page:
        """Jobs, newest first, of one status, one kind (or one of several) and one API key where given.

        `cursor` continues where an earlier page ended; InvalidDocument when it is not one.
        """
        return self._page(_wanted(status, kind, key_id), limit, cursor, oldest_first=False)

    def jobs_from_oldest(self, *, kind: str | Collection[str] = "", limit: int = 50, cursor: str = "",
                         key_id: str = "") -> Page:
        """As `jobs`, the other way round."""
        return self._page(_wanted(None, kind, key_id), limit, cursor, oldest_first=True)

    def _page(self, wanted: sa.Select[tuple[object, ...]], limit: int, cursor: str, *, oldest_first: bool) -> Page:
        places = sa.tuple_(job.c.created_at, job.c.id)
        order = (job.c.created_at, job.c.id) if oldest_first else (job.c.created_at.desc(), job.c.id.desc())
        wanted = wanted.order_by(*order).limit(_limit(limit) + 1)
        if cursor:
            created_at, last_id = read_cursor(cursor)
            last = sa.tuple_(sa.literal(created_at, sa.Double), sa.literal(last_id, sa.String))
            wanted = wanted.where(places > last if oldest_first else places < last)
        with self.database.read() as connection:
            rows = tuple(JobRow.of(row) for row in connection.execute(wanted).mappings())
        more = len(rows) > limit
        return Page(jobs=rows[:limit], next_cursor=cursor_after(rows[limit - 1]) if more else "")

    def log(self, job_id: str, line: str, level: str = "info") -> None:
        """Append to the job's log; a text of several lines becomes several lines. Raises UnknownJob."""
        with self.database.write() as connection:
            lock_job(connection, job_id)
            append(connection, job_id, log_notes(line, level=Level(level)))

    def log_lines(self, job_id: str, offset: int = 0, limit: int = 500) -> LogPage:
        """The job's log from line `offset` on (from 0), oldest first. Raises UnknownJob."""
        self.job(job_id)
        wanted = (sa.select(event.c.at, event.c.level, event.c.line).where(event.c.job_id == job_id, event.c.line != "")
                  .order_by(event.c.seq).limit(_limit(limit)).offset(max(offset, 0)))
        with self.database.read() as connection:
            rows = connection.execute(wanted).all()
        lines = tuple(f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} {level} {line}" for at, level, line in rows)
        return LogPage(next_offset=max(offset, 0) + len(lines), lines=lines)

    def events(self, job_id: str, after_seq: int = 0, limit: int = 500) -> tuple[EventRow, ...]:
        """What happened after event `after_seq`, oldest first. Raises UnknownJob."""
        self.job(job_id)
        wanted = (sa.select(event).where(event.c.job_id == job_id, event.c.seq > after_seq)
                  .order_by(event.c.seq).limit(_limit(limit)))
        with self.database.read() as connection:
            return tuple(EventRow.of(row) for row in connection.execute(wanted).mappings())


def close_cancelled(connection: sa.Connection, job_id: str, status: JobStatus) -> None:
    """End a job as cancelled, its open nodes with it, in the caller's transaction."""
    advance_job(status, JobStatus.CANCELLED)
    at = time.time()
    charge_running(connection, job_id)
    note_cancelled(connection, job_id)
    stopped = connection.execute(
        sa.update(node).where(node.c.job_id == job_id, node.c.status.in_(OPEN_NODES))
        .values(status=NodeStatus.CANCELLED.value, finished_at=at).returning(node.c.id)).scalars().all()
    connection.execute(sa.update(job).where(job.c.id == job_id).values(
        status=JobStatus.CANCELLED.value, cancel_requested=True, owner=None, lease_until=None, finished_at=at))
    append(connection, job_id, [
        *(Note(type=EventType.NODE_CANCELLED, node_id=node_id, line=f"{node_id}: cancelled") for node_id in stopped),
        Note(type=EventType.JOB_FINISHED, line="job: cancelled", data={"status": JobStatus.CANCELLED.value}),
    ])


def check_job(new: NewJob) -> None:
    """Raise InvalidDocument for what cannot be queued."""
    if not new.nodes or not new.weight > 0 or not 0 < len(new.id) <= ID_CHARS:
        raise InvalidDocument(problems=(Problem(
            problem=f"a job needs an id of 1 to {ID_CHARS} characters, at least one node, and a weight above 0"),))
    graph.check_graph(new.nodes)


def insert_job(connection: sa.Connection, new: NewJob) -> None:
    """Queue a job in the caller's transaction. Raises IntegrityError when its id is taken."""
    connection.execute(sa.insert(job).values(
        id=new.id, kind=new.kind, title=new.title, status=JobStatus.QUEUED.value, priority=new.priority.value,
        weight=new.weight, document=dict(new.document), document_digest=new.identity, cancel_requested=False,
        created_at=time.time(), warnings=[], key_id=new.key_id or None, concurrency=new.limits.concurrency,
        attempt_timeout_s=new.limits.attempt_timeout_s, batch_id=new.batch_id or None))
    rows = [NodeRow.planned(new.id, spec, ord=ord) for ord, spec in enumerate(new.nodes)]
    connection.execute(sa.insert(node), [row.plan_columns() | row.state_columns() for row in rows])
    if new.webhook_url:
        add_hook(connection, new.webhook_url, job_id=new.id)
    append(connection, new.id, [Note(type=EventType.JOB_QUEUED, line=f"job: queued, {len(rows)} nodes",
                                     data={"nodes": len(rows)})])


def _wanted(status: JobStatus | None, kind: str | Collection[str], key_id: str) -> sa.Select[tuple[object, ...]]:
    wanted = sa.select(job)
    if status is not None:
        wanted = wanted.where(job.c.status == status.value)
    if kind:
        wanted = wanted.where(job.c.kind.in_((kind,) if isinstance(kind, str) else kind))
    return wanted.where(job.c.key_id == key_id) if key_id else wanted


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidDocument(problems=(Problem(field="limit", problem=f"{limit} rows",
                                                nearest="1" if limit < 1 else str(MAX_LIMIT)),))
    return limit


def cursor_after(row: Listed) -> str:
    """The cursor that continues a list, newest first, behind this row."""
    return base64.urlsafe_b64encode(json.dumps([row.created_at_s, row.id]).encode()).decode()


def read_cursor(cursor: str) -> tuple[float, str]:
    """When the row before was made, and its id. Raises InvalidDocument for what is no cursor."""
    try:
        created_at, last_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not isinstance(created_at, float) or not math.isfinite(created_at) or "\0" in last_id:
            raise ValueError(cursor)
        last_id.encode()  # half a character is none
        return created_at, last_id
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidDocument(problems=(Problem(field="cursor", problem="is not a cursor that a page returned",
                                                nearest="leave it out for the first page"),)) from error
