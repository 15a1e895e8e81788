"""State and store for the commands that look after them. Loads what reads videos: imported inside those commands."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from configs.settings import Settings
from serve_app.edit_submit import video_key
from serve_app.submit import picture_key
from workflows.durable.ledger import Ledger
from workflows.errors import InvalidSettings
from workflows.upkeep.backup import BackedUp, back_up
from workflows.upkeep.collect import Bounds, Collection
from workflows.upkeep.files import StoreFiles
from workflows.upkeep.restore import Restored, restore

TAR = ".tar"


@contextmanager
def collection_of(settings: Settings, bounds: Bounds) -> Iterator[Collection]:
    """The collection of the database and the store that the settings name."""
    with _ledger_of(settings) as ledger:
        yield Collection(ledger, StoreFiles(settings.store), bounds, uploads_of)


def back_up_to(place: Path, settings: Settings, *, with_store: bool) -> BackedUp:
    """Back up to a directory, or to one file whose name ends in `.tar`."""
    version = metadata.version("reelray")
    files = StoreFiles(settings.store) if with_store else None
    with _ledger_of(settings) as ledger:
        if place.suffix != TAR:
            return back_up(ledger, files, place, version=version, related=uploads_of)
        # Beside its end, where there must be room anyway.
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.resolve().parent) as scratch:
            done = back_up(ledger, files, Path(scratch) / "backup", version=version, related=uploads_of)
            with tarfile.open(Path(scratch) / place.name, "w") as tar:
                tar.add(Path(scratch) / "backup", arcname=".")
            (Path(scratch) / place.name).replace(place)
            return done


def restore_from(place: Path, settings: Settings, *, with_store: bool) -> Restored:
    """Restore from what `back_up_to` made."""
    if not place.exists():
        raise InvalidSettings(problem=f"{place} does not exist")
    with _ledger_of(settings) as ledger:
        files = StoreFiles(settings.store)
        if place.is_dir():
            return restore(place, ledger, files, with_store=with_store)
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            try:
                with tarfile.open(place) as tar:
                    tar.extractall(scratch, filter="data")
            except tarfile.TarError as error:
                raise InvalidSettings(problem=f"{place} is no backup: {error}") from None
            return restore(Path(scratch), ledger, files, with_store=with_store)


@contextmanager
def _ledger_of(settings: Settings) -> Iterator[Ledger]:
    settings.data_dir.expanduser().mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.database)
    try:
        yield ledger
    finally:
        ledger.close()


def uploads_of(digest: str) -> tuple[str, ...]:
    """Keys of the picture and of the video with these bytes: rows may name either by its digest alone."""
    return picture_key(digest), video_key(digest)
