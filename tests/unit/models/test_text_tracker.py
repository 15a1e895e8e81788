"""SAM 3's video model behind the Tracker port, where there is a torchvision: a tiny checkpoint, the real loader.

`test_torchvision.py` runs this file in a process of its own beside a torchvision of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from serve_app.models.lifecycle import CancelToken
from serve_app.models.tap import UNWATCHED, Watch
from serve_app.models.track_by_text import MOST_OBJECTS
from serve_app.models.tracking import FramesOnDemand, LoadedTracker
from serve_app.models.workbench import open_tracker
from tests.tiny_track import POINTS_SIDE_PX, build_points, build_words
from tests.workbench import FRAMES, held_bytes, moving_square, tracker_card
from workflows.edit_ports import Box, Find, Point
from workflows.errors import RenderCancelled, RenderRefused
from workflows.media.masks import is_mask, overlap

if not transformers.utils.is_torchvision_available():
    pytest.skip("torchvision is not installed", allow_module_level=True)

CLIP = moving_square()
WORDS = Find(prompt="red square")
BEST = Find(prompt="red square", instances="best")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def tracker(directory: Path) -> LoadedTracker:
    return open_tracker(tracker_card(build_words(directory), "Sam3VideoModel"), "cpu")


def test_words_are_found_in_every_frame_and_each_is_told_when_it_was_looked_at(tracker: LoadedTracker) -> None:
    heard: list[tuple[int, int]] = []
    found = tracker.track(CLIP, WORDS, carried=None, watch=UNWATCHED,
                          progress_callback=lambda done, total, _: heard.append((done, total)))
    assert found.masks_THW.shape == CLIP.shape[:3]
    assert all(is_mask(mask_HW) and mask_HW.any() for mask_HW in found.masks_THW)
    assert 1 < found.instances <= MOST_OBJECTS
    assert 0 < found.score < 1
    assert heard == [(done, FRAMES) for done in range(1, FRAMES + 1)]


def test_the_best_of_several_is_one_of_them(tracker: LoadedTracker) -> None:
    everything = tracker.track(CLIP, WORDS, carried=None, progress_callback=None, watch=UNWATCHED)
    best = tracker.track(CLIP, BEST, carried=None, progress_callback=None, watch=UNWATCHED)
    assert best.instances == 1
    assert best.masks_THW.any()
    assert not (best.masks_THW & ~everything.masks_THW).any()


def test_the_next_chunk_goes_on_from_the_mask_that_is_carried_over(tracker: LoadedTracker) -> None:
    carried = np.zeros(CLIP.shape[1:3], np.uint8)
    carried[20:44, 30:54] = 255
    found = tracker.track(CLIP[4:], BEST, carried=carried, progress_callback=None, watch=UNWATCHED)
    assert found.instances == 1
    assert overlap(found.masks_THW[0], carried) > 0.8


def test_nothing_found_tells_the_best_score_that_was_not_enough(directory: Path, tracker: LoadedTracker) -> None:
    strict = open_tracker(tracker_card(build_words(directory, threshold=0.99), "Sam3VideoModel"), "cpu")
    found = strict.track(CLIP[:3], WORDS, carried=None, progress_callback=None, watch=UNWATCHED)
    assert (found.instances, found.masks_THW.any()) == (0, False)
    loose = tracker.track(CLIP[:3], WORDS, carried=None, progress_callback=None, watch=UNWATCHED)
    assert found.score == pytest.approx(loose.score, abs=1e-5) != 0


def test_what_the_model_holds_does_not_grow_with_the_clip(directory: Path) -> None:
    held: dict[int, int] = {}

    def weigh(done: int, total: int, timestep: float) -> None:
        if done in (20, 32):
            held[done] = held_bytes()

    # One thing, followed from a mask: a model that knows nothing would find another in every frame.
    strict = open_tracker(tracker_card(build_words(directory, threshold=0.99), "Sam3VideoModel"), "cpu")
    carried = np.zeros(CLIP.shape[1:3], np.uint8)
    carried[20:44, 10:34] = 255
    strict.track(moving_square(32), BEST, carried=carried, progress_callback=weigh, watch=UNWATCHED)
    assert held[32] == held[20] > 0


def test_it_stops_within_one_frame(tracker: LoadedTracker) -> None:
    token, heard = CancelToken(), []

    def hear(done: int, total: int, timestep: float) -> None:
        heard.append(done)
        token.set()

    with pytest.raises(RenderCancelled):
        tracker.track(CLIP, WORDS, carried=None, progress_callback=hear, watch=Watch(cancel=token))
    assert heard == [1]


def test_points_are_refused(tracker: LoadedTracker) -> None:
    with pytest.raises(RenderRefused, match=r"finds by words, and has none.*points: card tiny finds by words alone"):
        tracker.track(CLIP, Find(points=(Point(frame=0, x=1, y=1),)), carried=None, progress_callback=None,
                      watch=UNWATCHED)


def test_half_precision_finds_too(directory: Path) -> None:
    card = tracker_card(build_words(directory), "Sam3VideoModel").model_copy(update={"dtype": "bfloat16"})
    found = open_tracker(card, "cpu").track(CLIP[:2], WORDS, carried=None, progress_callback=None, watch=UNWATCHED)
    assert found.masks_THW.any()


# -- as transformers' own processors do it ---------------------------------------------------------------------------


def test_frames_are_prepared_as_the_processor_prepares_them() -> None:
    processor = transformers.Sam2VideoVideoProcessor(size={"height": 64, "width": 64})
    wanted = processor(videos=CLIP, return_tensors="pt").pixel_values_videos[0]
    frames = FramesOnDemand(CLIP, side_px=64, mean=processor.image_mean, std=processor.image_std, device="cpu",
                            dtype=torch.float32)
    level = 1 / 255 / 0.22
    assert max(float((frames[frame] - wanted[frame]).abs().max()) for frame in range(FRAMES)) <= level * 1.05


def test_points_and_boxes_mean_what_they_mean_to_the_processor(directory: Path) -> None:
    repo = build_points(directory)
    square = {"height": POINTS_SIDE_PX, "width": POINTS_SIDE_PX}
    processor = transformers.Sam2VideoProcessor(
        image_processor=transformers.Sam2ImageProcessor(size=square),
        video_processor=transformers.Sam2VideoVideoProcessor(size=square))
    model = transformers.Sam2VideoModel.from_pretrained(repo).eval()
    session = processor.init_video_session(video=CLIP, dtype=torch.float32)
    processor.add_inputs_to_inference_session(
        inference_session=session, frame_idx=0, obj_ids=1, input_boxes=[[[10, 20, 34, 44]]],
        input_points=[[[[22, 30]]]], input_labels=[[[1]]])
    with torch.inference_mode():
        model(inference_session=session, frame_idx=0)
        theirs = [processor.post_process_masks([output.pred_masks], original_sizes=[CLIP.shape[1:3]])[0][0, 0]
                  for output in model.propagate_in_video_iterator(session)]
    ours = open_tracker(tracker_card(repo), "cpu").track(
        CLIP, Find(boxes=(Box(frame=0, left=10, top=20, right=34, bottom=44),), points=(Point(frame=0, x=22, y=30),)),
        carried=None, progress_callback=None, watch=UNWATCHED)
    for mask_HW, other in zip(ours.masks_THW, theirs, strict=True):
        assert overlap(mask_HW, other.numpy().astype(np.uint8) * 255) > 0.99
