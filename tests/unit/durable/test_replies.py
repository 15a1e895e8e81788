"""A request that comes again: who works, who waits, who gets the first reply."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from workflows.durable.database import Database
from workflows.durable.ledger import Ledger
from workflows.durable.replies import InFlight, OtherRequest, Replies, Reserved, Stored
from workflows.durable.tables import reply


@pytest.fixture
def replies(ledger: Ledger) -> Replies:
    return Replies(ledger.database)


def age(database: Database, seconds: float) -> None:
    with database.write() as connection:
        connection.execute(sa.update(reply).values(created_at=reply.c.created_at - seconds,
                                                   touched_at=reply.c.touched_at - seconds))


def test_the_first_works_the_next_waits_and_then_gets_the_reply(replies: Replies) -> None:
    first = replies.begin("films", "k", "d")
    assert isinstance(first, Reserved)
    assert replies.begin("films", "k", "d") == InFlight()
    replies.finish(first, {"id": "film"})
    assert replies.begin("films", "k", "d") == Stored({"id": "film"})
    assert replies.begin("films", "k", "other") == OtherRequest()
    assert isinstance(replies.begin("edits", "k", "d"), Reserved), "a key belongs to its verb"


def test_an_abandoned_key_is_free_and_a_finished_one_is_not(replies: Replies) -> None:
    first = replies.begin("films", "k", "d")
    assert isinstance(first, Reserved)
    replies.abandon(first)
    second = replies.begin("films", "k", "other")
    assert isinstance(second, Reserved)
    replies.finish(second, {})
    replies.abandon(second)
    assert replies.begin("films", "k", "other") == Stored({})


def test_the_work_of_a_dead_process_is_taken_over_with_its_token(ledger: Ledger, replies: Replies) -> None:
    first = replies.begin("films", "k", "d")
    age(ledger.database, 61)
    assert replies.begin("films", "k", "d") == first
    assert replies.begin("films", "k", "d") == InFlight(), "and only once"


def test_a_reply_is_forgotten_after_a_day(ledger: Ledger, replies: Replies) -> None:
    first = replies.begin("films", "k", "d")
    assert isinstance(first, Reserved)
    replies.finish(first, {})
    age(ledger.database, 24 * 3600 + 1)
    assert isinstance(replies.begin("films", "k", "other"), Reserved)


def test_of_ten_at_once_one_works(replies: Replies) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(replies.begin("films", "race", "d"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Reserved) for one in found) == 1
    assert found.count(InFlight()) == 9
