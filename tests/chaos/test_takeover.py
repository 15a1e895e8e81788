"""Two whole servers on one Postgres: a Director is frozen past its lease, and wakes while another one has its job."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from configs.load import load_settings
from serve_app.client import Client, Film
from tests.chaos.crowd import Heard, film_of
from tests.chaos.gated import Moment, gate_of
from tests.chaos.invariants import Evidence, check
from tests.chaos.matrix import GATED, listen
from tests.chaos.monkey import REPEAT_LIMIT, SETTINGS, database
from tests.chaos.served import START_S, Component, Served
from tests.postgres import find_binaries
from workflows.durable.ledger import MAX_LIMIT, Ledger
from workflows.durable.rows import EventType
from workflows.store import Store

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.cluster, pytest.mark.postgres]

LIMIT_S = 300.0
AFTER_S = 3.0
"""For what the old attempt might still write when the film is over; the lease of the profile `ci`."""


def until(good: Callable[[], object]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not good():
        assert time.monotonic() < end_s, f"{LIMIT_S} s passed"
        time.sleep(0.05)


@pytest.mark.skipif(find_binaries() is None, reason="no PostgreSQL server programs (initdb)")
def test_an_attempt_that_lives_on_after_its_director_was_taken_over_commits_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        databases = stack.enter_context(database("postgres", tmp_path))
        shared = [*SETTINGS, f"database_url={databases.url}", f"store_url={tmp_path / 'store'}"]
        servers = [stack.enter_context(Served(tmp_path / name, shared, program=GATED)) for name in ("one", "two")]
        gates = [gate_of(load_settings("ci", server.overrides)) for server in servers]
        ledger = Ledger(databases.url)
        stack.callback(ledger.close)
        for gate in gates:
            gate.arm(Moment.DENOISING)

        # 1. a clip is half made; its Director is frozen   2. the other server's takes the job and goes on
        client = Client(servers[0].url, patience_s=START_S)
        stack.callback(client.close)
        job_id = str(client.submit(Film(name="film.json", media_type="application/json",
                                        content=json.dumps(film_of(0, 1)).encode()))["id"])
        heard = Heard()
        listening = threading.Thread(target=listen, args=(client, job_id, heard), daemon=True)
        listening.start()
        until(lambda: any(gate.held(Moment.DENOISING) for gate in gates))
        old = next(number for number, gate in enumerate(gates) if gate.held(Moment.DENOISING))
        held = gates[old].held(Moment.DENOISING)
        assert held is not None
        gates[1 - old].open(Moment.DENOISING)
        [frozen] = servers[old].processes(Component.DIRECTOR)
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            until(lambda: claims(ledger, job_id) >= 2)
        finally:
            with suppress(ProcessLookupError):
                os.kill(frozen.pid, signal.SIGCONT)

        # 3. the old Director and the old attempt live on beside the new ones
        gates[old].open(Moment.DENOISING)
        until(lambda: ledger.job(job_id).status.is_terminal)
        time.sleep(AFTER_S)
        listening.join(LIMIT_S)
        evidence = Evidence(job=ledger.job(job_id), nodes=ledger.nodes(job_id), steps=heard.seen(),
                            events=ledger.events(job_id, limit=MAX_LIMIT), repeat_limit=REPEAT_LIMIT)
        assert check(evidence, Store(str(tmp_path / "store"))) == []
        assert {node.id: node.interruptions for node in evidence.nodes}[held[1]] >= 1


def claims(ledger: Ledger, job_id: str) -> int:
    return sum(event.type is EventType.JOB_STARTED for event in ledger.events(job_id, limit=MAX_LIMIT))
