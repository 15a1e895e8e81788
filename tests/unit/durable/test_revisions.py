"""A finished job with another plan: exactly what changed and what hangs on it runs again; earlier takes are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.studio import Studio, film
from workflows.durable.ledger import Ledger
from workflows.durable.revisions import Revision, Revisions
from workflows.durable.rows import NodeRow
from workflows.durable.takes import Take, Takes
from workflows.errors import InvalidDocument, JobConflict, ModelFailed, UnknownJob
from workflows.types import JobStatus, Json, NodeKind, NodeSpec, NodeStatus


def revised(ledger: Ledger, *, shot: str = "s2", prompt: str = "new", generations: Mapping[str, int] | None = None,
            nodes: tuple[NodeSpec, ...] = (), before: Mapping[str, Json] | None = None) -> Revision:
    """The three-shot film with another prompt for the clip of one shot."""
    job = ledger.job("film")
    planned = nodes or tuple(
        replace(node, payload={"prompt": prompt}) if node.id == f"{shot}.clip" else node for node in film().nodes)
    return Revision(job_id="film", based_on=job.document_digest, document={"title": prompt}, document_digest=prompt,
                    nodes=planned, shots={shot: before or {"id": shot, "prompt": shot}},
                    generations=generations or {})


def node_of(ledger: Ledger, node_id: str) -> NodeRow:
    return next(node for node in ledger.nodes("film") if node.id == node_id)


async def finished(studio: Studio) -> None:
    studio.ledger.submit(film())
    assert (await studio.render()).status is JobStatus.SUCCEEDED


async def test_exactly_the_changed_shots_cone_runs_again(studio: Studio) -> None:
    await finished(studio)
    before = studio.step.started()
    assert Revisions(studio.ledger.database).apply(revised(studio.ledger)) == ("s2.clip", "compose")
    assert studio.ledger.job("film").status is JobStatus.QUEUED
    await studio.render()
    assert studio.step.started()[len(before):] == ["s2.clip", "compose"]
    assert studio.ledger.job("film").document == {"title": "new"}


async def test_the_replaced_take_is_kept_with_its_fields_and_choosing_it_again_renders_nothing(studio: Studio) -> None:
    await finished(studio)
    revisions, takes = Revisions(studio.ledger.database), Takes(studio.ledger.database)
    old = studio.node("s2.clip")
    revisions.apply(revised(studio.ledger))
    [kept] = takes.of("film", "s2")
    assert (kept.number, kept.key, kept.artifact, kept.shot) == (1, old.key, old.artifact, {"id": "s2", "prompt": "s2"})
    await studio.render()
    before = len(studio.step.started())
    revisions.apply(revised(studio.ledger, prompt="s2", generations=kept.generations,
                            before={"id": "s2", "prompt": "new"}))
    await studio.render()
    assert studio.node("s2.clip").artifact == old.artifact
    assert studio.node("s2.clip").cached
    assert studio.step.started()[before:] == [], "even the film was in the store"
    assert [take.number for take in takes.of("film", "s2")] == [1, 2]


async def test_a_take_is_kept_once_however_often_it_is_chosen_and_left(studio: Studio) -> None:
    await finished(studio)
    revisions = Revisions(studio.ledger.database)
    for prompt in ("new", "s2", "new", "s2"):
        revisions.apply(revised(studio.ledger, prompt=prompt))
        await studio.render()
    assert len(Takes(studio.ledger.database).of("film")) == 2


async def test_a_forced_take_is_kept_and_the_next_is_none_that_was_there(studio: Studio) -> None:
    await finished(studio)
    takes = Takes(studio.ledger.database)
    studio.ledger.rerun("film", ("s1",), force=True)
    await studio.render()
    [first] = takes.of("film")
    assert (first.shot_id, first.shot, first.generations) == ("s1", None, {"s1.keyframe": 0, "s1.clip": 0})
    same = revised(studio.ledger, shot="s1", prompt="s1", generations=first.generations)
    assert Revisions(studio.ledger.database).apply(same) == ("s1.keyframe", "s1.clip", "compose")
    await studio.render()
    assert studio.node("s1.clip").generation == 0
    studio.ledger.rerun("film", ("s1",), force=True)
    assert node_of(studio.ledger, "s1.clip").generation == 2, "generation 1 was a take already"


async def test_a_shot_that_failed_leaves_no_take(studio: Studio) -> None:
    studio.step.script["s2.clip"] = [ModelFailed(node_id="s2.clip", reason="no")] * 9
    studio.ledger.submit(film())
    await studio.render()
    Revisions(studio.ledger.database).apply(revised(studio.ledger))
    assert Takes(studio.ledger.database).of("film") == ()


async def test_nodes_come_and_go_with_the_plan(studio: Studio) -> None:
    await finished(studio)
    caption = NodeSpec(id="s2.caption", kind=NodeKind.CAPTION, shot_id="s2", deps=("s2.clip",), payload={"text": "hi"})
    *shots, compose = film().nodes
    with_caption = (*shots, caption, replace(compose, deps=("s1.clip", "s2.caption", "s3.clip")))
    revisions = Revisions(studio.ledger.database)
    assert revisions.apply(revised(studio.ledger, nodes=with_caption)) == ("s2.caption", "compose")
    await studio.render()
    assert Takes(studio.ledger.database).of("film") == (), "a caption is no other take"
    assert revisions.apply(revised(studio.ledger, nodes=film().nodes, prompt="again")) == ("compose",)
    assert [node.id for node in studio.ledger.nodes("film")] == [node.id for node in film().nodes]
    assert (await studio.render()).status is JobStatus.SUCCEEDED


async def test_nothing_runs_when_nothing_differs(studio: Studio) -> None:
    await finished(studio)
    assert Revisions(studio.ledger.database).apply(revised(studio.ledger, prompt="s2")) == ()
    assert studio.ledger.job("film").status is JobStatus.SUCCEEDED


async def test_a_plan_of_other_models_is_refused_whole(studio: Studio) -> None:
    await finished(studio)
    others = tuple(replace(node, payload={**node.payload, "card": "x"}) for node in film().nodes)
    with pytest.raises(JobConflict, match=r"the models were changed since this film was planned, so s1\.keyframe"):
        Revisions(studio.ledger.database).apply(revised(studio.ledger, nodes=others))
    assert studio.ledger.job("film").status is JobStatus.SUCCEEDED
    assert {node.status for node in studio.ledger.nodes("film")} == {NodeStatus.SUCCEEDED}


async def test_who_was_slower_is_told_and_changes_nothing(studio: Studio) -> None:
    await finished(studio)
    mine, theirs = revised(studio.ledger, prompt="mine"), revised(studio.ledger, prompt="theirs")
    Revisions(studio.ledger.database).apply(theirs)
    await studio.render()
    with pytest.raises(JobConflict, match="changed by somebody else"):
        Revisions(studio.ledger.database).apply(mine)
    assert node_of(studio.ledger, "s2.clip").payload == {"prompt": "theirs"}


def test_an_active_or_unknown_job_and_nodes_that_are_no_dag_are_refused(ledger: Ledger) -> None:
    ledger.submit(film())
    revisions = Revisions(ledger.database)
    with pytest.raises(JobConflict, match="is queued; cancel it, or wait"):
        revisions.apply(revised(ledger))
    with pytest.raises(UnknownJob):
        revisions.apply(replace(revised(ledger), job_id="ghost"))
    with pytest.raises(InvalidDocument, match="does not exist"):
        revisions.apply(revised(ledger, nodes=(NodeSpec(id="a", kind=NodeKind.CLIP, deps=("b",)),)))


class TestDelete:
    async def test_a_deleted_job_leaves_nothing_behind_and_its_id_is_free(self, studio: Studio) -> None:
        await finished(studio)
        studio.ledger.rerun("film", ("s1",), force=True)
        await studio.render()
        studio.ledger.delete("film")
        with pytest.raises(UnknownJob):
            studio.ledger.job("film")
        takes: tuple[Take, ...] = Takes(studio.ledger.database).of("film")
        assert takes == ()
        assert studio.ledger.submit(film()).status is JobStatus.QUEUED
        assert len(studio.ledger.events("film")) == 1

    def test_an_active_job_is_not_deleted(self, ledger: Ledger) -> None:
        ledger.submit(film())
        with pytest.raises(JobConflict, match="is queued; cancel it"):
            ledger.delete("film")
        assert ledger.job("film").id == "film"
