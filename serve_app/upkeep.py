"""State and store for the commands that look after them. Loads what reads videos: imported inside those commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from configs.settings import Settings
from serve_app.edit_submit import video_key
from serve_app.submit import picture_key
from workflows.durable.ledger import Ledger
from workflows.upkeep.collect import Bounds, Collection
from workflows.upkeep.files import StoreFiles


@contextmanager
def collection_of(settings: Settings, bounds: Bounds) -> Iterator[Collection]:
    """The collection of the database and the store that the settings name."""
    settings.data_dir.expanduser().mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.database)
    try:
        yield Collection(ledger, StoreFiles(settings.store), bounds, uploads_of)
    finally:
        ledger.close()


def uploads_of(digest: str) -> tuple[str, ...]:
    """Keys of the picture and of the video with these bytes: rows may name either by its digest alone."""
    return picture_key(digest), video_key(digest)
