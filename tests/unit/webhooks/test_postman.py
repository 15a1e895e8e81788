"""From the outbox to the endpoint and into the log: signed, repeated, spread over senders; no death loses an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook, WebhookVerificationError

from serve_app.webhooks.courier import Courier, Reply, SocketCourier
from serve_app.webhooks.guard import Guard
from serve_app.webhooks.postman import Postman, Tools
from tests.studio import film
from tests.unit.webhooks.endpoint import OPEN, listening
from workflows.durable.hooks import DeliveryRow, HookRow, Hooks
from workflows.durable.ledger import Ledger
from workflows.durable.mail import Mail
from workflows.durable.outbox import DeliveryStatus
from workflows.durable.tables import delivery
from workflows.errors import WebhookFailed

URL = "https://example.com/hook"


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    yield ledger
    ledger.close()


@pytest.fixture
def hooks(ledger: Ledger) -> Hooks:
    return Hooks(ledger.database)


class Pigeon:
    """A courier that says what it is told to say, and remembers what it carried."""

    def __init__(self, *replies: Reply | Exception) -> None:
        self.replies = list(replies)
        self.carried: list[tuple[Mapping[str, str], bytes]] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        self.carried.append((headers, body))
        reply = self.replies.pop(0) if self.replies else reply_of(200)
        if isinstance(reply, Exception):
            raise reply
        return reply


def reply_of(status: int, **headers: str) -> Reply:
    return Reply(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=b"hi")


def postman(ledger: Ledger, courier: Courier) -> Postman:
    return Postman(ledger.database, courier, OPEN, Tools(draw=lambda: 0.0))


def sockets() -> SocketCourier:
    return SocketCourier(Guard(OPEN), timeout_s=10)


async def deliver(ledger: Ledger, courier: Courier) -> bool:
    """One attempt at what is due."""
    [letter] = Mail(ledger.database, lease_s=60).claim()
    return await postman(ledger, courier).deliver(letter)


def age(ledger: Ledger, seconds: float) -> None:
    with ledger.database.write() as connection:
        connection.execute(sa.update(delivery).values(next_at=delivery.c.next_at - seconds,
                                                      lease_until=delivery.c.lease_until - seconds))


def only(hooks: Hooks, row: HookRow) -> DeliveryRow:
    [found] = hooks.deliveries(row.id)
    return found


def wait_of(found: DeliveryRow) -> float:
    assert found.next_at_s is not None
    return found.next_at_s - datetime.now(UTC).timestamp()


async def run_until(man: Postman, hooks: Hooks, row: HookRow, n: int) -> None:
    """Let a postman work until `n` deliveries are done."""
    running = asyncio.create_task(man.run())
    async with asyncio.timeout(30):
        while len(hooks.deliveries(row.id, status=DeliveryStatus.DELIVERED)) < n:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the database sends no signal
    await man.stop()
    await running


async def test_a_films_end_arrives_signed_and_the_standards_own_verifier_accepts_it(
        ledger: Ledger, hooks: Hooks) -> None:
    async with listening() as endpoint:
        row, secret = hooks.register(endpoint.url, events=["job.cancelled"])
        ledger.submit(film())
        ledger.cancel("film")
        await run_until(postman(ledger, sockets()), hooks, row, 1)
    [got] = endpoint.received
    body = Webhook(secret).verify(got.body, got.headers)
    assert (body["type"], body["data"]["job"]["id"]) == ("job.cancelled", "film")
    assert got.headers["webhook-id"] == only(hooks, row).message_id
    assert got.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(got.body.replace(b"film", b"mask"), got.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(got.body, {**got.headers, "webhook-id": "evt_other"})


async def test_two_postmen_deliver_each_event_once(ledger: Ledger, hooks: Hooks) -> None:
    async with listening() as endpoint:
        row, _ = hooks.register(endpoint.url)
        sent = {hooks.test(row.id).message_id for _ in range(30)}
        await asyncio.gather(*(run_until(postman(ledger, sockets()), hooks, row, 30) for _ in range(2)))
    got = [received.headers["webhook-id"] for received in endpoint.received]
    assert sorted(got) == sorted(sent)


async def test_killed_between_sending_and_recording_it_is_sent_again_under_the_same_id(
        ledger: Ledger, hooks: Hooks) -> None:
    row, _ = hooks.register(URL)
    hooks.test(row.id)
    pigeon = Pigeon()
    [letter] = Mail(ledger.database, lease_s=60).claim()
    headers = postman(ledger, pigeon)._headers(letter, 1.0)
    await pigeon.post(letter.url, headers, letter.body.encode())  # sent, and the sender is gone
    assert Mail(ledger.database, lease_s=60).claim() == (), "its lease still holds"
    age(ledger, 61)
    assert await deliver(ledger, pigeon)
    (first, first_body), (second, second_body) = pigeon.carried
    assert first["webhook-id"] == second["webhook-id"]
    assert first_body == second_body
    assert only(hooks, row).status is DeliveryStatus.DELIVERED


async def test_a_postman_stopped_under_way_leaves_its_letter_to_the_next(ledger: Ledger, hooks: Hooks) -> None:
    began = asyncio.Event()

    class Stuck(Pigeon):
        async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
            began.set()
            await asyncio.Event().wait()
            raise AssertionError

    row, _ = hooks.register(URL)
    hooks.test(row.id)
    man = postman(ledger, Stuck())
    running = asyncio.create_task(man.run())
    await asyncio.wait_for(began.wait(), 30)
    await man.stop()
    await running
    assert only(hooks, row).attempts == ()
    age(ledger, 61)
    assert await deliver(ledger, Pigeon())
    assert only(hooks, row).status is DeliveryStatus.DELIVERED


@pytest.mark.parametrize("outcome", [reply_of(500), reply_of(404), reply_of(302), reply_of(100), OSError("odd"),
                                     WebhookFailed(reason="no reply within 15 s")], ids=repr)
async def test_what_is_no_success_is_tried_again_in_five_seconds_and_logged(
        ledger: Ledger, hooks: Hooks, outcome: Reply | Exception) -> None:
    row, _ = hooks.register(URL)
    hooks.test(row.id)
    await deliver(ledger, Pigeon(outcome))
    found = only(hooks, row)
    assert found.status is DeliveryStatus.PENDING
    assert 0 < wait_of(found) <= 5
    [attempt] = found.attempts
    assert attempt.error
    assert attempt.http_status == (outcome.status if isinstance(outcome, Reply) else 0)
    assert attempt.reply == ("hi" if isinstance(outcome, Reply) else "")


async def test_ten_failures_end_it(ledger: Ledger, hooks: Hooks) -> None:
    row, _ = hooks.register(URL)
    hooks.test(row.id)
    pigeon = Pigeon(*[reply_of(500)] * 10)
    for _ in range(10):
        age(ledger, 86_401)
        await deliver(ledger, pigeon)
    age(ledger, 10**7)
    assert Mail(ledger.database, lease_s=60).claim() == ()
    found = only(hooks, row)
    assert (found.status, len(found.attempts)) == (DeliveryStatus.FAILED, 10)
    assert len({headers["webhook-id"] for headers, _ in pigeon.carried}) == 1


@pytest.mark.parametrize(("status", "header", "least_s", "most_s"), [
    (429, "120", 100, 120), (503, "120", 100, 120), (500, "120", 0, 5), (429, "soon", 0, 5), (429, "-9", 0, 5),
    (429, "1", 0, 5), (503, "99999999999999999999", 86_000, 86_400), (503, "date", 200, 300),
    (503, "Mon, 99 Foo 2026", 0, 5),
])
async def test_retry_after_is_honoured_where_it_means_later(
        ledger: Ledger, hooks: Hooks, status: int, header: str, least_s: float, most_s: float) -> None:
    row, _ = hooks.register(URL)
    hooks.test(row.id)
    if header == "date":
        header = format_datetime(datetime.fromtimestamp(datetime.now(UTC).timestamp() + 300, UTC), usegmt=True)
    await deliver(ledger, Pigeon(reply_of(status, retry_after=header)))
    assert least_s < wait_of(only(hooks, row)) <= most_s


async def test_410_disables_the_endpoint(ledger: Ledger, hooks: Hooks) -> None:
    async with listening() as endpoint:
        endpoint.says("410 Gone", body="moved away")
        row, _ = hooks.register(endpoint.url)
        hooks.test(row.id)
        await deliver(ledger, sockets())
    assert hooks.hook(row.id).disabled == "it answered 410"
    found = only(hooks, row)
    assert (found.status, found.attempts[0].reply) == (DeliveryStatus.FAILED, "moved away")


async def test_any_bytes_can_be_a_reply(ledger: Ledger, hooks: Hooks) -> None:
    row, _ = hooks.register(URL)
    hooks.test(row.id)
    await deliver(ledger, Pigeon(Reply(status=500, headers={}, body=b"\0\xff\xfe" + b"a" * 5000)))
    reply = only(hooks, row).attempts[0].reply
    assert len(reply) == 1000
    assert reply.startswith("\ufffd\ufffd\ufffdaaa")


async def test_a_slow_endpoint_does_not_hold_up_another(ledger: Ledger, hooks: Hooks) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening() as slow, listening() as quick:
        slow.behave = silent
        slow_row, _ = hooks.register(slow.url)
        quick_row, _ = hooks.register(quick.url)
        for _ in range(OPEN.parallel * 2):
            hooks.test(slow_row.id)
        hooks.test(quick_row.id)
        await run_until(postman(ledger, sockets()), hooks, quick_row, 1)
        assert slow.connections <= OPEN.parallel_per_webhook


async def test_a_postman_outlives_what_goes_wrong_in_it(ledger: Ledger, hooks: Hooks) -> None:
    row, _ = hooks.register(URL)
    hooks.test(row.id)
    pigeon = Pigeon(RuntimeError("a bug"))
    man = postman(ledger, pigeon)
    running = asyncio.create_task(man.run())
    async with asyncio.timeout(30):
        while not only(hooks, row).attempts:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    age(ledger, 6)
    async with asyncio.timeout(30):
        while only(hooks, row).status is not DeliveryStatus.DELIVERED:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await man.stop()
    await running
    assert "a bug" in only(hooks, row).attempts[0].error


async def test_bodies_are_json_whatever_a_title_holds(ledger: Ledger, hooks: Hooks) -> None:
    hooks.register(URL)
    title = 'B\u00fccher "\u2028\U0001f3ac'
    ledger.submit(type(film())(id="film", title=title, document={}, nodes=film().nodes))
    ledger.cancel("film")
    pigeon = Pigeon()
    await deliver(ledger, pigeon)
    assert json.loads(pigeon.carried[0][1])["data"]["job"]["title"] == title
