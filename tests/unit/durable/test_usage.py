"""What work costs is written down with it, and a budget stops a job before its next node."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from tests.studio import Studio, film
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.journal import Journal
from workflows.durable.keys import Keys, Role
from workflows.durable.leases import Leases
from workflows.durable.ledger import Ledger
from workflows.durable.meters import Meters
from workflows.durable.rows import EventType, JobRow, NewJob
from workflows.durable.tables import job, usage
from workflows.durable.usage import Outcome
from workflows.errors import BudgetSpent, InvalidDocument, UnknownKey
from workflows.types import Artifact, Done, JobStatus, MediaType, NodeKind, NodeResult, NodeStatus, Priority

ARTIFACT = Artifact(key="k", uri="memory://k", sha256="0" * 64, size_bytes=1, media_type=MediaType.MP4)
DONE = Done(result=NodeResult(artifact=ARTIFACT, seconds={"diffusion": 8.0, "decode": 2.0, "encode": 90.0}))


def on_model(new: NewJob, key_id: str = "") -> NewJob:
    """The same film, its keyframes and clips on a model's lane, each of four steps."""
    return replace(new, key_id=key_id, nodes=tuple(
        replace(node, lane="model", payload={**node.payload, "steps": 4}) if node.shot_id else node
        for node in new.nodes))


def told(ledger: Ledger, *outcomes: Outcome) -> list[sa.RowMapping]:
    with ledger.database.read() as connection:
        rows = connection.execute(sa.select(usage).order_by(usage.c.seq)).mappings().all()
    return [row for row in rows if row["outcome"] in outcomes]


async def render(studio: Studio, job_id: str = "film") -> JobRow:
    """Run an engine with one slot on a model until the job is over."""
    engine = Engine(studio.ledger, dict.fromkeys(NodeKind, studio.step), store=studio.store,
                    dispatcher=Dispatcher({"cpu": 2, "model": 1}), settings=studio.settings)
    running = asyncio.create_task(engine.run())
    row = await studio.finish(job_id)
    await engine.stop()
    await running
    return row


@pytest.fixture
def leases(ledger: Ledger) -> Leases:
    return Leases(ledger.database, lease_s=60.0, interruption_limit=5)


class TestUsage:
    def test_a_result_is_charged_what_the_model_worked(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(on_model(film()))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal = Journal(ledger.database)
        running = journal.start(claim, ledger.nodes("film")[0], key="k")
        journal.succeed(claim, running, DONE, key="k")
        journal.succeed(claim, running, DONE, key="k")  # the answer to the first was lost
        (row,) = told(ledger, Outcome.USEFUL)
        assert (row["gpu_s"], row["diffusion_s"], row["steps"], row["key_id"]) == (10.0, 8.0, 4, None)

    def test_gpus_that_helped_are_charged_too_and_told(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(on_model(film()))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal = Journal(ledger.database)
        running = journal.start(claim, ledger.nodes("film")[0], key="k")
        helped = replace(DONE.result, gpus=4, seconds={**DONE.result.seconds, "lent": 30.0})
        journal.succeed(claim, running, Done(result=helped), key="k")
        (row,) = told(ledger, Outcome.USEFUL)
        assert row["gpu_s"] == 40.0
        (event,) = [event for event in ledger.events("film", 0, 100) if event.type is EventType.NODE_SUCCEEDED]
        assert event.data["gpus"] == 4
        assert event.line.endswith("on 4 GPUs")

    def test_a_result_found_in_the_store_saves_what_it_had_cost(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(on_model(film()))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal, nodes = Journal(ledger.database), ledger.nodes("film")
        journal.succeed(claim, journal.start(claim, nodes[0], key="k"), DONE, key="k")
        journal.succeed(claim, nodes[1], replace(DONE, cached=True), key="k")
        (row,) = told(ledger, Outcome.SAVED)
        assert row["gpu_s"] == 10.0

    def test_what_a_result_took_over_from_an_earlier_attempt_is_told_and_not_charged_again(
            self, ledger: Ledger, leases: Leases) -> None:
        key = Keys(ledger.database).create("me", Role.USER).key
        ledger.submit(on_model(film(), key_id=key.id))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal = Journal(ledger.database)
        running = journal.start(claim, ledger.nodes("film")[0], key="k")
        made = {"diffusion": 3.0, "decode": 2.0, "carried": 5.0}
        journal.succeed(claim, running, Done(result=NodeResult(artifact=ARTIFACT, seconds=made)), key="k")
        (useful,) = told(ledger, Outcome.USEFUL)
        assert (useful["gpu_s"], useful["steps"], useful["diffusion_s"]) == (5.0, 0, 0.0), "no step's rate"
        (carried,) = told(ledger, Outcome.CARRIED)
        assert carried["gpu_s"] == 5.0
        assert Keys(ledger.database).spent_s() == {key.id: 5.0}

    @pytest.mark.parametrize("end", ["cancel", "release", "interrupted"])
    def test_what_is_stopped_was_wasted(self, ledger: Ledger, leases: Leases, end: str) -> None:
        ledger.submit(on_model(film()))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        Journal(ledger.database).start(claim, ledger.nodes("film")[0], key="k")
        if end == "cancel":
            ledger.cancel("film")
            leases.cancel(claim)
        elif end == "release":
            leases.release(claim)
        else:
            with ledger.database.write() as connection:
                connection.execute(sa.update(job).values(lease_until=1.0))
            leases.claim(1, Priority.INTERACTIVE)
        (row,) = told(ledger, Outcome.WASTED, Outcome.INTERRUPTED)
        assert (row["outcome"] == "interrupted") == (end == "interrupted")
        assert row["gpu_s"] == row["wall_s"] >= 0
        assert len(told(ledger, Outcome.CANCELLED)) == (end == "cancel")

    def test_what_was_stopped_in_a_shared_run_is_charged_its_share_of_every_gpu(self, ledger: Ledger, leases: Leases,
                                                                                 ) -> None:
        new = on_model(film())
        ledger.submit(replace(new, nodes=tuple(
            replace(node, payload={**node.payload, "batch": 4, "gpus": 2}) for node in new.nodes)))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal = Journal(ledger.database)
        for node in ledger.nodes("film")[:2]:
            journal.start(claim, node, key="k")
        time.sleep(0.01)
        leases.release(claim)
        rows = told(ledger, Outcome.WASTED)
        assert len(rows) == 2
        for row in rows:
            assert row["gpu_s"] == pytest.approx(row["wall_s"] / 4 * 2)
            assert row["gpu_s"] > 0

    def test_a_job_waits_once_per_time_that_it_is_queued(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(film())
        leases.claim(1, Priority.INTERACTIVE)
        with ledger.database.write() as connection:
            connection.execute(sa.update(job).values(lease_until=1.0))
        leases.claim(1, Priority.INTERACTIVE)
        assert len(told(ledger, Outcome.WAITED)) == 1, "it changed hands; nobody queued it again"

    def test_what_a_forgotten_job_has_cost_stays(self, ledger: Ledger) -> None:
        key = Keys(ledger.database).create("me", Role.USER).key
        ledger.submit(replace(film(), key_id=key.id))
        with ledger.database.write() as connection:
            connection.execute(sa.insert(usage).values(
                at=1.0, key_id=key.id, outcome="useful", kind="clip", lane="model", node_key="k", wall_s=5.0, gpu_s=5.0,
                steps=4, diffusion_s=4.0))
        ledger.cancel("film")
        ledger.delete("film")
        assert Keys(ledger.database).spent_s() == {key.id: 5.0}


class TestMeters:
    def test_rows_are_added_up_by_what_they_tell(self, ledger: Ledger, leases: Leases) -> None:
        ledger.submit(on_model(film()))
        ledger.submit(film("waiting"))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal, nodes = Journal(ledger.database), ledger.nodes("film")
        for number in (0, 2):
            journal.succeed(claim, journal.start(claim, nodes[number], key="k"), DONE, key="k")
        readings = Meters(ledger.database).read()
        made = next(spell for spell in readings.spells if spell.outcome is Outcome.USEFUL)
        assert (made.kind, made.lane, made.count, made.gpu_s, made.steps) == ("keyframe", "model", 2, 20.0, 8)
        assert made.within[-1] == 2
        assert [spell.count for spell in readings.spells if spell.outcome is Outcome.WAITED] == [1]
        assert readings.queued == {Priority.INTERACTIVE: 1}
        assert readings.jobs == {JobStatus.RUNNING: 1, JobStatus.QUEUED: 1}
        assert readings.nodes[NodeKind.KEYFRAME, NodeStatus.SUCCEEDED] == 2

    def test_a_database_without_jobs_is_read_too(self, ledger: Ledger) -> None:
        assert Meters(ledger.database).read().jobs == {}


class TestBudget:
    async def test_a_job_stops_before_its_next_shot_says_why_and_goes_on_when_the_budget_grew(
            self, studio: Studio) -> None:
        """Each node costs 0.5 and the second reaches the budget of 1; the third may start while that is written."""
        keys = Keys(studio.ledger.database)
        key = keys.create("me", Role.USER, gpu_budget_s=1.0).key
        studio.ledger.submit(on_model(film(shots=2, accepts_missing=False), key.id))
        stopped = await render(studio)
        assert stopped.status is JobStatus.FAILED
        assert stopped.error is not None
        assert stopped.error.type == "BudgetSpent"
        assert "of its 1 GPU-seconds" in stopped.error.message
        assert "keys change" in studio.log()
        assert (made := len(studio.step.calls)) in (2, 3)
        studio.ledger.rerun("film")
        assert (await render(studio)).status is JobStatus.FAILED, "nothing grew"
        assert len(studio.step.calls) == made
        keys.change(key.id, gpu_budget_s=10.0)
        studio.ledger.rerun("film")
        assert (await render(studio)).status is JobStatus.SUCCEEDED
        assert len(studio.step.calls) == 5, "what was made before is not made again"
        assert keys.spent_s() == {key.id: 2.0}, "joining costs no GPU-seconds"

    async def test_what_the_store_has_is_free(self, studio: Studio) -> None:
        keys = Keys(studio.ledger.database)
        key = keys.create("me", Role.USER, gpu_budget_s=2.0).key
        for name in ("first", "again"):
            studio.ledger.submit(on_model(film(name, shots=2), key.id))
            assert (await render(studio, name)).status is JobStatus.SUCCEEDED

    def test_nothing_starts_once_it_is_used_up_and_what_runs_may_end(self, ledger: Ledger, leases: Leases) -> None:
        keys = Keys(ledger.database)
        key = keys.create("me", Role.USER, gpu_budget_s=10.0).key
        ledger.submit(on_model(film(), key.id))
        (claim,) = leases.claim(1, Priority.INTERACTIVE)
        journal, nodes = Journal(ledger.database), ledger.nodes("film")
        first, second = (journal.start(claim, node, key=f"k{n}") for n, node in enumerate(nodes[:2]))
        journal.succeed(claim, first, DONE, key="k0")
        assert keys.spent_s() == {key.id: 10.0}
        assert journal.start(claim, nodes[1], key="k1").attempt == second.attempt, "it had been started before"
        with pytest.raises(BudgetSpent, match=r"used 10\.0 of its 10"):
            journal.start(claim, nodes[2], key="k2")
        assert ledger.nodes("film")[2].status is NodeStatus.PENDING
        journal.succeed(claim, second, DONE, key="k1")
        assert keys.spent_s() == {key.id: 20.0}


class TestKeys:
    def test_a_key_opens_with_its_own_token_only_until_it_is_revoked(self, ledger: Ledger) -> None:
        keys = Keys(ledger.database)
        one, two = keys.create("one", Role.USER), keys.create("two", Role.USER)
        assert one.key.opens_with(one.token)
        assert not one.key.opens_with(two.token)
        assert not keys.revoke(one.key.id).opens_with(one.token)
        assert len(keys.all()) == 2

    def test_limits_are_changed_one_by_one(self, ledger: Ledger) -> None:
        keys = Keys(ledger.database)
        key = keys.create("me", Role.USER, requests_per_min=5, gpu_budget_s=10.0).key
        assert keys.change(key.id, gpu_budget_s=20.0) == replace(key, gpu_budget_s=20.0)
        assert keys.change(key.id, gpu_budget_s=float("inf")).gpu_budget_s is None

    @pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\nb"])
    def test_a_name_that_cannot_be_shown_is_refused(self, ledger: Ledger, name: str) -> None:
        with pytest.raises(InvalidDocument, match="printable"):
            Keys(ledger.database).create(name, Role.USER)

    def test_a_key_that_does_not_exist_is_said_so(self, ledger: Ledger) -> None:
        with pytest.raises(UnknownKey, match="keys list"):
            Keys(ledger.database).revoke("nobody")
