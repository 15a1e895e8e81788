"""SAM 2's video model behind the Tracker port: a tiny checkpoint, loaded by the real loader, on a clip that moves."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.model_card import ModelCard, Task
from serve_app.models import pipelines
from serve_app.models.lifecycle import CancelToken
from serve_app.models.tap import UNWATCHED, Watch
from serve_app.models.tracking import FramesOnDemand, Gathered, LoadedTracker, forget, pieces_of
from serve_app.models.workbench import open_tracker
from tests.tiny_track import build_points
from tests.workbench import FRAMES, held_bytes, moving_square, tracker_card
from workflows.edit_ports import Box, Find, Point
from workflows.errors import InvalidDocument, RenderCancelled, RenderRefused
from workflows.media.frames import UInt8Array
from workflows.media.masks import is_mask, overlap

CLIP = moving_square()
POINTED = Find(points=(Point(frame=3, x=30, y=32),))
BOXES = (Box(frame=0, left=10, top=20, right=34, bottom=44), Box(frame=2, left=70, top=5, right=90, bottom=20))


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> LoadedTracker:
    return open_tracker(tracker_card(build_points(tmp_path_factory.mktemp("points"))), "cpu")


def test_a_thing_is_followed_both_ways_from_where_it_was_pointed_at(tracker: LoadedTracker) -> None:
    heard: list[tuple[int, int]] = []
    found = tracker.track(CLIP, POINTED, carried=None, watch=UNWATCHED,
                          progress_callback=lambda done, total, _: heard.append((done, total)))
    assert (found.masks_THW.shape, found.instances) == (CLIP.shape[:3], 1)
    assert all(is_mask(mask_HW) and mask_HW.any() for mask_HW in found.masks_THW)
    assert 0.9 < found.score <= 1
    assert heard == [(done, FRAMES) for done in range(1, FRAMES + 1)]


def test_the_next_chunk_goes_on_from_the_mask_that_is_carried_over(tracker: LoadedTracker) -> None:
    carried = np.zeros(CLIP.shape[1:3], np.uint8)
    carried[20:44, 30:54] = 255
    found = tracker.track(CLIP[4:], Find(), carried=carried, progress_callback=None, watch=UNWATCHED)
    assert found.instances == 1
    assert overlap(found.masks_THW[0], carried) > 0.8
    # A point in a frame that is not of this chunk is somebody else's.
    again = tracker.track(CLIP[4:], Find(points=(Point(frame=-1, x=1, y=1), Point(frame=99, x=1, y=1))),
                          carried=carried, progress_callback=None, watch=UNWATCHED)
    assert np.array_equal(again.masks_THW, found.masks_THW)


def test_what_was_lost_at_the_end_of_a_chunk_stays_lost(tracker: LoadedTracker) -> None:
    found = tracker.track(CLIP, Find(), carried=np.zeros(CLIP.shape[1:3], np.uint8), progress_callback=None,
                          watch=UNWATCHED)
    assert (found.instances, found.score, found.masks_THW.any()) == (0, 0.0, False)


def test_several_things_are_one_mask_or_the_best_of_them(tracker: LoadedTracker) -> None:
    both = tracker.track(CLIP, Find(boxes=BOXES), carried=None, progress_callback=None, watch=UNWATCHED)
    best = tracker.track(CLIP, Find(boxes=BOXES, instances="best"), carried=None, progress_callback=None,
                         watch=UNWATCHED)
    assert (both.instances, best.instances) == (2, 1)
    assert not (best.masks_THW & ~both.masks_THW).any()
    assert best.masks_THW.any()


def test_a_thing_that_is_not_to_be_seen_is_no_find(tmp_path: Path) -> None:
    absent = open_tracker(tracker_card(build_points(tmp_path, seen=False)), "cpu")
    found = absent.track(CLIP, POINTED, carried=None, progress_callback=None, watch=UNWATCHED)
    assert (found.instances, found.masks_THW.any()) == (0, False)
    assert 0 < found.score < 0.1


def test_a_tracker_stops_within_one_frame(tracker: LoadedTracker) -> None:
    token, heard = CancelToken(), []

    def hear(done: int, total: int, timestep: float) -> None:
        heard.append(done)
        if done == 2:
            token.set()

    with pytest.raises(RenderCancelled):
        tracker.track(CLIP, POINTED, carried=None, progress_callback=hear, watch=Watch(cancel=token))
    assert heard == [1, 2]


@pytest.mark.parametrize(("find", "carried", "said"), [
    (Find(prompt="a square"), None, "knows no words; nearest valid: points or boxes"),
    (Find(), None, f"no point and no box lies in these {FRAMES} frames"),
    (POINTED, np.zeros((3, 4), np.uint8), r"the carried mask is \(3, 4\), the frames are \(72, 128\)"),
])
def test_what_it_cannot_do_is_refused(tracker: LoadedTracker, find: Find, carried: UInt8Array | None, said: str,
                                      ) -> None:
    with pytest.raises(RenderRefused, match=said):
        tracker.track(CLIP, find, carried=carried, progress_callback=None, watch=UNWATCHED)


def test_it_says_before_that_it_knows_no_words(tracker: LoadedTracker) -> None:
    assert tracker.problems(POINTED) == tracker.problems(Find()) == ()
    assert [problem.field for problem in tracker.problems(Find(prompt="hair"))] == ["mask_prompt"]


def test_what_the_model_holds_does_not_grow_with_the_clip(tracker: LoadedTracker) -> None:
    held: dict[int, int] = {}

    def weigh(done: int, total: int, timestep: float) -> None:
        if done in (20, 40):
            held[done] = held_bytes()

    tracker.track(moving_square(40), Find(boxes=BOXES[:1]), carried=None, progress_callback=weigh, watch=UNWATCHED)
    assert held[40] == held[20] > 0


def test_half_precision_tracks_too(tmp_path: Path) -> None:
    card = tracker_card(build_points(tmp_path)).model_copy(update={"dtype": "bfloat16"})
    found = open_tracker(card, "cpu").track(CLIP[:2], Find(boxes=BOXES[:1]), carried=None, progress_callback=None,
                                            watch=UNWATCHED)
    assert found.masks_THW.any()


# -- parts ---------------------------------------------------------------------------------------------------------


def test_frames_are_prepared_when_they_are_asked_for() -> None:
    frames = FramesOnDemand(CLIP, side_px=16, mean=(0.5,) * 3, std=(0.5,) * 3, device="cpu", dtype=torch.float32)
    assert len(frames) == FRAMES
    assert frames[0].shape == (3, 16, 16)
    assert frames[0][:, 0, 0].tolist() == pytest.approx([40 / 255 * 2 - 1] * 3)
    with pytest.raises(KeyError):
        frames[FRAMES]


def test_a_session_keeps_what_is_looked_back_at_and_no_more() -> None:
    kept = {"non_cond_frame_outputs": {frame: {"high_res_masks": 0, "object_pointer": 0} for frame in range(40)},
            "cond_frame_outputs": {0: {"high_res_masks": 0, "object_pointer": 0}}}
    forget(SimpleNamespace(output_dict_per_obj={0: kept}), 39, reach=17)
    assert list(kept["non_cond_frame_outputs"]) == list(range(23, 40))
    assert {name for outputs in kept.values() for output in outputs.values() for name in output} == {"object_pointer"}


def test_which_fits_best_is_what_was_followed_before() -> None:
    gathered, masks = Gathered(1, 4, 4), defaultdict(lambda: np.zeros((4, 4), bool))
    masks[0][0], masks[1][3] = True, True
    gathered.add(0, 0, masks[0], 0.9)
    gathered.add(1, 0, masks[1], 0.6)
    carried = masks[1].astype(np.uint8) * 255
    assert gathered.tracked("best", best_score=0.9, carried=None).masks_THW[0, 0].all()
    assert gathered.tracked("best", best_score=0.9, carried=carried).masks_THW[0, 3].all()
    gathered.drop([1])
    assert gathered.tracked("all", best_score=0.9, carried=carried).instances == 1


def test_a_carried_mask_is_followed_piece_by_piece_unless_it_is_one_thing() -> None:
    carried = np.zeros((8, 8), np.uint8)
    carried[:2, :2], carried[4:, 4:] = 255, 255
    assert [int(piece.sum()) for piece in pieces_of(carried, "all")] == [16, 4]
    assert [int(piece.sum()) for piece in pieces_of(carried, "best")] == [20]
    assert pieces_of(None, "all") == pieces_of(np.zeros((2, 2), np.uint8), "all") == []


def test_a_tracker_that_is_not_here_is_named_with_the_command_that_brings_it() -> None:
    card = tracker_card(Path("nobody/nothing")).model_copy(update={"repo": "nobody/nothing"})
    with pytest.raises(InvalidDocument, match="reelray models pull tiny"):
        pipelines.load_tracker(card, "cpu")


def test_words_need_torchvision_and_it_says_so(tmp_path: Path) -> None:
    if pipelines.transformers.utils.is_torchvision_available():
        pytest.skip("torchvision is installed")
    card = ModelCard.model_validate({**tracker_card(tmp_path).model_dump(exclude_unset=True),
                                     "pipelines": {Task.TRACK: "Sam3VideoModel"}})
    with pytest.raises(InvalidDocument, match=r"needs the package torchvision, which is not installed; install the one "
                                              r"made for torch"):
        pipelines.load_tracker(card, "cpu")
