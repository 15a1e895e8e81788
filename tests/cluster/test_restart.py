"""All of `reelray serve` is killed while clients follow a film, and started again at the same place."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.client import Client
from tests.cluster.test_http import PLACEHOLDER, START_S, Server, each_row_once, free_port, heard_to_the_end, serving
from workflows.durable.ledger import Ledger
from workflows.telling import Name, Teller

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.chaos]

SHOTS = [{"prompt": f"shot {number}", "frames": 33} for number in range(24)]
OF_ROWS = frozenset({Name.STAGE_UPDATE, Name.INFO, Name.WARNING, Name.ERROR, Name.PROGRESS, Name.DONE})
"""Events that come of rows; of the film's own steps too, and those name their node."""


@pytest.fixture
def started() -> Iterator[ExitStack]:
    """Servers that end with the test."""
    with ExitStack() as stack:
        yield stack


def kill_all(server: Server) -> None:
    """kill -9 of the command and of all of Ray that it started."""
    root = psutil.Process(server.process.pid)
    victims = [root, *root.children(recursive=True)]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    server.process.wait(30)
    psutil.wait_procs(victims, 30)


def said(name: str, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an event says of a row, whatever steps were heard around it; nothing of a step."""
    if name not in OF_ROWS or "node" in data:
        return []
    stage = data["stage"] if name == Name.STAGE_UPDATE else {}
    return [(name, f"{stage['id']} {stage['status']}" if stage else str(data.get("message") or data.get("error")))]


def said_by_event_log(place: Path, job_id: str) -> list[tuple[str, str]]:
    """The rows of the database, told from the first one in this process."""
    ledger = Ledger(f"sqlite:///{place / 'state' / 'state.db'}")
    try:
        teller = Teller(job_id=job_id, url_of=lambda shot_id: shot_id)
        teller.plan(ledger.nodes(job_id))
        told = [one for row in ledger.events(job_id, 0, 5000) for one in teller.event(row)]
    finally:
        ledger.close()
    return [words for one in told for words in said(one.name.value, one.data)]


def test_a_client_follows_a_film_through_the_death_of_everything(started: ExitStack, tmp_path: Path) -> None:
    port = free_port()
    server = started.enter_context(serving(tmp_path, *PLACEHOLDER, port=port))
    status, headers, reply = server.ask("POST", "/api/films", {"title": "Killed", "shots": SHOTS})
    assert status == 202, reply
    job_url, at_death = headers["location"], []

    def done(job: Any) -> set[str]:
        return {shot["id"] for shot in job["shots"] if shot["status"] == "succeeded"}

    def strike(_: int) -> None:
        if not at_death and len(done(job := json.loads(server.ask("GET", job_url)[2]))) >= 4:
            at_death.append(job)
            kill_all(server)
            started.enter_context(serving(tmp_path, *PLACEHOLDER, port=port))

    # The Python client beside the plain one: both are cut off, and come back by themselves.
    job_id = job_url.rpartition("/")[2]
    client = Client(f"http://127.0.0.1:{port}", patience_s=START_S)
    pool = started.enter_context(ThreadPoolExecutor(1))
    following = pool.submit(lambda: list(client.events(job_id)))
    heard = heard_to_the_end(server, job_url, strike)
    each_row_once(server, job_url, heard)
    followed = [words for event in following.result(60) for words in said(event.name, event.data)]
    assert followed == said_by_event_log(tmp_path, job_id), "every row once and in order, as the database has them"
    before = done(at_death[0])
    assert at_death[0]["status"] == "running"
    assert len(before) < len(SHOTS), "it died in the middle"
    assert len({event_id.partition(":")[0] for event_id, _ in heard}) >= 2, "an id of each life of the board"

    job = json.loads(server.ask("GET", job_url)[2])
    assert (job["status"], job["progress"], len(job["shots"])) == ("succeeded", 1.0, len(SHOTS))
    assert {shot["attempt"] for shot in job["shots"] if shot["id"] in before} == {1}, "what was made was not made again"
    log = json.loads(server.ask("GET", f"{job_url}/log?limit=5000")[2])["lines"]
    assert json.dumps(log).count("job: succeeded") == 1
    assert server.ask("GET", f"{job_url}/events", **{"Last-Event-ID": heard[-1][0]})[0] == 204
    assert len(server.ask("GET", job["video"]["url"])[2]) == job["video"]["size_bytes"]
