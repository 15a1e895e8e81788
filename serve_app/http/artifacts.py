"""A stored file as a reply: types, entity tags, ranges (RFC 9110). Knows the store, not which file it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, BinaryIO

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from serve_app.http.problems import problem_response
from workflows.store import Store
from workflows.types import Artifact

CHUNK_BYTES = 1 << 20
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)
FILE_DOC: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"video/mp4": {}, "image/png": {}, "image/jpeg": {}}},
    206: {"description": "The part that was asked for"}, 304: {"description": "Your copy is still good"}}


async def artifact_response(request: Request, store: Store, artifact: Artifact, name: str) -> Response:
    """The artifact's bytes, or the part that was asked for, or 304. `name` is what a saved file is called.

    Equal bytes have equal tags, so a cached copy is good as long as the tag is; it is asked for every time, because
    another take may stand under the same path. Raises ArtifactMissing.
    """
    tag = f'"{artifact.sha256}"'
    headers = {
        "ETag": tag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f'inline; filename="{_safe(name)}{artifact.media_type.suffix}"',
    }
    if _matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    size = artifact.size_bytes
    span = asked_range(request.headers, tag, size)
    if span is None:
        return problem_response(416, "range-not-satisfiable", f"the file has {size} bytes",
                                instance=request.url.path, headers={"Content-Range": f"bytes */{size}"})
    first, end = span
    headers["Content-Length"] = str(end - first)
    is_part = span != (0, size)
    if is_part:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    stream = await asyncio.to_thread(store.open, artifact)
    if request.method == "HEAD":
        await asyncio.to_thread(stream.close)
        return Response(status_code=206 if is_part else 200, headers=headers, media_type=artifact.media_type.value)
    return StreamingResponse(_pieces(stream, first, end), 206 if is_part else 200, headers, artifact.media_type.value)


def asked_range(headers: Mapping[str, str], tag: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None when the range lies outside the file.

    A range that cannot be read, several ranges, and a range of another version (`If-Range`) mean the whole file.
    """
    match = RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or not (match[1] or match[2]) or headers.get("if-range", tag) != tag:
        return 0, size
    if not match[1]:
        wanted = int(match[2])
        return (max(size - wanted, 0), size) if wanted and size else None
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if last < first and match[2]:
        return 0, size
    return (first, min(last + 1, size)) if first < size else None


def _matches(condition: str, tag: str) -> bool:
    tags = [part.strip().removeprefix("W/") for part in condition.split(",")]
    return tag in tags or "*" in tags


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:100]


async def _pieces(stream: BinaryIO, first: int, end: int) -> AsyncIterator[bytes]:
    try:
        await asyncio.to_thread(stream.seek, first)
        left = end - first
        while left and (piece := await asyncio.to_thread(stream.read, min(CHUNK_BYTES, left))):
            left -= len(piece)
            yield piece
    finally:
        stream.close()
