from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from serve_app.models.sketch import evaluate, scenes
from serve_app.models.sketch.codec import SketchCodec
from serve_app.models.sketch.meter import measure
from serve_app.models.sketch.parts import MAX_TOKENS, build_tokenizer
from serve_app.models.sketch.scenes import Scene

WORLD = scenes.load_world()


def test_training_scenes_are_never_held_out_ones():
    rng = random.Random(0)
    drawn = [scenes.draw_scene(WORLD, rng, held_out=False, still_share=0.2) for _ in range(300)]
    assert not any(scenes.is_held_out(scene) for scene in drawn)


def test_about_one_triple_in_seven_is_held_out():
    triples = [Scene(colour=c, shape=s, motion=m, background="black")
               for c in WORLD.colours for s in WORLD.objects for m in WORLD.motions]
    assert 0.09 < sum(map(scenes.is_held_out, triples)) / len(triples) < 0.2


def test_every_colour_shape_and_motion_appears_in_training_and_held_out():
    for held_out in (False, True):
        rng = random.Random(1)
        drawn = [scenes.draw_scene(WORLD, rng, held_out=held_out) for _ in range(500)]
        assert {scene.colour for scene in drawn} == set(WORLD.colours)
        assert {scene.shape for scene in drawn} == set(WORLD.objects)
        assert {scene.motion for scene in drawn} == set(WORLD.motions)
        assert all(scene.colour != scene.background for scene in drawn)


@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held-out"])
def test_captions_use_only_words_the_card_knows(held_out: bool):
    rng = random.Random(2)
    for _ in range(200):
        scene = scenes.draw_scene(WORLD, rng, held_out=held_out, still_share=0.2)
        for text in (scenes.caption(scene, WORLD), scenes.training_caption(scene, WORLD, rng)):
            assert set(WORLD.unknown_words(text)) <= {"one"}, text


def test_a_caption_names_the_motion_exactly_when_something_moves():
    rng = random.Random(3)
    for _ in range(200):
        scene = scenes.draw_scene(WORLD, rng, held_out=False, still_share=0.5)
        said = scenes.training_caption(scene, WORLD, rng)
        named = any(phrase in said for phrases in WORLD.motions.values() for phrase in phrases)
        assert named == bool(scene.motion)


def test_the_meter_reads_drawn_scenes_right():
    samples = evaluate.calibrate(WORLD, 24)
    hits = np.array([sample.reading.hits(sample.scene) for sample in samples])
    assert hits.all(), evaluate.mistakes(samples)


def test_the_meter_reads_a_scene_at_rest_as_still():
    scene = Scene(colour="red", shape="circle", motion=scenes.STILL, background="blue")
    clip = scenes.render([scene], [scenes.draw_layout(scene.motion, random.Random(0))], WORLD)
    assert measure(evaluate.to_frames_THWC(clip[0]), WORLD).motion == scenes.STILL


def test_the_meter_sees_that_scattered_scraps_are_no_object():
    scraps = np.full((scenes.FRAMES, scenes.HEIGHT_PX, scenes.WIDTH_PX, 3), WORLD.backgrounds["blue"], np.uint8)
    scraps[:, 40:56, 40:56] = scraps[:, 80:96, 120:136] = WORLD.colours["red"]
    reading = measure(scraps, WORLD)
    assert (reading.colour, reading.background, reading.one_piece) == ("red", "blue", False)


def test_the_meter_sees_no_object_on_an_empty_background():
    empty = np.full((scenes.FRAMES, scenes.HEIGHT_PX, scenes.WIDTH_PX, 3), WORLD.backgrounds["blue"], np.uint8)
    reading = measure(empty, WORLD)
    assert (reading.background, reading.colour, reading.shape) == ("blue", "", "")


def test_the_start_of_a_clip_is_drawn_as_in_the_whole_clip():
    rng = random.Random(4)
    scene = scenes.draw_scene(WORLD, rng, held_out=False)
    layout = scenes.draw_layout(scene.motion, rng)
    whole, start = (scenes.render([scene], [layout], WORLD, frames) for frames in (scenes.FRAMES, 9))
    assert torch.equal(whole[:, :, :9], start)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: scenes.draw_layout("spins", random.Random(0)), "known: left"),
    (lambda: scenes.distance("heart", torch.zeros(1), torch.zeros(1)), "known: circle"),
], ids=["motion", "shape"])
def test_a_word_without_a_drawing_rule_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_clip_of_any_length_starts_with_the_same_latents():
    codec = SketchCodec()
    clip, _ = scenes.draw_batch(WORLD, random.Random(6), 2)
    with torch.no_grad():
        whole = codec.latents(clip)
        for frames in range(1, scenes.FRAMES, 8):
            part = codec.latents(clip[:, :, :frames])
            assert torch.allclose(part, whole[:, :, :part.shape[2]], atol=1e-5)


@pytest.mark.parametrize("motion", [scenes.STILL, *WORLD.motions])
def test_an_object_never_leaves_the_frame(motion: str):
    rng = random.Random(8)
    for _ in range(200):
        layout = scenes.draw_layout(motion, rng)
        assert 0 < min(layout.start_x_px, layout.end_x_px) <= max(layout.start_x_px, layout.end_x_px) < scenes.WIDTH_PX
        assert 0 < min(layout.start_y_px, layout.end_y_px) <= max(layout.start_y_px, layout.end_y_px) < scenes.HEIGHT_PX


@pytest.mark.parametrize("motion", [scenes.STILL, "grows", "shrinks"])
def test_what_only_changes_its_size_stays_in_its_place(motion: str):
    layout = scenes.draw_layout(motion, random.Random(3))
    assert (layout.start_x_px, layout.start_y_px) == (layout.end_x_px, layout.end_y_px)


def test_half_the_size_shows_the_same():
    rng = random.Random(9)
    drawn, layouts = scenes.draw_scenes(WORLD, rng, 4)
    times = torch.linspace(0, 1, scenes.FRAMES).expand(4, -1)
    whole, half = (scenes.draw_layers(drawn, layouts, WORLD, times, shrink).clip() for shrink in (1, 2))
    assert (torch.nn.functional.avg_pool3d(whole, (1, 2, 2)) - half).abs().mean() < 0.01


@pytest.mark.parametrize(("prompt", "tokens"), [
    ("a red circle moves left over a blue background", ["red", "circle", "left", "blueground", "</s>"]),
    ("Wide shot, 35mm: a RED ball on a dark blue wall!", ["red", "circle", "blueground", "</s>"]),
    ("under a yellow sky, the white moon slowly sinks", ["yellowground", "white", "circle", "down", "</s>"]),
    ("a green box gets bigger and falls down", ["green", "square", "grows", "down", "</s>"]),
    ("noir, moody", ["</s>"]),
], ids=["plain", "film words are dropped", "synonyms, another order", "two motions", "nothing known"])
def test_the_tokenizer_brings_words_to_their_meanings(prompt: str, tokens: list[str]):
    tokenizer = build_tokenizer(WORLD)
    ids = tokenizer(prompt, max_length=MAX_TOKENS, truncation=True).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_every_phrase_of_the_card_is_read_as_its_meaning_alone():
    tokenizer = build_tokenizer(WORLD)
    for meaning, phrases in {**WORLD.objects, **WORLD.motions}.items():
        for phrase in phrases:
            assert tokenizer.convert_ids_to_tokens(tokenizer(phrase).input_ids) == [meaning, "</s>"], phrase


def test_the_list_of_models_names_every_word_that_means_something():
    told = WORLD.describe()
    phrases = [phrase for group in (WORLD.objects, WORLD.motions) for words in group.values() for phrase in words]
    assert [word for word in (*phrases, *WORLD.colours, *WORLD.backgrounds) if word not in told] == []
