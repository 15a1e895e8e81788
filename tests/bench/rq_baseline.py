"""The queue that many hand-made job services stand on: RQ with Redis, one worker process per GPU.

    pip install rq; apt-get install redis-server     # not part of the project; without them its rows are left out
    python -m tests.bench.rq_baseline REDIS_URL      # one worker, as `workers` starts them

RQ's `SimpleWorker` runs jobs in its own process: a worker that forks for each job could keep no model loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Span = tuple[str, float, float]
"""GPU (a process), start, end; unix seconds."""
QUEUE = "bench"


def is_here() -> bool:
    """Both RQ and a Redis server are installed."""
    return importlib.util.find_spec("rq") is not None and shutil.which("redis-server") is not None


def sleep_job(seconds: float) -> Span:
    """What a worker runs."""
    start = time.time()
    time.sleep(seconds)
    return str(os.getpid()), start, time.time()


@contextlib.contextmanager
def workers(gpus: int, directory: Path) -> Iterator[tuple[str, list[int]]]:
    """A Redis server and one worker per GPU until the end of the block: its address, and their pids."""
    # By a file, not a port: no other server can be in the way.
    url = f"unix://{directory / 'redis.sock'}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", str(directory / "redis.sock"),
                                 "--save", "", "--dir", str(directory)], **quiet)]
    try:
        started += [subprocess.Popen([sys.executable, "-m", "tests.bench.rq_baseline", url], **quiet)
                    for _ in range(gpus)]
        yield url, [process.pid for process in started]
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def run(url: str, durations: Sequence[float]) -> list[Span]:
    """Queue all, longest first, and wait: who ran when."""
    import redis
    import rq

    queue = rq.Queue(QUEUE, connection=_reached(redis.Redis.from_url(url)))
    jobs = [queue.enqueue(sleep_job, seconds, result_ttl=3600, job_timeout=600)
            for seconds in sorted(durations, reverse=True)]
    _wait(jobs)
    return [tuple(job.return_value()) for job in jobs]


def _reached(connection: Any) -> Any:
    import redis

    while True:
        with contextlib.suppress(redis.ConnectionError):
            connection.ping()
            return connection
        time.sleep(0.1)


def _wait(jobs: Sequence[Any]) -> None:
    for job in reversed(jobs):
        while not job.is_finished:
            time.sleep(0.2)


def main() -> None:
    import redis
    import rq

    rq.SimpleWorker([QUEUE], connection=_reached(redis.Redis.from_url(sys.argv[1]))).work(logging_level="ERROR")


if __name__ == "__main__":
    main()
