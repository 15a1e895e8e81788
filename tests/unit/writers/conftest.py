"""A provider per test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.provider import Provider, provider


@pytest.fixture
def server() -> Iterator[Provider]:
    with provider() as made:
        yield made
