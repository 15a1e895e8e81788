"""A chunk's result to a stored artifact with a manifest. Knows no GPU and no job."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from configs.model_card import ModelCard
from serve_app.models.chunks import Chunks
from serve_app.models.records import ENCODED_SHARE, RunRecords
from serve_app.models.saving import made_by
from workflows.edit_calls import ChunkCall
from workflows.media.frames import UInt8Array
from workflows.ports import ArtifactStore
from workflows.types import Json, NodeResult


class ChunkSaver:
    """Writes what one replica finds or edits."""

    def __init__(self, card: ModelCard, device: str, store: ArtifactStore, chunks: Chunks,
                 used: Mapping[str, Json]) -> None:
        self._store = store
        self._chunks = chunks
        self._made = made_by(card, device, used)

    def save(self, pictures: UInt8Array, call: ChunkCall, records: RunRecords, *, warnings: tuple[str, ...],
             seconds: Mapping[str, float], found: Mapping[str, Json] | None = None) -> NodeResult:
        """Write masks or crops and commit them under the call's key; `found`: what a tracker says of its masks.

        Raises MediaError, and what the store raises.
        """
        score = None if found is None else float(str(found["score"]))
        with tempfile.TemporaryDirectory(prefix="reelray-") as directory:
            started = time.perf_counter()
            path = Path(directory) / f"chunk{self._chunks.media_type.suffix}"
            self._chunks.write(pictures, path, on_frame=records.encoded)
            encoded = time.perf_counter()
            records.saving(ENCODED_SHARE)
            taken = {**seconds, "encode": encoded - started}
            manifest: dict[str, Json] = {
                **self._made, "call": _call_json(call), "warnings": list(warnings),
                "seconds": {name: round(value, 4) for name, value in taken.items()},
                **({} if found is None else {"found": dict(found)})}
            artifact = self._store.put(call.key, path, media_type=self._chunks.media_type, manifest=manifest,
                                       score=score)
        records.done()
        return NodeResult(artifact=artifact, warnings=warnings,
                          seconds={**taken, "store": time.perf_counter() - encoded})


def _call_json(call: ChunkCall) -> dict[str, Json]:
    inputs: dict[str, Json] = {name: artifact.to_json() for name, artifact in call.inputs.items()}
    return {**asdict(call), "inputs": inputs}
