"""Workplace: where one command finds settings, state and files. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from configs.settings import Settings
from serve_app.cluster import scratch_dir
from workflows.durable.ledger import Ledger
from workflows.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Settings, the ledger and the store they name."""

    settings: Settings
    ledger: Ledger
    store: Store


def open_workplace(settings: Settings) -> Workplace:
    """Open database and store, creating them if needed. Raises InvalidSettings."""
    settings.data_dir.expanduser().mkdir(parents=True, exist_ok=True)
    return Workplace(settings=settings, ledger=Ledger(settings.database),
                     store=Store(settings.store, cache_dir=scratch_dir(settings)))
