"""Editors of diffusers behind the FrameEditor port: tiny checkpoints of their classes, loaded by the real loader."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.model_card import ModelCard, Task
from serve_app.models import pipelines
from serve_app.models.editors import (
    EDITORS,
    OURS,
    InstructEditor,
    KontextEditor,
    LoadedEditor,
    QwenEditor,
    editor_class,
)
from serve_app.models.lifecycle import CancelToken
from serve_app.models.resume import StepCheckpoint
from serve_app.models.tap import UNWATCHED, Watch
from serve_app.models.workbench import open_workbench
from tests.workbench import STEPS, edit_take, editor_card
from workflows.errors import InvalidDocument, RenderCancelled, RenderRefused
from workflows.media.frames import UInt8Array

INSTRUCT = "StableDiffusionInstructPix2PixPipeline"
KINDS: dict[str, tuple[str, dict[str, float]]] = {
    "instruct_pix2pix": (INSTRUCT, {"frames_at_once": 2, "image_guidance": 1.5}),
    "flux_kontext": ("FluxKontextPipeline", {}),
    "flux2_klein": ("Flux2KleinPipeline", {}),
    "wan_vace": ("WanVACEPipeline", {}),
}
CALLS = {"instruct_pix2pix": 2, "flux_kontext": 3, "flux2_klein": 3, "wan_vace": 1}
"""Of the pipeline, for three frames with something in their masks."""
IMAGE_EDITORS = ["instruct_pix2pix", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("flux_kontext",
                                                                                               "flux2_klein"))]
TAKE = edit_take()
ROUNDING = 1
"""Of 255: batches of another size add in another order."""


def quiet(done: int, total: int, timestep: float) -> None:
    """No bar in the output of the tests."""


@pytest.fixture(scope="module")
def editors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedEditor]:
    directory = tmp_path_factory.mktemp("editors")
    found = {}
    for kind, (pipeline, edit) in KINDS.items():
        bench = open_workbench(editor_card(kind, directory, pipeline, **edit), "cpu")
        found[kind] = bench.the_editor()
    return found


def largest_difference(one: UInt8Array, other: UInt8Array) -> int:
    return int(np.abs(one.astype(np.int16) - other).max())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_masked_is_edited_step_by_step_and_the_rest_is_left(
        editors: dict[str, LoadedEditor], kind: str) -> None:
    heard: list[tuple[int, int]] = []
    before = TAKE.frames_THWC.copy()
    edited = editors[kind].edit(TAKE, progress_callback=lambda done, total, _: heard.append((done, total)),
                                watch=UNWATCHED)
    steps = CALLS[kind] * STEPS
    assert heard == [(done, steps) for done in range(1, steps + 1)]
    assert (edited.shape, edited.dtype) == (before.shape, np.uint8)
    assert np.array_equal(TAKE.frames_THWC, before)
    assert np.array_equal(edited[-1], before[-1])  # nothing is in its mask
    assert all(largest_difference(edited[frame], before[frame]) > 0 for frame in range(3))


@pytest.mark.parametrize("kind", IMAGE_EDITORS)
def test_a_frame_is_edited_alike_alone_and_among_others(editors: dict[str, LoadedEditor], kind: str) -> None:
    together = editors[kind].edit(TAKE, progress_callback=quiet, watch=UNWATCHED)
    for frame in range(2):
        alone = replace(TAKE, frames_THWC=TAKE.frames_THWC[frame:frame + 1], masks_THW=TAKE.masks_THW[frame:frame + 1])
        edited = editors[kind].edit(alone, progress_callback=quiet, watch=UNWATCHED)
        assert largest_difference(edited[0], together[frame]) <= ROUNDING


@pytest.mark.parametrize("kind", IMAGE_EDITORS)
def test_equal_frames_stay_equal_because_all_have_the_same_noise(editors: dict[str, LoadedEditor], kind: str) -> None:
    still = replace(TAKE, frames_THWC=np.repeat(TAKE.frames_THWC[:1], 3, axis=0), masks_THW=TAKE.masks_THW[:3])
    edited = editors[kind].edit(still, progress_callback=quiet, watch=UNWATCHED)
    assert all(largest_difference(edited[0], frame) <= ROUNDING for frame in edited)
    other = editors[kind].edit(replace(still, seed=4), progress_callback=quiet, watch=UNWATCHED)
    assert largest_difference(edited[0], other[0]) > ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_stops_within_one_step(editors: dict[str, LoadedEditor], kind: str) -> None:
    token, heard = CancelToken(), []

    def hear(done: int, total: int, timestep: float) -> None:
        heard.append(done)
        token.set()

    with pytest.raises(RenderCancelled):
        editors[kind].edit(TAKE, progress_callback=hear, watch=Watch(cancel=token))
    assert heard == [1]


@pytest.mark.parametrize("kind", ["instruct_pix2pix", "wan_vace"])
def test_an_edit_of_one_call_goes_on_where_it_was_stopped(editors: dict[str, LoadedEditor], kind: str) -> None:
    take = replace(TAKE, frames_THWC=TAKE.frames_THWC[:2], masks_THW=TAKE.masks_THW[:2])
    kept: list[StepCheckpoint] = []
    watch = Watch(checkpoint_every=1, on_checkpoint=kept.append)
    whole = editors[kind].edit(take, progress_callback=quiet, watch=watch)
    heard: list[int] = []
    again = editors[kind].edit(take, progress_callback=lambda done, *_: heard.append(done), watch=Watch(resume=kept[0]))
    assert (kept[0].step, heard) == (1, [2, 3])
    assert np.array_equal(whole, again)


def test_too_many_frames_for_the_memory_are_edited_in_fewer(tmp_path: Path) -> None:
    card = editor_card("instruct_pix2pix", tmp_path, INSTRUCT, frames_at_once=4, image_guidance=1.5)
    pipe = pipelines.load(card, Task.EDIT_FRAMES, "cpu")
    take = replace(TAKE, masks_THW=np.full_like(TAKE.masks_THW, 255))
    expected = InstructEditor(pipe, card).edit(take, progress_callback=quiet, watch=UNWATCHED)

    def no_room(_module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments[0]) > 2 * 3:  # three predictions per frame
            raise torch.OutOfMemoryError("CUDA out of memory")

    pipe.unet.register_forward_pre_hook(no_room)
    notes: list[str] = []
    heard: list[tuple[int, int]] = []
    edited = InstructEditor(pipe, card).edit(take, progress_callback=lambda done, total, _: heard.append((done, total)),
                                             watch=Watch(note=notes.append))
    assert largest_difference(edited, expected) <= ROUNDING
    assert notes == ["4 frames at once do not fit the GPU; edited 2 at once"]
    assert heard[-1] == (2 * STEPS, 2 * STEPS)


def test_a_clip_of_another_length_is_made_longer_and_cut(editors: dict[str, LoadedEditor]) -> None:
    notes: list[str] = []
    edited = editors["wan_vace"].edit(TAKE, progress_callback=quiet, watch=Watch(note=notes.append))
    assert len(edited) == 4
    assert notes == ["tiny makes clips of 4n+1 frames: the last of 4 was repeated up to 5, and the rest cut off again"]


def test_a_video_editor_does_not_see_what_it_makes_anew(editors: dict[str, LoadedEditor]) -> None:
    other = TAKE.frames_THWC.copy()
    other[TAKE.masks_THW > 0] = 7
    edited = [editors["wan_vace"].edit(replace(TAKE, frames_THWC=frames), progress_callback=quiet, watch=UNWATCHED)
              for frames in (TAKE.frames_THWC, other)]
    assert np.array_equal(*edited)


@pytest.mark.parametrize(("kind", "changes", "said"), [
    ("instruct_pix2pix", {"frames_THWC": np.zeros((4, 40, 40, 3), np.uint8)}, "edit_size: 40 is not a multiple of 16"),
    ("instruct_pix2pix", {"masks_THW": TAKE.masks_THW[:2]}, "masks of the same frames"),
    ("instruct_pix2pix", {"image_guidance": 0.5}, "image_guidance_scale: 0.5: below 1 .*; nearest valid: 1"),
    ("instruct_pix2pix", {"steps": 0}, "steps: 0 steps; nearest valid: 1"),
    ("flux2_klein", {"negative_prompt": "blurry"}, "negative_prompt: Flux2KleinPipeline has nothing to do it with"),
    ("wan_vace", {"frames_THWC": np.zeros((12, 64, 64, 3), np.uint8), "masks_THW": np.zeros((12, 64, 64), np.uint8)},
     "chunk_frames: 12 frames at once are more than the 9 of tiny; nearest valid: 9"),
])
def test_what_an_editor_cannot_do_is_refused_before_it_runs(
        editors: dict[str, LoadedEditor], kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RenderRefused, match=said):
        editors[kind].edit(replace(TAKE, **changes), progress_callback=quiet, watch=UNWATCHED)


# -- conventions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_is_asked_with_arguments_that_it_has(name: str) -> None:
    """Of those that no tiny checkpoint can run here too: Qwen's looks at a megapixel, whatever it is given."""
    card = editor_card_of(name)
    parameters = inspect.signature(pipelines.find_class(card, card.tasks[0]).__call__).parameters
    asked = {"image", "prompt", "height", "width", "num_inference_steps", "generator", "output_type"}
    kind = EDITORS[name]
    if issubclass(kind, QwenEditor):
        asked |= {"true_cfg_scale", "negative_prompt"}
    elif issubclass(kind, KontextEditor):
        asked |= {"guidance_scale", "max_area", "_auto_resize"}
    elif issubclass(kind, InstructEditor):
        asked = asked - {"height", "width"} | {"prompt_embeds", "negative_prompt_embeds", "image_guidance_scale"}
    elif kind.task is Task.EDIT_VIDEO:
        asked = asked - {"image"} | {"video", "mask", "num_frames", "negative_prompt", "guidance_scale"}
    assert asked <= parameters.keys()
    assert asked <= OURS


def editor_card_of(name: str, **changes: object) -> ModelCard:
    task = EDITORS[name].task if name in EDITORS else Task.EDIT_FRAMES
    edit = {"image_guidance": 1.5} if name == INSTRUCT else {}
    return ModelCard.model_validate({
        "name": "x", "title": "x", "repo": "nobody/nothing", "pipelines": {task: name}, "edit": edit,
        "defaults": {"width_px": 64, "height_px": 64}, **changes})


def test_a_pipeline_that_is_no_editor_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidDocument, match=r"WanPipeline is not known as an editor .*FluxKontextPipeline"):
        editor_class(editor_card_of("WanPipeline"), Task.EDIT_FRAMES)


def test_arguments_that_are_ours_are_not_a_cards(tmp_path: Path) -> None:
    card = editor_card("flux_kontext", tmp_path, "FluxKontextPipeline").model_copy(update={"arguments": {"image": 1}})
    with pytest.raises(InvalidDocument, match=r"arguments\.image: is set by reelray for every call"):
        open_workbench(card, "cpu")
