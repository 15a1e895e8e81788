"""What does durability cost? Engine time per node when the steps do nothing, on SQLite and Postgres.

Two commits per node (its start, its result), each with its event, as in production. `wide` films have shots that do not
wait for each other, `chain` ones wait for the shot before. `synchronous=NORMAL` is what SQLite would cost without an
fsync per commit; Postgres runs with fsync on.

    python -m tests.bench.bench_engine [--nodes 200 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import sqlalchemy as sa

from configs.settings import EngineSettings
from tests.bench.report import write_report
from tests.fakes import FakeStore, ScriptedStep
from tests.postgres import PostgresServer, find_binaries
from workflows.dispatch import Dispatcher
from workflows.durable.engine import Engine
from workflows.durable.ledger import Ledger
from workflows.durable.rows import EventType, NewJob
from workflows.types import JobStatus, NodeKind, NodeSpec

GOAL_MS = 10.0
SLOTS = 32
FSYNCS = 200


def film(nodes: int, *, chain: bool) -> NewJob:
    """Clips and one node that joins them."""
    clips = [NodeSpec(id=f"s{number}.clip", kind=NodeKind.CLIP, shot_id=f"s{number}", payload={"seed": number},
                      deps=(f"s{number - 1}.clip",) if chain and number else ()) for number in range(nodes - 1)]
    compose = NodeSpec(id="compose", kind=NodeKind.COMPOSE, deps=tuple(clip.id for clip in clips))
    return NewJob(id="film", document={}, nodes=(*clips, compose))


async def run(ledger: Ledger, job: NewJob) -> tuple[float, float]:
    """Milliseconds per node: by the clock, and of this process's CPU time."""
    store = FakeStore(Path())
    engine = Engine(ledger, dict.fromkeys(NodeKind, ScriptedStep(store)), store=store,
                    dispatcher=Dispatcher({"cpu": SLOTS}), settings=EngineSettings())
    running = asyncio.create_task(engine.run())
    await asyncio.sleep(0.3)
    ledger.submit(job)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    engine.wake()
    while not (await asyncio.to_thread(ledger.job, job.id)).status.is_terminal:  # noqa: ASYNC110 - no signal
        await asyncio.sleep(0.05)
    took_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    await engine.stop()
    await running
    assert ledger.job(job.id).status is JobStatus.SUCCEEDED
    commits = [event for event in ledger.events(job.id, limit=5000)
               if event.type in (EventType.NODE_STARTED, EventType.NODE_SUCCEEDED)]
    assert len(commits) == 2 * len(job.nodes)
    return took_s * 1e3 / len(job.nodes), used_s * 1e3 / len(job.nodes)


@contextlib.contextmanager
def ledgers() -> Iterator[dict[str, str]]:
    """Database URLs by the name in the table; `*` stands for a fresh one."""
    with tempfile.TemporaryDirectory(prefix="reelray-bench-") as directory:
        urls = {"SQLite": f"sqlite:///{directory}/full-*.db",
                "SQLite, synchronous=NORMAL": f"sqlite:///{directory}/normal-*.db"}
        binaries = find_binaries()
        server = PostgresServer(binaries, fsync=True) if binaries else None
        try:
            yield {**urls, **({"Postgres": server.create()} if server else {})}
        finally:
            if server:
                server.remove()


def open_ledger(name: str, url: str) -> Ledger:
    ledger = Ledger(url.replace("*", str(time.monotonic_ns())))
    with ledger.database.write() as connection:
        connection.execute(sa.text("DELETE FROM job"))
    if "NORMAL" in name:
        # Later connections only; the pool is emptied so that there are no others.
        ledger.database.close()
        sa.event.listen(ledger.database._engine, "connect",
                        lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    return ledger


def fsync_ms() -> float:
    """Median time of one small fsync on the disk that holds the SQLite files."""
    with tempfile.TemporaryFile() as file:
        times = []
        for _ in range(FSYNCS):
            file.write(b"x" * 4096)
            file.flush()
            began_s = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began_s)
    return sorted(times)[FSYNCS // 2] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[200, 2000])
    sizes = parser.parse_args().nodes
    rows: list[list[object]] = []
    with ledgers() as urls:
        for name, url in urls.items():
            warm = open_ledger(name, url)
            asyncio.run(run(warm, film(20, chain=False)))
            warm.close()
            for nodes, chain in [(size, False) for size in sizes] + [(sizes[0], True)]:
                ledger = open_ledger(name, url)
                took_ms, cpu_ms = asyncio.run(run(ledger, film(nodes, chain=chain)))
                ledger.close()
                rows.append([name, nodes, "chain" if chain else "wide", f"{took_ms:.1f}", f"{cpu_ms:.1f}",
                             "yes" if took_ms < GOAL_MS else "no"])
    write_report(
        "engine_cpu_202611", "What does durability cost?",
        ["database", "nodes", "shape", "ms per node", "CPU ms per node", f"under {GOAL_MS:g} ms"], rows,
        f"No-op steps, {SLOTS} slots, two commits per node. One fsync of 4 KiB takes {fsync_ms():.2f} ms here. "
        f"Load average before the run {START_LOAD:.1f} on {psutil.cpu_count()} cores: the clock counts the neighbours "
        "too, the CPU column does not (for Postgres without the server's own). SQLite's commits stand in one row, "
        "and so do a chain's: at least two fsyncs per node.")


START_LOAD = os.getloadavg()[0]

if __name__ == "__main__":
    main()
