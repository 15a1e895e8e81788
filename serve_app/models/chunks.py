"""One chunk of an edit: its inputs out of the store as arrays, its result as a file. Knows no model and no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from workflows.edit_calls import CARRIED, FRAMES, MASKS, ChunkCall, EditCall, TrackCall
from workflows.edit_ports import EditTake
from workflows.errors import RenderRefused
from workflows.media.frames import OnProgress, UInt8Array
from workflows.media.lossless import read_lossless, write_lossless
from workflows.ports import ArtifactStore
from workflows.types import MediaType


class Chunks(Protocol):
    """How a replica comes by a chunk's pixels, and what it leaves behind. Called beside the GPU thread."""

    media_type: MediaType
    """Of results."""

    def to_track(self, call: TrackCall) -> tuple[UInt8Array, UInt8Array | None]:
        """frames_THWC, and the mask that is carried over. Raises RenderRefused, ArtifactMissing, ArtifactCorrupt,
        MediaError."""

    def to_edit(self, call: EditCall) -> EditTake:
        """Square crops and their masks, and what to do to them. Raises the same."""

    def write(self, pictures: UInt8Array, to: Path, *, on_frame: OnProgress) -> None:
        """Masks (T, H, W) or crops (T, H, W, 3) as one file. Raises MediaError."""


class StoredChunks:
    """Implements `Chunks` for inputs that are lossless files in the store."""

    media_type = MediaType.MKV

    def __init__(self, store: ArtifactStore) -> None:
        """Read from this store."""
        self._store = store

    def to_track(self, call: TrackCall) -> tuple[UInt8Array, UInt8Array | None]:
        """See `Chunks`."""
        carried_HW: UInt8Array | None = None
        if CARRIED in call.inputs:
            carried_HW = next(read_lossless(self._path(call, CARRIED), first=call.carried_frame, frames=1))
        return self._read(call, FRAMES), carried_HW

    def to_edit(self, call: EditCall) -> EditTake:
        """See `Chunks`."""
        return EditTake(
            prompt=call.prompt, negative_prompt=call.negative_prompt, steps=call.steps, guidance=call.guidance,
            image_guidance=call.image_guidance, seed=call.seed, fps=call.fps, frames_THWC=self._read(call, FRAMES),
            masks_THW=self._read(call, MASKS))

    def write(self, pictures: UInt8Array, to: Path, *, on_frame: OnProgress) -> None:
        """See `Chunks`."""
        with write_lossless(to) as writer:
            for done, picture in enumerate(pictures, start=1):
                writer.write(picture)
                on_frame(done, len(pictures))

    def _read(self, call: ChunkCall, name: str) -> UInt8Array:
        return np.stack(list(read_lossless(self._path(call, name), first=call.first, frames=call.frames)))

    def _path(self, call: ChunkCall, name: str) -> Path:
        if name not in call.inputs:
            raise RenderRefused(node_id=call.node_id, reason=f"the call names no input {name!r}, only "
                                                             f"{', '.join(call.inputs) or 'none'}")
        return self._store.fetch(call.inputs[name])
