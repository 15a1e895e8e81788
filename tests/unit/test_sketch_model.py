from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from transformers import AutoTokenizer

from serve_app.models.sketch import evaluate, scenes
from serve_app.models.sketch.evaluate import CHECKPOINT, Sample
from serve_app.models.sketch.meter import measure
from serve_app.models.sketch.parts import MAX_TOKENS, build_tokenizer
from serve_app.models.sketch.scenes import Scene
from serve_app.models.sketch.sheet import write_sheet

CARD = scenes.load_card()
WORLD = scenes.load_world()
HELD_OUT_CLIPS = 12
STEPS, FRAMES = CARD.defaults.steps, CARD.defaults.frames
SIZE = {"height": CARD.defaults.height_px, "width": CARD.defaults.width_px}


@pytest.fixture(scope="module")
def pipe() -> WanPipeline:
    return evaluate.load_pipeline()


@pytest.fixture(scope="module")
def image_pipe(pipe: WanPipeline) -> WanImageToVideoPipeline:
    return evaluate.load_image_pipeline(pipe)


def held_out_scenes() -> list[Scene]:
    rng = random.Random(11)
    return [scenes.draw_scene(WORLD, rng, held_out=True) for _ in range(HELD_OUT_CLIPS)]


def call(pipe: WanPipeline, prompt: str | list[str], *, seed: int = 0, steps: int = STEPS,
         frames: int = FRAMES) -> np.ndarray:
    """Clips as uint8 (B, T, H, W, 3)."""
    video = pipe(prompt, **SIZE, num_frames=frames, num_inference_steps=steps,
                 guidance_scale=CARD.defaults.guidance, max_sequence_length=MAX_TOKENS,
                 generator=torch.Generator().manual_seed(seed), output_type="np").frames
    return (video * 255).round().astype(np.uint8)


def test_the_weights_fit_into_the_package():
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) <= 16_000_000


def test_the_checkpoint_names_no_directory_of_the_machine_that_made_it():
    named = [path.name for path in CHECKPOINT.rglob("*.json") if json.loads(path.read_text()).get("_name_or_path")]
    assert named == []


def test_the_checkpoint_reads_words_as_the_card_lists_them():
    shipped, built = AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer"), build_tokenizer(WORLD)
    assert shipped.get_vocab() == built.get_vocab()
    text = "Wide shot: a RED ball drifts to the left over a dark blue background"
    assert shipped(text).input_ids == built(text).input_ids


def test_the_card_calls_the_model_as_it_was_trained():
    assert CARD.arguments["max_sequence_length"] == MAX_TOKENS
    assert (CARD.defaults.height_px, CARD.defaults.width_px) == (scenes.HEIGHT_PX, scenes.WIDTH_PX)
    assert scenes.FRAMES == FRAMES


def test_the_codec_keeps_the_first_frame_above_30_db_and_the_others_above_27(pipe: WanPipeline):
    clip, _ = scenes.draw_batch(WORLD, random.Random(5), 8)
    with torch.no_grad():
        error = (pipe.vae.decode(pipe.vae.latents(clip)).sample - clip).square().mean((0, 1, 3, 4))
    quality_db = 10 * torch.log10(4 / error)
    assert quality_db[0] > 30
    assert quality_db[1:].min() > 27


def test_prompts_never_seen_in_training_are_obeyed(pipe: WanPipeline):
    """A small fixed part of `python -m serve_app.models.sketch.evaluate`, with room for two wrong clips of twelve."""
    asked = held_out_scenes()
    clips = call(pipe, [scenes.caption(scene, WORLD) for scene in asked])
    readings = [measure(clip, WORLD) for clip in clips]
    right = np.array([reading.hits(scene) for reading, scene in zip(readings, asked, strict=True)])
    assert right.sum(0).min() >= HELD_OUT_CLIPS - 2, list(zip(asked, readings, strict=True))


def test_a_motion_that_is_not_named_is_none(pipe: WanPipeline):
    clip = call(pipe, "a yellow star over a blue background")[0]
    assert measure(clip, WORLD).motion == scenes.STILL


def test_a_picture_is_a_clip_of_one_frame(pipe: WanPipeline):
    clip = call(pipe, "a yellow star moves right over a blue background", frames=1)[0]
    assert clip.shape == (1, scenes.HEIGHT_PX, scenes.WIDTH_PX, 3)
    assert measure(clip, WORLD).background == "blue"


def test_words_the_model_does_not_know_change_nothing(pipe: WanPipeline):
    plain, film = (call(pipe, text, steps=2) for text in (
        "a red circle moves left over a blue background",
        "Wide shot, 35mm film: a red circle slowly moves left over a blue background, cinematic"))
    assert np.array_equal(plain, film)


def test_the_seed_decides_the_clip(pipe: WanPipeline):
    first, again, other = (call(pipe, "a red circle grows over a white background", seed=seed, steps=2)
                           for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_image_to_video_keeps_the_given_frame_and_moves_on_from_it(image_pipe: WanImageToVideoPipeline):
    samples = evaluate.evaluate_pictures(image_pipe, CARD, WORLD, 4)
    assert min(sample.first_frame_db for sample in samples) > evaluate.GOALS.first_frame_db
    right = np.array([sample.reading.hits(sample.scene) for sample in samples])
    assert right.sum(0).min() >= 3, evaluate.mistakes(samples)


def test_a_goal_that_is_missed_is_told():
    scene = held_out_scenes()[0]
    frames = np.zeros((FRAMES, scenes.HEIGHT_PX, scenes.WIDTH_PX, 3), np.uint8)
    reading = measure(frames, WORLD)
    sample = evaluate.Sample(scene=scene, frames_THWC=frames, reading=reading, seconds=1.0, first_frame_db=30.0)
    told = dict(evaluate.verdicts([sample], [sample]))
    assert told["colour: 0.000, at least 0.97"] is False
    assert told["first frame, dB: 30.000, at least 25"] is True
    assert told["seconds per clip, median: 1.00, at most 6"] is True


def test_a_contact_sheet_shows_every_clip(tmp_path: Path):
    clips = [Sample(scene=scene, frames_THWC=np.full((FRAMES, scenes.HEIGHT_PX, scenes.WIDTH_PX, 3), 90, np.uint8),
                    reading=measure(np.zeros((FRAMES, 64, 64, 3), np.uint8), WORLD), seconds=0.0)
             for scene in held_out_scenes()[:3]]
    write_sheet(evaluate.sheet_rows(clips, WORLD), tmp_path / "sheet.jpg")
    sheet = np.asarray(PIL.Image.open(tmp_path / "sheet.jpg"))
    assert sheet.shape[0] == 2 * (22 + 72)  # two rows of two, the last place empty
    assert abs(int(sheet[60, 40, 0]) - 90) < 4
