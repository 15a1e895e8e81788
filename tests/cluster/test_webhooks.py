"""Webhooks from a real Director: a film's events reach an endpoint, and none is lost when the Director is killed."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from standardwebhooks import Webhook

from tests.cluster.conftest import Deploy, Running
from workflows.durable.hooks import Hooks
from workflows.durable.outbox import DeliveryStatus
from workflows.types import JobStatus

pytestmark = pytest.mark.cluster

SETTINGS = ["webhooks.allow_http=true", 'webhooks.allowed_networks=["127.0.0.0/8"]', "webhooks.timeout_s=2",
            "webhooks.lease_s=4", "webhooks.poll_s=0.1", "engine.lease_s=3", "engine.heartbeat_s=0.5"]
FILM = "shots:\n- {prompt: a red circle, steps: 2}\n- {prompt: a star, steps: 2}\n"


@dataclass
class Listener:
    """An endpoint in this process; while `held` it takes requests and does not answer."""

    url: str = ""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()
    found.free.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            found.free.wait(30)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.free.set()
    server.shutdown()
    server.server_close()


def delivered(running: Running, hook_id: str) -> int:
    return len(Hooks(running.ledger.database).deliveries(hook_id, status=DeliveryStatus.DELIVERED))


def test_a_films_events_arrive_signed(deploy: Deploy, listener: Listener) -> None:
    running = deploy(SETTINGS)
    row, secret = Hooks(running.ledger.database).register(listener.url)
    running.submit(FILM, "told")
    assert running.wait("told").status is JobStatus.SUCCEEDED
    running.until(lambda: delivered(running, row.id) == 3, 30)
    events = [Webhook(secret).verify(body, headers) for headers, body in listener.received]
    assert sorted(event["type"] for event in events) == ["job.succeeded", "shot.succeeded", "shot.succeeded"]


def test_a_director_killed_with_a_delivery_on_its_way_is_followed_by_one_that_sends_it_again(
        deploy: Deploy, listener: Listener) -> None:
    running = deploy(SETTINGS)
    hooks = Hooks(running.ledger.database)
    listener.free.clear()
    row, _ = hooks.register(listener.url)
    sent = hooks.test(row.id)
    running.until(lambda: len(listener.received) == 1, 30)
    [director] = [found for found in running.processes("director") if "ServeReplica" in " ".join(found.cmdline())]
    director.kill()
    listener.free.set()
    running.until(lambda: delivered(running, row.id) == 1, 60)
    assert {headers["webhook-id"] for headers, _ in listener.received} == {sent.message_id}
    assert len({body for _, body in listener.received}) == 1
    assert len(listener.received) == 2
    assert len(hooks.deliveries(row.id)[0].attempts) == 1, "the dead one wrote nothing down"
