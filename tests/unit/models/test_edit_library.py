"""`run_video_edit` with models: tiny SAM 2 and InstructPix2Pix checkpoints, named by cards and by `extra`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.settings import ModelsSettings, Settings
from serve_app.edit_library import get_video_edit_status, run_video_edit
from tests.edit_clips import write_source
from tests.fakes_edits import request_for
from tests.tiny_track import build_points
from tests.workbench import editor_card, moving_square
from workflows.edit_status import EditState
from workflows.media.decode import read_frames
from workflows.media.probe import probe

FRAMES = 10


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A directory with a card for the tiny editor; the tracker is the shipped card, whose weights `extra` names."""
    cards = tmp_path / "cards"
    cards.mkdir()
    card = editor_card("instruct_pix2pix", tmp_path, "StableDiffusionInstructPix2PixPipeline", frames_at_once=4,
                       image_guidance=1.5)
    (cards / "tiny.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json", exclude_unset=True)))
    return Settings(data_dir=tmp_path / "data", models=ModelsSettings(card_dirs=(cards,), torch_threads=1))


def test_a_video_is_edited_by_models_from_the_request_to_the_files(tmp_path: Path, settings: Settings) -> None:
    source = write_source(moving_square(FRAMES), tmp_path / "in.mp4", fps=8)
    request = request_for(
        source, output_dir=str(tmp_path / "out"), mask_prompt=None, points=[{"x": 20, "y": 30}], tracker="sam2.1-large",
        editor="tiny", edit_prompt="make it red", steps=2, chunk_frames=8,
        extra={"SAM2_MODEL_PATH": str(build_points(tmp_path))})
    run_video_edit(request, settings=settings)
    told = get_video_edit_status("edit", settings=settings)
    log = Path(told.logs_path).read_text()
    assert (told.status, told.progress) == (EditState.FINISHED, 1.0), log
    assert "loading sam2.1-large\nloading tiny\n" in log
    edited = Path(told.output_video_path)
    assert probe(edited).frames == FRAMES
    assert np.abs(read_frames(edited).astype(int) - moving_square(FRAMES)).max() > 20
    report = json.loads((tmp_path / "out" / "edit_flicker.json").read_text())
    assert report


def test_weights_that_are_not_here_end_in_the_status_with_the_command_that_brings_them(
        tmp_path: Path, settings: Settings) -> None:
    source = write_source(moving_square(FRAMES), tmp_path / "in.mp4", fps=8)
    run_video_edit(request_for(source, output_dir=str(tmp_path / "out"), editor="instruct-pix2pix", edit_size=512),
                   settings=settings)
    told = get_video_edit_status("edit", settings=settings)
    assert told.status is EditState.FAILED
    assert "reelray models pull instruct-pix2pix" in told.error


def test_what_a_card_cannot_do_ends_in_the_status_before_anything_is_loaded(tmp_path: Path, settings: Settings) -> None:
    source = write_source(moving_square(FRAMES), tmp_path / "in.mp4", fps=8)
    run_video_edit(request_for(source, output_dir=str(tmp_path / "out"), tracker="sam2.1-large", editor="tiny"),
                   settings=settings)
    told = get_video_edit_status("edit", settings=settings)
    assert told.status is EditState.FAILED
    assert told.error.startswith("mask_prompt: card sam2.1-large follows what it is shown")
    assert "loading" not in Path(told.logs_path).read_text()
