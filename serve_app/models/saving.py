"""Frames to a stored artifact with a manifest, and a stored artifact to a first frame. Knows no GPU and no job."""

from __future__ import annotations

import functools
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from configs.model_card import ModelCard
from configs.model_options import Effect, Exactness, worst
from serve_app.models.records import ENCODED_SHARE, RunRecords
from workflows.errors import RenderRefused
from workflows.media.decode import last_frame, read_picture, write_png
from workflows.media.encode import EncodeOptions, encode
from workflows.media.frames import UInt8Array
from workflows.ports import ArtifactStore, RenderCall
from workflows.types import LENT, Json, MediaType, NodeResult

GUESSED = Effect(option="draft.cache", exactness=Exactness.APPROXIMATE, why="steps are guessed from the one before")
PACKAGES = ("reelray", "torch", "diffusers", "transformers", "accelerate", "av", "numpy")


@functools.cache
def versions() -> Mapping[str, str]:
    """What made the picture."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def made_by(card: ModelCard, device: str, used: Mapping[str, Json], of_call: tuple[Effect, ...] = (),
            ) -> dict[str, Json]:
    """What a manifest says of the model behind a result. `used`: what is seen of the card's options in it; `of_call`:
    what was less exact in this call alone.
    """
    effects = (*card.effects(), *of_call)
    return {
        "card": {"name": card.name, "digest": card.digest()},
        "exactness": {"class": worst(tuple(effect.exactness for effect in effects)).value, "used": dict(used),
                      "why": [effect.render() for effect in effects]},
        "device": device,
        "versions": dict(versions()),
    }


class Saver:
    """Writes what one replica renders."""

    def __init__(self, card: ModelCard, device: str, store: ArtifactStore, options: EncodeOptions) -> None:
        self._card = card
        self._device = device
        self._store = store
        self._options = options
        self.used: Mapping[str, Json] = {}
        """What is seen of the card's options in the loaded model."""

    def save(self, frames: UInt8Array, call: RenderCall, records: RunRecords, *, warnings: tuple[str, ...],
             seconds: Mapping[str, float], gpus: int = 1) -> NodeResult:
        """Encode frames_THWC as MP4, or frame_HWC as PNG, and commit it under the call's key.

        `gpus`: that made it, where idle ones helped.

        Raises MediaError, and what the store raises.
        """
        if not frames.any():
            warnings = (*warnings, "every pixel is black; a safety checker or numbers out of range can do that")
        media_type = MediaType.MP4 if frames.ndim == 4 else MediaType.PNG
        with tempfile.TemporaryDirectory(prefix="reelray-") as directory:
            started = time.perf_counter()
            path = Path(directory) / f"render{media_type.suffix}"
            if media_type is MediaType.MP4:
                encode(frames, fps=exact_fps(call.fps), to=path, options=self._options, on_frame=records.encoded)
            else:
                write_png(frames, path)
            encoded = time.perf_counter()
            records.saving(ENCODED_SHARE)
            taken = {**seconds, "encode": encoded - started}
            manifest = self._manifest(call, warnings, taken, records.first_step)
            if gpus > 1:
                manifest["device"] = f"{gpus} x {self._device}"
                taken[LENT] = (gpus - 1) * (seconds["diffusion"] + seconds["decode"])
            artifact = self._store.put(call.key, path, media_type=media_type, manifest=manifest)
        records.done()
        return NodeResult(artifact=artifact, warnings=warnings, gpus=gpus,
                          seconds={**taken, "store": time.perf_counter() - encoded})

    def _manifest(self, call: RenderCall, warnings: tuple[str, ...], seconds: Mapping[str, float], first_step: int,
                  ) -> dict[str, Json]:
        asked = asdict(call)
        first = None if call.first_frame is None else call.first_frame.to_json()
        for name in ("left_s", "references", "avoid", "may_shrink", "seat", "party"):
            del asked[name]
        pictures: list[Json] = [picture.to_json() for picture in call.references]
        references: dict[str, Json] = {"references": pictures} if pictures else {}
        of_call = () if call.cache_threshold is None else (GUESSED,)
        return {
            **made_by(self._card, self._device, self.used, of_call),
            "call": {**asked, "first_frame": first, **references},
            **({"resumed_after_step": first_step} if first_step else {}),
            "encode": asdict(self._options),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "warnings": list(warnings),
        }


def exact_fps(fps: float) -> Fraction:
    """The rate as a fraction: 23.976 is 2997/125, not the nearest double."""
    return Fraction(fps).limit_denominator(1001)


def references_of(call: RenderCall, store: ArtifactStore) -> tuple[UInt8Array, ...]:
    """The call's reference pictures as they are, turned as their EXIF data says, in order.

    Raises ArtifactMissing, ArtifactCorrupt, MediaError.
    """
    return tuple(read_picture(store.fetch(artifact)) for artifact in call.references)


def picture_of(call: RenderCall, store: ArtifactStore) -> tuple[UInt8Array, tuple[str, ...]]:
    """The call's first frame at the clip's size, and a warning when it had to be cut to it.

    A clip gives its last frame. A still of another size may be the user's own picture and is cropped around its
    centre; a clip of another size was rendered for another film and is refused, unless memory may have made it so.
    Raises RenderRefused, ArtifactMissing, ArtifactCorrupt, MediaError.
    """
    artifact = call.first_frame
    assert artifact is not None
    path = store.fetch(artifact)
    picture_HWC = last_frame(path) if artifact.media_type is MediaType.MP4 else read_picture(path)
    height_px, width_px = picture_HWC.shape[:2]
    if (width_px, height_px) == (call.width_px, call.height_px):
        return picture_HWC, ()
    sizes = f"{width_px}x{height_px}, the clip {call.width_px}x{call.height_px}"
    if artifact.media_type is MediaType.MP4 and not call.may_shrink:
        raise RenderRefused(node_id=call.node_id, reason=f"the clip to continue is {sizes}; render both at one size")
    fitted = ImageOps.fit(Image.fromarray(picture_HWC), (call.width_px, call.height_px),
                          method=Image.Resampling.LANCZOS)
    return np.asarray(fitted), (f"the first frame is {sizes}: scaled, and cropped around its centre",)
