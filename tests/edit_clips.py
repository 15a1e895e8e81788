"""Clips with known ground truth for the edit path: a coloured ball that something passes in front of."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from workflows.media.frames import UInt8Array

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
WIDTH_PX, HEIGHT_PX, FPS = 192, 128, 24


@dataclass(frozen=True)
class Unwatched:
    """Nobody stops it."""

    def check(self) -> None:
        """Never the time to stop."""


@dataclass(frozen=True)
class Truth:
    """A clip, and where its ball is seen."""

    frames_THWC: UInt8Array
    masks_THW: UInt8Array


def red_ball(frames: int = 30, *, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX, seed: int = 1) -> Truth:
    """A shaded red ball crosses a soft grey-green ground and passes behind a blue post in the middle."""
    rng = np.random.default_rng(seed)
    ground = cv2.GaussianBlur(rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8), (0, 0), 6)
    ground = cv2.normalize(ground, None, 90, 160, cv2.NORM_MINMAX)
    radius = height_px // 6
    clip = np.empty((frames, height_px, width_px, 3), np.uint8)
    masks = np.zeros((frames, height_px, width_px), np.uint8)
    post = slice(width_px // 2 - radius * 5 // 4, width_px // 2 + radius * 5 // 4)
    for t in range(frames):
        clip[t] = ground
        x = round(radius * 1.5 + (width_px - 3 * radius) * t / max(frames - 1, 1))
        y = round(height_px / 2 + height_px / 8 * np.sin(t / 5))
        cv2.circle(masks[t], (x, y), radius, 255, -1)
        shade = np.zeros_like(ground)
        cv2.circle(shade, (x, y), radius, (190, 25, 30), -1)
        cv2.circle(shade, (x - radius // 3, y - radius // 3), radius // 2, (225, 50, 55), -1)
        clip[t][masks[t] > 0] = cv2.GaussianBlur(shade, (3, 3), 0)[masks[t] > 0]
        clip[t][:, post] = (40, 60, 190)
        masks[t][:, post] = 0
    return Truth(clip, masks)


def iou(one: UInt8Array, other: UInt8Array) -> float:
    """Intersection over union of two masks; 1 for two empty ones."""
    union = np.count_nonzero((one > 0) | (other > 0))
    return np.count_nonzero((one > 0) & (other > 0)) / union if union else 1.0


def write_source(frames_THWC: UInt8Array, to: Path, *options: str, sound: bool = True, fps: int = FPS) -> Path:
    """Encode a clip with FFmpeg's own command, with a tone unless told otherwise."""
    height, width = frames_THWC.shape[1:3]
    tone = ["-f", "lavfi", "-i", f"sine=frequency=440:duration={len(frames_THWC) / fps}"] if sound else []
    command = [FFMPEG, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r",
               str(fps), "-i", "-", *tone, *(options or ("-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p")),
               *(["-c:a", "aac"] if sound else []), str(to)]
    subprocess.run(command, input=frames_THWC.tobytes(), check=True, capture_output=True)
    return to


def ffmpeg(*arguments: str | Path) -> None:
    """Run FFmpeg's command; what it complains about is an error."""
    subprocess.run([FFMPEG, "-y", "-v", "error", *map(str, arguments)], check=True, capture_output=True)
