"""Pictures and videos from an OpenAI-compatible API, as bytes. Knows the wire, no take and no job."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import time
from collections.abc import Callable, Mapping

from configs.endpoint import RemoteModel
from serve_app.providers.elsewhere import fetch_file
from serve_app.providers.wire import ApiFailure, Wire
from workflows.types import Json

MAX_PICTURE_BYTES = 50_000_000
"""Of the file; an 8K PNG of noise has 100 MB, a picture that anybody asks for has ten."""
MAX_VIDEO_BYTES = 1_000_000_000
_UNDER_WAY = frozenset({"queued", "in_progress", "processing", "running", "pending"})
_VIDEO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
_POLLS_LOST = 3
"""Looks at a video, or tries to fetch its file, that may fail one after the other; it is there, or being made."""
_LEAST_S = 1.0
"""For the file of a video that was made at the last moment."""

OnPercent = Callable[[int], None]
"""`on_percent(percent)`: how far the API says a video is."""


async def draw_picture(remote: RemoteModel, key: str, body: Mapping[str, Json]) -> bytes:
    """One picture file for this request body. Raises ApiFailure."""
    wire = Wire(remote, key, timeout_s=remote.timeout_s, max_bytes=MAX_PICTURE_BYTES * 4 // 3 + 100_000)
    reply = await wire.post_json("/images/generations", body)
    data = reply.get("data") if isinstance(reply, dict) else None
    first = data[0] if isinstance(data, list) and data else None
    if not isinstance(first, dict):
        raise ApiFailure("the answer has no data[0]")
    if isinstance(text := first.get("b64_json"), str) and text:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ApiFailure("the answer's b64_json is not base64") from None
    if isinstance(url := first.get("url"), str) and url:
        return await fetch_file(url, api_url=remote.api_url, timeout_s=remote.timeout_s, max_bytes=MAX_PICTURE_BYTES)
    raise ApiFailure("the answer has neither b64_json nor url")


async def film_video(remote: RemoteModel, key: str, body: Mapping[str, Json], on_percent: OnPercent) -> bytes:
    """One video file for this request body, looked at until it is made. Raises ApiFailure.

    The API knows no way to stop a video: one that is given up here is made there to its end.
    """
    until_s = time.monotonic() + remote.video_timeout_s
    wire = Wire(remote, key, timeout_s=remote.timeout_s, max_bytes=MAX_VIDEO_BYTES)
    video = await wire.post_json("/videos", body)
    name = video.get("id") if isinstance(video, dict) else None
    if not isinstance(video, dict) or not isinstance(name, str) or not _VIDEO_ID.fullmatch(name):
        raise ApiFailure("the answer has no id of a video")
    path = f"/videos/{name}"
    lost = 0
    while (status := str(video.get("status"))) in _UNDER_WAY:
        if isinstance(percent := video.get("progress"), int) and not isinstance(percent, bool):
            on_percent(percent)
        if time.monotonic() > until_s:
            raise ApiFailure(f"the video was not made within {remote.video_timeout_s:g} s (remote.video_timeout_s)")
        await asyncio.sleep(remote.poll_s)
        try:
            video, lost = _object(await wire.get_json(path)), 0
        except ApiFailure as failure:
            lost += 1
            if failure.final or lost >= _POLLS_LOST:
                raise
    if status != "completed":
        error = video.get("error")
        said = error.get("message") if isinstance(error, dict) else ""
        raise ApiFailure(f"the video ended as {wire.clean(status)}: {wire.clean(str(said or 'no reason given'))}")
    return await _file(remote, key, f"{path}/content", until_s)


async def _file(remote: RemoteModel, key: str, path: str, until_s: float) -> bytes:
    """A made video's file, asked for again where that may help: the making was paid for. Raises ApiFailure."""
    lost = 0
    while True:
        left_s = max(until_s - time.monotonic(), _LEAST_S)
        try:
            return await Wire(remote, key, timeout_s=min(remote.timeout_s, left_s),
                              max_bytes=MAX_VIDEO_BYTES).get_bytes(path)
        except ApiFailure as failure:
            lost += 1
            if failure.final or lost >= _POLLS_LOST or time.monotonic() + remote.poll_s > until_s:
                raise
        await asyncio.sleep(remote.poll_s)


def _object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ApiFailure("the answer is no video object")
    return value
