"""Videos of this machine as a client sends them: read piece by piece, never whole. Knows no wire."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx2

from serve_app.client_errors import ApiError

UPLOAD = "upload:"
"""Before the id of an uploaded video."""
PIECE_BYTES = 1 << 20
PATIENT = httpx2.Timeout(30.0, read=900.0)
"""A server looks through a video before it answers, and an hour of it takes a while."""


def digest_of(path: Path) -> str:
    """Its id there. Raises OSError; ApiError for what is no file, in the words that the server would have."""
    if path.exists() and not path.is_file():
        raise ApiError(422, "invalid-video", "this is no file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pieces_of(path: Path) -> Iterator[bytes]:
    """Its bytes."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def is_elsewhere(place: str) -> bool:
    """It is an upload or an address, which the server reads by itself."""
    return place.startswith(UPLOAD) or "://" in place
