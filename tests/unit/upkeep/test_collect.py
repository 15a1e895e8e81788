"""Garbage goes, and nothing that a row mentions; also while rows and files change under the collection."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.fakes import FakeStore, ScriptedStep
from tests.s3 import store_url
from tests.studio import Studio, film
from tests.upkeep import StoringStep, stored
from workflows.checkpoints import CheckpointShelf, Kept
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType, NewJob
from workflows.durable.tables import job, reply
from workflows.errors import InvalidSettings
from workflows.store import Store
from workflows.types import Artifact, JobStatus, NodeKind, NodeSpec, content_key, digest, substitute_key
from workflows.upkeep.collect import DAY_S, Bounds, Collected, Collection
from workflows.upkeep.files import StoreFiles
from workflows.upkeep.retention import CONDEMNED

QUICK = Bounds(older_than_s=DAY_S, settle_s=0)


@pytest.fixture
def ledger(tmp_path: Path, migrated_file: Path) -> Ledger:
    (tmp_path / "state.db").write_bytes(migrated_file.read_bytes())
    return Ledger(f"sqlite:///{tmp_path / 'state.db'}")


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(store_url(request, tmp_path), cache_dir=tmp_path / "cache")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def later(ledger: Ledger, store: Store, bounds: Bounds = QUICK, days: float = 10) -> Collection:
    return Collection(ledger, StoreFiles(store.url), bounds, clock=lambda: time.time() + days * DAY_S)


def collect(ledger: Ledger, store: Store, bounds: Bounds = QUICK, *, meanwhile: Callable[[], object] = lambda: None,
            days: float = 10) -> Collected:
    return later(ledger, store, bounds, days).run(lambda _: meanwhile())


async def test_after_a_collection_the_same_film_renders_nothing(ledger: Ledger, store: Store, scratch: Path) -> None:
    step = StoringStep(store, scratch)
    studio = Studio(ledger=ledger, store=store, step=step)  # type: ignore[arg-type] - a store for a fake one
    ledger.submit(film("kept"))
    ledger.submit(film("gone", shots=2, accepts_missing=False))
    await studio.render("kept")
    await studio.render("gone")
    loose = [stored(store, digest(str(number))[:32], scratch) for number in range(3)]
    ledger.delete("gone")
    done = collect(ledger, store)
    # The shots of the deleted film are shots of the other one too; its own join is not.
    assert len(done.removed.bundles) == len(loose) + 1
    before = len(step.calls)
    ledger.submit(replace(film("kept"), id="again"))
    await studio.render("again")
    assert len(step.calls) == before
    assert len(studio.events(EventType.NODE_CACHED, "again")) == 7
    assert not any(store.find(artifact.key) for artifact in loose)


def test_whatever_jobs_there_are_only_the_unmentioned_goes(tmp_path: Path, migrated_file: Path) -> None:
    """Random jobs whose rows mention keys in every place that can, beside random loose files, some of them young."""
    for seed in range(2):
        draw = random.Random(seed)
        root = tmp_path / str(seed)
        root.mkdir()
        (root / "state.db").write_bytes(migrated_file.read_bytes())
        ledger, store = Ledger(f"sqlite:///{root / 'state.db'}"), Store(str(root / "store"))
        artifacts = [stored(store, digest(f"{seed} {number}")[:32], root) for number in range(20)]
        mentioned = draw.sample(artifacts, 8)
        places = ("document", "payload", "substitute", "reply", "event")
        for number, artifact in enumerate(mentioned):
            _mention(ledger, draw.choice(places), f"job-{seed}-{number}", artifact.key, store, root)
        young = {artifact.key for artifact in draw.sample(artifacts, 4)}
        for path in (path for key in young for path in (root / "store" / key[:2] / key).iterdir()):
            _touch(path, time.time() + 9.5 * DAY_S)
        wanted = {artifact.key for artifact in mentioned} | young
        done = collect(ledger, store)
        left = {artifact.key for artifact in artifacts if store.find(artifact.key)}
        assert left == wanted, seed
        assert len(done.removed.bundles) == 20 - len(wanted)
        assert collect(ledger, store).removed.goes() == {}
        ledger.close()


def _touch(path: Path, at_s: float) -> None:
    os.utime(path, (at_s, at_s))


def _mention(ledger: Ledger, place: str, job_id: str, key: str, store: Store, scratch: Path) -> None:
    payload = {"image": {"key": key}} if place == "payload" else {"prompt": job_id}
    document = {"deep": [{"er": f"upload:{key}"}]} if place == "document" else {"title": job_id}
    ledger.submit(NewJob(id=job_id, document=document, nodes=(
        NodeSpec(id="s1.clip", kind=NodeKind.CLIP, payload=payload),)))
    if place == "substitute":
        # A row that knows the key a result stands in for keeps the result.
        stored(store, substitute_key(key), scratch)
    if place in ("event", "substitute"):
        ledger.log(job_id, f"s1.clip has {key}, as it says")
    if place == "reply":
        with ledger.database.write() as connection:
            connection.execute(sa.insert(reply).values(scope="x", key=job_id, digest="d", token="t", body={"a": [key]},
                                                       created_at=0, touched_at=0))


class FadingStore(FakeStore):
    """A result is taken away just after it was found."""

    def find(self, key: str) -> Artifact | None:
        found = super().find(key)
        if found is not None and key in self.fading:
            self.fading.remove(key)
            self.lose(key)
        return found

    fading: set[str]


async def test_a_result_that_is_taken_away_between_look_and_commit_is_made_again(
    ledger: Ledger, tmp_path: Path,
) -> None:
    store = FadingStore(tmp_path)
    studio = Studio(ledger=ledger, store=store, step=ScriptedStep(store))
    key = content_key(NodeKind.KEYFRAME, {"prompt": "s2"}, ())
    store.fading = {key}
    store.keep(key)
    ledger.submit(film())
    assert (await studio.render()).status is JobStatus.SUCCEEDED
    assert studio.step.started().count("s2.keyframe") == 1
    assert store.find(key) == studio.node("s2.keyframe").artifact
    assert "s2.keyframe: its result is no longer in the store; it will be made again" in studio.log()


@pytest.mark.slow
async def test_films_that_are_rendered_and_deleted_meanwhile_lose_nothing(
    tmp_path: Path, ledger: Ledger, scratch: Path,
) -> None:
    """Every file counts as old here, and nothing waits between the two steps: only rows protect what is in use.

    Films are deleted and asked for again under the collections, so that their shots are found in the store at every
    moment of one.
    """
    store = Store(str(tmp_path / "store"))
    step = StoringStep(store, scratch, keeps_name=False)
    studio = Studio(ledger=ledger, store=store, step=step)  # type: ignore[arg-type]
    ledger.submit(film("stays", shots=1))
    removed, until_s = 0, time.monotonic() + 12
    bounds = QUICK

    async def collect_all() -> None:
        nonlocal removed
        while time.monotonic() < until_s:
            done = await asyncio.to_thread(later(ledger, store, bounds).run)
            removed += len(done.removed.bundles)

    async def render_all(which: int) -> int:
        rounds = 0
        while time.monotonic() < until_s:
            name = f"film-{which}-{rounds}"
            ledger.submit(film(name, shots=2 + which))
            assert (await studio.finish(name)).status is JobStatus.SUCCEEDED, studio.log(name)
            for node in ledger.nodes(name):
                assert node.artifact is not None
                assert store.exists(node.artifact), f"{name}/{node.id} lost its result"
            # Some stay unmentioned until the next round asks for them.
            ledger.delete(name)
            await asyncio.sleep(0.05 * (rounds % 9))
            rounds += 1
        return rounds

    async with studio.running():
        rounds = (await asyncio.gather(collect_all(), *(render_all(which) for which in range(3))))[1:]
        await studio.finish("stays")
    assert removed > 0
    assert all(count > 1 for count in rounds)
    found = [node for node in ledger.nodes("stays") if node.artifact and store.exists(node.artifact)]
    assert len(found) == len(ledger.nodes("stays"))


def test_a_result_that_is_found_before_and_committed_while_it_waits_is_pardoned(
    ledger: Ledger, store: Store, scratch: Path,
) -> None:
    ledger.submit(film("other"))
    artifact = stored(store, "3f" + "0" * 30, scratch)
    seen: list[object] = []

    def commit() -> None:
        seen.append(store.find(artifact.key))
        ledger.log("other", f"found {artifact.key} a moment ago")

    done = collect(ledger, store, meanwhile=commit)
    assert seen == [None], "a condemned result is found by nobody"
    assert (done.pardoned, done.removed.bundles) == (1, ())
    assert store.find(artifact.key) == artifact


def test_a_result_that_is_written_anew_while_it_waits_stays(ledger: Ledger, store: Store, scratch: Path) -> None:
    ledger.submit(film("other"))
    key = "3f" + "0" * 30
    stored(store, key, scratch)
    done = collect(ledger, store, meanwhile=lambda: stored(store, key, scratch))
    assert done.removed.bundles == ()
    assert store.find(key) is not None
    assert not any(file.name == CONDEMNED for file in StoreFiles(store.url).files())


def test_a_collection_that_died_half_way_has_removed_nothing_and_the_next_one_goes_on(
    ledger: Ledger, store: Store, scratch: Path,
) -> None:
    ledger.submit(film("other"))
    wanted, loose = stored(store, "3f" + "0" * 30, scratch), stored(store, "3f" + "1" * 30, scratch)

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(ledger, store, meanwhile=die)
    assert store.exists(wanted)
    assert store.exists(loose)
    ledger.log("other", f"needs {wanted.key}")
    done = collect(ledger, store)
    assert done.pardoned == 1
    assert store.find(wanted.key) == wanted
    assert not store.exists(loose)


def test_old_jobs_are_forgotten_first_and_a_survey_says_so_and_deletes_nothing(
    ledger: Ledger, store: Store, scratch: Path,
) -> None:
    for job_id in ("old", "open", "new"):
        ledger.submit(film(job_id))
    kept = {job_id: stored(store, digest(job_id)[:32], scratch) for job_id in ("old", "open", "new")}
    for job_id, artifact in kept.items():
        ledger.log(job_id, f"made {artifact.key}")
    with ledger.database.write() as connection:
        for job_id, ended_s in (("old", 0.0), ("new", time.time() + 9 * DAY_S)):
            connection.execute(sa.update(job).where(job.c.id == job_id).values(status="succeeded", finished_at=ended_s))
    bounds = replace(QUICK, jobs_older_than_s=5 * DAY_S)
    survey = later(ledger, store, bounds).survey()
    assert survey.jobs == ("old",)
    assert [bundle.key for bundle in survey.plan.bundles] == [kept["old"].key]
    assert all(store.find(artifact.key) for artifact in kept.values())
    done = collect(ledger, store, bounds)
    assert done.jobs == 1
    assert {row.id for row in ledger.jobs().jobs} == {"open", "new"}
    assert [job_id for job_id, artifact in kept.items() if store.find(artifact.key)] == ["open", "new"]


def test_checkpoints_of_open_nodes_stay_and_others_go(ledger: Ledger, store: Store) -> None:
    key = content_key(NodeKind.CLIP, {"prompt": "s1"}, ())
    ledger.submit(film("open"))
    with ledger.database.write() as connection:
        connection.execute(sa.text("UPDATE node SET key = :key WHERE id = 's1.clip'"), {"key": key})
    shelf = CheckpointShelf(store.url)
    for it in (key, "ab" * 16):
        shelf.put(it, "run", Kept(label={}, step=3, attempt=1, spent_s=1.0, body=b"x"))
    assert len(collect(ledger, store).removed.checkpoints) == 1
    assert shelf.furthest(key, {}) is not None
    assert shelf.furthest("ab" * 16, {}) is None


def test_a_database_without_jobs_is_taken_for_the_wrong_one_and_too_small_bounds_for_a_mistake(
    ledger: Ledger, store: Store, scratch: Path,
) -> None:
    artifact = stored(store, "3f" + "0" * 30, scratch)
    with pytest.raises(InvalidSettings, match=r"knows no job, but the store holds 1 artifacts"):
        collect(ledger, store)
    assert store.find(artifact.key)
    assert len(collect(ledger, store, replace(QUICK, allow_no_jobs=True)).removed.bundles) == 1
    with pytest.raises(InvalidSettings, match="nearest valid: 1h"):
        collect(ledger, store, replace(QUICK, older_than_s=60))
