"""A ledger on each database, and a studio around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeStore, ScriptedStep
from tests.studio import Studio
from workflows.durable.ledger import Ledger


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    ledger = Ledger(database_url)
    yield ledger
    ledger.close()


@pytest.fixture
def studio(ledger: Ledger, tmp_path: Path) -> Studio:
    store = FakeStore(tmp_path)
    return Studio(ledger=ledger, store=store, step=ScriptedStep(store))

