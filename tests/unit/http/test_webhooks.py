"""Webhooks over HTTP: registered, filtered, tested, looked at, sent again; addresses that lead inside are refused."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from serve_app.http.schemas import Accepted, Problem
from serve_app.http.webhook_schemas import DeliveryList, DeliveryReply, WebhookCreated, WebhookList, WebhookReply
from serve_app.service.webhooks import Webhooks
from serve_app.webhooks.guard import Guard
from tests.desk import TWO_SHOTS, Shop
from workflows.durable.mail import Attempt, Mail
from workflows.durable.outbox import DeliveryStatus, HookEvent
from workflows.errors import InvalidDocument

URL = "https://93.184.216.34/hook"


def register(shop: Shop, **fields: Any) -> WebhookCreated:
    reply = shop.client.post("/api/webhooks", json={"url": URL, **fields})
    assert reply.status_code == 201, reply.text
    made = WebhookCreated.model_validate_json(reply.content)
    assert reply.headers["location"] == f"/api/webhooks/{made.id}"
    return made


def log(shop: Shop, hook_id: str, query: str = "") -> DeliveryList:
    return DeliveryList.model_validate_json(shop.client.get(f"/api/webhooks/{hook_id}/deliveries{query}").content)


def test_the_secret_is_in_the_first_reply_and_in_no_other(shop: Shop) -> None:
    made = register(shop, events=["job.failed"], note="pager")
    assert made.secret.startswith("whsec_")
    shown = shop.client.get(f"/api/webhooks/{made.id}")
    assert WebhookReply.model_validate_json(shown.content) == WebhookReply(
        id=made.id, url=URL, events=(HookEvent.JOB_FAILED,), job_id=None, note="pager", disabled=None,
        created_at=made.created_at)
    listed = shop.client.get("/api/webhooks")
    assert [hook.id for hook in WebhookList.model_validate_json(listed.content).webhooks] == [made.id]
    assert made.secret not in shown.text + listed.text
    assert made.secret not in shop.client.post(f"/api/webhooks/{made.id}/test").text


@pytest.mark.parametrize(("body", "pointer"), [
    ({"url": "http://93.184.216.34/"}, "#/url"), ({"url": "https://127.0.0.1/"}, "#/url"),
    ({"url": "https://localhost"}, "#/url"),
    ({"url": "https://169.254.169.254/"}, "#/url"), ({"url": ""}, "#/url"), ({}, "#/url"), ({"url": 7}, "#/url"),
    ({"url": URL, "events": ["job.done"]}, "#/events/0"), ({"url": URL, "secret": "x"}, "#/secret"),
    ({"url": URL, "note": "\0"}, "#/note"), ({"url": URL, "job_id": "\0"}, "#/job_id"),
])
def test_a_wrong_registration_is_refused_with_a_pointer(shop: Shop, body: Any, pointer: str) -> None:
    reply = shop.client.post("/api/webhooks", json=body)
    problem = Problem.model_validate_json(reply.content)
    assert reply.status_code == 422
    assert problem.errors is not None
    assert problem.errors[0].pointer == pointer
    assert shop.client.get("/api/webhooks").json() == {"webhooks": []}


def test_a_film_is_told_of_and_the_log_says_how_it_went(shop: Shop) -> None:
    made = register(shop, events=["job.succeeded", "shot.succeeded"])
    job_id = shop.film()
    found = log(shop, made.id).deliveries
    assert [entry.type for entry in found] == ["job.succeeded", "shot.succeeded", "shot.succeeded"]
    assert {entry.job_id for entry in found} == {job_id}
    mail = Mail(shop.ledger.database, lease_s=60)
    [letter] = mail.claim()
    mail.failed(letter, Attempt(at_s=5.0, latency_s=0.25, http_status=500, error="it answered 500", reply="oops"),
                wait_s=60)
    entry = log(shop, made.id).deliveries[-1]
    assert (entry.id, entry.status) == (letter.message_id, DeliveryStatus.PENDING)
    assert entry.next_attempt_at is not None
    [attempt] = entry.attempts
    assert (attempt.http_status, attempt.latency_s, attempt.error, attempt.reply) == (500, 0.25, "it answered 500",
                                                                                       "oops")


def test_the_log_has_pages_and_a_filter(shop: Shop) -> None:
    made = register(shop)
    sent = [DeliveryReply.model_validate_json(shop.client.post(f"/api/webhooks/{made.id}/test").content).id
            for _ in range(3)]
    first = log(shop, made.id, "?limit=2")
    rest = log(shop, made.id, f"?limit=2&cursor={first.next_cursor}")
    assert [entry.id for entry in first.deliveries + rest.deliveries] == sent[::-1]
    assert rest.next_cursor == ""
    assert log(shop, made.id, "?status=failed").deliveries == ()


def test_a_delivery_is_sent_again_on_request(shop: Shop) -> None:
    made = register(shop)
    sent = shop.client.post(f"/api/webhooks/{made.id}/test").json()
    mail = Mail(shop.ledger.database, lease_s=60)
    [letter] = mail.claim()
    mail.delivered(letter, Attempt(at_s=1.0, latency_s=0.1, http_status=200))
    reply = shop.client.post(f"/api/webhooks/{made.id}/deliveries/{sent['id']}/redeliver")
    again = DeliveryReply.model_validate_json(reply.content)
    assert (reply.status_code, again.id, again.status) == (202, sent["id"], DeliveryStatus.PENDING)
    assert [found.message_id for found in mail.claim()] == [sent["id"]]


def test_a_disabled_webhook_says_why_and_refuses_more(shop: Shop) -> None:
    made = register(shop)
    shop.client.post(f"/api/webhooks/{made.id}/test")
    mail = Mail(shop.ledger.database, lease_s=60)
    [letter] = mail.claim()
    mail.gone(letter, Attempt(at_s=1.0, latency_s=0.1, http_status=410, error="it answered 410"))
    assert shop.client.get(f"/api/webhooks/{made.id}").json()["disabled"] == "it answered 410"
    reply = shop.client.post(f"/api/webhooks/{made.id}/test")
    assert (reply.status_code, reply.json()["code"]) == (409, "webhook-conflict")


def test_one_jobs_webhook_hears_of_no_other_job(shop: Shop) -> None:
    mine, other = shop.submit(), shop.submit()
    made = register(shop, job_id=mine)
    for job_id in (other, mine):
        shop.client.post(f"/api/jobs/{job_id}/cancel")
    assert [entry.job_id for entry in log(shop, made.id).deliveries] == [mine]
    assert shop.client.post("/api/webhooks", json={"url": URL, "job_id": "ghost"}).status_code == 404


def test_a_deleted_webhook_is_gone(shop: Shop) -> None:
    made = register(shop)
    assert shop.client.delete(f"/api/webhooks/{made.id}").status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries"),
                         ("POST", "/deliveries/evt_1/redeliver")):
        reply = shop.client.request(method, f"/api/webhooks/{made.id}{path}")
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown-webhook"), path


@pytest.mark.parametrize("path", ["a%0ab", "..%2f..", "%ed%a0%80", "x" * 41, "A"])
def test_an_id_that_is_none_is_refused(shop: Shop, path: str) -> None:
    assert shop.client.get(f"/api/webhooks/{path}").status_code in (404, 422)


async def test_a_name_that_nobody_answers_for_is_refused_in_time(closed_shop: Shop) -> None:
    free = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        free.wait(10)
        return []

    webhooks = Webhooks(closed_shop.ledger, Guard(closed_shop.settings.webhooks, hang), lookup_s=0.1)
    try:
        with pytest.raises(InvalidDocument, match=r"nobody says within 0\.1 s"):
            await webhooks.register("https://slow.example.com/", events=(), job_id=None, note="")
    finally:
        free.set()
    assert webhooks.all() == {"webhooks": []}


class TestWithAFilm:
    PATH = f"/api/films?webhook_url={URL}"

    def test_it_hears_of_this_job_alone_and_its_secret_is_in_the_reply(self, shop: Shop) -> None:
        reply = shop.client.post(self.PATH, json=TWO_SHOTS)
        made = Accepted.model_validate_json(reply.content)
        assert reply.status_code == 202
        assert made.webhook is not None
        assert made.webhook.secret.startswith("whsec_")
        shop.film({**TWO_SHOTS, "seed": 5})
        shop.render(made.id)
        assert {entry.job_id for entry in log(shop, made.webhook.id).deliveries} == {made.id}
        assert shop.client.get("/api/webhooks").json()["webhooks"] == []
        assert [found["id"] for found in shop.client.get(f"/api/webhooks?job_id={made.id}").json()["webhooks"]] == [
            made.webhook.id]

    def test_a_repeated_request_makes_no_second_one(self, shop: Shop) -> None:
        first, second = (shop.client.post(self.PATH, json=TWO_SHOTS, headers={"Idempotency-Key": "k"})
                         for _ in range(2))
        assert first.json() == second.json()
        assert len(shop.client.get(f"/api/webhooks?job_id={first.json()['id']}").json()["webhooks"]) == 1
        other = shop.client.post("/api/films", json=TWO_SHOTS, headers={"Idempotency-Key": "k"})
        assert other.status_code == 422

    @pytest.mark.parametrize("query", ["", "&dry_run=true"])
    def test_an_address_that_leads_inside_is_refused_and_nothing_is_queued(self, shop: Shop, query: str) -> None:
        reply = shop.client.post(f"/api/films?webhook_url=https://10.0.0.1/{query}", json=TWO_SHOTS)
        assert (reply.status_code, reply.json()["errors"][0]["parameter"]) == (422, "webhook_url")
        assert shop.client.get("/api/jobs").json()["jobs"] == []

    def test_without_one_the_reply_does_not_speak_of_it(self, shop: Shop) -> None:
        assert "webhook" not in shop.client.post("/api/films", json=TWO_SHOTS).json()
