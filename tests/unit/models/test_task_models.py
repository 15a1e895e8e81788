"""One class per task: pixels out, knobs in; what a pipeline cannot do is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from configs.model_card import CallDefaults, FrameRule, SizeRule, Task
from serve_app.models.image_to_video import ImageToVideo
from serve_app.models.placeholder import Placeholder
from serve_app.models.render import to_frames
from serve_app.models.takes import Dialect
from serve_app.models.text_to_image import TextToImage
from serve_app.models.text_to_video import TextToVideo
from tests.families import BY_NAME, STEPS
from workflows.errors import InvalidDocument, ModelFailed

PipeOf = Callable[[str], DiffusionPipeline]


def quiet(step: int, total: int, timestep: float) -> None:
    """No bar in the output of the tests."""


def test_text_to_video_gives_frames_as_uint8(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["wan_t2v"]
    frames_THWC = TextToVideo(pipe_of("wan_t2v"), family.card(checkpoints)).generate(
        family.take(), progress_callback=quiet)
    assert (frames_THWC.shape, frames_THWC.dtype) == ((5, 32, 32, 3), np.uint8)


def test_text_to_image_gives_one_frame(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["sdxl"]
    frame_HWC = TextToImage(pipe_of("sdxl"), family.card(checkpoints)).generate(family.take(), progress_callback=quiet)
    assert (frame_HWC.shape, frame_HWC.dtype) == ((32, 32, 3), np.uint8)


def test_a_video_pipeline_makes_pictures_too(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["wan_t2v"]
    card = family.card(checkpoints, pipelines={Task.TEXT_TO_IMAGE: "WanPipeline"})
    frame_HWC = TextToImage(pipe_of("wan_t2v"), card).generate(family.take(frames=1), progress_callback=quiet)
    assert frame_HWC.shape == (32, 32, 3)


def test_image_to_video_starts_from_the_picture(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["svd"]
    model = ImageToVideo(pipe_of("svd"), family.card(checkpoints))
    noise, black = family.take(), family.take(picture_HWC=np.zeros((32, 32, 3), np.uint8))
    assert not np.array_equal(model.generate(noise, progress_callback=quiet),
                              model.generate(black, progress_callback=quiet))


def test_pixels_are_the_pipelines_floats_rounded(pipe_of: PipeOf, reference_of: Callable[[str], torch.Tensor],
                                                 checkpoints: Path) -> None:
    family = BY_NAME["wan_t2v"]
    frames_THWC = TextToVideo(pipe_of("wan_t2v"), family.card(checkpoints)).generate(
        family.take(), progress_callback=quiet)
    floats_THWC = reference_of("wan_t2v")[0].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(frames_THWC, (floats_THWC * 255).round().astype(np.uint8))


GUIDANCE = [("wan_t2v", {"guidance_scale": 6.0}), ("sdxl", {"guidance_scale": 6.0}),
            ("svd", {"min_guidance_scale": 1.0, "max_guidance_scale": 6.0}), ("hv15", {})]


@pytest.mark.parametrize(("name", "expected"), GUIDANCE, ids=[name for name, _ in GUIDANCE])
def test_guidance_reaches_each_family_by_its_own_name(name: str, expected: dict[str, float], pipe_of: PipeOf,
                                                      checkpoints: Path) -> None:
    family = BY_NAME[name]
    call = Dialect(pipe_of(name), family.card(checkpoints), family.task).call(family.take(guidance=6.0))
    assert {key: value for key, value in call.kwargs().items() if "guidance" in key} == expected


class _TrueCfg(DiffusionPipeline):
    """QwenImage's signature: `guidance_scale` is for distilled models."""

    def __call__(self, prompt: str, negative_prompt: str = "", true_cfg_scale: float = 4.0, width: int = 0,
                 height: int = 0, guidance_scale: float | None = None) -> None: ...


class _Both(DiffusionPipeline):
    """Flux's signature: `guidance_scale` is the usual one, true guidance an extra that a card may fix."""

    def __call__(self, prompt: str, negative_prompt: str = "", true_cfg_scale: float = 1.0, width: int = 0,
                 height: int = 0, guidance_scale: float = 3.5) -> None: ...


@pytest.mark.parametrize(("pipeline", "arguments", "expected"), [
    (_TrueCfg, {}, {"true_cfg_scale": 6.0}),
    (_Both, {"true_cfg_scale": 2.0}, {"guidance_scale": 6.0, "true_cfg_scale": 2.0}),
])
def test_true_guidance_is_told_from_distilled_guidance(
        pipeline: type[DiffusionPipeline], arguments: dict[str, float], expected: dict[str, float],
        checkpoints: Path) -> None:
    family = BY_NAME["sdxl"]
    card = family.card(checkpoints, arguments=arguments)
    kwargs = Dialect(pipeline(), card, family.task).call(family.take(guidance=6.0)).kwargs()
    assert {key: value for key, value in kwargs.items() if key.endswith("_scale")} == expected


def test_a_card_may_not_fix_the_guidance_that_calls_choose(checkpoints: Path) -> None:
    card = BY_NAME["sdxl"].card(checkpoints, arguments={"true_cfg_scale": 2.0})
    with pytest.raises(InvalidDocument, match=r"arguments\.true_cfg_scale"):
        Dialect(_TrueCfg(), card, Task.TEXT_TO_IMAGE)


def test_guidance_of_a_pipeline_with_a_guider_goes_to_the_guider(checkpoints: Path) -> None:
    family = BY_NAME["hv15"]
    pipe = family.load(checkpoints)
    Dialect(pipe, family.card(checkpoints), family.task).guide(pipe, family.take(guidance=6.0))
    assert pipe.guider.guidance_scale == 6.0


def test_stable_video_diffusion_gets_the_rate_and_no_prompt(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["svd"]
    card = family.card(checkpoints, arguments={"motion_bucket_id": 40, "decode_chunk_size": 2})
    kwargs = Dialect(pipe_of("svd"), card, family.task).call(family.take(fps=7.4)).kwargs()
    assert "prompt" not in kwargs
    assert (kwargs["fps"], kwargs["motion_bucket_id"], kwargs["decode_chunk_size"]) == (7, 40, 2)


def test_a_prompt_that_is_not_read_is_said(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["svd"]
    model = ImageToVideo(pipe_of("svd"), family.card(checkpoints))
    assert model.warnings(family.take()) == (
        "this model reads no prompt: the motion follows the first frame alone",)
    assert model.warnings(family.take(prompt="")) == ()


@pytest.mark.parametrize(("changes", "field", "nearest"), [
    ({"negative_prompt": "blurry"}, "negative_prompt", "leave it empty"),
    ({"width_px": 40}, "width_px", "32 or 64"),
    ({"height_px": 8}, "height_px", "32"),
    ({"frames": 99}, "frames", "64"),
    ({"steps": 0}, "steps", "1"),
    ({"seed": -1}, "seed", "0"),
    ({"picture_HWC": None}, "first_frame", "32x32"),
    ({"picture_HWC": np.zeros((32, 16, 3), np.uint8)}, "first_frame", "32x32"),
])
def test_what_cannot_be_done_is_refused_by_name_with_the_nearest_value(
        changes: dict[str, object], field: str, nearest: str, pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["svd"]
    problems = ImageToVideo(pipe_of("svd"), family.card(checkpoints)).problems(family.take(**changes))
    assert [(problem.field, problem.nearest) for problem in problems
            if problem.field != "first_frame" or "picture_HWC" in changes] == [(field, nearest)]


def test_a_take_that_fits_has_no_problems(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["svd"]
    assert ImageToVideo(pipe_of("svd"), family.card(checkpoints)).problems(family.take()) == ()


def test_a_picture_of_several_frames_is_refused(pipe_of: PipeOf, checkpoints: Path) -> None:
    family = BY_NAME["wan_t2v"]
    card = family.card(checkpoints, pipelines={Task.TEXT_TO_IMAGE: "WanPipeline"})
    problems = TextToImage(pipe_of("wan_t2v"), card).problems(family.take(frames=5))
    assert [problem.field for problem in problems] == ["frames"]


DEFAULTS = {"steps": STEPS, "guidance": 3.0, "width_px": 32, "height_px": 32, "frames": 2, "fps": 8}


@pytest.mark.parametrize(("changes", "field"), [
    ({"arguments": {"motion_bucket": 40}}, "arguments.motion_bucket"),
    ({"arguments": {"num_frames": 14}}, "arguments.num_frames"),
    ({"defaults": CallDefaults(**DEFAULTS, negative_prompt="blurry")}, "defaults.negative_prompt"),
], ids=["unknown argument", "reelray's own argument", "negative prompt"])
def test_a_card_that_asks_for_what_its_pipeline_lacks_is_refused_at_once(
        changes: dict[str, object], field: str, pipe_of: PipeOf, checkpoints: Path) -> None:
    card = BY_NAME["svd"].card(checkpoints, **changes)
    with pytest.raises(InvalidDocument) as refusal:
        ImageToVideo(pipe_of("svd"), card)
    assert [problem.field for problem in refusal.value.problems] == [field]


def test_a_picture_pipeline_cannot_be_a_cards_video_pipeline(pipe_of: PipeOf, checkpoints: Path) -> None:
    card = BY_NAME["sdxl"].card(checkpoints, pipelines={Task.IMAGE_TO_VIDEO: "StableDiffusionXLPipeline"})
    with pytest.raises(InvalidDocument, match="StableDiffusionXLPipeline"):
        ImageToVideo(pipe_of("sdxl"), card)


def test_pixels_that_are_not_numbers_fail_the_render() -> None:
    pictures = torch.full((1, 3, 32, 32), 0.5)
    pictures[0, 1, 3, 3] = float("nan")
    with pytest.raises(ModelFailed, match="NaN"):
        to_frames(pictures, BY_NAME["sdxl"].take(), label="s1.image")


def test_a_clip_of_another_length_than_asked_fails_the_render() -> None:
    with pytest.raises(ModelFailed, match=r"shape \(5, 3, 32, 32\), asked for were \(9, 3, 32, 32\)"):
        to_frames(torch.zeros(5, 3, 32, 32), BY_NAME["wan_t2v"].take(frames=9), label="s1.clip")


# -- the placeholder ---------------------------------------------------------------------------------------------


@pytest.fixture
def placeholder_card(checkpoints: Path):
    return BY_NAME["wan_t2v"].card(checkpoints, loader="placeholder", size=SizeRule(multiple_px=2), frames=FrameRule())


@pytest.mark.parametrize(("task", "shape"), [(Task.TEXT_TO_IMAGE, (64, 96, 3)), (Task.TEXT_TO_VIDEO, (3, 64, 96, 3))])
def test_the_placeholder_draws_a_picture_or_a_clip(task: Task, shape: tuple[int, ...], placeholder_card) -> None:
    take = BY_NAME["wan_t2v"].take(width_px=96, height_px=64, frames=3)
    pixels = Placeholder(placeholder_card, task).generate(take)
    assert (pixels.shape, pixels.dtype) == (shape, np.uint8)


def test_the_placeholder_shows_its_text(placeholder_card) -> None:
    model, family = Placeholder(placeholder_card, Task.TEXT_TO_IMAGE), BY_NAME["wan_t2v"]
    one, two = (model.generate(family.take(prompt=text, width_px=96, height_px=64)) for text in ("a cat", "a dog"))
    assert not np.array_equal(one, two)


def test_the_placeholder_calls_back_once_and_bears_a_broken_callback(placeholder_card) -> None:
    heard: list[tuple[int, int, float]] = []

    def broken(*step: float) -> None:
        heard.append(step)
        raise ValueError

    Placeholder(placeholder_card, Task.TEXT_TO_VIDEO).generate(BY_NAME["wan_t2v"].take(), progress_callback=broken)
    assert heard == [(0, 1, 0.0)]
