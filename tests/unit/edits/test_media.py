"""The pictures of an edit: masks, crops, paste, smoothing, sound. Numbers are what users are promised."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.edit_clips import HEIGHT_PX, WIDTH_PX, Unwatched, ffmpeg, iou, red_ball, write_source
from workflows.edit_ports import Box, EditTake, Find, Point
from workflows.errors import MediaError, RenderRefused
from workflows.media.classical_editor import ClassicalEditor
from workflows.media.classical_tracker import ClassicalTracker
from workflows.media.crop_track import CropTrack, follow
from workflows.media.encode import EncodeOptions
from workflows.media.flicker import WarpError
from workflows.media.lossless import read_lossless, write_lossless
from workflows.media.masks import MaskReel, Piece, Shaping, box_of, write_masks
from workflows.media.paste import paste
from workflows.media.planes import Painter, PlaneReader, to_picture
from workflows.media.probe import probe
from workflows.media.remaster import write_remaster
from workflows.media.source import describe, thread
from workflows.media.steady import Steadier
from workflows.media.window import as_shown, pictures, window

WATCH = Unwatched()
CLIP = red_ball(30)


def track(find: Find, frames=CLIP.frames_THWC, carried=None):
    return ClassicalTracker().track(frames, find, carried=carried, progress_callback=None, watch=WATCH)


# -- files and masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_kept_without_loss_comes_back_bit_for_bit_from_anywhere(tmp_path: Path, channels: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 33, 47, channels), np.uint8).squeeze()
    for name in ("one.mkv", "two.mkv"):
        with write_lossless(tmp_path / name) as writer:
            for frame in frames:
                writer.write(frame)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "two.mkv").read_bytes()
    assert (np.array(list(read_lossless(tmp_path / "one.mkv", first=0, frames=12))) == frames).all()
    assert (np.array(list(read_lossless(tmp_path / "one.mkv", first=7, frames=4))) == frames[7:11]).all()
    with pytest.raises(MediaError, match="frame 12 was asked for; the file ends before"):
        list(read_lossless(tmp_path / "one.mkv", first=10, frames=4))


def test_masks_are_shaped_and_each_frame_is_taken_from_the_chunk_that_owns_it(tmp_path: Path) -> None:
    masks = CLIP.masks_THW
    write_masks(masks[:16], tmp_path / "a.mkv")
    write_masks(masks[12:30], tmp_path / "b.mkv")
    pieces = (Piece(node="a", first=0, frames=16, own_first=0, own_end=14),
              Piece(node="b", first=12, frames=18, own_first=14, own_end=30))
    reel = MaskReel(pieces, lambda node: tmp_path / f"{node}.mkv", Shaping())
    assert (np.array(list(reel.read(first=10, frames=12))) == masks[10:22]).all()
    (tmp_path / "b.mkv").unlink()
    assert len(list(reel.read(first=0, frames=14))) == 14  # the other one is not asked
    small, large = Shaping(erode_px=5).of(masks[0]), Shaping(dilate_px=5).of(masks[0])
    assert np.count_nonzero(small) < np.count_nonzero(masks[0]) < np.count_nonzero(large)
    assert (Shaping(invert=True).of(masks[0]) == 255 - masks[0]).all()
    with pytest.raises(MediaError, match="mask 0 holds other values than 0 and 255"):
        write_masks(masks[:1] // 2, tmp_path / "c.mkv")


# -- the square and the paste -----------------------------------------------------------------------------------


def test_one_square_holds_every_box_whole_and_moves_smoothly() -> None:
    rng = np.random.default_rng(3)
    boxes = [None if 12 <= t < 16 else (20 + 4 * t + int(rng.integers(-3, 4)), 40, 60 + 4 * t, 78) for t in range(30)]
    made = follow(boxes, size=(WIDTH_PX, HEIGHT_PX), margin=0.25, fps=24, crop_px=64)
    assert made.empty == {12, 13, 14, 15}
    half = made.side_px / 2
    for (x, y), box in zip(made.centres, boxes, strict=True):
        if box is not None:
            assert x - half - 0.01 <= box[0] < box[2] <= x + half + 0.01
            assert y - half - 0.01 <= box[1] < box[3] <= y + half + 0.01
    assert CropTrack.from_json(made.to_json()) == made


@pytest.mark.parametrize("feather_px", [0, 3])
def test_a_paste_changes_nothing_outside_the_mask_and_all_of_it_inside(feather_px: int) -> None:
    frame, mask = CLIP.frames_THWC[3], CLIP.masks_THW[3]
    made = follow([box_of(mask)], size=(WIDTH_PX, HEIGHT_PX), margin=0.25, fps=24, crop_px=96)
    white = np.full((96, 96, 3), 255, np.uint8)
    pasted = paste(frame, white, mask, feather_px, (made, 0))
    assert (pasted == frame)[mask == 0].all()
    deep = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
    assert (pasted[deep] == 255).all()
    unedited = paste(frame, made.crop(frame, 0), mask, feather_px, (made, 0))
    assert np.abs(unedited.astype(int) - frame)[mask > 0].mean() < 1.5


# -- classical --------------------------------------------------------------------------------------------------


PROMPTS = {
    "words": Find(prompt="the red ball"),
    "words_best": Find(prompt="red ball", instances="best"),
    "point": Find(points=(Point(frame=2, x=45, y=70),)),
    "late_point": Find(points=(Point(frame=29, x=158, y=60),)),
    "box": Find(boxes=(Box(frame=0, left=10, top=42, right=54, bottom=86),)),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_classical_tracker_finds_a_ball_that_passes_behind_a_post(name: str) -> None:
    """IoU of 0.9 and more with the truth over the whole clip; a box also holds what is around the ball: 0.8."""
    found = track(PROMPTS[name])
    assert found.instances == 1
    whole = iou(found.masks_THW, CLIP.masks_THW)
    hidden = [t for t in range(30) if not CLIP.masks_THW[t].any()]
    assert len(hidden) == 2
    assert not found.masks_THW[hidden].any()
    assert whole >= (0.9 if name.startswith(("words", "point")) else 0.8), whole


def test_what_is_not_there_is_a_result_with_a_score() -> None:
    found = track(Find(prompt="yellow thing"))
    assert (found.instances, found.masks_THW.any()) == (0, False)
    assert found.score < 0.5


def test_a_mask_that_is_carried_over_says_what_to_follow() -> None:
    two = CLIP.frames_THWC[4:12].copy()
    two[:, :20, 160:190] = (200, 25, 30)
    found = track(Find(prompt="red ball", instances="best"), frames=two, carried=CLIP.masks_THW[4])
    assert iou(found.masks_THW, CLIP.masks_THW[4:12]) >= 0.9


def test_words_that_it_does_not_know_are_refused_with_those_that_it_knows() -> None:
    (problem,) = ClassicalTracker().problems(Find(prompt="the woman's hair"))
    assert problem.problem == ("'woman', 's', 'hair': the classical tracker knows colours, points and boxes, and no "
                               "other words")
    assert problem.nearest.startswith("a colour (red, orange,")
    with pytest.raises(RenderRefused):
        track(Find(prompt="hair"))


def take(prompt: str, **changes: object) -> EditTake:
    fields = {"prompt": prompt, "negative_prompt": "", "steps": 1, "guidance": 1.0, "image_guidance": 1.0, "seed": 0,
              "frames_THWC": CLIP.frames_THWC[:4], "masks_THW": CLIP.masks_THW[:4], "fps": 24.0}
    return EditTake(**{**fields, **changes})


def test_the_classical_editor_recolours_inside_the_mask_alone() -> None:
    edited = ClassicalEditor().edit(take("make the ball green"), progress_callback=None, watch=WATCH)
    again = ClassicalEditor().edit(take("make the ball green"), progress_callback=None, watch=WATCH)
    assert (edited == again).all()
    outside = CLIP.masks_THW[:4] == 0
    assert (edited[outside] == CLIP.frames_THWC[:4][outside]).all()
    red, green, blue = edited[~outside].reshape(-1, 3).mean(axis=0)
    assert green > max(red, blue) + 40
    light = edited[0].astype(int).sum(axis=2)[CLIP.masks_THW[0] > 0]
    assert light.std() > 10  # its shading is still there


def test_the_classical_editor_refuses_what_is_no_recolouring() -> None:
    editor = ClassicalEditor()
    assert editor.problems(take("turn it blue")) == ()
    (problem,) = editor.problems(take("make it look like winter"))
    assert problem.problem == "'make it look like winter': the classical editor recolours and does nothing else"
    assert "`make it red`" in problem.nearest
    (other,) = editor.problems(take("blue", negative_prompt="ugly"))
    assert other.field == "negative_prompt"
    with pytest.raises(RenderRefused):
        editor.edit(take("a hat"), progress_callback=None, watch=WATCH)


# -- flicker ----------------------------------------------------------------------------------------------------


def test_smoothing_halves_the_warp_error_of_an_edit_that_flickers_and_keeps_its_colour() -> None:
    rng = np.random.default_rng(1)
    soft = cv2.normalize(cv2.GaussianBlur(rng.integers(0, 256, (300, 300, 3), np.uint8), (0, 0), 4), None, 20, 235,
                         cv2.NORM_MINMAX)
    source = [cv2.getRectSubPix(soft, (128, 128), (100 + 1.7 * t, 110 + 0.6 * t)) for t in range(24)]
    edited = [(crop[..., ::-1] * 0.8 + 30 + rng.normal(0, 10, 3)).clip(0, 255).astype(np.uint8) for crop in source]
    steadier, measure = Steadier(128, 0.7), WarpError(128)
    calm = [steadier.steady(*pair) for pair in zip(source, edited, strict=True)]
    mask = np.full((128, 128), 255, np.uint8)
    errors = np.array([measure.between((source[t - 1], source[t]), (mask, mask), [
        (source[t - 1], source[t]), (edited[t - 1], edited[t]), (calm[t - 1], calm[t])]) for t in range(1, 24)])
    before, after = errors[:, 1].mean(), errors[:, 2].mean()
    assert after <= 0.5 * before, (before, after)
    assert np.abs(np.mean(calm[8:], axis=(0, 1, 2)) - np.mean(edited[8:], axis=(0, 1, 2))).max() < 5
    assert (Steadier(128, 0.0).steady(source[0], edited[0]) == edited[0]).all()


# -- the finished file ------------------------------------------------------------------------------------------


def sound_of(path: Path) -> tuple[str, float]:
    """Digest of the sound's packets and codec header, and when the last one ends."""
    hasher, end = hashlib.sha256(), 0.0
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for packet in container.demux(stream):
            if packet.size:
                hasher.update(bytes(packet))
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        hasher.update(stream.codec_context.extradata or b"")
    return hasher.hexdigest(), end


TAGS = ("-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p", "-x264-params",
        "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m", "-color_range", "tv", "-aspect", "2:1")


def test_the_result_has_the_sources_sound_rate_colours_and_pixels_outside_the_mask(tmp_path: Path) -> None:
    source = write_source(CLIP.frames_THWC, tmp_path / "in.mp4", *TAGS)
    told = describe(source)
    reel = thread(source, first=0, frames=30, fps=told.fps)
    boxes = [box_of(mask) for mask in CLIP.masks_THW]
    made = follow(boxes, size=(WIDTH_PX, HEIGHT_PX), margin=0.25, fps=24, crop_px=64)
    reader, painter, white = PlaneReader(reel), Painter(made, 2), np.full((64, 64, 3), 255, np.uint8)
    shown = list(window(source, reel, first=0, frames=30))
    with write_remaster(tmp_path / "out.mp4", source, reel, options=EncodeOptions(crf=10), keep_audio=True,
                        is_whole=True) as out:
        for t, picture in enumerate(pictures(source, reel, first=0, frames=30)):
            planes = reader.read(picture)
            luma = planes.luma.copy()
            painter.paint(planes, shown[t], white, CLIP.masks_THW[t], t)
            assert (planes.luma == luma)[CLIP.masks_THW[t] == 0].all()
            out.write(to_picture(planes))
    was, now = probe(source), probe(tmp_path / "out.mp4")
    assert (now.fps, now.frames, now.colour) == (was.fps, was.frames, was.colour)
    assert sound_of(tmp_path / "out.mp4") == sound_of(source)
    assert abs(sound_of(tmp_path / "out.mp4")[1] - now.duration_s) <= 1 / 24
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(2 * HEIGHT_PX, WIDTH_PX)
    result = thread(tmp_path / "out.mp4", first=0, frames=30, fps=told.fps)
    after = np.array(list(window(tmp_path / "out.mp4", result, first=0, frames=30)))
    outside = CLIP.masks_THW == 0
    noise = np.mean((after[outside].astype(float) - np.array(shown)[outside]) ** 2)
    assert 10 * np.log10(255**2 / noise) >= 45


@pytest.mark.parametrize(("codec", "pix_fmt"), [("ffv1", "bgr0"), ("ffv1", "yuv444p"), ("libx264", "yuvj420p"),
                                                ("libx264", "yuv420p10le"), ("ffv1", "gray")])
def test_other_colours_than_420_come_out_as_they_were(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    """Odd sides too, where the codec has them: without the last column and row."""
    side = (97, 65) if codec == "ffv1" else (96, 64)
    clip = red_ball(6, width_px=side[0], height_px=side[1]).frames_THWC
    source = write_source(clip, tmp_path / "in.mkv", "-c:v", codec, "-pix_fmt", pix_fmt, sound=False)
    told = describe(source)
    reel = thread(source, first=0, frames=6, fps=told.fps)
    reader = PlaneReader(reel)
    with write_remaster(tmp_path / "out.mp4", source, reel, options=EncodeOptions(crf=4), keep_audio=True,
                        is_whole=True) as out:
        for picture in pictures(source, reel, first=0, frames=6):
            out.write(to_picture(reader.read(picture)))
    was = np.array(list(window(source, reel, first=0, frames=6)))
    result = thread(tmp_path / "out.mp4", first=0, frames=6, fps=told.fps)
    now = np.array(list(window(tmp_path / "out.mp4", result, first=0, frames=6)))
    assert now.shape == (6, 64, 96, 3)
    assert probe(tmp_path / "out.mp4").colour.matrix != "gbr"
    assert np.abs(now.astype(int) - was).mean() < 3.5
    assert np.abs(now.mean(axis=(0, 1, 2)) - was.mean(axis=(0, 1, 2))).max() < 1.5


def test_a_part_of_a_turned_source_is_stored_as_it_is_shown_with_its_part_of_the_sound(tmp_path: Path) -> None:
    plain = write_source(CLIP.frames_THWC, tmp_path / "plain.mp4")
    source = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", source)
    reel = thread(source, first=6, frames=12, fps=Fraction(24))
    reader = PlaneReader(reel)
    with write_remaster(tmp_path / "out.mp4", source, reel, options=EncodeOptions(crf=10), keep_audio=True,
                        is_whole=False) as out:
        for picture in pictures(source, reel, first=0, frames=12):
            out.write(to_picture(reader.read(picture)))
    now = describe(tmp_path / "out.mp4")
    assert (now.width_px, now.height_px, now.rotation_deg, now.frames) == (HEIGHT_PX, WIDTH_PX, 0, 12)
    assert abs(sound_of(tmp_path / "out.mp4")[1] - 0.5) <= 1 / 24
    result = thread(tmp_path / "out.mp4", first=0, frames=12, fps=now.fps)
    (first,) = window(tmp_path / "out.mp4", result, first=0, frames=1)
    assert np.abs(first.astype(int) - np.rot90(CLIP.frames_THWC[6])).mean() < 4
    assert as_shown(CLIP.frames_THWC[6], reel).shape == first.shape
