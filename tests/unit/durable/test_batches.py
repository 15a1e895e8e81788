"""Many jobs as one unit: order, limits, pause and budget hold for whoever runs the jobs, and after restarts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import sqlalchemy as sa

from tests.studio import Studio, film
from workflows.durable.batch_rules import Held, Standing, spent_s
from workflows.durable.batches import Batches, BatchLimits, NewBatch, NewFile, job_id_in
from workflows.durable.gates import Gates
from workflows.durable.journal import Journal
from workflows.durable.leases import Leases
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType
from workflows.durable.tables import job
from workflows.errors import BatchConflict, BatchHeld, InvalidDocument, UnknownBatch
from workflows.types import JobStatus, NodeCall, NodeResult, NodeStatus, Priority


def file(name: str, text: str = "", *, shots: int = 1) -> NewFile:
    """A film whose nodes a model makes; `text` is what stands in the file."""
    text = text or name
    new = film(job_id_in("b", text), shots=shots)
    nodes = tuple(replace(node, lane="model" if node.shot_id else "cpu",
                          payload={**node.payload, "prompt": f"{text} {node.shot_id}"}) for node in new.nodes)
    return NewFile(file=name, job=replace(new, title=name, document={"text": text}, nodes=nodes))


def batch(*files: NewFile, **limits: float) -> NewBatch:
    return NewBatch(id="b", name="trailers", files=files, limits=BatchLimits(**limits))  # type: ignore[arg-type]


@pytest.fixture
def batches(ledger: Ledger) -> Batches:
    return Batches(ledger)


def statuses(batches: Batches) -> dict[str, JobStatus]:
    return {found.file: found.status for found in batches.files("b")}


async def over(studio: Studio, batches: Batches) -> None:
    await studio.until(lambda: batches.files("b"), lambda files: all(found.status.is_terminal for found in files))


async def quiet(studio: Studio) -> None:
    """Until nothing runs, and nobody holds a job."""
    def owned() -> int:
        with studio.ledger.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(job).where(job.c.owner.is_not(None))) or 0
    await studio.until(owned, lambda count: not count)


class Meter:
    """A step that counts how many calls are inside, and how many there were; `gate` shut: none goes on."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.inside = self.most = self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, call: NodeCall) -> NodeResult:
        self.calls += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.01)
        await self.gate.wait()
        self.inside -= 1
        return self._studio.step.result(call)

    def measure(self, *nodes: str) -> None:
        """Stand in for these nodes of every job."""
        self._studio.step.script.update({node: [self] * 99 for node in nodes})


class TestSubmit:
    def test_a_batch_is_one_unit_below_interactive_jobs(self, ledger: Ledger, batches: Batches) -> None:
        done = batches.submit(batch(file("a"), file("b"), concurrency=3, gpu_budget_s=9.0))
        assert (done.new, done.changed) == (("a", "b"), ())
        assert (done.batch.concurrency, done.batch.gpu_budget_s, done.batch.held) == (3, 9.0, Held.NO)
        row = ledger.job(batches.files("b")[0].job_id)
        assert (row.priority, row.batch_id) == (Priority.BATCH, "b")

    def test_the_same_again_joins_and_a_changed_file_is_a_new_job(self, ledger: Ledger, batches: Batches) -> None:
        batches.submit(batch(file("a"), file("b")))
        before = {found.file: found.job_id for found in batches.files("b")}
        assert batches.submit(batch(file("a"), file("b"))).new == ()
        done = batches.submit(batch(file("a", "other"), file("b"), file("c")))
        assert (done.new, done.changed) == (("a", "c"), ("a",))
        after = {found.file: found.job_id for found in batches.files("b")}
        assert (after["b"], after["a"] == before["a"]) == (before["b"], False)
        assert ledger.job(before["a"]).status is JobStatus.CANCELLED
        assert batches.submit(batch(file("a"))).changed == ("a",), "as it was at first"
        assert batches.files("b")[0].job_id == before["a"]
        assert ledger.job(before["a"]).status is JobStatus.QUEUED
        assert ledger.job(after["a"]).status is JobStatus.CANCELLED

    def test_two_files_that_say_the_same_are_one_job(self, batches: Batches) -> None:
        batches.submit(batch(file("a", "x"), file("b", "x")))
        assert len({found.job_id for found in batches.files("b")}) == 1

    @pytest.mark.parametrize("new", [
        batch(), batch(file("a"), file("a")), replace(batch(file("a")), name=""), batch(file("x" * 401)),
        batch(file("a"), concurrency=-1), batch(file("a"), gpu_budget_s=float("nan"))],
        ids=["empty", "twice", "no name", "long name", "concurrency", "budget"])
    def test_what_cannot_be_is_refused_whole(self, batches: Batches, new: NewBatch) -> None:
        with pytest.raises(InvalidDocument):
            batches.submit(new)
        assert batches.page().batches == ()

    def test_a_file_that_cannot_be_taken_leaves_nothing_of_the_others(self, ledger: Ledger, batches: Batches) -> None:
        broken = replace(file("b"), job=replace(file("b").job, nodes=()))
        with pytest.raises(InvalidDocument):
            batches.submit(batch(file("a"), broken))
        assert ledger.jobs().jobs == ()

    def test_pages_and_keys(self, batches: Batches) -> None:
        for number in range(3):
            batches.submit(replace(batch(file(f"f{number}")), id=f"b{number}", key_id="k" if number else ""))
        page = batches.page(limit=2)
        assert [row.id for row in (*page.batches, *batches.page(cursor=page.next_cursor).batches)] == ["b2", "b1", "b0"]
        assert [row.id for row in batches.page(key_id="k").batches] == ["b2", "b1"]
        with pytest.raises(UnknownBatch):
            batches.get("nothing")


class TestRun:
    async def test_jobs_are_taken_in_the_order_of_the_files(self, studio: Studio, batches: Batches) -> None:
        names = [f"f{number}" for number in range(6)]
        batches.submit(batch(*map(file, names), concurrency=1))
        async with studio.running():
            await over(studio, batches)
        started = sorted((studio.events(EventType.NODE_STARTED, found.job_id)[0].seq, found.file)
                         for found in batches.files("b"))
        assert [name for _, name in started] == names

    async def test_its_limit_holds_over_all_its_jobs_and_over_two_directors(
            self, studio: Studio, batches: Batches) -> None:
        meter = Meter(studio)
        meter.measure("s1.keyframe", "s2.keyframe", "s1.clip", "s2.clip", "compose")
        batches.submit(batch(*(file(f"f{number}", shots=2) for number in range(4)), concurrency=2))
        async with studio.running(), studio.running():
            await over(studio, batches)
        assert (meter.most, meter.calls) == (2, 4 * 5)
        assert set(statuses(batches).values()) == {JobStatus.SUCCEEDED}

    async def test_a_limited_batch_leaves_room_for_another(self, studio: Studio, batches: Batches) -> None:
        """It holds no more jobs than it has use for, though a Director would have room for eight."""
        meter = Meter(studio)
        meter.gate.clear()
        meter.measure("s1.keyframe")
        batches.submit(batch(*(file(f"f{number}") for number in range(8)), concurrency=1))
        studio.settings = studio.settings.model_copy(update={"max_jobs": 3})
        other = replace(film("other"), priority=Priority.BATCH, nodes=film("other").nodes[-1:])
        studio.ledger.submit(replace(other, nodes=(replace(other.nodes[0], deps=()),)))
        async with studio.running():
            assert (await studio.finish("other")).status is JobStatus.SUCCEEDED
            meter.gate.set()
            await over(studio, batches)

    async def test_interactive_jobs_go_first(self, studio: Studio, batches: Batches) -> None:
        studio.slots = 1
        batches.submit(batch(file("a", shots=3)))
        mine = film("mine", shots=4)
        # Pictures alone: a clip waits for the commit of its picture, and the slot would not wait for it.
        studio.ledger.submit(replace(mine, nodes=tuple(
            replace(node, lane="model") for node in mine.nodes if not node.deps)))
        async with studio.running():
            await over(studio, batches)
        calls = [call.job_id == "mine" for call in studio.step.calls if call.node_id != "compose"]
        # The batch may have had the slot before anybody else was there.
        assert calls.index(True) <= 1
        assert sum(calls[:5]) == 4


class TestPause:
    async def test_what_runs_finishes_and_nothing_starts_until_it_goes_on(
            self, studio: Studio, batches: Batches) -> None:
        meter = Meter(studio)
        meter.gate.clear()
        meter.measure("s1.keyframe")
        batches.submit(batch(file("a"), file("b"), file("c"), concurrency=2))
        async with studio.running():
            await studio.until(lambda: meter.inside, lambda inside: inside == 2)
            assert batches.pause("b").held is Held.PAUSED
            meter.gate.set()
            await quiet(studio)
            await asyncio.sleep(0.1)
        assert (meter.calls, len(studio.step.calls)) == (2, 2)
        assert set(statuses(batches).values()) == {JobStatus.QUEUED}
        made = [studio.node("s1.keyframe", found.job_id) for found in batches.files("b")]
        assert [node.status for node in made] == [NodeStatus.SUCCEEDED, NodeStatus.SUCCEEDED, NodeStatus.PENDING]
        # A restart in the middle: another engine, and the pause holds.
        async with studio.running():
            await asyncio.sleep(0.1)
            assert len(studio.step.calls) == 2
            batches.resume("b")
            await over(studio, batches)
        assert len(studio.step.calls) == 3 * 3, "nothing was run twice"

    async def test_a_job_that_is_no_part_of_it_goes_on(self, studio: Studio, batches: Batches) -> None:
        batches.submit(batch(file("a")))
        batches.pause("b")
        studio.ledger.submit(replace(film("other"), priority=Priority.BATCH))
        assert (await studio.render("other")).status is JobStatus.SUCCEEDED
        assert statuses(batches) == {"a": JobStatus.QUEUED}

    def test_what_is_over_cannot_be_paused(self, batches: Batches) -> None:
        batches.submit(batch(file("a")))
        batches.cancel("b")
        with pytest.raises(BatchConflict, match="is over"):
            batches.pause("b")

    def test_a_start_that_comes_after_the_pause_is_undone(self, ledger: Ledger, batches: Batches) -> None:
        batches.submit(batch(file("a")))
        leases = Leases(ledger.database, lease_s=60.0, interruption_limit=5)
        (claim,) = leases.claim(1, Priority.BATCH)
        batches.pause("b")
        nodes = ledger.nodes(claim.job.id)
        with pytest.raises(BatchHeld, match="paused"):
            Journal(ledger.database).start(claim, nodes[0], key="k")
        assert ledger.nodes(claim.job.id) == nodes
        leases.release(claim)
        assert leases.claim(1, Priority.BATCH) == ()


class TestBudget:
    async def test_it_pauses_the_batch_and_more_of_it_lets_it_go_on(self, studio: Studio, batches: Batches) -> None:
        """Every model node costs half a GPU-second; a job has two."""
        batches.submit(batch(*(file(f"f{number}") for number in range(4)), concurrency=1, gpu_budget_s=1.5))
        async with studio.running():
            await studio.until(lambda: batches.get("b").held, lambda held: held is Held.BUDGET)
            await quiet(studio)
            with studio.ledger.database.read() as connection:
                assert spent_s(connection, "b") == 1.5
            assert JobStatus.FAILED not in statuses(batches).values()
            with pytest.raises(BatchConflict, match=r"1.5 of its 1.5 GPU-seconds"):
                batches.resume("b")
            assert batches.change("b", BatchLimits(gpu_budget_s=9.0)).held is Held.NO
            await over(studio, batches)
        assert len(studio.step.calls) == 4 * 3

    def test_no_limit_is_infinity_and_zero(self, batches: Batches) -> None:
        batches.submit(batch(file("a"), concurrency=3, gpu_budget_s=0.0))
        row = batches.change("b", BatchLimits(concurrency=0, gpu_budget_s=float("inf")))
        assert (row.concurrency, row.gpu_budget_s) == (None, None)


class TestVerbs:
    async def test_all_that_failed_runs_again_and_nothing_else(self, studio: Studio, batches: Batches) -> None:
        studio.step.script["s1.clip"] = [RuntimeError("burned")] * studio.settings.attempts
        batches.submit(batch(file("a"), file("b"), concurrency=1))
        async with studio.running():
            await over(studio, batches)
            assert statuses(batches) == {"a": JobStatus.PARTIAL, "b": JobStatus.SUCCEEDED}
            opened = batches.retry("b")
            assert list(opened.values()) == [("s1.clip", "compose")]
            await over(studio, batches)
        assert set(statuses(batches).values()) == {JobStatus.SUCCEEDED}
        assert batches.retry("b") == {}

    async def test_cancel_ends_all_and_delete_forgets_all(self, studio: Studio, batches: Batches) -> None:
        meter = Meter(studio)
        meter.gate.clear()
        meter.measure("s1.keyframe")
        batches.submit(batch(file("a"), file("b"), concurrency=1))
        async with studio.running():
            await studio.until(lambda: meter.inside, lambda inside: inside == 1)
            with pytest.raises(BatchConflict, match="2 of its jobs are not over"):
                batches.delete("b")
            assert len(batches.cancel("b")) == 2
            await over(studio, batches)
        assert set(statuses(batches).values()) == {JobStatus.CANCELLED}
        batches.delete("b")
        assert (batches.page().batches, studio.ledger.jobs().jobs) == ((), ())
        with pytest.raises(UnknownBatch):
            batches.delete("b")


class TestGates:
    async def test_who_is_cancelled_while_places_are_given_out_leaves_no_trace(self) -> None:
        """The cancel comes first, and the place is given before the waiter hears of it."""
        gates = Gates()
        gates.learn({"b": Standing(is_held=True, concurrency=1)})
        first, second = (asyncio.create_task(through(gates, job_id)) for job_id in ("j1", "j2"))
        await asyncio.sleep(0)
        first.cancel()
        gates.learn({"b": Standing(is_held=False, concurrency=1)})
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == "j2"
        assert gates.is_idle("j1")
        assert await asyncio.wait_for(through(gates, "j3"), 1) == "j3", "the place is free again"


async def through(gates: Gates, job_id: str) -> str:
    async with gates.place("b", job_id):
        return job_id
