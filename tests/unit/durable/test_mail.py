"""Who sends which delivery: one at a time, again after a death, in due time, never to a disabled endpoint."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from tests.studio import film
from workflows.durable.hooks import MAX_HOOKS, Hooks
from workflows.durable.ledger import Ledger
from workflows.durable.mail import Attempt, Letter, Mail
from workflows.durable.outbox import DeliveryStatus
from workflows.durable.schedule import WAITS_S, wait_s
from workflows.durable.tables import delivery
from workflows.errors import UnknownWebhook, WebhookConflict

URL = "https://example.com/hook"
OK = Attempt(at_s=1.0, latency_s=0.5, http_status=200, reply="thanks")
BUSY = Attempt(at_s=1.0, latency_s=0.5, http_status=500, error="it answered 500")


@pytest.fixture
def hooks(ledger: Ledger) -> Hooks:
    return Hooks(ledger.database)


@pytest.fixture
def mail(ledger: Ledger) -> Mail:
    return Mail(ledger.database, lease_s=60)


def age(ledger: Ledger, seconds: float) -> None:
    """Let time pass for every delivery."""
    with ledger.database.write() as connection:
        connection.execute(sa.update(delivery).values(
            next_at=delivery.c.next_at - seconds, lease_until=delivery.c.lease_until - seconds,
            finished_at=delivery.c.finished_at - seconds))


def take(mail: Mail) -> Letter:
    [letter] = mail.claim()
    return letter


class TestSchedule:
    def test_it_is_the_standards(self) -> None:
        assert WAITS_S == (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
        assert [wait_s(n, draw=lambda: 0.0) for n in range(1, 11)] == [*WAITS_S[1:], None]

    def test_jitter_lengthens_a_wait_by_up_to_a_fifth(self) -> None:
        assert wait_s(1, draw=lambda: 0.5) == pytest.approx(5.5)
        assert wait_s(2, draw=lambda: 1.0) == pytest.approx(360)

    @pytest.mark.parametrize(("asked_s", "waits_s"), [(1, 5), (60, 60), (10**9, 86_400)])
    def test_an_endpoint_can_ask_for_a_longer_wait_up_to_a_day(self, asked_s: float, waits_s: float) -> None:
        assert wait_s(1, draw=lambda: 0.0, asked_s=asked_s) == waits_s


class TestClaims:
    def test_of_two_senders_one_gets_it(self, hooks: Hooks, mail: Mail) -> None:
        row, secret = hooks.register(URL)
        sent = hooks.test(row.id)
        assert mail.is_due()
        letter = take(mail)
        assert (letter.url, letter.secret, letter.message_id) == (URL, secret, sent.message_id)
        assert mail.claim() == ()
        assert not mail.is_due()

    def test_eight_senders_at_once_send_each_of_forty_once(self, ledger: Ledger, hooks: Hooks) -> None:
        row, _ = hooks.register(URL)
        ids = {hooks.test(row.id).message_id for _ in range(40)}
        taken: list[str] = []
        gate = threading.Barrier(8)

        def work() -> None:
            mine = Mail(ledger.database, lease_s=60)
            gate.wait()
            misses = 0
            while misses < 3:  # another one's locked row may hide a free one for a moment
                letters = mine.claim(2)
                misses = 0 if letters else misses + 1
                for letter in letters:
                    taken.append(letter.message_id)
                    mine.delivered(letter, OK)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == sorted(ids)

    def test_after_a_death_it_is_sent_again_with_the_same_id_and_bytes_and_the_dead_record_nothing(
            self, ledger: Ledger, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        hooks.test(row.id)
        first = take(mail)
        age(ledger, 61)
        second = take(mail)
        assert (second.message_id, second.body, second.attempt) == (first.message_id, first.body, first.attempt)
        assert second.token != first.token
        assert not mail.delivered(first, OK)
        assert not mail.failed(first, BUSY, wait_s=5)
        assert mail.delivered(second, OK)
        [found] = hooks.deliveries(row.id)
        assert (found.status, found.attempts, found.next_at_s) == (DeliveryStatus.DELIVERED, (OK,), None)

    def test_an_endpoint_that_is_busy_is_passed_over(self, hooks: Hooks, mail: Mail) -> None:
        slow, other = (hooks.register(URL)[0] for _ in range(2))
        hooks.test(slow.id)
        hooks.test(other.id)
        assert [letter.hook_id for letter in mail.claim(5, without=[slow.id])] == [other.id]
        assert not mail.is_due(without=[slow.id])
        assert mail.is_due()

    def test_what_a_job_tells_is_sent_in_the_order_of_its_time(self, ledger: Ledger, hooks: Hooks, mail: Mail) -> None:
        hooks.register(URL)
        for name in ("a", "b"):
            ledger.submit(film(name))
            ledger.cancel(name)
        assert [take(mail).body.count(f'"id":"{name}"') for name in ("a", "b")] == [1, 1]


class TestOutcomes:
    def test_a_failure_waits_its_time_and_the_last_one_ends_it(self, ledger: Ledger, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        hooks.test(row.id)
        before_s = time.time()
        assert mail.failed(take(mail), BUSY, wait_s=300)
        [found] = hooks.deliveries(row.id)
        assert found.next_at_s is not None
        assert before_s + 299 < found.next_at_s
        assert mail.claim() == ()
        age(ledger, 301)
        letter = take(mail)
        assert letter.attempt == 1
        assert mail.failed(letter, BUSY, wait_s=None)
        age(ledger, 10**6)
        assert mail.claim() == ()
        [found] = hooks.deliveries(row.id)
        assert (found.status, found.attempts) == (DeliveryStatus.FAILED, (BUSY, BUSY))

    def test_an_endpoint_that_is_gone_is_disabled_and_nothing_waits_for_it(
            self, ledger: Ledger, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        hooks.test(row.id)
        waiting = hooks.test(row.id)
        gone = Attempt(at_s=1.0, latency_s=0.1, http_status=410, error="it answered 410")
        assert mail.gone(take(mail), gone)
        assert hooks.hook(row.id).disabled == "it answered 410"
        assert hooks.delivery(row.id, waiting.message_id).status is DeliveryStatus.FAILED
        ledger.submit(film())
        ledger.cancel("film")
        assert len(hooks.deliveries(row.id)) == 2, "nothing new is queued for it"
        for verb in (lambda: hooks.test(row.id), lambda: hooks.redeliver(row.id, waiting.message_id)):
            with pytest.raises(WebhookConflict, match="is disabled: it answered 410"):
                verb()

    def test_sent_again_by_hand_it_has_its_old_id_and_the_whole_schedule(self, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        sent = hooks.test(row.id)
        mail.failed(take(mail), BUSY, wait_s=None)
        again = hooks.redeliver(row.id, sent.message_id)
        assert (again.message_id, again.status, again.attempts) == (sent.message_id, DeliveryStatus.PENDING, (BUSY,))
        letter = take(mail)
        assert letter.attempt == 0
        mail.delivered(letter, OK)
        assert hooks.delivery(row.id, sent.message_id).attempts == (BUSY, OK)
        with pytest.raises(UnknownWebhook):
            hooks.redeliver(row.id, "evt_ghost")

    def test_old_ones_are_dropped_with_their_log_and_pending_ones_are_not(
            self, ledger: Ledger, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        hooks.test(row.id)
        mail.delivered(take(mail), OK)
        waiting = hooks.test(row.id)
        assert mail.forget(100) == 0
        age(ledger, 101)
        assert mail.forget(100) == 1
        assert [found.message_id for found in hooks.deliveries(row.id)] == [waiting.message_id]

    def test_they_are_counted_by_status(self, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        for _ in range(3):
            hooks.test(row.id)
        mail.delivered(take(mail), OK)
        mail.failed(take(mail), BUSY, wait_s=None)
        assert hooks.tally() == {DeliveryStatus.PENDING: 1, DeliveryStatus.DELIVERED: 1, DeliveryStatus.FAILED: 1}

    def test_the_log_has_pages_and_a_filter(self, hooks: Hooks, mail: Mail) -> None:
        row, _ = hooks.register(URL)
        sent = [hooks.test(row.id).message_id for _ in range(3)]
        mail.delivered(take(mail), OK)
        first = hooks.deliveries(row.id, limit=2)
        rest = hooks.deliveries(row.id, limit=2, before=first[-1].seq)
        assert [found.message_id for found in first + rest] == sent[::-1]
        assert [found.message_id for found in hooks.deliveries(row.id, status=DeliveryStatus.DELIVERED)] == sent[:1]


def test_there_is_an_end_to_endpoints(hooks: Hooks) -> None:
    for _ in range(MAX_HOOKS):
        hooks.register(URL)
    with pytest.raises(WebhookConflict, match="delete one first"):
        hooks.register(URL)
