"""The collection of what nobody needs: looked up first, then removed, safe beside everything that runs.

The danger is a result that was found in the store just before it is removed and whose row is committed just after. So
it goes in two steps. First it is *condemned*: its manifest gets another name, and from then on nobody finds it anew.
Then the collection waits, so that whoever found it before has committed a row, and asks the rows again: what they
mention by now, or what was written again, is pardoned, and the rest is removed. A Director looks again after it has
committed a row with a stored result (`workflows.durable.walk`): each side writes before it looks, so one of them always
sees the other, however short the wait. A collection that dies in between has removed nothing that is wanted, and the
next one goes on or pardons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from workflows.durable.ledger import Ledger
from workflows.durable.mentions import ended_jobs, job_count, mentioned, open_keys
from workflows.errors import InvalidSettings, JobConflict, UnknownJob
from workflows.upkeep.files import StoreFiles
from workflows.upkeep.related import Related, all_keys, none_related
from workflows.upkeep.retention import CONDEMNED, Bundle, File, Plan, Wanted, decide

HOUR_S = 3600.0
DAY_S = 86_400.0
THREADS = 8
"""Removals at the same time; object stores answer each in tens of milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How old is old."""

    older_than_s: float = 7 * DAY_S
    """Nothing younger goes; at least an hour."""
    jobs_older_than_s: float | None = None
    """Jobs that ended so long ago are forgotten first; None: none are."""
    settle_s: float = 60.0
    """How long whoever has found a result may take to commit its row."""
    allow_no_jobs: bool = False
    """Collect even where the database knows no job at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a collection would do."""

    jobs: tuple[str, ...]
    """Jobs that are forgotten first."""
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did."""

    jobs: int
    removed: Plan
    pardoned: int
    """Artifacts that turned out to be wanted while it waited, or that an earlier collection had left condemned."""


class Collection:
    """Of one database and its store. A store belongs to one database: another one's files look unwanted."""

    def __init__(self, ledger: Ledger, files: StoreFiles, bounds: Bounds, related: Related = none_related,
                 clock: Callable[[], float] = time.time) -> None:
        """Nothing is looked at yet. Raises InvalidSettings for bounds that would take what is in use."""
        if bounds.older_than_s < HOUR_S:
            raise InvalidSettings(problem=f"older-than {bounds.older_than_s:g} s could take what a running job has "
                                          "just written; nearest valid: 1h")
        self._ledger = ledger
        self._files = files
        self._bounds = bounds
        self._related = related
        self._clock = clock

    def survey(self) -> Survey:
        """Look, and change nothing. Raises InvalidSettings for a database without jobs beside a store with files."""
        found, has_jobs = self._look()
        if found.plan.bundles and not has_jobs and not self._bounds.allow_no_jobs:
            raise InvalidSettings(problem=f"database {self._ledger.database.name} knows no job, but the store holds "
                                  f"{len(found.plan.bundles)} artifacts that would go; check that the two belong "
                                  "together, or say --no-jobs too")
        return found

    def run(self, sleep: Callable[[float], object] = time.sleep) -> Collected:
        """Do it; `sleep` is how it waits. Raises what database and file system raise, and has then removed less."""
        forgotten = sum(self._forget(job_id) for job_id in self.survey().jobs)
        # Looked up anew: a job that was opened again meanwhile keeps what it has.
        plan = self._look()[0].plan
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._files.pardon, plan.pardoned))
            list(pool.map(self._files.condemn, [bundle.key for bundle in plan.bundles if bundle.has_manifest]))
            if plan.bundles:
                sleep(self._bounds.settle_s)
            with self._ledger.database.snapshot() as connection:
                wanted = Wanted(keys=all_keys(mentioned(connection), self._related), open_keys=open_keys(connection))
            gone = [bundle for bundle in pool.map(lambda old: self._remove(old, wanted), plan.bundles) if bundle]
            loose = self._still_old(plan, wanted)
            list(pool.map(self._files.remove, [file.path for file in loose]))
        self._tidy(loose)
        return Collected(
            jobs=forgotten, pardoned=len(plan.pardoned) + len(plan.bundles) - len(gone),
            removed=Plan(bundles=tuple(gone), kept=plan.kept + len(plan.bundles) - len(gone), strange=plan.strange,
                         checkpoints=tuple(file for file in plan.checkpoints if file in loose),
                         temporary=tuple(file for file in plan.temporary if file in loose)))

    def _look(self) -> tuple[Survey, bool]:
        now_s = self._clock()
        ended_s = None if self._bounds.jobs_older_than_s is None else now_s - self._bounds.jobs_older_than_s
        # Files first: whatever is listed and wanted has its row by the time that rows are asked.
        files = list(self._files.files())
        with self._ledger.database.snapshot() as connection:
            doomed = () if ended_s is None else ended_jobs(connection, ended_s)
            keys, opened = mentioned(connection, ended_before_s=ended_s), open_keys(connection)
            has_jobs = job_count(connection) > 0
        plan = decide(files, Wanted(keys=all_keys(keys, self._related), open_keys=opened),
                      before_s=now_s - self._bounds.older_than_s)
        return Survey(jobs=doomed, plan=plan), has_jobs

    def _forget(self, job_id: str) -> bool:
        try:
            self._ledger.delete(job_id)
        except (JobConflict, UnknownJob):  # opened again, or forgotten by somebody else
            return False
        return True

    def _remove(self, old: Bundle, wanted: Wanted) -> Bundle | None:
        """Remove what is under a key, the mark last; or pardon it."""
        before_s = self._clock() - self._bounds.older_than_s
        now = self._files.bundle(old.key)
        if old.key in wanted.keys or now.has_manifest or not now.is_older_than(before_s):
            if now.is_condemned:
                self._files.pardon(now)
            return None
        for file in sorted(now.files, key=lambda file: file.name == CONDEMNED):
            self._files.remove(file.path)
        self._files.remove_directory(f"{old.key[:2]}/{old.key}")
        return old

    def _still_old(self, plan: Plan, wanted: Wanted) -> Sequence[File]:
        """Checkpoints and temporary files that nobody has come back to."""
        before_s = self._clock() - self._bounds.older_than_s
        found = [file for path in {file.path.rpartition("/")[0] for file in (*plan.checkpoints, *plan.temporary)}
                 for file in self._files.files(path)]
        again = decide(found, wanted, before_s=before_s)
        known = {file.path for file in (*plan.checkpoints, *plan.temporary)}
        return [file for file in (*again.checkpoints, *again.temporary) if file.path in known]

    def _tidy(self, removed: Sequence[File]) -> None:
        for directory in {file.path.rpartition("/")[0] for file in removed}:
            self._files.remove_directory(directory)
