"""What trackers of transformers have in common: frames prepared when they are looked at, results kept small.

A session of transformers holds a whole clip as floats, and a mask of the model's size per frame and object. Here a
frame becomes floats when the model asks for it, and what no later frame looks at is let go, so that memory grows with
the clip by its masks alone: one bit per pixel and object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.models.tap import Watch
from workflows.edit_ports import Find, ProgressCallback, Tracked, Tracker
from workflows.errors import Problem, RenderRefused
from workflows.media.frames import UInt8Array

BoolArray = NDArray[np.bool_]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What SAM 2 was trained with, where its checkpoint says nothing."""
MOST_CARRIED = 16
"""Pieces of a carried mask that are followed each by itself; smaller ones beyond that are one more."""


class LoadedTracker(Tracker[Watch], Protocol):
    """A tracker on a device."""

    def problems(self, find: Find) -> tuple[Problem, ...]:
        """What it cannot look for, and what it can; empty: nothing stands in its way."""


class FramesOnDemand(Mapping[int, torch.Tensor]):
    """Stands for a session's `processed_frames`: floats (channels, rows, columns) of the model's square."""

    def __init__(self, frames_THWC: UInt8Array, *, side_px: int, mean: Iterable[float], std: Iterable[float],
                 device: str, dtype: torch.dtype) -> None:
        self._frames_THWC = frames_THWC
        self._side_px = side_px
        self._device = device
        self._dtype = dtype
        self._mean = torch.tensor(tuple(mean), device=device).view(3, 1, 1)
        self._std = torch.tensor(tuple(std), device=device).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self._frames_THWC)

    def __iter__(self) -> Any:
        return iter(range(len(self)))

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            raise KeyError(index)
        frame_HWC = torch.from_numpy(np.ascontiguousarray(self._frames_THWC[index])).to(self._device)
        pixels = torch.nn.functional.interpolate(
            frame_HWC.permute(2, 0, 1)[None].float(), (self._side_px, self._side_px), mode="bilinear", antialias=True,
            align_corners=False)[0]
        # The processors of transformers scale bytes and get bytes.
        pixels = pixels.round_().clamp_(0, 255).div_(255)
        return ((pixels - self._mean) / self._std).to(self._dtype)


def normalisation_of(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that a checkpoint's own files name for its frames."""
    for name in ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"):
        path = directory / name
        tree = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        tree = tree.get("video_processor", tree)
        if "image_mean" in tree and "image_std" in tree:
            return tuple(tree["image_mean"]), tuple(tree["image_std"])
    return IMAGENET_MEAN, IMAGENET_STD


class Gathered:
    """Masks of a clip by object, a bit per pixel, until it is known which objects count."""

    def __init__(self, frames: int, height_px: int, width_px: int) -> None:
        self._shape = (frames, height_px, width_px)
        self._packed: dict[int, dict[int, NDArray[np.uint8]]] = {}
        self.scores: dict[int, float] = {}
        """Object -> its best score, 0..1."""

    def add(self, obj: int, frame: int, mask_HW: BoolArray, score: float) -> None:
        """One object in one frame; an empty mask is no sight of it, but its score counts."""
        self.scores[obj] = max(score, self.scores.get(obj, 0.0))
        if mask_HW.any():
            self._packed.setdefault(obj, {})[frame] = np.packbits(mask_HW)

    def drop(self, objects: Iterable[int]) -> None:
        """What turned out to be none."""
        for obj in objects:
            self._packed.pop(obj, None)

    def tracked(self, instances: Literal["all", "best"], *, best_score: float, carried: UInt8Array | None) -> Tracked:
        """The result: all objects as one mask, or the one that fits best.

        Which fits best: the one that covers most of `carried` in the first frame, else the one with the best score,
        else the larger one.
        """
        chosen = list(self._packed)
        if instances == "best" and chosen:
            chosen = [max(chosen, key=lambda obj: (self._shared(obj, carried), self.scores[obj], self._area(obj)))]
        masks_THW = np.zeros(self._shape, np.uint8)
        for obj in chosen:
            for frame, packed in self._packed[obj].items():
                masks_THW[frame][self._unpacked(packed)] = 255
        return Tracked(masks_THW=masks_THW, score=min(max(best_score, 0.0), 1.0), instances=len(chosen))

    def _unpacked(self, packed: NDArray[np.uint8]) -> BoolArray:
        _, height_px, width_px = self._shape
        bits = np.unpackbits(packed, count=height_px * width_px)
        return bits.reshape(height_px, width_px).astype(bool)

    def _shared(self, obj: int, carried: UInt8Array | None) -> int:
        first = self._packed[obj].get(0)
        return 0 if carried is None or first is None else int((self._unpacked(first) & (carried > 0)).sum())

    def _area(self, obj: int) -> int:
        return sum(int(np.bitwise_count(packed).sum()) for packed in self._packed[obj].values())


def pieces_of(carried: UInt8Array | None, instances: Literal["all", "best"]) -> list[BoolArray]:
    """A carried mask as masks of what is to be followed: its connected pieces, largest first; `best` is one thing."""
    if carried is None or not carried.any():
        return []
    if instances == "best":
        return [carried > 0]
    count, labels, stats, _ = cv2.connectedComponentsWithStats((carried > 0).astype(np.uint8), connectivity=8)
    order = sorted(range(1, count), key=lambda label: -int(stats[label, cv2.CC_STAT_AREA]))
    pieces = [labels == label for label in order[:MOST_CARRIED]]
    return [*pieces, np.isin(labels, order[MOST_CARRIED:])] if order[MOST_CARRIED:] else pieces


def mask_input(mask_HW: BoolArray, side_px: int, device: str) -> torch.Tensor:
    """A mask as a session takes it: float (1, 1, side, side), 0 or 1, scaled as transformers' own processor does."""
    mask = torch.from_numpy(mask_HW).to(device)[None, None].float()
    if mask.shape[-2:] != (side_px, side_px):
        mask = torch.nn.functional.interpolate(mask, (side_px, side_px), mode="bilinear", antialias=True,
                                               align_corners=False)
    return (mask >= 0.5).float()


def full_size(logits_HW: torch.Tensor, height_px: int, width_px: int) -> BoolArray:
    """A mask's logits at any size as a mask of the frame's size."""
    scaled = torch.nn.functional.interpolate(logits_HW[None, None].float(), (height_px, width_px), mode="bilinear",
                                             align_corners=False)
    mask: BoolArray = (scaled[0, 0] > 0).cpu().numpy()
    return mask


def forget(session: Any, frame: int, *, reach: int) -> None:
    """Let go of what a session keeps of frames that no later one looks at; `reach`: how far the model looks back."""
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        for old in [other for other in tracked if abs(frame - other) >= reach]:
            del tracked[old]
        for kept in (*tracked.values(), *outputs["cond_frame_outputs"].values()):
            kept.pop("high_res_masks", None)  # read once, when the frame's memory is made; the largest of all


def reach_of(config: Any) -> int:
    """How many frames a model of the SAM 2 kind looks back."""
    return int(max(config.num_maskmem, config.max_object_pointers_in_encoder)) + 1


class FrameClock:
    """Counts frames that were looked at, tells them, and stops between two of them when asked to."""

    def __init__(self, total: int, heard: ProgressCallback | None, watch: Watch) -> None:
        self._total = total
        self._heard = heard
        self._watch = watch
        self.done = 0
        """Frames."""

    def looked(self) -> None:
        """One more. Raises RenderCancelled and DeadlineExceeded."""
        self.done += 1
        self._watch.beat()
        if self._heard is not None:
            self._heard(self.done, self._total, 0.0)
        self._watch.check()


def require_fit(frames_THWC: UInt8Array, carried: UInt8Array | None, watch: Watch) -> None:
    """Raise RenderRefused when the carried mask is of another size than the frames; stop before anything begins."""
    watch.check()
    if carried is not None and carried.shape != frames_THWC.shape[1:3]:
        raise RenderRefused(node_id=watch.label, reason=f"the carried mask is {carried.shape}, the frames are "
                                                        f"{frames_THWC.shape[1:3]} (height, width)")


LoadTracker = Callable[[Any, str], tuple[Any, Any]]
"""`load(card, device)`: `pipelines.load_tracker`, or a test's own."""
