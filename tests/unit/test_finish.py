"""The stages that need no model: what they make of clips, and what they say when one is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import FakeStore
from workflows.errors import RenderCancelled, StageFailed
from workflows.media.decode import read_frames
from workflows.media.encode import EncodeOptions, encode
from workflows.stages.finish import Finisher
from workflows.types import Artifact, Json, NodeCall, NodeKind

OPTIONS = EncodeOptions()


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path)


def quiet(done: int, total: int) -> None:
    """A progress callback that does nothing."""


def a_clip(store: FakeStore, tmp_path: Path, name: str, colour: tuple[int, int, int], frames: int = 9) -> Artifact:
    frames_THWC = np.empty((frames, 64, 96, 3), np.uint8)
    frames_THWC[:] = colour
    path = tmp_path / f"{name}-source.mp4"
    encode(frames_THWC, fps=8, to=path, options=OPTIONS)
    return store.keep(name, path.read_bytes())


def call(kind: NodeKind, payload: dict[str, Json], inputs: dict[str, Artifact | None]) -> NodeCall:
    return NodeCall(job_id="film", node_id=kind.value, shot_id="", kind=kind, key="result", attempt=1, generation=0,
                    payload=payload, inputs=inputs, left_s=4e9)


def film(inputs: dict[str, Artifact | None], *, missing: str, fade: int = 0) -> NodeCall:
    parts: list[Json] = [{"shot": name, "node": f"{name}.clip", "frames": 9, "fade_in_frames": fade if number else 0,
                          "text": f"prompt of {name}"} for number, name in enumerate(("s1", "s2", "s3"))]
    payload: dict[str, Json] = {"width_px": 96, "height_px": 64, "fps": 8, "missing": missing, "parts": parts}
    return call(NodeKind.COMPOSE, payload, inputs)


def test_clips_are_joined_in_film_order(store: FakeStore, tmp_path: Path) -> None:
    inputs = {f"{name}.clip": a_clip(store, tmp_path, name, colour) for name, colour in
              (("s1", (200, 30, 30)), ("s2", (30, 200, 30)), ("s3", (30, 30, 200)))}
    result = Finisher(store, OPTIONS).run(film(inputs, missing="cut"), quiet)
    frames_THWC = read_frames(store.fetch(result.artifact))
    assert len(frames_THWC) == 27
    assert [int(frames_THWC[n, 32, 48].argmax()) for n in (4, 13, 22)] == [0, 1, 2]
    assert result.warnings == ()


@pytest.mark.parametrize(("missing", "frames", "said"), [
    ("cut", 18, "shot s2 is missing: the film goes on without it"),
    ("slate", 27, "shot s2 is missing: a slate stands in its place"),
])
def test_a_missing_shot_is_left_out_or_shown_as_a_slate_and_said(
    store: FakeStore, tmp_path: Path, missing: str, frames: int, said: str,
) -> None:
    inputs = {"s1.clip": a_clip(store, tmp_path, "s1", (200, 30, 30)), "s2.clip": None,
              "s3.clip": a_clip(store, tmp_path, "s3", (30, 30, 200))}
    result = Finisher(store, OPTIONS).run(film(inputs, missing=missing, fade=2), quiet)
    frames_THWC = read_frames(store.fetch(result.artifact))
    assert result.warnings == (said,)
    assert len(frames_THWC) == frames - 2 * (0 if missing == "cut" else 2)  # a fade into a hole becomes a cut
    if missing == "slate":
        assert frames_THWC[11].std() > 5, "a slate has a text on it"


def test_a_fade_longer_than_its_new_neighbour_does_not_fail_the_film(store: FakeStore, tmp_path: Path) -> None:
    inputs = {"s1.clip": a_clip(store, tmp_path, "s1", (200, 30, 30), frames=2), "s2.clip": None,
              "s3.clip": a_clip(store, tmp_path, "s3", (30, 30, 200))}
    result = Finisher(store, OPTIONS).run(film(inputs, missing="cut", fade=6), quiet)
    assert len(read_frames(store.fetch(result.artifact))) == 11


def test_a_film_that_begins_with_a_hole_needs_no_left_neighbour_for_its_fade(store: FakeStore, tmp_path: Path) -> None:
    inputs = {"s1.clip": None, "s2.clip": a_clip(store, tmp_path, "s2", (30, 200, 30)), "s3.clip": None}
    result = Finisher(store, OPTIONS).run(film(inputs, missing="cut", fade=4), quiet)
    assert len(read_frames(store.fetch(result.artifact))) == 9


def test_a_film_without_any_shot_is_refused(store: FakeStore) -> None:
    with pytest.raises(StageFailed, match="no shot of the film was rendered"):
        Finisher(store, OPTIONS).run(film(dict.fromkeys(("s1.clip", "s2.clip", "s3.clip")), missing="slate"), quiet)


def test_a_caption_and_a_raised_rate_make_new_clips(store: FakeStore, tmp_path: Path) -> None:
    source = a_clip(store, tmp_path, "s1", (40, 90, 160))
    captioned = Finisher(store, OPTIONS).run(call(NodeKind.CAPTION, {"text": "第一幕"}, {"s1.clip": source}), quiet)
    plain, burned = read_frames(store.fetch(source)), read_frames(store.fetch(captioned.artifact))
    assert plain.shape == burned.shape
    changed = np.abs(plain.astype(int) - burned).max(axis=(0, 2, 3))
    assert changed[40:].max() > 60
    assert changed[:20].max() < 20


def test_a_raised_rate_has_frames_between_the_old_ones(store: FakeStore, tmp_path: Path) -> None:
    source = a_clip(store, tmp_path, "s1", (40, 90, 160))
    raised = Finisher(store, OPTIONS).run(call(NodeKind.INTERPOLATE, {"factor": 2}, {"s1.clip": source}), quiet)
    assert len(read_frames(store.fetch(raised.artifact))) == 17


def test_a_stored_result_is_not_made_again(store: FakeStore, tmp_path: Path) -> None:
    kept = store.keep("result")
    result = Finisher(store, OPTIONS).run(call(NodeKind.CAPTION, {"text": "x"}, {"s1.clip": None}), quiet)
    assert result.artifact == kept


def test_progress_reaches_the_end_and_what_it_raises_stops_the_stage(store: FakeStore, tmp_path: Path) -> None:
    source = a_clip(store, tmp_path, "s1", (40, 90, 160))
    caption = call(NodeKind.CAPTION, {"text": "x"}, {"s1.clip": source})
    seen: list[tuple[int, int]] = []

    def stop_at_five(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise RenderCancelled(node_id="s1.caption", reason="cancelled")

    with pytest.raises(RenderCancelled):
        Finisher(store, OPTIONS).run(caption, stop_at_five)
    assert seen == [(n, 9) for n in range(1, 6)]
    assert store.find("result") is None
    seen.clear()
    Finisher(store, OPTIONS).run(caption, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
