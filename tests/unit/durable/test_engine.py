"""One Director at work: from claim to end, with everything that may go wrong on the way."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from configs.settings import EngineSettings, NodeTimeouts
from tests.fakes import FakeStore, ScriptedStep
from tests.studio import QUICK, Studio, film
from workflows.dispatch import Dispatcher
from workflows.durable.journal import Journal
from workflows.durable.leases import Claim, Lease, Leases
from workflows.durable.patience import Patience
from workflows.durable.rows import EventType, NewJob, NodeRow
from workflows.durable.store_watch import StoreWatch
from workflows.durable.tables import job, node
from workflows.durable.walk import Walk, Workshop
from workflows.errors import ModelFailed, Overloaded, RenderCancelled, ReplicaLost, StoreAway
from workflows.types import (
    MISSING_KEY,
    Artifact,
    JobStatus,
    NodeCall,
    NodeKind,
    NodeResult,
    NodeSpec,
    NodeStatus,
    Priority,
    content_key,
    substitute_key,
)

BROKEN = ModelFailed(node_id="s1.clip", reason="grey frames")
LOST = ReplicaLost(node_id="s1.clip", reason="actor died")
BUSY = Overloaded(node_id="s1.clip", reason="queue full")


class AwayStore(FakeStore):
    """One that may not answer."""

    def __init__(self, directory: Path, *, is_away: bool = False) -> None:
        super().__init__(directory)
        self.is_away = is_away

    def find(self, key: str) -> Artifact | None:
        if self.is_away:
            raise StoreAway(store="s3://films", reason="no route to host")
        return super().find(key)


class Hold:
    """An act that reports its start and then waits until it is let go, or for ever."""

    def __init__(self, step: ScriptedStep) -> None:
        self._step = step
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = 0

    async def __call__(self, call: NodeCall) -> NodeResult:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._step.result(call)


class TestAFilm:
    async def test_every_node_runs_once_after_what_it_needs(self, studio: Studio) -> None:
        studio.ledger.submit(film())
        done = await studio.render()
        assert done.status is JobStatus.SUCCEEDED
        order = studio.step.started()
        assert sorted(order) == sorted(studio.statuses())
        assert all(order.index(f"s{shot}.keyframe") < order.index(f"s{shot}.clip") for shot in (1, 2, 3))
        assert order[-1] == "compose"
        assert done.started_at_s is not None
        assert done.finished_at_s is not None

    async def test_what_is_made_of_a_substitute_is_a_substitute_too(self, studio: Studio) -> None:
        async def substitute(call: NodeCall) -> NodeResult:
            return NodeResult(artifact=studio.store.keep(substitute_key(call.key)))

        studio.step.script["s1.keyframe"] = [substitute]
        studio.ledger.submit(film(shots=1))
        await studio.render()
        keyframe, clip = studio.node("s1.keyframe"), studio.node("s1.clip")
        assert clip.key == content_key(NodeKind.CLIP, clip.payload, (substitute_key(keyframe.key),))
        studio.ledger.submit(film("again", shots=1))
        await studio.render("again")
        assert studio.step.started().count("s1.keyframe") == 2  # nothing was found under its own key
        assert studio.node("s1.clip", "again").key == content_key(NodeKind.CLIP, clip.payload, (keyframe.key,))

    async def test_a_step_is_told_everything_and_finds_its_start_written_down(self, studio: Studio) -> None:
        seen: list[tuple[NodeStatus, int, str]] = []

        async def look(call: NodeCall) -> NodeResult:
            row = await asyncio.to_thread(studio.node, call.node_id)
            seen.append((row.status, row.attempt, row.key))
            return studio.step.result(call)

        studio.step.script["s1.clip"] = [look]
        studio.ledger.submit(film())
        await studio.render()
        (call,) = [call for call in studio.step.calls if call.node_id == "s1.clip"]
        assert seen == [(NodeStatus.RUNNING, 1, call.key)]
        assert (call.job_id, call.shot_id, call.kind, call.attempt, call.generation, call.payload) == (
            "film", "s1", NodeKind.CLIP, 1, 0, {"prompt": "s1"})
        assert call.inputs == {"s1.keyframe": studio.node("s1.keyframe").artifact}
        assert call.left_s == 7200

    async def test_the_join_is_handed_its_clips_in_the_order_of_its_deps(self, studio: Studio) -> None:
        studio.ledger.submit(film())
        await studio.render()
        assert list(studio.step.calls[-1].inputs) == ["s1.clip", "s2.clip", "s3.clip"]

    async def test_the_log_tells_the_story(self, studio: Studio) -> None:
        studio.ledger.submit(film(shots=1))
        await studio.render()
        lines = [line[20:] for line in studio.ledger.log_lines("film").lines]
        assert lines[:3] == ["info job: queued, 3 nodes", "info job: taken by a Director",
                             "info s1.keyframe: attempt 1 starts"]
        assert lines[3].startswith("info s1.keyframe: done in 0.")
        assert lines[-1].endswith("s (3 succeeded)")
        assert lines[-1].startswith("info job: succeeded after ")

    async def test_a_result_is_kept_with_its_timings_and_times(self, studio: Studio) -> None:
        studio.ledger.submit(film(shots=1))
        await studio.render()
        clip = studio.node("s1.clip")
        assert clip.artifact == studio.store.find(clip.key)
        assert clip.seconds == {"diffusion": 0.5}
        assert clip.started_at_s is not None
        assert clip.finished_at_s is not None
        assert clip.finished_at_s >= clip.started_at_s

    async def test_no_more_steps_run_at_once_than_there_are_slots(self, studio: Studio) -> None:
        running, most, both = 0, 0, asyncio.Event()

        async def count(call: NodeCall) -> NodeResult:
            nonlocal running, most
            running, most = running + 1, max(most, running + 1)
            if running == 2:
                both.set()
            await both.wait()
            await asyncio.sleep(0)
            running -= 1
            return studio.step.result(call)

        studio.slots = 2
        studio.step.script = {f"s{shot}.{kind}": [count] for shot in range(1, 7) for kind in ("keyframe", "clip")}
        studio.ledger.submit(film(shots=6))
        await studio.render()
        assert most == 2

    async def test_a_director_takes_no_more_jobs_than_it_may(self, studio: Studio) -> None:
        studio.settings = QUICK.model_copy(update={"max_jobs": 1})
        hold = Hold(studio.step)
        studio.step.script["s1.clip"] = [hold]
        studio.ledger.submit(film("first"))
        studio.ledger.submit(film("second"))
        async with studio.running():
            await hold.started.wait()
            await asyncio.sleep(0.1)
            assert studio.ledger.job("second").status is JobStatus.QUEUED
            hold.go_on.set()
            assert (await studio.finish("second")).status is JobStatus.SUCCEEDED

    async def test_a_director_full_of_batch_work_takes_an_interactive_job_at_once(self, studio: Studio) -> None:
        studio.settings = QUICK.model_copy(update={"max_jobs": 4})
        studio.slots = 0
        for number in range(6):
            studio.ledger.submit(replace(film(f"batch-{number}", shots=1), priority=Priority.BATCH))
        async with studio.running() as engine:
            running = lambda: [found.id for found in studio.ledger.jobs(JobStatus.RUNNING).jobs]  # noqa: E731
            await studio.until(running, lambda ids: len(ids) == 3)
            studio.ledger.submit(film("mine"))
            engine.wake()
            await studio.until(running, lambda ids: "mine" in ids)
            assert sorted(running()) == ["batch-0", "batch-1", "batch-2", "mine"]

    async def test_a_director_for_some_jobs_leaves_the_others_alone(self, studio: Studio) -> None:
        studio.ledger.submit(film("other"))
        studio.ledger.submit(film("mine"))
        async with studio.running(only=frozenset({"mine"})):
            await studio.finish("mine")
        assert studio.ledger.job("other").status is JobStatus.QUEUED


class TestAFailedShot:
    async def test_siblings_go_on_and_the_join_is_told_of_the_hole(self, studio: Studio) -> None:
        studio.step.script["s2.keyframe"] = [RenderCancelled(node_id="s2.keyframe", reason="no")]
        studio.ledger.submit(film())
        done = await studio.render()
        assert done.status is JobStatus.PARTIAL
        assert done.error is None
        assert {key: value for key, value in studio.statuses().items() if value is not NodeStatus.SUCCEEDED} == {
            "s2.keyframe": NodeStatus.FAILED, "s2.clip": NodeStatus.SKIPPED}
        inputs = studio.step.calls[-1].inputs
        assert [inputs[f"s{shot}.clip"] is None for shot in (1, 2, 3)] == [False, True, False]
        assert "s2.clip: skipped, no result of s2.keyframe" in studio.log()
        assert "(5 succeeded, 1 failed, 1 skipped)" in studio.log()

    async def test_without_the_last_node_the_job_has_failed_with_the_first_error(self, studio: Studio) -> None:
        studio.step.script["s2.keyframe"] = [RenderCancelled(node_id="s2.keyframe", reason="refused")]
        studio.ledger.submit(film(accepts_missing=False))
        done = await studio.render()
        assert done.status is JobStatus.FAILED
        assert done.error is not None
        assert (done.error.type, done.error.message) == ("RenderCancelled", "s2.keyframe: refused")
        assert studio.statuses()["compose"] is NodeStatus.SKIPPED

    async def test_a_film_with_a_hole_never_answers_for_a_whole_one(self, studio: Studio) -> None:
        studio.step.script["s2.clip"] = [RenderCancelled(node_id="s2.clip", reason="no")]
        studio.ledger.submit(film())
        await studio.render()
        holed = studio.node("compose").key
        assert holed == content_key(NodeKind.COMPOSE, {}, (
            studio.node("s1.clip").key, MISSING_KEY, studio.node("s3.clip").key))
        studio.ledger.rerun("film")
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert studio.node("compose").key != holed

    async def test_a_failure_that_counts_is_tried_again(self, studio: Studio) -> None:
        studio.step.script["s1.clip"] = [BROKEN, BROKEN]
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        clip = studio.node("s1.clip")
        assert (clip.attempt, clip.failures, clip.error) == (3, 2, None)
        assert [event.data["attempt"] for event in studio.events(EventType.NODE_RETRY)] == [1, 2]
        assert "s1.clip: attempt 1 failed: s1.clip: grey frames; next in 0.0 s, 2 tries left" in studio.log()

    async def test_after_the_last_try_the_node_has_failed(self, studio: Studio) -> None:
        studio.step.script["s1.clip"] = [BROKEN] * 3
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.PARTIAL
        clip = studio.node("s1.clip")
        assert (clip.status, clip.attempt, clip.failures) == (NodeStatus.FAILED, 3, 3)
        assert clip.error is not None
        assert clip.error.type == "ModelFailed"

    async def test_tries_used_up_before_the_director_died_stay_used_up(self, studio: Studio) -> None:
        studio.ledger.submit(film())
        with studio.ledger.database.write() as connection:
            connection.execute(sa.update(node).where(node.c.id == "s1.clip").values(failures=2, attempt=2))
        studio.step.script["s1.clip"] = [BROKEN] * 3
        await studio.render()
        assert studio.step.started().count("s1.clip") == 1
        assert studio.node("s1.clip").status is NodeStatus.FAILED

    async def test_what_nobody_expected_counts_and_leaves_its_trace_in_the_log(self, studio: Studio) -> None:
        studio.step.script["s1.clip"] = [ZeroDivisionError("by zero")]
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert studio.node("s1.clip").failures == 1
        assert "error Traceback (most recent call last):" in studio.log()
        assert "error ZeroDivisionError: by zero" in studio.log()

    async def test_the_wait_before_the_next_try_holds_no_slot(self, studio: Studio) -> None:
        studio.slots = 1
        studio.settings = QUICK.model_copy(update={"backoff_s": 60.0, "max_backoff_s": 60.0})
        studio.step.script["s1.keyframe"] = [BROKEN]
        studio.ledger.submit(film("waiting", shots=1))
        async with studio.running():
            await studio.until(lambda: studio.events(EventType.NODE_RETRY, "waiting"), bool)
            studio.ledger.submit(film("quick"))
            assert (await studio.finish("quick")).status is JobStatus.SUCCEEDED
            assert not studio.ledger.job("waiting").status.is_terminal

    async def test_a_node_that_nothing_here_can_run_fails_at_once_and_says_why(self, studio: Studio) -> None:
        studio.ledger.submit(NewJob(id="film", document={}, nodes=(
            NodeSpec(id="far", kind=NodeKind.CLIP, lane="h200"), NodeSpec(id="end", kind=NodeKind.COMPOSE))))
        await studio.render()
        far = studio.node("far")
        assert (far.status, far.attempt) == (NodeStatus.FAILED, 0)
        assert far.error is not None
        assert far.error.message == "no lane 'h200' here; lanes: cpu, model"


class TestInfrastructure:
    async def test_the_death_of_a_replica_uses_up_no_try(self, studio: Studio) -> None:
        studio.step.script["s1.clip"] = [LOST, BROKEN, LOST, BROKEN]
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        clip = studio.node("s1.clip")
        assert (clip.attempt, clip.failures, clip.crashes) == (5, 2, 2)

    async def test_a_node_that_kills_its_replica_again_and_again_is_poison(self, studio: Studio) -> None:
        studio.step.script["s1.clip"] = [LOST] * 9
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.PARTIAL
        clip = studio.node("s1.clip")
        assert (clip.status, clip.attempt, clip.crashes, clip.failures) == (NodeStatus.FAILED, 3, 3, 0)
        assert clip.error is not None
        assert clip.error.type == "PoisonNode"
        assert "its replica died 3 times while it ran; last: actor died" in clip.error.message

    async def test_after_the_death_of_a_machine_its_shots_go_on_side_by_side(self, studio: Studio) -> None:
        holds = [Hold(studio.step), Hold(studio.step)]
        studio.step.script = {"s1.clip": [LOST, holds[0]], "s2.clip": [LOST, holds[1]]}
        studio.ledger.submit(film(shots=2))
        async with studio.running():
            async with asyncio.timeout(30):
                await asyncio.gather(*(hold.started.wait() for hold in holds))
            for hold in holds:
                hold.go_on.set()
            assert (await studio.finish()).status is JobStatus.SUCCEEDED

    async def test_the_neighbours_of_a_killer_die_with_it_and_are_not_blamed(self, studio: Studio) -> None:
        replica: dict[str, asyncio.Future[None]] = {}
        killer_inside, shared = asyncio.Event(), asyncio.Event()

        async def on_one_replica(call: NodeCall) -> NodeResult:
            """Every clip runs in the same process; s2's ends it, and all that are inside with it."""
            replica[call.node_id] = asyncio.get_running_loop().create_future()
            (killer_inside if call.node_id == "s2.clip" else asyncio.Event()).set()
            if len(replica) > 1:
                shared.set()
            try:
                # The first time they wait for each other, however busy the machine is.
                await asyncio.wait_for(asyncio.gather(killer_inside.wait(), shared.wait()), 30)
                await asyncio.sleep(0.15)
                if call.node_id == "s2.clip":
                    for victim in replica.values():
                        if not victim.done():
                            victim.set_result(None)
                if replica[call.node_id].done():
                    raise LOST
                return studio.step.result(call)
            finally:
                del replica[call.node_id]

        for shot in range(1, 7):
            studio.step.script[f"s{shot}.clip"] = [on_one_replica] * 9
        studio.ledger.submit(film(shots=6))
        assert (await studio.render()).status is JobStatus.PARTIAL
        clips = [studio.node(f"s{shot}.clip") for shot in range(1, 7)]
        assert [clip.id for clip in clips if clip.status is NodeStatus.FAILED] == ["s2.clip"]
        assert max(clip.crashes for clip in clips if clip.id != "s2.clip") < studio.settings.poison_limit
        assert sum(clip.crashes for clip in clips) > clips[1].crashes, "nobody shared the replica"

    async def test_a_deployment_without_room_is_waited_for_as_long_as_it_takes(self, studio: Studio) -> None:
        studio.settings = QUICK.model_copy(update={"poll_s": 0.001})
        studio.step.script["s1.clip"] = [BUSY] * 15
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        clip = studio.node("s1.clip")
        assert (clip.attempt, clip.failures, clip.crashes) == (16, 0, 0)

    @pytest.mark.parametrize("says", [None, RenderCancelled(node_id="s1.clip", reason="stopped between two steps")],
                             ids=["plain", "in-its-own-words"])
    async def test_an_attempt_past_its_limit_is_stopped_and_counts(
            self, studio: Studio, says: Exception | None) -> None:
        async def too_long(call: NodeCall) -> NodeResult:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if says:
                    raise says from None
                raise
            raise AssertionError

        studio.settings = QUICK.model_copy(update={"timeout_s": NodeTimeouts(clip=0.05)})
        studio.step.script["s1.clip"] = [too_long]
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        (retry,) = studio.events(EventType.NODE_RETRY)
        assert "DeadlineExceeded" in str(retry.data["error"])
        assert "no result after 0.05 s (engine.timeout_s.clip)" in retry.line
        assert studio.node("s1.clip").failures == 1

    async def test_a_call_that_somebody_else_cancelled_counts_and_leaves_nobody_waiting(self, studio: Studio) -> None:
        async def cancelled_below(call: NodeCall) -> NodeResult:
            raise asyncio.CancelledError

        studio.step.script["s1.clip"] = [cancelled_below]
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert studio.node("s1.clip").failures == 1

    async def test_a_job_that_this_release_cannot_read_fails_instead_of_going_round(
            self, studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
        studio.ledger.submit(film())
        with studio.ledger.database.write() as connection:
            connection.execute(sa.update(node).where(node.c.id == "s1.clip").values(kind="hologram"))
        with caplog.at_level(logging.CRITICAL):
            done = await studio.render()
        assert done.status is JobStatus.FAILED
        assert done.error is not None
        assert "hologram" in done.error.message
        assert "'hologram' is not a valid NodeKind" in studio.log()


class TestCancel:
    async def test_running_steps_are_cancelled_and_nothing_is_left_open(self, studio: Studio) -> None:
        holds = [Hold(studio.step) for _ in range(3)]
        studio.step.script = {f"s{shot}.clip": [hold] for shot, hold in enumerate(holds, 1)}
        studio.ledger.submit(film())
        async with studio.running() as engine:
            await asyncio.gather(*(hold.started.wait() for hold in holds))
            studio.ledger.cancel("film")
            engine.wake()
            assert (await studio.finish()).status is JobStatus.CANCELLED
        assert [hold.cancelled for hold in holds] == [1, 1, 1]
        assert set(studio.statuses().values()) == {NodeStatus.SUCCEEDED, NodeStatus.CANCELLED}
        assert len(studio.events(EventType.NODE_CANCELLED)) == 4

    async def test_what_cancelled_attempts_at_a_model_have_left_is_discarded_and_of_a_stopped_director_kept(
            self, studio: Studio) -> None:
        holds = [Hold(studio.step), Hold(studio.step)]
        studio.step.script["s1.clip"] = list(holds)
        new = film()
        studio.ledger.submit(replace(new, nodes=tuple(
            replace(node, lane="model" if node.id == "s1.clip" else node.lane) for node in new.nodes)))
        async with studio.running():
            await holds[0].started.wait()
        assert studio.store.discarded == []
        async with studio.running():
            await holds[1].started.wait()
            key = studio.node("s1.clip").key
            studio.ledger.cancel("film")
            await studio.finish()
        assert studio.store.discarded == [key]

    async def test_a_cancel_is_noticed_without_a_wake(self, studio: Studio) -> None:
        hold = Hold(studio.step)
        studio.step.script["s1.clip"] = [hold]
        studio.ledger.submit(film())
        async with studio.running():
            await hold.started.wait()
            studio.ledger.cancel("film")
            assert (await studio.finish()).status is JobStatus.CANCELLED

    async def test_a_node_that_waits_for_a_slot_or_a_retry_is_cancelled_too(self, studio: Studio) -> None:
        studio.slots = 0
        studio.ledger.submit(film())
        async with studio.running():
            await studio.until(lambda: studio.ledger.job("film").status, lambda status: status is JobStatus.RUNNING)
            studio.ledger.cancel("film")
            assert (await studio.finish()).status is JobStatus.CANCELLED
        assert studio.step.calls == []

    async def test_a_cancel_that_no_director_heard_is_heard_by_the_next(self, studio: Studio) -> None:
        studio.ledger.submit(film())
        with studio.ledger.database.write() as connection:
            connection.execute(sa.update(job).values(
                status="running", owner="dead", lease_until=1.0, cancel_requested=True))
        assert (await studio.render()).status is JobStatus.CANCELLED
        assert studio.step.calls == []

    async def test_a_cancelled_film_is_taken_up_where_it_stood(self, studio: Studio) -> None:
        hold = Hold(studio.step)
        studio.step.script["s2.clip"] = [hold]
        studio.ledger.submit(film())
        async with studio.running():
            await hold.started.wait()
            await studio.until(lambda: studio.events(EventType.NODE_SUCCEEDED), lambda events: len(events) == 5)
            studio.ledger.cancel("film")
            await studio.finish()
            assert studio.ledger.rerun("film") == ("s2.clip", "compose")
            assert (await studio.finish()).status is JobStatus.SUCCEEDED
        assert studio.step.started().count("s3.clip") == 1


class TestStopAndLoss:
    @pytest.mark.parametrize("in_its_own_words", [False, True])
    async def test_a_director_that_stops_in_order_hands_everything_back_uncounted(
            self, studio: Studio, in_its_own_words: bool) -> None:
        """A step that answers a cancel with an error of its own has not failed."""
        hold = Hold(studio.step)

        async def translate(call: NodeCall) -> NodeResult:
            try:
                return await hold(call)
            except asyncio.CancelledError:
                raise RenderCancelled(node_id=call.node_id, reason="stopped") from None

        studio.step.script["s1.clip"] = [translate if in_its_own_words else hold]
        studio.ledger.submit(film())
        async with studio.running():
            await hold.started.wait()
        assert hold.cancelled == 1
        assert studio.ledger.job("film").status is JobStatus.QUEUED
        clip = studio.node("s1.clip")
        assert (clip.status, clip.attempt, clip.failures, clip.interruptions) == (NodeStatus.PENDING, 1, 0, 0)
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert studio.node("s1.clip").attempt == 2

    async def test_a_director_whose_task_is_cancelled_stops_in_order_too(self, studio: Studio) -> None:
        hold = Hold(studio.step)
        studio.step.script["s1.clip"] = [hold]
        studio.ledger.submit(film())
        task = asyncio.create_task(studio.engine().run())
        await hold.started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert studio.ledger.job("film").status is JobStatus.QUEUED

    async def test_a_lost_lease_ends_every_sibling_and_commits_nothing(
            self, studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
        holds = [Hold(studio.step) for _ in range(2)]
        studio.step.script = {"s1.clip": [holds[0]], "s2.clip": [holds[1]]}
        studio.ledger.submit(film())
        # Finds out by its own writes: it does not look in between.
        studio.settings = EngineSettings(heartbeat_s=10.0, poll_s=10.0)
        async with studio.running():
            await asyncio.gather(*(hold.started.wait() for hold in holds))
            await studio.until(lambda: studio.statuses()["s3.clip"], lambda status: status is NodeStatus.SUCCEEDED)
            with studio.ledger.database.write() as connection:
                connection.execute(sa.update(job).values(owner="another", lease_until=time.time() + 60))
            before = studio.ledger.nodes("film")
            holds[0].go_on.set()
            await studio.until(lambda: holds[1].cancelled, bool)
            await studio.until(lambda: caplog.text, lambda text: "lease on job film was lost" in text)
        assert studio.ledger.nodes("film") == before
        assert "compose" not in studio.step.started()

    @pytest.mark.parametrize("stolen", [False, True])
    async def test_an_attempt_written_down_is_not_begun_when_its_lease_may_be_over_until_the_database_says_it_is_not(
            self, studio: Studio, stolen: bool) -> None:
        """The process was frozen between the commit of the start and the step."""
        studio.ledger.submit(film(shots=1))
        database, settings = studio.ledger.database, studio.settings

        class FrozenAfterCommit(Journal):
            def start(self, claim: Claim, old: NodeRow, *, key: str) -> NodeRow:
                node = super().start(claim, old, key=key)
                lease.certain_until_s = 0.0
                if stolen:
                    with database.write() as connection:
                        connection.execute(sa.update(job).values(owner="another"))
                return node

        leases = Leases(database, lease_s=60.0, interruption_limit=3)
        lease = Lease(claim=leases.claim(1, Priority.INTERACTIVE)[0], certain_until_s=time.monotonic() + 60)
        shop = Workshop(steps=dict.fromkeys(NodeKind, studio.step), store=studio.store, settings=settings,
                        dispatcher=Dispatcher({"cpu": 1}), leases=leases, journal=FrozenAfterCommit(database),
                        watch=StoreWatch(studio.store, limit_s=0), patience=Patience(writers=1))
        walking = asyncio.create_task(Walk(lease, studio.ledger.nodes("film"), shop).run())
        await asyncio.wait([walking])
        assert bool(studio.step.calls) is not stolen
        assert (walking.exception() is None) is not stolen

    async def test_a_director_that_looks_and_finds_another_owner_lets_go(self, studio: Studio) -> None:
        hold = Hold(studio.step)
        studio.step.script["s1.clip"] = [hold]
        studio.ledger.submit(film())
        async with studio.running():
            await hold.started.wait()
            with studio.ledger.database.write() as connection:
                connection.execute(sa.update(job).values(owner="another", lease_until=time.time() + 60))
            await studio.until(lambda: hold.cancelled, bool)
        assert studio.ledger.job("film").status is JobStatus.RUNNING

    async def test_a_long_step_keeps_its_lease(self, studio: Studio) -> None:
        studio.settings = QUICK.model_copy(update={"lease_s": 0.8, "heartbeat_s": 0.1})
        hold = Hold(studio.step)
        studio.step.script["s1.clip"] = [hold]
        studio.ledger.submit(film(shots=1))
        async with studio.running():
            await hold.started.wait()
            async with studio.running():
                await asyncio.sleep(1.2)
            hold.go_on.set()
            await studio.finish()
        assert studio.step.started().count("s1.clip") == 1

    async def test_a_wake_is_heard_at_once(self, studio: Studio) -> None:
        studio.settings = EngineSettings(poll_s=10.0, heartbeat_s=10.0)
        async with studio.running() as engine:
            await asyncio.sleep(0.05)
            studio.ledger.submit(film())
            woken_s = time.monotonic()
            await asyncio.to_thread(engine.wake)
            await studio.until(lambda: studio.step.calls, bool)
            assert time.monotonic() - woken_s < studio.settings.poll_s / 2, "it did not wait for the next poll"

    async def test_a_database_that_is_away_for_a_while_costs_time_and_nothing_else(self, studio: Studio) -> None:
        away = False

        def refuse(*_: object) -> None:
            if away:
                raise sa.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection"))

        hold = Hold(studio.step)
        studio.step.script["s1.clip"] = [hold]
        studio.ledger.submit(film())
        pool = studio.ledger.database._engine
        sa.event.listen(pool, "before_cursor_execute", refuse)
        async with studio.running():
            await hold.started.wait()
            away = True
            hold.go_on.set()
            await asyncio.sleep(0.4)
            away = False
            assert (await studio.finish()).status is JobStatus.SUCCEEDED
        sa.event.remove(pool, "before_cursor_execute", refuse)
        assert sorted(studio.step.started()) == sorted(studio.statuses())
        assert len(studio.events(EventType.NODE_SUCCEEDED)) == 7


class TestReuse:
    async def test_a_second_film_of_the_same_shots_makes_nothing_and_needs_no_slot(self, studio: Studio) -> None:
        studio.ledger.submit(film("first"))
        await studio.render("first")
        made = len(studio.step.calls)
        studio.slots = 0
        studio.ledger.submit(film("second"))
        assert (await studio.render("second")).status is JobStatus.SUCCEEDED
        assert len(studio.step.calls) == made
        assert all(row.cached and row.attempt == 0 for row in studio.ledger.nodes("second"))
        assert len(studio.events(EventType.NODE_CACHED, "second")) == 7
        assert "s1.clip: reused from the store" in studio.log("second")

    async def test_only_what_changed_is_made_again(self, studio: Studio) -> None:
        studio.ledger.submit(film("first"))
        await studio.render("first")
        studio.step.calls.clear()
        nodes = tuple(replace(spec, payload={"prompt": "rain"}) if spec.id == "s2.clip" else spec
                      for spec in film().nodes)
        studio.ledger.submit(replace(film("second"), nodes=nodes))
        await studio.render("second")
        assert studio.step.started() == ["s2.clip", "compose"]

    async def test_a_rerun_makes_what_failed_and_reuses_the_rest(self, studio: Studio) -> None:
        studio.step.script["s2.clip"] = [BROKEN] * 3
        studio.ledger.submit(film())
        await studio.render()
        studio.step.calls.clear()
        studio.ledger.rerun("film", ("s2",))
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert studio.step.started() == ["s2.clip", "compose"]
        assert studio.node("s2.keyframe").cached

    async def test_another_take_has_another_key_and_tells_the_step_which_take_it_is(self, studio: Studio) -> None:
        studio.ledger.submit(film())
        await studio.render()
        before = {row.id: row.key for row in studio.ledger.nodes("film")}
        studio.step.calls.clear()
        studio.ledger.rerun("film", ("s2.clip",), force=True)
        await studio.render()
        assert [(call.node_id, call.generation) for call in studio.step.calls] == [("s2.clip", 1), ("compose", 0)]
        changed = {row.id for row in studio.ledger.nodes("film") if row.key != before[row.id]}
        assert changed == {"s2.clip", "compose"}

    async def test_a_result_that_left_the_store_is_made_again_when_something_needs_it(self, studio: Studio) -> None:
        studio.step.script["s2.clip"] = [BROKEN] * 3
        studio.ledger.submit(film())
        await studio.render()
        studio.store.lose(studio.node("s2.keyframe").key)
        studio.store.lose(studio.node("s3.keyframe").key)
        studio.step.calls.clear()
        studio.ledger.rerun("film")
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        # s3's keyframe is gone too, but its clip is there and nobody needs the keyframe.
        assert studio.step.started() == ["s2.keyframe", "s2.clip", "compose"]
        assert "s2.keyframe: its result is no longer in the store" in studio.log()

    async def test_a_store_that_cannot_be_asked_is_reported_and_the_work_done(self, studio: Studio) -> None:
        class DeafStore(FakeStore):
            def find(self, key: str) -> None:
                raise OSError("no route to host")

        studio.store = DeafStore(Path())
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert "no route to host" in studio.log()

    async def test_nothing_is_started_and_nothing_opened_again_while_the_store_is_away(self, studio: Studio) -> None:
        away = studio.store = AwayStore(Path())
        studio.step = ScriptedStep(away)
        studio.step.script["s2.clip"] = [BROKEN] * 3
        studio.ledger.submit(film())
        assert (await studio.render()).status is JobStatus.PARTIAL
        studio.step.calls.clear()
        studio.ledger.rerun("film")
        away.is_away = True
        async with studio.running():
            await studio.until(studio.log, lambda text: "nothing new is started until it is back" in text)
            await asyncio.sleep(0.3)
            assert studio.step.started() == []
            away.is_away = False
            assert (await studio.finish()).status is JobStatus.SUCCEEDED
        assert studio.step.started() == ["s2.clip", "compose"]
        assert "the store is back after" in studio.log()
        assert "no longer in the store" not in studio.log()
        assert studio.node("s2.clip").failures == 0

    async def test_a_store_that_stays_away_is_for_the_attempt_to_meet(self, studio: Studio) -> None:
        studio.store = AwayStore(Path(), is_away=True)
        studio.settings = studio.settings.model_copy(update={"store_patience_s": 0.0})
        studio.ledger.submit(film(shots=1))
        assert (await studio.render()).status is JobStatus.SUCCEEDED
        assert "store cannot be asked" in studio.log()

    async def test_warnings_reach_the_job_and_a_rerun_takes_them_back(self, studio: Studio) -> None:
        async def warn(call: NodeCall) -> NodeResult:
            return replace(studio.step.result(call), warnings=("s2 is a slate",))

        studio.step.script = {"compose": [warn], "s2.clip": [RenderCancelled(node_id="s2.clip", reason="no")]}
        studio.ledger.submit(film())
        assert (await studio.render()).warnings == ("s2 is a slate",)
        assert "warning compose: s2 is a slate" in studio.log()
        studio.ledger.rerun("film")
        assert (await studio.render()).warnings == ()
