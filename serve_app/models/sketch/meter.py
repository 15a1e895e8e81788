"""The meter: does a clip show the colour, background, shape and motion that were asked for? Knows no model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from configs.prompt_world import PromptWorld
from serve_app.models.sketch import scenes
from serve_app.models.sketch.scenes import Scene

OBJECT_DISTANCE = 90
"""Sum of absolute RGB differences from the background, 0..765, above which a pixel belongs to the object."""
SMALLEST_OBJECT_PX = 50
WHOLE_SHARE = 0.9
"""Part of the object's pixels that must hang together, on average over the frames, for it to count as one piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the meter sees in a clip; empty where it sees no object."""

    colour: str
    background: str
    shape: str
    motion: str
    one_piece: bool
    """Whether the object hangs together. Scattered scraps can have the right colour and are no object."""

    def hits(self, scene: Scene) -> tuple[bool, bool, bool, bool, bool]:
        """Right or wrong: colour, background, shape, motion, one piece."""
        return (self.colour == scene.colour, self.background == scene.background,
                self.shape == scene.shape, self.motion == scene.motion, self.one_piece)


def nearest_colour(rgb: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """The palette's name for a colour, by Euclidean distance in RGB."""
    return min(palette, key=lambda name: float(((rgb - np.array(palette[name])) ** 2).sum()))


def object_masks(frames_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the object is in each frame, bool (T, H, W), and the background's RGB.

    The frame's rim tells the background; each row is then compared with its own median, because the background is
    shaded from top to bottom.
    """
    values = frames_THWC.astype(np.float32)
    rim = np.concatenate([values[:, :8].reshape(-1, 3), values[:, -8:].reshape(-1, 3),
                          values[:, :, :6].reshape(-1, 3), values[:, :, -6:].reshape(-1, 3)])
    ground = np.median(rim, axis=0)
    rows = np.median(values, axis=(0, 2))
    rows = np.where(np.abs(rows - ground).sum(1, keepdims=True) < 110, rows, ground)
    return np.abs(values - rows[None, :, None]).sum(-1) > OBJECT_DISTANCE, ground


def read_motion(masks: np.ndarray, areas: np.ndarray) -> str:
    """The dominant change between the first and the last quarter of the frames that show an object."""
    seen = np.flatnonzero(areas > SMALLEST_OBJECT_PX)
    if len(seen) < 4:
        return scenes.STILL
    part = max(1, len(seen) // 4)
    centres = np.array([[axis.mean() for axis in np.nonzero(masks[i])] for i in seen])
    move = centres[-part:].mean(0) - centres[:part].mean(0)
    growth = math.log(areas[seen[-part:]].mean() / areas[seen[:part]].mean())
    scores = {"right": move[1] / 40, "left": -move[1] / 40, "down": move[0] / 28, "up": -move[0] / 28,
              "grows": growth, "shrinks": -growth}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.35 else scenes.STILL


def read_shape(mask_HW: np.ndarray, shapes: tuple[str, ...]) -> str:
    """The shape whose template, at the best of 144 places and sizes, has the most intersection over union."""
    mask_HW = mask_HW[::2, ::2]  # half the size tells shapes apart as well
    ys, xs = np.nonzero(mask_HW)
    extent = max(np.ptp(ys), np.ptp(xs)) + 1
    # The object and four pixels around it, no matter whether they are inside the frame: the rest is empty anyway.
    edge = 4
    mask = torch.from_numpy(np.pad(mask_HW[ys.min():ys.max() + 1, xs.min():xs.max() + 1], edge))
    height, width = mask.shape
    places = torch.tensor([[width / 2 + dx, height / 2 + dy, share * extent]
                           for share in np.linspace(0.38, 0.66, 8) for dy in (-2, -1, 0, 1, 2, 3) for dx in (-1, 0, 1)],
                          dtype=torch.float32)
    row, column = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None, :] + 0.5
    x = (column - places[:, 0, None, None]) / places[:, 2, None, None]
    y = (row - places[:, 1, None, None]) / places[:, 2, None, None]
    x, y = torch.broadcast_tensors(x, y)

    def overlap(shape: str) -> float:
        template = scenes.distance(shape, x, y) < 0
        union = (template | mask).sum((1, 2)).clamp(min=1)
        return float(((template & mask).sum((1, 2)) / union).max())

    return max(shapes, key=overlap)


def is_one_piece(masks: np.ndarray) -> bool:
    """Whether the largest connected part holds almost all of the object, over the frames that show one."""
    shares = []
    for mask in masks[masks.reshape(len(masks), -1).sum(1) > SMALLEST_OBJECT_PX]:
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        shares.append(stats[1:, cv2.CC_STAT_AREA].max() / mask.sum())
    return bool(np.mean(shares) >= WHOLE_SHARE)


def measure(frames_THWC: np.ndarray, world: PromptWorld) -> Reading:
    """Read a clip, uint8 RGB (T, H, W, 3)."""
    masks, ground = object_masks(frames_THWC)
    areas = masks.reshape(len(masks), -1).sum(1).astype(float)
    background = nearest_colour(ground, world.backgrounds)
    if areas.max() <= SMALLEST_OBJECT_PX:
        return Reading(colour="", background=background, shape="", motion="", one_piece=False)
    return Reading(colour=nearest_colour(np.median(frames_THWC[masks], axis=0), world.colours), background=background,
                   shape=read_shape(masks[int(areas.argmax())], tuple(world.objects)),
                   motion=read_motion(masks, areas), one_piece=is_one_piece(masks))
