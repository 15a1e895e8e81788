"""OpenAI's own client against `reelray serve` with the embedded model: what was asked for is what is seen.

A client that hangs up stops what it asked for.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI

from tests.cluster.test_http import Server, serving
from workflows.media.decode import read_frames, read_picture
from workflows.media.frames import UInt8Array
from workflows.media.probe import probe

pytestmark = [pytest.mark.cluster, pytest.mark.slow,
              pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

PROMPT = "a red circle moves left over a blue background"
RED, BLUE = 0, 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the models that it has by default."""
    with serving(tmp_path_factory.mktemp("openai")) as served:
        yield served


def dominant(frame_HWC: UInt8Array) -> int:
    """Which channel is the brightest in most pixels."""
    return int(np.bincount(frame_HWC.argmax(axis=2).ravel(), minlength=3).argmax())


def test_the_sdk_gets_what_it_asked_for_and_who_hangs_up_cancels(server: Server, tmp_path: Path) -> None:
    client = OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0, timeout=120)
    picture = client.images.generate(prompt=PROMPT, response_format="b64_json", extra_body={"seed": 3})
    assert picture.data
    png = base64.b64decode(str(picture.data[0].b64_json))
    (tmp_path / "picture.png").write_bytes(png)
    assert dominant(read_picture(tmp_path / "picture.png")) == BLUE
    by_url = client.images.generate(prompt=PROMPT, extra_body={"seed": 3})
    assert by_url.data
    assert server.ask("GET", str(by_url.data[0].url).partition(f":{server.port}")[2])[2] == png

    for picture_sent in (None, ("first.png", png, "image/png")):
        more = {} if picture_sent is None else {"input_reference": picture_sent}
        video = client.videos.create_and_poll(prompt=PROMPT, extra_body={"num_frames": 9}, **more)  # type: ignore[arg-type]
        assert (video.status, video.progress, video.model) == ("completed", 100, "sketch"), video.error
        film = tmp_path / f"{video.id}.mp4"
        film.write_bytes(client.videos.download_content(video.id).read())
        assert probe(film).frames == 9
        assert {dominant(frame_HWC) for frame_HWC in read_frames(film)} == {BLUE}
        sheet = tmp_path / "sheet.jpg"
        sheet.write_bytes(client.videos.download_content(video.id, variant="spritesheet").read())
        assert dominant(read_picture(sheet)[:8, :8]) == BLUE

    body = json.dumps({"prompt": PROMPT, "n": 10, "num_inference_steps": 100, "seed": 50}).encode()
    head = (f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json"
            f"\r\nContent-Length: {len(body)}\r\n\r\n")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        until(server, "running")
    left_s = time.monotonic()
    until(server, "cancelled")
    assert time.monotonic() - left_s < 10, "the rest of its thousand steps is not made"


def until(server: Server, status: str) -> None:
    """Wait until the newest job has this status."""
    end_s = time.monotonic() + 60
    while (job := json.loads(server.ask("GET", "/api/jobs?kind=image&limit=1")[2])["jobs"][0])["status"] != status:
        assert time.monotonic() < end_s, job
        time.sleep(0.05)
