"""A private S3 server for the tests (moto's), and `s3_url`: an empty place in it. Real requests over a real port."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "films"
HOST = "127.0.0.1"
_numbers = itertools.count(1)


class S3Server:
    """A server in this process. It can go away and come back; what is in it stays."""

    def __init__(self) -> None:
        """Start it, with one bucket."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]
        os.environ.update(self.environment)
        fsspec.filesystem("s3").mkdir(BUCKET)

    @property
    def environment(self) -> Mapping[str, str]:
        """How S3's clients find it; this process has it already. One try per request: the tests have patience."""
        return {"AWS_ENDPOINT_URL": f"http://{HOST}:{self._port}", "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}

    def url(self) -> str:
        """An empty place."""
        return f"s3://{BUCKET}/{next(_numbers)}"

    def go_away(self) -> None:
        """From now on nobody listens there."""
        self._server.stop()

    def come_back(self) -> None:
        """Listen again on the same port."""
        self._server = ThreadedMotoServer(ip_address=HOST, port=self._port, verbose=False)
        self._server.start()

    def close(self) -> None:
        """End it."""
        self._server.stop()
        for name in self.environment:
            del os.environ[name]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One for all tests."""
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """An empty store's."""
    return s3_server.url()


def store_url(request: pytest.FixtureRequest, place: Path) -> str:
    """That of an empty store, of the kind that the fixture's parameter says: `local`, `memory` or `s3`."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return str(place / "store") if request.param == "local" else f"memory://{place.name}"
