"""How much a clip looks like a picture: measured by real picture models, tiny ones, as the media worker does it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.model_card import CallDefaults, ModelCard
from configs.settings import MediaSettings
from serve_app.media_worker import MediaWorker
from serve_app.models.embedding import CardEmbedder
from serve_app.models_check import examine_card
from tests.fakes_models import RememberingSink
from tests.tiny_pictures import write_picture_model
from workflows.errors import InvalidDocument, RenderCancelled, RenderRefused, StageFailed
from workflows.media.decode import write_png
from workflows.media.encode import EncodeOptions, encode
from workflows.stages.score import Scorer, sampled
from workflows.store import Store
from workflows.types import Artifact, MediaType, NodeCall, NodeKind, NodeResult, ProgressRecord

RED_HWC, BLUE_HWC = (np.full((56, 84, 3), colour, np.uint8) for colour in ((220, 40, 30), (20, 40, 220)))
KINDS = pytest.mark.parametrize("kind", ["dinov2", "clip"])


def card_of(directory: Path, kind: str = "dinov2") -> ModelCard:
    side_px = 224 if kind == "clip" else 56
    return ModelCard(name="tiny", title="tiny", loader="embedding", pipelines={},
                     repo=str(write_picture_model(directory, kind)),
                     defaults=CallDefaults(width_px=side_px, height_px=side_px))


def stored(store: Store, directory: Path, name: str, *frames: np.ndarray) -> Artifact:
    """A picture, or a clip of several frames."""
    path = directory / name
    if len(frames) == 1:
        write_png(frames[0], path)
        return store.put(name, path, media_type=MediaType.PNG, manifest={})
    encode(np.stack(frames), fps=8, to=path, options=EncodeOptions())
    return store.put(name, path, media_type=MediaType.MP4, manifest={})


def call(card: ModelCard, clip: Artifact | None, key: str = "1" * 32, **references: Artifact) -> NodeCall:
    return NodeCall(
        job_id="job", node_id="s1.score", shot_id="s1", kind=NodeKind.SCORE, key=key, attempt=1, generation=0,
        left_s=4e9, inputs={"s1.clip": clip}, payload={
            "card": card.name, "card_digest": card.digest(), "frames": 4,
            "characters": [{"id": who, "reference": picture.to_json()} for who, picture in references.items()]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@KINDS
async def test_a_clip_of_the_same_thing_scores_higher_and_the_least_alike_counts(
        kind: str, store: Store, tmp_path: Path, checkpoints: Path) -> None:
    card, sink = card_of(checkpoints, kind), RememberingSink()
    clip = stored(store, tmp_path, "clip.mp4", *[RED_HWC] * 6)
    red, blue = stored(store, tmp_path, "red.png", RED_HWC), stored(store, tmp_path, "blue.png", BLUE_HWC)
    worker = MediaWorker(MediaSettings(), store, sink, slots=1, embedder=CardEmbedder(card))
    same: NodeResult = await worker.run(call(card, clip, rex=red))
    both = await worker.run(call(card, clip, key="2" * 32, rex=red, mia=blue))
    assert same.artifact.score is not None
    assert both.artifact.score is not None
    assert 1.0 >= same.artifact.score > 0.99
    told = json.loads(store.fetch(both.artifact).read_text())
    assert told["characters"]["rex"] == pytest.approx(same.artifact.score, abs=1e-3)
    assert told["consistency"] == told["characters"]["mia"] == both.artifact.score < same.artifact.score
    assert store.find("2" * 32) == both.artifact
    assert (await worker.run(call(card, None, key="2" * 32, rex=red))).artifact == both.artifact
    assert sink.ended == [("job", "s1.score")] * 3


def test_the_same_clip_has_the_same_score_and_another_embedder_is_refused(
        store: Store, tmp_path: Path, checkpoints: Path) -> None:
    card = card_of(checkpoints)
    clip, red = stored(store, tmp_path, "clip.mp4", RED_HWC, BLUE_HWC), stored(store, tmp_path, "red.png", RED_HWC)
    stores = [store, Store(str(tmp_path / "other"))]
    one, other = (Scorer(where, CardEmbedder(card)).run(call(card, clip, rex=red), lambda *_: None) for where in stores)
    assert one.artifact.sha256 == other.artifact.sha256
    for embedder, mine in ((None, "here it is none"), (CardEmbedder(card_of(checkpoints, "clip")), "here it is tiny")):
        with pytest.raises(RenderRefused, match=mine):
            Scorer(store, embedder).run(call(card, clip, key="3" * 32, rex=red), lambda *_: None)
    with pytest.raises(StageFailed, match="the clip that it looks at is missing"):
        Scorer(store, CardEmbedder(card)).run(call(card, None, key="3" * 32, rex=red), lambda *_: None)


class _Impatient(RememberingSink):
    """Cancels the job at the first sign of it."""

    worker: MediaWorker

    def update(self, record: ProgressRecord, *, urgent: bool = False) -> None:
        self.worker.cancel_job(record.job_id)


async def test_a_cancelled_score_is_not_made(store: Store, tmp_path: Path, checkpoints: Path) -> None:
    card = card_of(checkpoints)
    clip, red = stored(store, tmp_path, "clip.mp4", RED_HWC, BLUE_HWC), stored(store, tmp_path, "red.png", RED_HWC)
    sink = _Impatient()
    sink.worker = MediaWorker(MediaSettings(), store, sink, slots=1, embedder=CardEmbedder(card))
    with pytest.raises(RenderCancelled):
        await sink.worker.run(call(card, clip, rex=red))
    assert store.find("1" * 32) is None


def test_frames_are_taken_from_beginning_to_end(store: Store, tmp_path: Path) -> None:
    greys = [np.full((32, 32, 3), 20 * number, np.uint8) for number in range(10)]
    clip = store.fetch(stored(store, tmp_path, "clip.mp4", *greys))
    assert [round(float(frame.mean()) / 20) for frame in sampled(clip, 4)] == [0, 3, 6, 9]
    assert len(sampled(clip, 50)) == 10


def test_what_is_no_picture_model_is_refused_by_name_and_checked(checkpoints: Path, tmp_path: Path) -> None:
    card = card_of(checkpoints)
    levels = [(finding.level, finding.what) for finding in examine_card(card, load=True)]
    assert levels == [("ok", "weights"), ("ok", "load")]
    lost = card.model_copy(update={"repo": str(tmp_path)})
    with pytest.raises(InvalidDocument, match=r"config\.json: missing; preprocessor_config\.json: missing"):
        CardEmbedder(lost).vectors([RED_HWC])
    assert [finding.level for finding in examine_card(lost)] == ["fail"]
    hub = card.model_copy(update={"repo": "acme/pictures"})
    with pytest.raises(InvalidDocument, match="run `reelray models pull tiny` first"):
        CardEmbedder(hub).vectors([RED_HWC])


def test_the_score_is_no_part_of_other_artifacts() -> None:
    plain = Artifact(key="k", uri="u", sha256="0" * 64, size_bytes=1, media_type=MediaType.PNG)
    assert "score" not in plain.to_json()
    measured = replace(plain, score=-0.25)
    assert Artifact.from_json(measured.to_json()) == measured
    assert Artifact.from_json(plain.to_json()) == plain
