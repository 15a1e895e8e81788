"""How much a clip looks like its characters' reference pictures. Callers own the thread; knows vectors, no model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from workflows.errors import RenderRefused, StageFailed
from workflows.media.decode import iter_frames, read_picture
from workflows.media.frames import OnProgress, UInt8Array
from workflows.media.probe import probe
from workflows.media.stills import sprite_places
from workflows.ports import ArtifactStore
from workflows.stages.render import integer
from workflows.types import Artifact, Json, MediaType, NodeCall, NodeResult

DIGITS = 4
"""Beyond them libraries and processors differ."""


class Embedder(Protocol):
    """What a picture looks like, as numbers; pictures that look alike have vectors of like direction."""

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest of the card that it works with."""

    def vectors(self, pictures: Sequence[UInt8Array]) -> list[list[float]]:
        """One vector of length 1 per picture (RGB `frame_HWC`, any size). Blocking. Raises InvalidDocument."""


class Scorer:
    """Measures clips of any job with one embedder."""

    def __init__(self, store: ArtifactStore, embedder: Embedder | None) -> None:
        """None: there is none, and films that were planned with one are told so."""
        self._store = store
        self._embedder = embedder

    def run(self, call: NodeCall, on_progress: OnProgress) -> NodeResult:
        """The mean cosine similarity (-1..1) of a clip's frames and each character's picture; the lowest is the clip's.

        A result that the store already has is returned at once. Raises RenderRefused for another embedder than the
        film was planned with, StageFailed without a clip, and what store, decoder and embedder raise.
        """
        found = self._store.find(call.key)
        if found is not None:
            return NodeResult(artifact=found)
        started = time.monotonic()
        embedder = self._require(call)
        on_progress(0, 2)
        people = pictures_of(call.payload)
        pictures = [read_picture(self._store.fetch(picture)) for _, picture in people]
        frames = sampled(self._clip(call), integer(call.payload["frames"]))
        on_progress(1, 2)
        vectors = embedder.vectors([*frames, *pictures])
        seen, wanted = vectors[:len(frames)], vectors[len(frames):]
        scores = {who: round(sum(_dot(frame, vector) for frame in seen) / len(seen), DIGITS)
                  for (who, _), vector in zip(people, wanted, strict=True)}
        artifact = self._keep(call, scores, time.monotonic() - started)
        return NodeResult(artifact=artifact, seconds={"total": time.monotonic() - started})

    def _require(self, call: NodeCall) -> Embedder:
        planned = (str(call.payload["card"]), str(call.payload["card_digest"]))
        if self._embedder is None or self._embedder.identity != planned:
            mine = "none" if self._embedder is None else " ".join(self._embedder.identity)
            raise RenderRefused(node_id=call.node_id, reason=(
                f"the film was planned with {' '.join(planned)} as models.scorer, here it is {mine}; submit the film "
                "again"))
        return self._embedder

    def _clip(self, call: NodeCall) -> Path:
        for artifact in call.inputs.values():
            if artifact is not None:
                return self._store.fetch(artifact)
        raise StageFailed(node_id=call.node_id, reason="the clip that it looks at is missing")

    def _keep(self, call: NodeCall, scores: Mapping[str, float], seconds: float) -> Artifact:
        told: dict[str, Json] = {"consistency": min(scores.values()), "characters": dict(scores)}
        manifest: dict[str, Json] = {"kind": call.kind.value, "parameters": dict(call.payload), "attempt": call.attempt,
                                     "seconds": round(seconds, 3)}
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            path = Path(scratch) / "score.json"
            path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")
            return self._store.put(call.key, path, media_type=MediaType.JSON, manifest=manifest,
                                   score=min(scores.values()))


def pictures_of(payload: Mapping[str, Json]) -> list[tuple[str, Artifact]]:
    """Character and reference picture, in order; ValueError only if the plan wrote a payload it never writes."""
    rows = payload["characters"]
    if not isinstance(rows, list) or not rows:
        raise ValueError("score payload holds no list of characters")
    return [(str(row["id"]), Artifact.from_json(picture)) for row in rows
            if isinstance(row, dict) and isinstance(picture := row["reference"], dict)]


def sampled(clip: Path, frames: int) -> list[UInt8Array]:
    """So many frames of a clip at most: the first, the last, and evenly between. Raises MediaError."""
    places = sprite_places(probe(clip).frames, frames, 1)
    return [frame_HWC for number, frame_HWC in enumerate(iter_frames(clip)) if number in places]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
