"""Requests that nobody would write: drawn from the OpenAPI document, right and wrong ones, for every route in it.

schemathesis draws them, and holds each reply against the document: no status of 500 and above; no status, type, body or
header that is not written there; nothing let through that the document forbids. A new route is tried by itself. Ids
in paths are those of real things half of the time. Every job is over (what a request sets going is cancelled at once),
so event streams and followed logs end; streams of jobs that go on are tried in test_events.py and test_slow_clients.py.
"""

from __future__ import annotations

import re
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
import requests
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.hypothesis.builder import HypothesisTestConfig, HypothesisTestMode, create_test
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_app.http import ui
from serve_app.service.webhooks import Webhooks
from serve_app.webhooks.guard import Guard
from tests.desk import Shop, open_shop
from workflows.types import JobStatus

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
          response_headers_conformance, negative_data_rejection]
HOST = "http://127.0.0.1:8000"
WEBHOOK = "https://hooks.example/reelray"
VIDEO = {"prompt": "a red circle moves left over a blue background"}
FEW, MANY = 10, 420
"""Cases drawn per route, in the fast and in the long test, besides those for every bound that the document names."""
AT_LEAST = 10_000
"""Requests of the long test."""


def drawing(cases: int) -> settings:
    """The same cases in every run."""
    return settings(max_examples=cases, derandomize=True, database=None, deadline=None,
                    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))


@dataclass
class Inhabited:
    """A desk in which ids lead to something."""

    shop: Shop
    film_id: str
    """Is looked at, and never changed."""
    changing_id: str
    """Is changed, run again, cancelled."""
    video_id: str
    image_id: str
    picture_id: str
    upload_id: str
    webhook_id: str
    message_id: str
    batch_id: str
    replies: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(Method and path, status) -> how many."""

    @classmethod
    def move_in(cls, shop: Shop) -> Inhabited:
        """A rendered film, and a webhook with one message."""
        guard = Guard(shop.settings.webhooks, lambda _name, _port: ["93.184.216.34"])
        shop.desk.webhooks = Webhooks(shop.ledger, guard)
        film_id = shop.film()
        video_id = shop.client.post("/v1/videos", json=VIDEO).json()["id"]
        shop.render(video_id)
        webhook_id = shop.client.post("/api/webhooks", json={"url": WEBHOOK}).json()["id"]
        message_id = shop.client.post(f"/api/webhooks/{webhook_id}/test").json()["id"]
        picture = shop.client.get(f"/api/jobs/{film_id}/shots/s1/keyframe").content
        kept = shop.client.post("/api/pictures", content=picture, headers={"Content-Type": "image/png"})
        film = shop.client.get(f"/api/jobs/{film_id}/video").content
        upload = shop.client.post("/api/uploads", content=film, headers={"Content-Type": "video/mp4"})
        here = cls(shop, film_id, shop.film(), video_id, made_image(shop), kept.json()["id"], upload.json()["id"],
                   webhook_id, message_id, made_batch(shop, "kept"))
        shop.hints.at_wake = here.end_what_was_begun
        return here

    def known(self, method: str, name: str, word: int) -> str | None:
        """A real value of this path parameter."""
        if name == "video_id":
            return self._expendable_video() if method == "DELETE" else self.video_id
        if name == "job_id":
            return self._expendable_job() if method == "DELETE" else (
                self.film_id if method == "GET" else self.changing_id)
        if name == "webhook_id":
            return self._expendable_webhook() if method == "DELETE" else self.webhook_id
        if name == "batch_id":
            return made_batch(self.shop, "a batch") if method == "DELETE" else self.batch_id
        return {"shot_id": ("s1", "s2")[word % 2], "model": "sketch", "message_id": self.message_id,
                "image_id": self.image_id, "picture_id": self.picture_id,
                "upload_id": self.upload_id}.get(name)

    def answered(self, case: schemathesis.Case, reply: schemathesis.Response) -> None:
        """Count."""
        self.replies[f"{case.method} {case.path}", reply.status_code] += 1

    def end_what_was_begun(self) -> None:
        """Cancel the jobs that are not over, as soon as the Director would look at them."""
        for job in self.shop.ledger.jobs(JobStatus.QUEUED).jobs:
            self.shop.ledger.cancel(job.id)

    def _expendable_job(self) -> str:
        return self.shop.submit()

    def _expendable_video(self) -> str:
        return str(self.shop.client.post("/v1/videos", json=VIDEO).json()["id"])

    def _expendable_webhook(self) -> str:
        return str(self.shop.client.post("/api/webhooks", json={"url": WEBHOOK}).json()["id"])


def made_batch(shop: Shop, name: str) -> str:
    """A batch that is over; its id."""
    made = shop.client.post("/api/batches", json={"name": name, "films": [{"file": "a", "storyboard": {
        "shots": [VIDEO]}}]}).json()["id"]
    shop.client.post(f"/api/batches/{made}/cancel")
    return str(made)


def made_image(shop: Shop) -> str:
    """Pictures that were asked for and waited for; their id."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(shop.client.post, "/v1/images/generations", json=VIDEO)
        while not (jobs := shop.ledger.jobs(JobStatus.QUEUED).jobs):
            time.sleep(0.02)
        shop.render(jobs[0].id)
        return str(asked.result().json()["id"])


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Inhabited]:
    directory = tmp_path_factory.mktemp("fuzz")
    shutil.copy(migrated_file, directory / "state.db")
    shop = open_shop(directory, directory / "state.db")
    with shop.client:
        yield Inhabited.move_in(shop)
    shop.ledger.close()


@pytest.fixture
def document(inhabited: Inhabited) -> BaseSchema:
    """The service's own, with real ids put into most paths that are drawn right."""
    found = schemathesis.openapi.from_dict(inhabited.shop.client.get("/api/openapi.json").json())

    @found.hook
    def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
        word = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode("utf-8", "replace"))
        is_wrong = case.meta is not None and case.meta.is_negative_at(ParameterLocation.PATH)
        for name in case.path_parameters or {} if word % 4 and not is_wrong else ():
            real = inhabited.known(case.method, name, word)
            case.path_parameters[name] = case.path_parameters[name] if real is None else real
        return case

    return found


def send(shop: Shop, case: schemathesis.Case) -> schemathesis.Response:
    """Through the client whose loop the desk lives in, byte for byte as schemathesis would."""
    asked = case.as_transport_kwargs(HOST)
    sent = requests.Request(**{name: value for name, value in asked.items() if name != "timeout"}).prepare()
    body = sent.body.encode() if isinstance(sent.body, str) else sent.body
    reply = shop.client.request(sent.method or "", sent.url or "", content=body, follow_redirects=False,
                                headers=[(name.encode(), to_bytes(value)) for name, value in sent.headers.items()])
    return schemathesis.Response.from_any(reply)


def to_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


def is_text(case: schemathesis.Case) -> bool:
    """Its body is meant to be wrong, and is text all the same: whatever is sent as text is one."""
    return (case.media_type or "").startswith("text/") and case.meta is not None and case.meta.is_negative_at(
        ParameterLocation.BODY)


def ask_every_route(document: BaseSchema, inhabited: Inhabited, cases: int) -> list[str]:
    """Draw and send; what is wrong with the replies, one text per route and kind of failure."""
    wrong: dict[tuple[str, str], str] = {}

    def ask(case: schemathesis.Case) -> None:
        reply = send(inhabited.shop, case)
        inhabited.answered(case, reply)
        try:
            case.validate_response(reply, checks=CHECKS,
                                   excluded_checks=[negative_data_rejection] if is_text(case) else [])
        except FailureGroup as group:
            for failure in group.exceptions:
                wrong.setdefault((case.operation.label, failure.title), f"{failure}\n{case.as_curl_command()[:600]}\n"
                                 f"{reply.status_code} {reply.content[:300]!r}")

    for found in document.get_all_operations():
        operation = found.ok()
        modes = list(HypothesisTestMode)
        create_test(operation=operation, test_func=ask, config=HypothesisTestConfig(
            project=document.config, modes=modes, settings=drawing(cases), explicit_settings=drawing(cases)))()
    return [f"{label}: {text}" for (label, _), text in wrong.items()]


def test_whatever_is_asked_the_answer_is_one_that_was_promised(document: BaseSchema, inhabited: Inhabited) -> None:
    wrong = ask_every_route(document, inhabited, FEW)
    assert not wrong, "\n\n".join(wrong)
    asked = {label for label, _ in inhabited.replies}
    assert {found.ok().label for found in document.get_all_operations()} <= asked


@pytest.mark.slow
def test_ten_thousand_times_too(document: BaseSchema, inhabited: Inhabited) -> None:
    before = inhabited.replies.total()
    wrong = ask_every_route(document, inhabited, MANY)
    assert not wrong, "\n\n".join(wrong)
    assert inhabited.replies.total() - before >= AT_LEAST


TEXTS = st.text(max_size=40) | st.sampled_from(["", "storyboard", "script", "shots: [", "shots:\n- prompt: a star\n",
                                                "\0", "\ud800", "\r\nSet-Cookie: a=b", "<script>", "9" * 5000])
FIELDS = st.dictionaries(st.sampled_from(["text", "form", "token", "prompt", "caption", "status", "cursor", "film"]),
                         TEXTS, max_size=4)


@drawing(30)
@given(drawn=st.data())
def test_the_pages_forms_take_what_they_are_given(inhabited: Inhabited, drawn: st.DataObject) -> None:
    """They are not in the document. A refusal is a page too; nothing that was sent becomes a header or a script."""
    for route in ui.router.routes:
        assert isinstance(route, APIRoute)
        [method] = route.methods
        named = {name: drawn.draw(TEXTS) if drawn.draw(st.booleans()) else inhabited.known(
            "DELETE" if route.path.endswith("/delete") else method, name, 0) or "1"
            for name in re.findall(r"{(\w+)}", route.path)}
        url = route.path.format_map({name: quote(text, safe="", errors="replace") for name, text in named.items()})
        form = urlencode(drawn.draw(FIELDS), errors="replace")
        reply = inhabited.shop.client.request(
            method, f"{url}?{form}" if method == "GET" else url, content=form if method == "POST" else None,
            headers={"Content-Type": "application/x-www-form-urlencoded",
                     "HX-Request": drawn.draw(st.sampled_from(["true", "false"]))}, follow_redirects=False)
        assert reply.status_code in {200, 303, 404, 405, 409, 422}, (method, url, reply.text)
        assert "set-cookie" not in reply.headers
        if reply.headers.get("content-type", "").startswith("text/html"):
            assert reply.headers["content-security-policy"] == ui.POLICY
            assert "<script>" not in reply.text
