"""Small clips and the measures that tests take of files."""

from __future__ import annotations

import hashlib
import math
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np

from workflows.media.compose import ComposeOptions
from workflows.media.encode import EncodeOptions, encode
from workflows.media.frames import UInt8Array

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
WIDTH_PX, HEIGHT_PX, FPS = 96, 64, Fraction(16)
OPTIONS = EncodeOptions()


def moving(frames: int, *, seed: int = 0, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX) -> UInt8Array:
    """A disc crossing a soft, slowly drifting background; colours differ by seed."""
    rng = np.random.default_rng(seed)
    soft = cv2.GaussianBlur(rng.integers(0, 256, (2 * height_px, 2 * width_px, 3), dtype=np.uint8), (0, 0), 5)
    soft = cv2.normalize(soft, None, 20, 235, cv2.NORM_MINMAX)
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    clip_THWC = np.empty((frames, height_px, width_px, 3), np.uint8)
    for t, frame_HWC in enumerate(clip_THWC):
        frame_HWC[:] = soft[t % height_px:t % height_px + height_px, :width_px]
        cv2.circle(frame_HWC, ((10 + 3 * t) % width_px, height_px // 2), height_px // 6, colour, -1, cv2.LINE_AA)
    return clip_THWC


def write(path: Path, frames: int, *, seed: int = 0, fps: Fraction = FPS, options: EncodeOptions = OPTIONS,
          size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX)) -> Path:
    encode(moving(frames, seed=seed, width_px=size_px[0], height_px=size_px[1]), fps=fps, to=path, options=options)
    return path


def ffmpeg(*arguments: str | Path) -> str:
    """Run FFmpeg's command; return what it complained about."""
    command = [FFMPEG, "-y", "-v", "warning", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def film_options(**changes: object) -> ComposeOptions:
    return ComposeOptions(**({"width_px": WIDTH_PX, "height_px": HEIGHT_PX, "fps": FPS, "encode": OPTIONS} | changes))


def yuv_frames(path: Path) -> list[UInt8Array]:
    """Each frame's samples as FFmpeg's own command decodes them, which must find nothing to complain about."""
    width_px, height_px = stream_of(path)[2]
    command = [FFMPEG, "-v", "warning", "-i", path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    return list(np.frombuffer(done.stdout, np.uint8).reshape(-1, height_px * 3 // 2, width_px))


def digests(path: Path) -> list[str]:
    return [hashlib.md5(frame.tobytes(), usedforsecurity=False).hexdigest() for frame in yuv_frames(path)]


def stream_of(path: Path) -> tuple[list[tuple[int, int]], Fraction, tuple[int, int], list[bool]]:
    """(pts, dts) of each packet in stored order, time base, (width, height), which packets are key frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        return ([(packet.pts, packet.dts) for packet in packets], Fraction(stream.time_base),
                (stream.codec_context.width, stream.codec_context.height), [packet.is_keyframe for packet in packets])


def length_s(path: Path) -> tuple[Fraction, Fraction]:
    """What the header says the video track and the whole file last."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.duration * Fraction(stream.time_base), Fraction(container.duration, av.time_base)


def psnr(one: UInt8Array, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
