"""What the stages of an edit share: files, reel, track and masks, and how a result is kept. Knows no model."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from workflows.edit_plan import EXTRACT, PROPAGATE
from workflows.errors import StageFailed
from workflows.media.crop_track import CropTrack
from workflows.media.masks import MaskReel, Piece, Shaping
from workflows.media.reel import Reel
from workflows.ports import ArtifactStore
from workflows.stages.render import integer
from workflows.types import Artifact, Json, MediaType, NodeCall, NodeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """One chunk's edited crops."""

    node: str
    first: int
    frames: int

    @property
    def end(self) -> int:
        """The first frame after it."""
        return self.first + self.frames


class Files:
    """Local files of artifacts. A large source is checked against its digest once, not for each of its chunks."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._known: dict[str, tuple[Path, tuple[int, int]]] = {}
        self._lock = threading.Lock()

    def path(self, artifact: Artifact) -> Path:
        """A local file with the artifact's bytes; checked again when it changed. Raises as `ArtifactStore.fetch`."""
        with self._lock:
            known = self._known.get(artifact.uri)
            if known is not None and known[0].is_file() and _stamp(known[0]) == known[1]:
                return known[0]
        path = self.store.fetch(artifact)
        with self._lock:
            self._known[artifact.uri] = (path, _stamp(path))
        return path


def _stamp(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_size, told.st_mtime_ns


class Bench:
    """One node of an edit at work."""

    def __init__(self, call: NodeCall, files: Files, made: Mapping[str, Json] | None = None) -> None:
        """`made`: what else the manifests of its results say, e.g. of the model."""
        self.call = call
        self._files = files
        self._made = made or {}
        self._started = time.monotonic()

    def input(self, node: str) -> Path:
        """The file of a node that this one depends on. Raises StageFailed when it has none."""
        artifact = self.call.inputs.get(node)
        if artifact is None:
            raise StageFailed(node_id=self.call.node_id, reason=f"the result of {node} is missing")
        return self._files.path(artifact)

    def score(self, node: str) -> float | None:
        """What was measured by a node that this one depends on."""
        artifact = self.call.inputs.get(node)
        return None if artifact is None else artifact.score

    def payload_file(self, name: str) -> Path:
        """The file of an artifact in the payload."""
        value = self.call.payload[name]
        if not isinstance(value, dict):
            raise ValueError(f"payload holds no artifact {name!r}")
        return self._files.path(Artifact.from_json(value))

    def json(self, node: str) -> dict[str, Json]:
        """A node's result as plain data."""
        value = json.loads(self.input(node).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"the result of {node} is no JSON object")
        return value

    def reel(self) -> Reel:
        """The frames of the edit."""
        return Reel.from_json(self.json(EXTRACT))

    def track(self) -> tuple[CropTrack, MaskReel]:
        """The square that follows the region, and the region."""
        told = self.json(PROPAGATE)
        track = told["track"]
        if not isinstance(track, dict):
            raise ValueError("the result of propagate holds no track")
        return CropTrack.from_json(track), MaskReel(pieces_of(told), self.input, shaping_of(told))

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A path to write to, in a directory that is removed at the end."""
        with tempfile.TemporaryDirectory(prefix="reelray-") as directory:
            yield Path(directory) / name

    def keep(self, path: Path, media_type: MediaType, *, report: Json = None, score: float | None = None,
             warnings: tuple[str, ...] = ()) -> NodeResult:
        """Commit the node's file, with how it was made beside it."""
        call, seconds = self.call, time.monotonic() - self._started
        manifest: dict[str, Json] = {
            "kind": call.kind.value, "parameters": dict(call.payload), "attempt": call.attempt,
            "inputs": {node: artifact.to_json() if artifact else None for node, artifact in call.inputs.items()},
            "report": report, "seconds": round(seconds, 3), **self._made}
        artifact = self._files.store.put(call.key, path, media_type=media_type, manifest=manifest, score=score)
        return NodeResult(artifact=artifact, warnings=warnings, seconds={"total": seconds})

    def keep_json(self, value: Mapping[str, Json], warnings: tuple[str, ...] = ()) -> NodeResult:
        """Commit plain data; `warnings` as in `keep`."""
        with self.scratch("out.json") as path:
            path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
            return self.keep(path, MediaType.JSON, warnings=warnings)


def pieces_of(data: Mapping[str, Json]) -> tuple[Piece, ...]:
    """The chunks of masks that a plan or a track names."""
    rows = data["pieces"]
    if not isinstance(rows, list):
        raise ValueError("no list of pieces")
    return tuple(Piece(node=str(row["node"]), first=integer(row["first"]), frames=integer(row["frames"]),
                       own_first=integer(row["own_first"]), own_end=integer(row["own_end"]))
                 for row in rows if isinstance(row, dict))


def shaping_of(data: Mapping[str, Json]) -> Shaping:
    """What is done to the masks of a plan or a track."""
    return Shaping(invert=data["invert"] is True, erode_px=integer(data["erode_px"]),
                   dilate_px=integer(data["dilate_px"]))


def edits_of(payload: Mapping[str, Json]) -> tuple[Edits, ...]:
    """The edited chunks that a payload names."""
    rows = payload["edits"]
    if not isinstance(rows, list):
        raise ValueError("no list of edits")
    return tuple(Edits(node=str(row["node"]), first=integer(row["first"]), frames=integer(row["frames"]))
                 for row in rows if isinstance(row, dict))
