"""A story inserts its shots' nodes in the commit of its own result."""

from __future__ import annotations

import sqlalchemy as sa

from tests.studio import Studio
from workflows.durable.journal import Journal
from workflows.durable.leases import Leases
from workflows.durable.rows import NewJob
from workflows.durable.tables import job
from workflows.types import Done, JobStatus, NodeCall, NodeKind, NodeResult, NodeSpec, NodeStatus, Priority, content_key

SCRIPT = NewJob(id="film", document={}, nodes=(NodeSpec(id="story", kind=NodeKind.STORY, payload={"script": "..."}),))


def shots(*names: str) -> tuple[NodeSpec, ...]:
    """They use nothing of the story's artifact, so they do not name it."""
    clips = tuple(NodeSpec(id=f"{name}.clip", kind=NodeKind.CLIP, shot_id=name, payload={"prompt": name})
                  for name in names)
    return (*clips, NodeSpec(id="compose", kind=NodeKind.COMPOSE, deps=tuple(clip.id for clip in clips)))


class Teller:
    """A story step that tells of these shots; each call takes the next list."""

    def __init__(self, studio: Studio, *tellings: tuple[NodeSpec, ...]) -> None:
        self._studio = studio
        self._tellings = list(tellings)

    async def __call__(self, call: NodeCall) -> NodeResult:
        artifact = self._studio.store.keep(call.key, b"{}")
        return NodeResult(artifact=artifact, new_nodes=self._tellings.pop(0))


async def test_the_shots_of_a_script_are_walked_in_the_same_run(studio: Studio) -> None:
    studio.step.script["story"] = [Teller(studio, shots("s1", "s2"))]
    studio.ledger.submit(SCRIPT)
    assert (await studio.render()).status is JobStatus.SUCCEEDED
    assert sorted(studio.step.started()) == ["compose", "s1.clip", "s2.clip", "story"]
    assert [row.parent_id for row in studio.ledger.nodes("film")] == ["", "story", "story", "story"]


async def test_a_story_in_the_store_does_not_stand_in_for_its_shots(studio: Studio) -> None:
    """The step had stored its result when the Director died, before the commit: only the step knows the shots."""
    teller = Teller(studio, shots("s1"), shots("s1"))
    studio.step.script["story"] = [teller, teller]
    studio.ledger.submit(SCRIPT)
    (claim,) = Leases(studio.ledger.database, lease_s=60.0, interruption_limit=3).claim(1, Priority.INTERACTIVE)
    journal = Journal(studio.ledger.database)
    key = content_key(NodeKind.STORY, {"script": "..."}, ())
    first = journal.start(claim, studio.node("story"), key=key)
    await teller(NodeCall(job_id="film", node_id="story", shot_id="", kind=NodeKind.STORY, key=key, left_s=0.0,
                          attempt=first.attempt, generation=0, payload={}, inputs={}))
    with studio.ledger.database.write() as connection:
        connection.execute(sa.update(job).values(lease_until=1.0))
    assert (await studio.render()).status is JobStatus.SUCCEEDED
    assert studio.node("story").key == key
    assert studio.step.started() == ["story", "s1.clip", "compose"]


async def test_a_director_that_dies_after_the_commit_leaves_shots_that_run_once(studio: Studio) -> None:
    studio.ledger.submit(SCRIPT)
    (claim,) = Leases(studio.ledger.database, lease_s=60.0, interruption_limit=3).claim(1, Priority.INTERACTIVE)
    journal = Journal(studio.ledger.database)
    running = journal.start(claim, studio.node("story"), key="k")
    result = NodeResult(artifact=studio.store.keep("k"), new_nodes=shots("s1", "s2"))
    journal.succeed(claim, running, Done(result=result), key="k")
    with studio.ledger.database.write() as connection:
        connection.execute(sa.update(job).values(lease_until=1.0))
    assert (await studio.render()).status is JobStatus.SUCCEEDED
    assert sorted(studio.step.started()) == ["compose", "s1.clip", "s2.clip"]


async def test_a_story_told_again_replaces_its_shots_and_reuses_the_equal_ones(studio: Studio) -> None:
    studio.step.script["story"] = [Teller(studio, shots("s1", "s2", "s3")), Teller(studio, shots("s1", "s4"))]
    studio.ledger.submit(SCRIPT)
    await studio.render()
    studio.step.calls.clear()
    assert studio.ledger.rerun("film", ("story",)) == ("story", "s1.clip", "s2.clip", "s3.clip", "compose")
    assert (await studio.render()).status is JobStatus.SUCCEEDED
    assert studio.step.started() == ["story", "s4.clip", "compose"]
    assert list(studio.statuses()) == ["story", "s1.clip", "s4.clip", "compose"]


async def test_a_story_that_fails_leaves_no_shot_running(studio: Studio) -> None:
    studio.step.script["story"] = [Teller(studio, shots("s1")), *[ValueError("no story")] * 3]
    studio.ledger.submit(SCRIPT)
    await studio.render()
    studio.ledger.rerun("film", ("story",))
    assert (await studio.render()).status is JobStatus.FAILED
    assert set(studio.statuses().values()) == {NodeStatus.FAILED, NodeStatus.SKIPPED}


async def test_shots_that_cannot_be_walked_fail_the_story_and_not_the_director(studio: Studio) -> None:
    broken = (NodeSpec(id="s1.clip", kind=NodeKind.CLIP, deps=("ghost",)),)
    studio.step.script["story"] = [Teller(studio, broken)]
    studio.ledger.submit(SCRIPT)
    done = await studio.render()
    assert done.status is JobStatus.FAILED
    assert done.error is not None
    assert "'s1.clip' needs 'ghost', which does not exist" in done.error.message
    assert list(studio.statuses()) == ["story"]


async def test_only_a_story_may_insert_nodes(studio: Studio) -> None:
    studio.step.script["end"] = [Teller(studio, shots("s1"))]
    studio.ledger.submit(NewJob(id="film", document={}, nodes=(NodeSpec(id="end", kind=NodeKind.COMPOSE),)))
    done = await studio.render()
    assert done.error is not None
    assert done.error.message == "end is a compose node and cannot insert nodes"
