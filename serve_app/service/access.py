"""Who may do what: the roles of API keys, how often each may ask, whose job a job is. Knows no web framework.

Keys are read from the database at most every `KEYS_AGE_S`, so that a request costs no query, and a key that was revoked
opens nothing a moment later, at every replica.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from configs.settings import HttpSettings
from serve_app.service.forecast import Remembered
from workflows.durable.batches import Batches
from workflows.durable.keys import ApiKey, Keys, Role, id_in
from workflows.durable.ledger import Ledger
from workflows.errors import UnknownBatch, UnknownJob

KEYS_AGE_S = 2.0
OWNERS_KEPT = 10_000
"""Jobs whose owner is remembered; a job never changes hands."""
MINUTE_S = 60.0


class Act(StrEnum):
    """What a request does."""

    LOOK = "look"
    """Read anything."""
    CHANGE = "change"
    """Make, change, cancel, retry, delete."""
    OVERSEE = "oversee"
    """See the jobs of every key, and the metrics."""
    MANAGE = "manage"
    """Say where this server tells of all jobs, and see what was answered there."""


MAY: Mapping[Role, frozenset[Act]] = {
    Role.ADMIN: frozenset(Act),
    Role.USER: frozenset({Act.LOOK, Act.CHANGE}),
    Role.READ: frozenset({Act.LOOK, Act.OVERSEE}),
}
"""The whole of it; without OVERSEE a key has its own jobs only."""
LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/api/openapi.json"})
"""Answered without a key: whoever watches the server needs none."""
OVERSEEING_PATHS = frozenset({"/metrics"})
MANAGING_PATHS = ("/api/webhooks",)
"""These and all below them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who sent a request."""

    key_id: str = ""
    """Empty where nobody is asked for a key."""
    name: str = ""
    role: Role = Role.ADMIN
    requests_per_min: int = 0
    """0: as many as it likes."""

    def may(self, act: Act) -> bool:
        """Whether its role allows this."""
        return act in MAY[self.role]

    @property
    def own_jobs(self) -> str:
        """The key whose jobs alone it sees; empty: it sees all."""
        return "" if self.may(Act.OVERSEE) else self.key_id


ANYBODY = Caller()
"""Where nobody is asked: whoever reaches loopback may do everything."""


def act_of(method: str, path: str) -> Act:
    """What a request does."""
    if path in OVERSEEING_PATHS:
        return Act.OVERSEE
    if any(path == managed or path.startswith(f"{managed}/") for managed in MANAGING_PATHS):
        return Act.MANAGE
    return Act.LOOK if method in LOOKING else Act.CHANGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a key may still ask in this process."""

    limit: int
    """Requests per minute."""
    remaining: int
    reset_s: int
    """Until all of them are there again."""
    retry_after_s: int
    """0: the request is granted; otherwise how long to wait for the next one."""


class Bucket:
    """Requests that one key may send: a minute's worth at once, then evenly."""

    def __init__(self, limit: int, now_s: float) -> None:
        """Full at the start."""
        self.limit = limit
        self._left = float(limit)
        self._at_s = now_s

    def take(self, now_s: float) -> Quota:
        """Take one, if there is one."""
        rate = self.limit / MINUTE_S
        self._left = min(self.limit, self._left + (now_s - self._at_s) * rate)
        self._at_s = now_s
        granted = self._left >= 1
        self._left -= granted
        return Quota(limit=self.limit, remaining=int(self._left), reset_s=math.ceil((self.limit - self._left) / rate),
                     retry_after_s=0 if granted else max(math.ceil((1 - self._left) / rate), 1))


class Access:
    """The door of one ingress process."""

    def __init__(self, ledger: Ledger, settings: HttpSettings, *, now: Callable[[], float] = time.monotonic) -> None:
        """Ask for keys if the settings say so."""
        keys = Keys(ledger.database)
        self.needs_keys = settings.needs_keys
        self._ledger = ledger
        self._batches = Batches(ledger)
        self._settings = settings
        self._now = now
        self._keys: Remembered[Mapping[str, ApiKey]] = Remembered(
            lambda: {key.id: key for key in keys.all()}, KEYS_AGE_S)
        self._buckets: dict[str, Bucket] = {}
        self._owners: OrderedDict[str, str] = OrderedDict()

    async def caller(self, token: str) -> Caller | None:
        """Whose key this is; None when it is nobody's. Where no keys are needed, none is looked at."""
        if not self.needs_keys:
            return ANYBODY
        key_id = id_in(token)
        # A key made a moment ago may not be remembered yet; revoked ones stay in the table.
        known = await asyncio.to_thread(self._keys.get) if key_id else {}
        key = known.get(key_id)
        if key is None or not key.opens_with(token):
            return None
        return Caller(key_id=key.id, name=key.name, role=key.role,
                      requests_per_min=key.requests_per_min or self._settings.requests_per_min)

    def take(self, caller: Caller) -> Quota | None:
        """Count one request; None where nobody counts. A replica grants its share of the key's rate."""
        if not caller.requests_per_min:
            return None
        limit = max(caller.requests_per_min // self._settings.replicas, 1)
        bucket = self._buckets.get(caller.key_id)
        if bucket is None or bucket.limit != limit:
            bucket = self._buckets[caller.key_id] = Bucket(limit, self._now())
        return bucket.take(self._now())

    async def require_own(self, caller: Caller, job_id: str) -> None:
        """Raise UnknownJob when the job is not the caller's to see: others need not learn that it exists."""
        if not caller.own_jobs:
            return
        owner = self._owners.get(job_id)
        if owner is None:
            owner = (await asyncio.to_thread(self._ledger.job, job_id)).key_id
            self._owners[job_id] = owner
            if len(self._owners) > OWNERS_KEPT:
                self._owners.popitem(last=False)
        if owner != caller.own_jobs:
            raise UnknownJob(job_id=job_id)

    async def require_own_batch(self, caller: Caller, batch_id: str) -> None:
        """The same of a batch; raises UnknownBatch."""
        if caller.own_jobs and (await asyncio.to_thread(self._batches.get, batch_id)).key_id != caller.own_jobs:
            raise UnknownBatch(batch_id=batch_id)
