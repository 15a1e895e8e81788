"""`http.replicas=2`: two processes answer behind one port, and clients cannot tell them apart."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.cluster.test_http import PLACEHOLDER, Server, each_row_once, heard_to_the_end, serving, told_rows

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLIENTS = 12
SEEN_S = 0.5
"""A reply may be 0.2 s old; a request takes its time too."""


@dataclass(frozen=True)
class Counting(Server):
    """Knows how often it connected to streams."""

    calls: list[str]

    def events(self, path: str, **headers: str) -> Iterator[tuple[str, str, Any]]:
        self.calls.append(path)
        return super().events(path, **headers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("two"), *PLACEHOLDER, "http.replicas=2") as served:
        yield served


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(CLIENTS) as threads:
        yield threads


def replicas(server: Server) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica:reelray:ingress" in " ".join(process.cmdline()):
                found.append(process)
    return found


def submit(server: Server, title: str, shots: int = 16, **headers: str) -> tuple[int, str]:
    """Status and where the job is."""
    film = {"title": title, "shots": [{"prompt": f"{title} {number}", "frames": 33} for number in range(shots)]}
    status, told, _ = server.ask("POST", "/api/films", film, **headers)
    return status, told.get("location", "")


def looks(server: Server, job_url: str, pool: ThreadPoolExecutor, times: int = 4 * CLIENTS) -> list[dict[str, Any]]:
    """The job as many requests at once see it: both replicas are asked."""
    return list(pool.map(lambda _: json.loads(server.ask("GET", job_url)[2]), range(times)))


def test_both_answer_and_a_verb_at_one_is_seen_at_the_other(server: Server, pool: ThreadPoolExecutor) -> None:
    job_url = submit(server, "Cancelled", 60)[1]
    both = replicas(server)
    before_s = [sum(process.cpu_times()[:2]) for process in both]
    assert {job["status"] for job in looks(server, job_url, pool, 200)} <= {"queued", "running"}
    assert all(sum(process.cpu_times()[:2]) > used_s for process, used_s in zip(both, before_s, strict=True))
    assert len(both) == 2

    streams = [pool.submit(heard_to_the_end, server, job_url, lambda _: None) for _ in range(CLIENTS - 4)]
    assert server.ask("POST", f"{job_url}/cancel")[0] in (200, 202)
    told = [told_rows(stream.result(60)) for stream in streams]
    assert all(one == told[0] for one in told), "streams of both replicas tell the same, in the same order"
    time.sleep(SEEN_S)
    assert {job["status"] for job in looks(server, job_url, pool)} == {"cancelled"}
    assert server.ask("POST", f"{job_url}/retry")[0] == 202
    time.sleep(SEEN_S)
    assert {job["status"] for job in looks(server, job_url, pool)} <= {"queued", "running"}
    server.ask("POST", f"{job_url}/cancel")


def test_one_key_makes_one_film_whichever_replica_is_asked(server: Server, pool: ThreadPoolExecutor) -> None:
    def once(_: int) -> tuple[int, str]:
        return submit(server, "Once", 1, **{"Idempotency-Key": "the same"})

    at_once, later = list(pool.map(once, range(CLIENTS))), list(pool.map(once, range(CLIENTS)))
    assert {status for status, _ in at_once} <= {202, 409}
    assert {status for status, _ in later} == {202}
    assert len({url for _, url in [*at_once, *later] if url}) == 1
    jobs = json.loads(server.ask("GET", "/api/jobs")[2])["jobs"]
    assert [job["title"] for job in jobs].count("Once") == 1


@pytest.mark.chaos
def test_streams_of_a_killed_replica_go_on_at_the_other(server: Server, pool: ThreadPoolExecutor) -> None:
    job_url = submit(server, "Killed", 24)[1]
    clients = [Counting(port=server.port, process=server.process, calls=[]) for _ in range(CLIENTS)]
    streams = [pool.submit(heard_to_the_end, client, job_url, lambda _: None) for client in clients]
    while not any(shot["status"] == "succeeded" for shot in json.loads(server.ask("GET", job_url)[2])["shots"]):
        time.sleep(0.1)
    replicas(server)[0].kill()
    heard = [stream.result(240) for stream in streams]
    cut = sum(len(client.calls) > 1 for client in clients)
    assert 0 < cut < CLIENTS, "some were at the replica that died, and some at the other"
    each_row_once(server, job_url, heard[0])
    for one in heard[1:]:
        assert told_rows(one) == told_rows(heard[0])
