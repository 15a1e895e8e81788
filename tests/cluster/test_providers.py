"""Proves that a render whose writer and video model are somebody else's makes a film and leaves the key nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

from tests.provider import KEY, provider, refused, said
from workflows.media.encode import EncodeOptions, encode
from workflows.media.probe import probe

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CARD = """
name: far
title: Videos from somebody else
loader: remote
remote: {{api_url: "{url}", model_name: filmer-1, api_key_env: FAR_KEY, poll_s: 0.1, sends: [seed]}}
pipelines: {{text_to_video: videos}}
defaults: {{steps: 1, guidance: 0, width_px: 64, height_px: 32, frames: 9, fps: 8}}
size: {{multiple_px: 16}}
resources: {{num_gpus: 0, num_cpus: 0.1}}
"""
STORY = {"title": "By a model", "characters": [], "shots": [
    {"id": "s1", "prompt": "a cat"}, {"id": "s2", "prompt": "a dog"}]}


def clip(directory: Path) -> Response:
    path = directory / "provider.mp4"
    encode(np.full((9, 32, 64, 3), 120, np.uint8), fps=8, to=path, options=EncodeOptions(threads=1))
    return Response(path.read_bytes(), media_type="video/mp4")


def test_a_script_is_written_and_filmed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "film.txt").write_text("A cat meets a dog.\n")
    with (provider() as server,
          tempfile.TemporaryDirectory(prefix="rr", dir="/tmp", ignore_cleanup_errors=True) as ray_dir):
        (tmp_path / "cards" / "far.yaml").write_text(CARD.format(url=server.url))
        server.will("/chat/completions", refused(503), said(STORY))
        # The first video is turned away: one of the shot's tries, and the next one makes it.
        server.will("/videos", refused(429, "slow down"), JSONResponse({"id": "v1", "status": "queued", "progress": 0}))
        server.will("/videos/v1", JSONResponse({"id": "v1", "status": "in_progress", "progress": 40}),
                    JSONResponse({"id": "v1", "status": "completed", "progress": 100}))
        server.will("/videos/v1/content", clip(tmp_path))
        settings = [f"data_dir={tmp_path / 'state'}", f"ray.temp_dir={ray_dir}",
                    f"models.card_dirs=[{tmp_path / 'cards'}]",
                    "models.text_to_video=far", "models.text_to_image=placeholder", "models.image_to_video=placeholder",
                    "models.default_replicas.replicas=1", "story.writer=llm", f"story.api_url={server.url}",
                    "story.model_name=chatty", "story.api_key_env=FAR_KEY"]
        done = subprocess.run(
            [sys.executable, "-c", "from serve_app.cli import main; main()", "render", str(tmp_path / "film.txt"), "-o",
             str(tmp_path / "film.mp4"), "--profile", "ci", *(word for text in settings for word in ("--set", text))],
            capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False, env={**os.environ, "FAR_KEY": KEY})
        assert done.returncode == 0, done.stdout + done.stderr
        assert probe(tmp_path / "film.mp4").frames == 18
        prompts = [video["prompt"] for video in server.bodies("/videos")]
        assert (len(prompts), set(prompts)) == (3, {"a cat", "a dog"})
        assert {asked.headers.get("authorization") for asked in server.asked} == {f"Bearer {KEY}"}
        left = [path for root in (tmp_path, Path(ray_dir)) for path in root.rglob("*")
                if path.is_file() and KEY.encode() in path.read_bytes()]
        assert left == []
        assert KEY not in done.stdout + done.stderr
