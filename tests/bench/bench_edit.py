"""What an edit costs the CPU per frame against the naive way, and whether memory grows with the video's length.

    python -m tests.bench edit [--frames 60] [--short-s 10] [--long-s 60]

The region's work (flow, smoothing, crop, paste) on 1280x720 frames with a region of a third of their height; "naive" is
what editors usually do: Farneback flow, smoothing in floats, a feathered float paste of whole frames. Both in one
process, interleaved, least of the rounds. `--long-s 600` edits ten minutes, for as many as it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from tests.bench.report import write_report
from tests.fakes_edits import planned, request_for
from workflows.edit_plan import EDIT_KINDS, SAVE
from workflows.media.crop_track import follow
from workflows.media.encode import EncodeOptions
from workflows.media.masks import box_of
from workflows.media.paste import paste
from workflows.media.steady import Steadier
from workflows.plan import plan_keys
from workflows.stages.edit_local import LocalEdits
from workflows.store import Store
from workflows.types import NodeCall

WIDTH_PX, HEIGHT_PX, FPS, CROP_PX = 1280, 720, 24, 512
GOAL_MS, NAIVE_MS, ROUNDS = 50, 180, 3


def clip(frames: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    soft = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT_PX + 200, WIDTH_PX + 200, 3), np.uint8), (0, 0), 5)
    soft = cv2.normalize(soft, None, 20, 235, cv2.NORM_MINMAX)
    made, masks = [], []
    for t in range(frames):
        frame = np.ascontiguousarray(soft[t % 100:t % 100 + HEIGHT_PX, t % 90:t % 90 + WIDTH_PX])
        mask = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
        cv2.circle(mask, (300 + 5 * t % 600, 360), HEIGHT_PX // 6, 255, -1)
        frame[mask > 0] = (frame[mask > 0] * 0.3 + np.array([140, 10, 10])).astype(np.uint8)
        made.append(frame)
        masks.append(mask)
    return made, masks


def naive(frames: list[np.ndarray], edited: list[np.ndarray], masks: list[np.ndarray]) -> None:
    """Whole frames, floats, and a flow that every tutorial has."""
    before = calm = None
    columns, rows = np.meshgrid(np.arange(WIDTH_PX, dtype=np.float32), np.arange(HEIGHT_PX, dtype=np.float32))
    for frame, edit, mask in zip(frames, edited, masks, strict=True):
        grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=0.5, fy=0.5)
        if before is not None and calm is not None:
            flow = cv2.calcOpticalFlowFarneback(grey, before, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            flow = cv2.resize(flow, (WIDTH_PX, HEIGHT_PX)) * 2
            moved = cv2.remap(calm, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR)
            unlike = np.abs(moved.astype(np.float64) - edit).mean(axis=2, keepdims=True)
            weight = 0.7 * np.exp(-unlike / 20)
            edit = weight * moved + (1 - weight) * edit
        calm, before = np.asarray(edit, np.float32), grey
        alpha = cv2.GaussianBlur(mask.astype(np.float64) / 255, (0, 0), 3)[..., None]
        (alpha * edit + (1 - alpha) * frame).astype(np.uint8)


def parts(frames: list[np.ndarray], edited: list[np.ndarray],
          masks: list[np.ndarray]) -> dict[str, Callable[[], object]]:
    track = follow([box_of(mask) for mask in masks], size=(WIDTH_PX, HEIGHT_PX), margin=0.25, fps=FPS, crop_px=CROP_PX)
    crops = [track.crop(frame, t) for t, frame in enumerate(frames)]
    changed = [track.crop(frame, t) for t, frame in enumerate(edited)]

    def smooth() -> None:
        steadier = Steadier(CROP_PX, 0.7)
        for pair in zip(crops, changed, strict=True):
            steadier.steady(*pair)

    return {"crop": lambda: [track.crop(frame, t) for t, frame in enumerate(frames)], "smooth": smooth,
            "paste": lambda: [paste(frame, crop, mask, 2, (track, t)) for t, (frame, crop, mask) in enumerate(
                zip(frames, changed, masks, strict=True))]}


def cpu_ms(work: Callable[[], object], frames: int) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) / frames * 1000


def write_long(to: Path, seconds: int) -> None:
    """A red disc that crosses a test picture, drawn by FFmpeg."""
    size = f"{WIDTH_PX}x{HEIGHT_PX}"
    graph = (f"color=c=gray:s={size}:r={FPS}:d={seconds}[g];color=c=red:s=160x160:r={FPS}:d={seconds}[r];"
             "[g][r]overlay=x='400+300*sin(t)':y=280")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-filter_complex", graph, "-c:v", "libx264",
                    "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(to)], check=True)


async def walk(source: Path, store: Store) -> None:
    """All nodes in order, on this thread: what a worker does, without the rest of its process."""
    local, made = LocalEdits(store, EncodeOptions(preset="ultrafast")), {}
    nodes = planned(request_for(source, edit_size=256, chunk_frames=48), store)
    keys = plan_keys(nodes)
    for node in nodes:
        assert node.kind in EDIT_KINDS
        call = NodeCall(job_id="bench", node_id=node.id, shot_id="", kind=node.kind, key=keys[node.id], attempt=1,
                        generation=0, payload=node.payload, inputs={dep: made[dep] for dep in node.deps},
                        left_s=float("inf"))
        made[node.id] = local.run(call, lambda done, total: None).artifact
    assert SAVE in made


def peak_mb(seconds: int) -> tuple[float, float]:
    """Peak memory of a process that edits so many seconds, and how long it took."""
    started = time.monotonic()
    run = subprocess.run([sys.executable, "-m", "tests.bench.bench_edit", "--child", str(seconds)], check=True,
                         capture_output=True, text=True)
    return float(run.stdout.strip().splitlines()[-1]), time.monotonic() - started


def child(seconds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_long(Path(folder) / "in.mp4", seconds)
        asyncio.run(walk(Path(folder) / "in.mp4", Store(f"{folder}/store")))
    # Not ru_maxrss: a process that was just started has its parent's there, which holds whole clips.
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) * 1.024 / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--short-s", type=int, default=10)
    parser.add_argument("--long-s", type=int, default=60)
    parser.add_argument("--child", type=int, default=0)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    frames, masks = clip(given.frames)
    edited = [255 - frame for frame in frames]
    mine = parts(frames, edited, masks)
    least = dict.fromkeys((*mine, "naive"), float("inf"))
    for _ in range(ROUNDS):
        for name, work in (*mine.items(), ("naive", lambda: naive(frames, edited, masks))):
            least[name] = min(least[name], cpu_ms(work, given.frames))
    ours = sum(least[name] for name in mine)
    rows: list[tuple[object, ...]] = [(f"{name}, CPU ms per frame", least[name]) for name in mine]
    rows += [("sum", ours), ("naive, CPU ms per frame", least["naive"]), ("naive / ours", least["naive"] / ours)]
    memory = {seconds: peak_mb(seconds) for seconds in (given.short_s, given.long_s)}
    rows += [(f"peak memory of an edit of {seconds} s, 10^6 bytes", peak) for seconds, (peak, _) in memory.items()]
    rows += [(f"seconds to edit {seconds} s", took) for seconds, (_, took) in memory.items()]
    growth = memory[given.long_s][0] / memory[given.short_s][0]
    rows.append(("memory, long / short", growth))
    write_report(
        "edit_cpu_202611", "What does the CPU's part of an edit cost, and does memory grow with length?",
        ("what", "measured"), rows,
        f"{given.frames} frames of {WIDTH_PX}x{HEIGHT_PX}, crops of {CROP_PX} px, least of {ROUNDS} interleaved "
        f"rounds, CPU time of all threads; memory of a whole classical edit (48 frames a chunk, crops of 256 px) in a "
        f"process of its own. Goals: at most {GOAL_MS} ms ({'met' if ours <= GOAL_MS else 'missed'}), naive about "
        f"{NAIVE_MS}; "
        f"memory constant ({growth:.2f} times for {given.long_s / given.short_s:g} times the length).")


if __name__ == "__main__":
    main()
