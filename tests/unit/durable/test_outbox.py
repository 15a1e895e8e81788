"""What webhooks must hear is written with what happens: which events, for whom, once, and with the same transaction."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from tests.studio import Studio, film
from workflows.durable.hooks import Hooks
from workflows.durable.ledger import Ledger, close_cancelled
from workflows.durable.mail import Attempt, Mail
from workflows.durable.rows import NewJob
from workflows.durable.tables import delivery, hook
from workflows.errors import JobConflict, ModelFailed, UnknownWebhook
from workflows.types import JobStatus, NodeKind, NodeSpec


def sent(ledger: Ledger) -> list[tuple[str, dict[str, Any]]]:
    """Type and body of everything that is to be sent, oldest first."""
    with ledger.database.read() as connection:
        rows = connection.execute(sa.select(delivery.c.type, delivery.c.body).order_by(delivery.c.seq)).all()
    return [(row.type, json.loads(row.body)) for row in rows]


def types(ledger: Ledger) -> list[str]:
    return [type for type, _ in sent(ledger)]


def burn(studio: Studio, node_id: str) -> None:
    studio.step.script[node_id] = [ModelFailed(node_id=node_id, reason="it burned")] * 3


async def test_a_film_tells_of_every_shot_and_then_of_its_end(studio: Studio) -> None:
    Hooks(studio.ledger.database).register("https://example.com/hook")
    studio.ledger.submit(film(shots=3))
    await studio.render()
    assert sorted(types(studio.ledger)[:-1]) == ["shot.succeeded"] * 3
    assert {body["data"]["shot"]["id"] for _, body in sent(studio.ledger)[:-1]} == {"s1", "s2", "s3"}
    type, body = sent(studio.ledger)[-1]
    assert (type, body["type"]) == ("job.succeeded", "job.succeeded")
    assert body["timestamp"].endswith("Z")
    job = body["data"]["job"]
    assert (job["id"], job["status"], job["error"]) == ("film", "succeeded", None)
    assert job["finished_at"] >= job["started_at"] >= job["created_at"]


async def test_a_shot_fails_once_however_many_of_its_nodes_have_no_result(studio: Studio) -> None:
    Hooks(studio.ledger.database).register("https://example.com/hook", events=["shot.failed", "job.partial"])
    burn(studio, "s1.keyframe")
    studio.ledger.submit(film(shots=2))
    assert (await studio.render()).status is JobStatus.PARTIAL
    [(_, shot), (last, _)] = sent(studio.ledger)
    assert last == "job.partial"
    assert shot["data"] == {"job_id": "film", "shot": {
        "id": "s1", "status": "failed", "error": "s1.keyframe: it burned"}}


async def test_a_shot_that_continues_a_lost_one_has_failed_too(studio: Studio) -> None:
    Hooks(studio.ledger.database).register("https://example.com/hook", events=["shot.failed", "job.failed"])
    burn(studio, "s1.clip")
    studio.ledger.submit(NewJob(id="film", document={}, nodes=(
        NodeSpec(id="s1.clip", kind=NodeKind.CLIP, shot_id="s1"),
        NodeSpec(id="s2.clip", kind=NodeKind.CLIP, shot_id="s2", deps=("s1.clip",)))))
    await studio.render()
    assert [(type, body["data"].get("shot", {}).get("id")) for type, body in sent(studio.ledger)] == [
        ("shot.failed", "s1"), ("shot.failed", "s2"), ("job.failed", None)]


async def test_a_rerun_tells_again_under_ids_of_its_own(studio: Studio) -> None:
    hooks = Hooks(studio.ledger.database)
    row, _ = hooks.register("https://example.com/hook", events=["shot.succeeded", "job.succeeded"])
    studio.ledger.submit(film(shots=1))
    await studio.render()
    studio.ledger.rerun("film", ["s1"], force=True)
    await studio.render()
    assert types(studio.ledger) == ["shot.succeeded", "job.succeeded"] * 2
    assert len({found.message_id for found in hooks.deliveries(row.id)}) == 4


def test_a_cancelled_job_tells_of_itself_only(ledger: Ledger) -> None:
    Hooks(ledger.database).register("https://example.com/hook")
    ledger.submit(film())
    ledger.cancel("film")
    ledger.cancel("film")
    assert types(ledger) == ["job.cancelled"]


@pytest.mark.parametrize(("burns", "told"), [(False, "video.completed"), (True, "video.failed")])
async def test_a_job_that_stands_for_a_video_tells_so_in_openais_words(studio: Studio, burns: bool, told: str) -> None:
    row, _ = Hooks(studio.ledger.database).register("https://example.com/hook", events=[told])
    if burns:
        burn(studio, "v.clip")
    studio.ledger.submit(NewJob(id="video_1", kind="video", document={}, nodes=(
        NodeSpec(id="v.clip", kind=NodeKind.CLIP, shot_id="v"),)))
    await studio.render("video_1")
    [(_, body)] = sent(studio.ledger)
    [found] = Hooks(studio.ledger.database).deliveries(row.id)
    assert isinstance(body.pop("created_at"), int)
    assert body == {"id": found.message_id, "object": "event", "type": told, "data": {"id": "video_1"}}


def test_each_endpoint_gets_what_it_asked_for_under_one_id(ledger: Ledger) -> None:
    hooks = Hooks(ledger.database)
    all_of_it, _ = hooks.register("https://example.com/all")
    some, _ = hooks.register("https://example.com/some", events=["job.cancelled"])
    others = [hooks.register("https://example.com/failed", events=["job.failed"])[0],
              hooks.register("https://example.com/other", job_id="other")[0]]
    mine, _ = hooks.register("https://example.com/mine", job_id="film")
    ledger.submit(film())
    ledger.cancel("film")
    ids = {found.message_id for row in (all_of_it, some, mine) for found in hooks.deliveries(row.id)}
    assert len(ids) == 1
    assert [hooks.deliveries(row.id) for row in others] == [(), ()]


def test_what_is_rolled_back_is_not_told(ledger: Ledger) -> None:
    Hooks(ledger.database).register("https://example.com/hook")
    ledger.submit(film())

    def crash() -> None:
        with ledger.database.write() as connection:
            close_cancelled(connection, "film", JobStatus.QUEUED)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert types(ledger) == []


def test_a_deleted_endpoint_takes_its_deliveries_along_and_a_deleted_job_does_not(ledger: Ledger) -> None:
    hooks = Hooks(ledger.database)
    row, _ = hooks.register("https://example.com/hook")
    ledger.submit(film())
    ledger.cancel("film")
    ledger.delete("film")
    assert types(ledger) == ["job.cancelled"]
    hooks.delete(row.id)
    assert types(ledger) == []
    with pytest.raises(UnknownWebhook):
        hooks.delete(row.id)


def test_the_secret_is_given_once_and_is_of_the_standards_length(ledger: Ledger) -> None:
    hooks = Hooks(ledger.database)
    row, secret = hooks.register("https://example.com/hook")
    assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"))) <= 64
    assert secret not in repr(hooks.hook(row.id))


def test_a_webhook_comes_with_its_job_or_not_at_all(ledger: Ledger) -> None:
    hooks = Hooks(ledger.database)
    first = replace(film(), webhook_url="https://example.com/one")
    for _ in range(2):  # the answer to the first was lost
        ledger.submit(first)
    [row] = hooks.hooks(job_id="film")
    assert (row.url, hooks.made_with("film")[0]) == ("https://example.com/one", row.id)
    with pytest.raises(JobConflict):
        ledger.submit(replace(first, document={"title": "other"}))
    assert len(hooks.hooks(job_id="film")) == 1
    assert hooks.hooks() == ()


def test_the_webhook_of_a_deleted_job_goes_when_it_has_nothing_left_to_tell(ledger: Ledger) -> None:
    hooks, mail = Hooks(ledger.database), Mail(ledger.database, lease_s=60)
    lasting, _ = hooks.register("https://example.com/all", events=["job.failed"])
    ledger.submit(replace(film(), webhook_url="https://example.com/one"))
    ledger.cancel("film")
    ledger.delete("film")
    mail.forget(0)
    [letter] = mail.claim()
    mail.delivered(letter, Attempt(at_s=1.0, latency_s=0.1, http_status=200))
    mail.forget(-60)
    assert hooks.hooks(job_id="film") == ()
    assert [row.id for row in hooks.hooks()] == [lasting.id]


def test_a_job_ends_although_an_endpoint_is_deleted_at_that_moment(ledger: Ledger) -> None:
    row, _ = Hooks(ledger.database).register("https://example.com/hook")
    ledger.submit(film())
    with ThreadPoolExecutor(1) as threads:
        with ledger.database.write() as connection:
            connection.execute(sa.delete(hook).where(hook.c.id == row.id))
            ending = threads.submit(ledger.cancel, "film")
            time.sleep(0.3)  # by now it waits for the endpoint's row, or for SQLite's write lock
        assert ending.result(30).status is JobStatus.CANCELLED
    assert types(ledger) == []
