"""One job on its way through its DAG, under one lease. Knows steps, store and slots by their ports; claims nothing.

`Walk.run` ends when every node is settled. A node that fails is a value: its siblings go on, its dependants are
skipped or told. LeaseLost is not: it ends every sibling, and with them what they were spending.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from graphlib import TopologicalSorter

from configs.settings import EngineSettings
from workflows.dispatch import Dispatcher
from workflows.durable import graph, shortage
from workflows.durable.gates import Gates
from workflows.durable.journal import Journal, Settled
from workflows.durable.leases import Ending, Lease, Leases
from workflows.durable.patience import Patience
from workflows.durable.rows import Level, NodeRow
from workflows.durable.store_watch import StoreWatch
from workflows.durable.verdict import Setback, judge
from workflows.errors import (
    BatchHeld,
    BudgetSpent,
    DeadlineExceeded,
    ErrorRecord,
    GpuOutOfMemory,
    InvalidDocument,
    InvalidSettings,
    LeaseLost,
    ReelrayError,
    ReplicaLost,
    Retry,
    StageFailed,
)
from workflows.fair_queue import Ticket, path_ranks
from workflows.placement import kin_of
from workflows.ports import ArtifactStore, Step
from workflows.types import (
    MISSING_KEY,
    NO_MODEL_LANES,
    Artifact,
    Done,
    JobStatus,
    Json,
    NodeCall,
    NodeKind,
    NodeResult,
    NodeStatus,
    Skipped,
    content_key,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every walk of one Director uses."""

    steps: Mapping[NodeKind, Step]
    store: ArtifactStore
    watch: StoreWatch
    dispatcher: Dispatcher
    settings: EngineSettings
    leases: Leases
    journal: Journal
    patience: Patience
    gates: Gates = field(default_factory=Gates)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Again:
    """An attempt that settled nothing."""

    node: NodeRow
    wait_s: float = 0.0
    """Before the next one."""


@dataclass(slots=True)
class _SoFar:
    """What a node's attempts have shown since this Director has it."""

    refusals: int = 0
    """In a row."""
    avoid: tuple[str, ...] = ()
    """Replicas that ran out of memory for it."""


class Walk:
    """The nodes of one claimed job, each waiting for what it needs."""

    def __init__(self, lease: Lease, nodes: Sequence[NodeRow], shop: Workshop) -> None:
        """`nodes`: all of the job's, as they stand."""
        self._lease = lease
        self._claim = lease.claim
        self._shop = shop
        self._nodes = {node.id: node for node in nodes}
        self._settled = {node.id: asyncio.Event() for node in nodes}
        self._ranks: Mapping[str, float] = {}
        most = self._claim.job.limits.concurrency
        self._room = asyncio.Semaphore(most) if most else nullcontext()
        self._keys: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> Ending:
        """Settle every node and say how the job ends. Raises a group with LeaseLost when the lease is gone."""
        await self._mend()
        self._ranks = path_ranks(self._nodes.values())
        async with asyncio.TaskGroup() as group:
            for node in tuple(self._nodes.values()):
                self._enter(group, node)
        return ending_of(tuple(self._nodes.values()), since_s=self._claim.job.started_at_s or time.time())

    async def run_node(self, group: asyncio.TaskGroup, node_id: str) -> None:
        """Take one node from waiting to settled."""
        # 1. wait
        node = await self._ready(node_id)
        if node is None:
            return
        # 2. run it, or not
        missing = self._missing(node)
        if missing:
            skipped = await self._shop.patience.insist(
                self._shop.journal.skip, self._claim, node, Skipped(missing=missing))
            settled = Settled(node=skipped)
        elif why := graph.not_needed(node, self._nodes):
            settled = Settled(node=await self._shop.patience.insist(
                self._shop.journal.spare, self._claim, node, why=why))
        else:
            # Nodes with the same key take turns: the second one finds what the first one made.
            key = self._key(node)
            async with self._keys[key]:
                settled = await self._work(node, key)
        # 3. let the others know
        self._absorb(group, settled)

    def _enter(self, group: asyncio.TaskGroup, node: NodeRow) -> None:
        if node.status.is_terminal:
            self._settled[node.id].set()
        else:
            group.create_task(self.run_node(group, node.id), name=f"{node.job_id}/{node.id}")

    async def _ready(self, node_id: str) -> NodeRow | None:
        """The node once all it waits for is settled; None when the parent that ran again has dropped it."""
        # Looked up anew after each wait: a parent's new result may have changed the node and its deps.
        while (node := self._nodes.get(node_id)) is not None:
            unsettled = [dep for dep in graph.waits_for(node) if not self._settled[dep].is_set()]
            if not unsettled:
                return node
            await self._settled[unsettled[0]].wait()
        return None

    def _missing(self, node: NodeRow) -> tuple[str, ...]:
        """What stops the node from running: its parent, and its dependencies unless it accepts holes."""
        return tuple(dep for dep in graph.needs(node) if self._nodes[dep].status is not NodeStatus.SUCCEEDED)

    async def _work(self, node: NodeRow, key: str) -> Settled:
        """Reuse the node's result or make it, in as many attempts as the settings allow."""
        obstacle = self._obstacle(node)
        if obstacle is not None:
            return await self._fail(node, self._judge(obstacle, node, refusals=0))
        stored = None if node.kind in graph.FAN_OUT else await self._find(key)
        if stored is not None:
            settled = await self._succeed(node, Done(result=NodeResult(artifact=stored), cached=True), key)
            if not await self._is_gone(key):
                return settled
            # Taken away between look and commit. A collection looks at rows after it has taken a result out of sight:
            # whoever has committed and still finds it is seen by every collection that could remove it.
            node = await self._shop.patience.insist(self._shop.journal.reopen, self._claim, settled.node)
        so_far, job = _SoFar(), self._claim.job
        while True:
            # Until the result is committed: that is what the batch's limit counts, and a pause must not come between.
            async with self._room, self._shop.gates.place(job.batch_id, job.id):
                # Two calls share a replica and die together, whichever of them killed it. Kept apart when one more
                # death would be the last, the innocent one does not die with the other again, and only the guilty one
                # is poison. Not sooner: a dead machine kills all its shots, and in a row they would take all night.
                last = node.crashes >= max(self._shop.settings.poison_limit - 1, 1)
                async with (self._shop.dispatcher.apart(node.lane) if last else nullcontext(),
                            self._shop.dispatcher.slot(node.lane, self._ticket(node, key, so_far)) as seats):
                    try:
                        node = await self._shop.patience.insist(self._shop.journal.start, self._claim, node, key=key)
                        await self._be_certain()
                    except (BudgetSpent, BatchHeld) as refused:
                        outcome: NodeResult | Exception = refused
                    else:
                        outcome = await self._attempt(node, so_far.avoid, seats)
                tried = await self._settle(node, outcome, key, so_far)
            if isinstance(tried, Settled):
                return tried
            node = tried.node
            await asyncio.sleep(tried.wait_s)

    def _ticket(self, node: NodeRow, key: str, so_far: _SoFar) -> Ticket:
        job = self._claim.job
        # What did not go well goes alone: it may go on from where it was, and nobody else is drawn into its end.
        smooth = not (node.failures or node.crashes or node.interruptions or so_far.refusals)
        return Ticket(job_id=job.id, tenant=job.key_id, priority=job.priority, weight=job.weight, cost=node.cost,
                      batch_id=job.batch_id, since_s=job.created_at_s, rank=self._ranks[node.id], key=key,
                      kin=kin_of(node.payload), elastic=smooth, coming=partial(self._coming, node.lane))

    def _coming(self, lane: str) -> int:
        """Nodes that will wait for the lane too, once what they wait for now is settled."""
        return sum(node.lane == lane and not self._settled[node.id].is_set()
                   and any(not self._settled[dep].is_set() for dep in graph.waits_for(node))
                   for node in self._nodes.values())

    async def _settle(self, node: NodeRow, outcome: NodeResult | Exception, key: str, so_far: _SoFar,
                      ) -> Settled | _Again:
        """What an attempt, or the refusal of one, comes to."""
        if isinstance(outcome, NodeResult):
            return await self._succeed(node, Done(result=outcome), key)
        if isinstance(outcome, BatchHeld):
            # Its nodes wait at the gate until the next look at the database.
            self._shop.gates.shut(outcome.batch_id)
            await self._shop.patience.insist(self._shop.journal.hold_batch, outcome.batch_id)
            return _Again(node=node)
        if isinstance(outcome, GpuOutOfMemory) and outcome.replica:
            so_far.avoid = tuple({*so_far.avoid, outcome.replica})
        refused = ErrorRecord.of(outcome).retry is Retry.FREE and not isinstance(outcome, ReplicaLost)
        so_far.refusals = so_far.refusals + 1 if refused else 0
        setback = self._judge(outcome, node, refusals=so_far.refusals)
        if setback.final:
            return await self._fail(node, setback)
        node = await self._shop.patience.insist(self._shop.journal.retry, self._claim, node, setback)
        return _Again(node=node, wait_s=setback.wait_s)

    async def _be_certain(self) -> None:
        """Ask for the lease again when this process stood still for so long that another may have it; or LeaseLost."""
        while (asked_s := time.monotonic()) >= self._lease.certain_until_s:
            renewed = await self._shop.patience.insist(self._shop.leases.renew, [self._claim.token])
            if self._claim.job.id not in renewed:
                raise LeaseLost(job_id=self._claim.job.id)
            self._lease.certain_until_s = asked_s + self._shop.settings.lease_s

    async def _attempt(self, node: NodeRow, avoid: tuple[str, ...], seats: tuple[int, ...]) -> NodeResult | Exception:
        """Run the step once, under the time limit of its kind; whatever it raises is handed back as a value."""
        general_s, own_s = self._shop.settings.timeout_s.of(node.kind.value), self._claim.job.limits.attempt_timeout_s
        limit_s = general_s if node.lane in NO_MODEL_LANES else min(general_s, own_s or general_s)
        payload = shortage.payload_of(node, self._shop.settings)
        call = NodeCall(
            job_id=node.job_id, node_id=node.id, shot_id=node.shot_id, kind=node.kind,
            key=node.key if payload == node.payload else self._key(node, payload),
            attempt=node.attempt, generation=node.generation, payload=payload,
            avoid=avoid if payload == node.payload else (),
            inputs={dep: self._nodes[dep].artifact if self._has_result(dep) else None for dep in node.deps},
            left_s=limit_s, seats=seats)
        try:
            async with asyncio.timeout(limit_s) as clock:
                result = await self._shop.steps[node.kind](call)
                return replace(result, warnings=shortage.told(result, node, payload))
        except asyncio.CancelledError:
            if _is_ending():
                raise
            # Nobody cancelled us: the step's own call was, somewhere below. Siblings must not wait for ever.
            return StageFailed(node_id=node.id, reason="the call was cancelled by somebody else")
        except Exception as error:
            if _is_ending():
                # The step's way of saying that it was stopped; it must not count as the shot's failure.
                raise asyncio.CancelledError from error
            if clock.expired():
                whose = f"engine.timeout_s.{node.kind.value}" if limit_s == general_s else "the job's timeout_s"
                return DeadlineExceeded(node_id=node.id, reason=f"no result after {limit_s:g} s ({whose})")
            return error

    def _obstacle(self, node: NodeRow) -> ReelrayError | None:
        """Why the node can never run here, if that is so."""
        if node.kind not in self._shop.steps:
            return InvalidSettings(problem=f"this Director has no step for {node.kind.value} nodes")
        lanes = self._shop.dispatcher.lanes
        if node.lane not in lanes:
            return InvalidSettings(problem=f"no lane {node.lane!r} here; lanes: {', '.join(lanes)}")
        return None

    def _judge(self, error: Exception, node: NodeRow, *, refusals: int) -> Setback:
        setback = judge(error, node, refusals=refusals, settings=self._shop.settings, draw=random.random)
        if isinstance(error, ReelrayError):
            return setback
        return replace(setback, trace="".join(traceback.format_exception(error)))

    def _key(self, node: NodeRow, payload: Mapping[str, Json] | None = None) -> str:
        """Of what all it needs came to; `payload`: in place of its own."""
        dep_keys = tuple(
            self._made_key(self._nodes[dep]) if self._has_result(dep) else MISSING_KEY for dep in node.deps)
        return content_key(node.kind, payload or node.payload, dep_keys, node.generation)

    @staticmethod
    def _made_key(node: NodeRow) -> str:
        """The node's own, unless its result was made in place of what that stands for: so is all that is made of it."""
        return node.artifact.key if node.artifact is not None else node.key

    def _has_result(self, node_id: str) -> bool:
        node = self._nodes[node_id]
        return node.status is NodeStatus.SUCCEEDED and node.artifact is not None

    async def _succeed(self, node: NodeRow, done: Done, key: str) -> Settled:
        try:
            return await self._shop.patience.insist(self._shop.journal.succeed, self._claim, node, done, key=key)
        except InvalidDocument as refused:
            return await self._fail(node, self._judge(refused, node, refusals=0))

    async def _fail(self, node: NodeRow, setback: Setback) -> Settled:
        return Settled(node=await self._shop.patience.insist(self._shop.journal.fail, self._claim, node, setback))

    async def _find(self, key: str) -> Artifact | None:
        """The stored result, if any. A store that cannot be asked, even after a while, is for the attempt to meet."""
        try:
            return await self._shop.watch.find(key, self._warn)
        except Exception as error:  # noqa: BLE001 - whatever a store's client raises
            await self._warn(f"store cannot be asked for {key}: {error}")
            return None

    async def _warn(self, text: str) -> None:
        await self._shop.patience.insist(self._shop.journal.log, self._claim, text, Level.WARNING)

    async def _is_gone(self, key: str) -> bool:
        """Whether the store surely has no result; one that cannot be asked may have it."""
        try:
            return await self._shop.watch.find(key, self._warn) is None
        except Exception:  # noqa: BLE001 - whatever a store's client raises
            return False

    async def _mend(self) -> None:
        """Open succeeded nodes again whose artifact has left the store while something open needs it."""
        dependants: dict[str, list[str]] = {}
        for node in self._nodes.values():
            for dep in node.deps:
                dependants.setdefault(dep, []).append(node.id)
        order = tuple(TopologicalSorter({node.id: node.deps for node in self._nodes.values()}).static_order())
        for node_id in reversed(order):
            node = self._nodes[node_id]
            wanted = any(not self._nodes[user].status.is_terminal for user in dependants.get(node_id, ()))
            # A script that is told again would tell another story: its nodes exist, its text is not needed.
            if not wanted or node.artifact is None or node.kind in graph.FAN_OUT:
                continue
            if await self._is_gone(node.artifact.key):
                self._nodes[node_id] = await self._shop.patience.insist(
                    self._shop.journal.reopen, self._claim, node)

    def _absorb(self, group: asyncio.TaskGroup, settled: Settled) -> None:
        """Take over what a commit changed and wake whoever waits for it."""
        self._nodes[settled.node.id] = settled.node
        kept = {child.id for child in settled.children}
        if settled.node.kind in graph.FAN_OUT and self._has_result(settled.node.id):
            for node in tuple(self._nodes.values()):
                if node.parent_id == settled.node.id and node.id not in kept:
                    # Its task wakes, looks for it, and ends.
                    del self._nodes[node.id]
                    self._settled[node.id].set()
        added = [child for child in settled.children if child.id not in self._nodes]
        for child in settled.children:
            self._nodes[child.id] = child
            self._settled.setdefault(child.id, asyncio.Event())
        if settled.children:
            self._ranks = path_ranks(self._nodes.values())
        for child in added:
            self._enter(group, child)
        self._settled[settled.node.id].set()


def _is_ending() -> bool:
    """Whether the running task was told to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _results(rows: Sequence[NodeRow]) -> Sequence[NodeRow]:
    if rows[-1].accepts_missing:
        return rows[-1:]
    made = [node for node in rows if node.kind not in graph.BESIDE]
    needed = {other for node in made for other in graph.waits_for(node)}
    return [node for node in made if node.id not in needed]


def ending_of(nodes: Collection[NodeRow], *, since_s: float) -> Ending:
    """How a job ends whose nodes are all settled: complete, or else by what was made.

    A last node that accepts holes is what the job is for; without one, all that nothing else needs.
    """
    rows = sorted(nodes, key=lambda node: node.ord)
    counts = Counter(node.status for node in rows)
    error: ErrorRecord | None = None
    if counts[NodeStatus.SUCCEEDED] == len(rows):
        status = JobStatus.SUCCEEDED
    elif any(node.status is NodeStatus.SUCCEEDED for node in _results(rows)):
        status = JobStatus.PARTIAL
    else:
        status = JobStatus.FAILED
        errors = [node.error for node in rows if node.status is NodeStatus.FAILED and node.error]
        error = errors[0] if errors else ErrorRecord.of(StageFailed(
            node_id=rows[-1].id, reason=f"{rows[-1].status.value}; what it needs was not made"))
    told = ", ".join(f"{counts[status]} {status.value}" for status in NodeStatus if counts[status])
    return Ending(status=status, error=error, line=f"job: {status.value} after {time.time() - since_s:.1f} s ({told})")
