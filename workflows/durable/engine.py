"""The Director's engine: takes jobs, keeps their leases, walks them, gives them back. Knows no Ray and no HTTP.

One `run()` per process. Nothing is remembered here that the database does not hold: kill it at any moment, and whoever
claims its jobs after the lease continues them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from configs.settings import EngineSettings
from workflows.dispatch import Dispatcher
from workflows.durable.database import is_down
from workflows.durable.gates import Gates
from workflows.durable.journal import Journal
from workflows.durable.leases import Claim, Ending, Lease, Leases
from workflows.durable.ledger import Ledger
from workflows.durable.patience import Patience
from workflows.durable.rows import Level
from workflows.durable.store_watch import StoreWatch
from workflows.durable.walk import Walk, Workshop
from workflows.errors import ErrorRecord, LeaseLost
from workflows.fair_queue import CLASSES
from workflows.ports import ArtifactStore, Step
from workflows.types import NO_MODEL_LANES, JobStatus, NodeKind, NodeStatus, Priority

log = logging.getLogger(__name__)


KEPT_FREE = 4
"""One place in so many is not given to batch jobs: a Director full of them still takes an interactive one at once."""


class Halt(StrEnum):
    """Why a walk is stopped from outside."""

    CANCEL = "cancel"
    STOP = "stop"
    PAUSE = "pause"
    """Its batch is held, and what it had running is done."""
    LOST = "lost"


@dataclass(slots=True, kw_only=True)
class Held:
    """A job in hand."""

    lease: Lease
    walk: asyncio.Task[Ending]
    attendant: asyncio.Task[None] | None = None
    halt: Halt | None = None


class Engine:
    """Runs jobs of one ledger until it is stopped."""

    def __init__(self, ledger: Ledger, steps: Mapping[NodeKind, Step], *, store: ArtifactStore, dispatcher: Dispatcher,
                 settings: EngineSettings, only: frozenset[str] | None = None) -> None:
        """`steps`: what runs each kind of node; `only`: take no other jobs than these."""
        self._ledger = ledger
        self._settings = settings
        self._only = only
        self._leases = Leases(ledger.database, lease_s=settings.lease_s, interruption_limit=settings.interruption_limit)
        self._patience = Patience(writers=ledger.database.writers)
        self._gates = Gates()
        self._shop = Workshop(steps=steps, store=store, watch=StoreWatch(store, limit_s=settings.store_patience_s),
                              dispatcher=dispatcher, settings=settings, leases=self._leases,
                              journal=Journal(ledger.database), patience=self._patience, gates=self._gates)
        self._held: dict[str, Held] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Take and walk jobs until `stop`; a database that is away for a while is waited for."""
        self._loop = asyncio.get_running_loop()
        try:
            renewed_s = self._loop.time()
            while not self._stopping:
                self._wake.clear()
                try:
                    if self._loop.time() - renewed_s >= self._settings.heartbeat_s:
                        await self._renew()
                        renewed_s = self._loop.time()
                    await self._look()
                except Exception as error:
                    if not is_down(error):
                        raise
                    self._patience.tell(error)
                await self._pause()
        finally:
            await self._let_go()
            self._ended.set()

    def wake(self) -> None:
        """Look for new jobs and cancel requests now rather than at the next poll. Callable from any thread."""
        if self._loop is None:
            self._wake.set()
        else:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def stop(self) -> None:
        """Stop in order: running steps are cancelled, their nodes put back uncounted, the leases given up."""
        self._stopping = True
        self.wake()
        if self._loop is not None:
            await self._ended.wait()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(min(self._settings.poll_s, self._settings.heartbeat_s)):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _renew(self) -> None:
        if not self._held:
            return
        asked_s = time.monotonic()
        renewed = await self._patience.once(self._leases.renew, self._tokens())
        for held in self._held.values():
            if held.lease.claim.job.id in renewed:
                held.lease.certain_until_s = asked_s + self._settings.lease_s

    async def _look(self) -> None:
        """Stop what was lost or shall end; take new jobs while there is room."""
        asked = dict(self._held)
        survey = await self._patience.once(self._leases.survey, self._tokens(), only=self._only)
        self._gates.learn(survey.batches)
        for job_id, held in asked.items():
            standing = survey.batches.get(held.lease.claim.job.batch_id)
            if job_id not in survey.held:
                self._halt(held, Halt.LOST)
            elif survey.held[job_id]:
                self._halt(held, Halt.CANCEL)
            elif standing is not None and standing.is_held and self._gates.is_idle(job_id):
                self._halt(held, Halt.PAUSE)
        for priority in CLASSES:
            room = self._room(priority)
            if priority in survey.waiting and room > 0 and not self._stopping:
                asked_s = time.monotonic()
                taken = await self._patience.once(
                    self._leases.claim, room, priority, only=self._only, held=self._tokens())
                for claim in taken:
                    self._take(Lease(claim=claim, certain_until_s=asked_s + self._settings.lease_s))
                    if claim.job.batch_id:
                        self._wake.set()  # nothing of it starts before its batch was looked at

    def _room(self, priority: Priority) -> int:
        """How many more jobs of a class fit; batch jobs leave some places free for interactive ones to come."""
        room = self._settings.max_jobs - len(self._held)
        if priority is Priority.INTERACTIVE:
            return room
        batch = sum(held.lease.claim.job.priority is priority for held in self._held.values())
        return min(room, self._settings.max_jobs - self._settings.max_jobs // KEPT_FREE - batch)

    def _tokens(self) -> frozenset[str]:
        return frozenset(held.lease.claim.token for held in self._held.values())

    def _take(self, lease: Lease) -> None:
        job_id = lease.claim.job.id
        held = Held(lease=lease, walk=asyncio.create_task(self.run_job(lease), name=f"walk {job_id}"))
        self._held[job_id] = held
        held.attendant = asyncio.create_task(self._attend(held), name=f"attend {job_id}")

    def _halt(self, held: Held, why: Halt) -> None:
        """Cancel a walk, once; the first reason stands."""
        if held.halt is None and not held.walk.done():
            held.halt = why
            held.walk.cancel()

    async def run_job(self, lease: Lease) -> Ending:
        """Walk one claimed job from where its rows stand to its end."""
        if lease.claim.job.cancel_requested:
            # Asked for while no Director was there to hear it.
            return Ending(status=JobStatus.CANCELLED, line="job: cancelled")
        nodes = await self._patience.insist(self._ledger.nodes, lease.claim.job.id)
        return await Walk(lease, nodes, self._shop).run()

    async def _attend(self, held: Held) -> None:
        """Wait for a walk's end, whatever it is, and close the job accordingly. Never raises."""
        claim = held.lease.claim
        try:
            await asyncio.wait({held.walk})
            await self._close(held)
        except LeaseLost as lost:
            log.warning("%s", lost)
        except Exception:
            log.exception("job %s could not be closed; its lease will run out", claim.job.id)
        finally:
            # Another claim of the same job may be in hand by now.
            if self._held.get(claim.job.id) is held:
                del self._held[claim.job.id]
            self._wake.set()

    async def _close(self, held: Held) -> None:
        claim, walk = held.lease.claim, held.walk
        if walk.cancelled():
            match held.halt:
                case Halt.CANCEL:
                    await self._patience.insist(self._leases.cancel, claim)
                    await self._discard(claim)
                case Halt.STOP | Halt.PAUSE:
                    await self._patience.insist(self._leases.release, claim)
                case _:
                    log.warning("%s", LeaseLost(job_id=claim.job.id))
            return
        error = walk.exception()
        if error is None:
            ending = walk.result()
        elif _is_lease_lost(error):
            raise LeaseLost(job_id=claim.job.id)
        else:
            ending = await self._collapse(claim, error)
        await self._patience.insist(self._leases.finish, claim, ending)
        if ending.status is JobStatus.CANCELLED:
            await self._discard(claim)

    async def _discard(self, claim: Claim) -> None:
        """Remove what the job's unfinished attempts have left in the store; what fails there is left to its age."""
        nodes = await self._patience.insist(self._ledger.nodes, claim.job.id)
        for node in nodes:
            if node.status is NodeStatus.CANCELLED and node.attempt and node.lane not in NO_MODEL_LANES:
                try:
                    await asyncio.to_thread(self._shop.store.discard, node.key)
                except Exception as error:  # noqa: BLE001 - whatever a store's client raises
                    log.warning("what %s of job %s has left is not removed: %s", node.id, claim.job.id, error)

    async def _collapse(self, claim: Claim, error: BaseException) -> Ending:
        """The engine itself went wrong: the job fails, rather than being claimed and failing for ever."""
        trace = "".join(traceback.format_exception(error))
        log.error("job %s: the engine failed\n%s", claim.job.id, trace)
        await self._patience.insist(self._shop.journal.log, claim, trace, Level.ERROR)
        return Ending(status=JobStatus.FAILED, error=ErrorRecord.of(error), line=f"job: failed: engine: {error!r}")

    async def _let_go(self) -> None:
        """Stop every walk and wait for its close; what hangs longer than a lease would is left to the lease."""
        for held in self._held.values():
            self._halt(held, Halt.STOP)
        attendants = [held.attendant for held in self._held.values() if held.attendant]
        if attendants:
            _, late = await asyncio.wait(attendants, timeout=self._settings.lease_s)
            for attendant in late:
                attendant.cancel()
        self._patience.close()


def _is_lease_lost(error: BaseException) -> bool:
    """LeaseLost, alone or anywhere in a group: siblings may have failed otherwise while they were being ended."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_lease_lost(part) for part in error.exceptions)
    return isinstance(error, LeaseLost)
