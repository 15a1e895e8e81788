"""A shop per test, its database copied from a migrated file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desk import Shop, open_shop


@pytest.fixture
def closed_shop(tmp_path: Path, migrated_file: Path) -> Iterator[Shop]:
    """For tests with a loop of their own; the client is not to be used."""
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path, tmp_path / "state.db")
    yield shop
    shop.ledger.close()


@pytest.fixture
def shop(closed_shop: Shop) -> Iterator[Shop]:
    """For tests that speak HTTP."""
    with closed_shop.client:
        yield closed_shop
