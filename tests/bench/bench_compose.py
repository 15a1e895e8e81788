"""What joining a film costs: copied packets against FFmpeg encoding everything, and the two ways to encode a clip.

    python -m tests.bench.bench_compose [--rounds 3]

CPU-seconds of this process and its children, each the least of interleaved rounds, so that other work on the machine
counts as little as it can. Frames are compared as FFmpeg's own command decodes them.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np

from tests.bench.report import write_report
from workflows.media.compose import ComposeOptions, ComposeReport, Part, compose
from workflows.media.encode import EncodeOptions, encode
from workflows.media.frames import UInt8Array

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
CUT_GOAL, FADE_GOAL = 100, 8
CLIPS, FRAMES, FADE, WIDTH_PX, HEIGHT_PX, FPS = 12, 81, 8, 832, 480, Fraction(16)
SIZE = f"{WIDTH_PX}x{HEIGHT_PX}"
OPTIONS = EncodeOptions()
FILM = ComposeOptions(width_px=WIDTH_PX, height_px=HEIGHT_PX, fps=FPS, encode=OPTIONS)
X264 = ["-c:v", "libx264", "-preset", OPTIONS.preset, "-crf", str(OPTIONS.crf), "-pix_fmt", "yuv420p",
        "-movflags", "+faststart"]
TO_BT709 = ("scale=in_range=pc:out_range=tv:out_color_matrix=bt709,format=yuv420p,"
            "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709")
CONTENTS = {"soft": 12.0, "textured": 4.0}
"""Blur of the background's blobs: large blobs compress to 0.4 MB a clip, small ones to 0.7 MB."""


def moving(seed: int, blur: float) -> UInt8Array:
    """A disc on a circling path over drifting blobs."""
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.integers(0, 256, (2 * HEIGHT_PX, 2 * WIDTH_PX, 3), dtype=np.uint8), (0, 0), 6)
    blobs = cv2.GaussianBlur(cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX), (0, 0), blur)
    drift, colour = rng.uniform(-2, 2, 2), tuple(int(value) for value in rng.integers(0, 256, 3))
    clip_THWC = np.empty((FRAMES, HEIGHT_PX, WIDTH_PX, 3), np.uint8)
    for t, frame_HWC in enumerate(clip_THWC):
        shift = np.float32([[1, 0, -WIDTH_PX / 2 + drift[0] * t], [0, 1, -HEIGHT_PX / 2 + drift[1] * t]])
        cv2.warpAffine(blobs, shift, (WIDTH_PX, HEIGHT_PX), dst=frame_HWC, borderMode=cv2.BORDER_REFLECT)
        centre = (int(WIDTH_PX * (0.5 + 0.33 * np.sin(t / 20 + seed))), int(HEIGHT_PX * (0.5 + 0.25 * np.cos(t / 15))))
        cv2.circle(frame_HWC, centre, HEIGHT_PX // 8, colour, -1, cv2.LINE_AA)
    return clip_THWC


def ffmpeg(*arguments: str | Path, stdin: Iterable[UInt8Array] = ()) -> None:
    command = [FFMPEG, "-y", "-v", "error", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for frame_HWC in stdin:
            process.stdin.write(frame_HWC.data)
        process.stdin.close()
    assert process.returncode == 0


def pipe_encode(frames_THWC: UInt8Array, to: Path) -> None:
    gop = OPTIONS.gop_frames(FPS)
    groups = f"keyint={gop}:min-keyint={gop}:scenecut=0"
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", SIZE, "-r", str(FPS), "-i", "-", "-vf", TO_BT709,
           *X264, "-threads", str(OPTIONS.threads), "-x264-params", groups, to, stdin=frames_THWC)


def ffmpeg_cuts(clips: list[Path], to: Path) -> None:
    graph = "".join(f"[{number}:v]" for number in range(len(clips))) + f"concat=n={len(clips)}:v=1[v]"
    ffmpeg(*inputs(clips), "-filter_complex", graph, "-map", "[v]", *X264, to)


def ffmpeg_fades(clips: list[Path], to: Path) -> None:
    links, before = [], "[0:v]"
    for number in range(1, len(clips)):
        length_s, offset_s = float(FADE / FPS), float(number * (FRAMES - FADE) / FPS)
        links.append(f"{before}[{number}:v]xfade=transition=fade:duration={length_s}:offset={offset_s}[x{number}]")
        before = f"[x{number}]"
    ffmpeg(*inputs(clips), "-filter_complex", ";".join(links), "-map", before, *X264, to)


def inputs(clips: list[Path]) -> list[str]:
    return [word for clip in clips for word in ("-i", str(clip))]


def joined(clips: list[Path], fade: int, to: Path) -> ComposeReport:
    parts = [Part(path=clip, fade_in_frames=fade if number else 0) for number, clip in enumerate(clips)]
    return compose(parts, to, options=FILM)


# Measures


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@dataclass(slots=True)
class Timing:
    name: str
    work: Callable[[], object]
    seconds: list[float] = field(default_factory=list)


def interleaved(rounds: int, *timings: Timing) -> list[float]:
    """Least CPU-seconds of each."""
    for _ in range(rounds):
        for timing in timings:
            started = cpu_s()
            timing.work()
            timing.seconds.append(cpu_s() - started)
    return [min(timing.seconds) for timing in timings]


def digests(path: Path) -> list[str]:
    command = [FFMPEG, "-v", "warning", "-i", path, "-f", "framemd5", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return [line.split(",")[-1].strip() for line in done.stdout.splitlines() if not line.startswith("#")]


def copied_equal(clips: list[Path], film: Path, fade: int) -> int:
    """Frames of the film that are bit for bit the clip's own at their place."""
    own: list[str] = []
    for number, clip in enumerate(clips):
        own += digests(clip)[fade if number else 0:]
    return sum(one == other for one, other in zip(own, digests(film), strict=True))


def yuv(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        yield from (frame.to_ndarray(format="yuv420p").astype(np.float32) for frame in container.decode(video=0))


def worst_join_psnr(clips: list[Path], film: Path) -> float:
    """Least PSNR of a mixed frame against the mix computed in floats from the decoded clips, in dB."""
    made, worst, tail = yuv(film), np.inf, []
    for number, clip in enumerate(clips):
        frames = list(yuv(clip))
        last = len(frames) - (FADE if number < len(clips) - 1 else 0)
        for index in range(FADE if number else 0):
            share = (index + 1) / (FADE + 1)
            error = float(np.mean((next(made) - tail[index] * (1 - share) - frames[index] * share) ** 2))
            worst = min(worst, 10 * np.log10(255**2 / error))
        for _ in range(FADE if number else 0, last):
            next(made)
        tail = frames[last:]
    return float(worst)


def measure(content: str, blur: float, folder: Path, rounds: int) -> list[tuple[object, ...]]:
    # 1. make the clips   2. time   3. compare
    clips = [folder / f"{content}{number}.mp4" for number in range(CLIPS)]
    for number, clip in enumerate(clips):
        encode(moving(number, blur), fps=FPS, to=clip, options=OPTIONS)
    odd = folder / f"{content}_odd.mp4"
    frames_THWC = moving(0, blur)
    encode(frames_THWC, fps=FPS, to=odd, options=EncodeOptions(preset="faster"))
    mixed = [odd, *clips[1:]]
    cut, fade, out = folder / "cut.mp4", folder / "fade.mp4", folder / "out.mp4"

    ours, piped = interleaved(
        rounds, Timing("in process", lambda: encode(frames_THWC, fps=FPS, to=out, options=OPTIONS)),
        Timing("pipe", lambda: pipe_encode(frames_THWC, out)))
    remux, cuts, smart, fades, whole = interleaved(
        rounds, Timing("remux", lambda: joined(clips, 0, cut)), Timing("concat", lambda: ffmpeg_cuts(clips, out)),
        Timing("smart", lambda: joined(clips, FADE, fade)), Timing("xfade", lambda: ffmpeg_fades(clips, out)),
        Timing("whole", lambda: joined(mixed, FADE, out)))

    report = joined(clips, FADE, fade)
    equal_cut, equal_fade = copied_equal(clips, cut, 0), copied_equal(clips, fade, FADE)
    kind = f"{content}, {sum(clip.stat().st_size for clip in clips) / CLIPS / 1000:.0f} kB a clip"
    joins = (f"{equal_fade} of {report.frames} frames bit-equal, {report.reencoded_frames} encoded, "
             f"mixed ones at least {worst_join_psnr(clips, fade):.1f} dB")
    return [
        (kind, "encode one clip, in process", ours, "FFmpeg, frames through a pipe", piped, piped / ours,
         f"{FRAMES} frames each"),
        (kind, "join by cuts: copy packets", remux, "FFmpeg concat, encode", cuts, cuts / remux,
         f"{equal_cut} of {CLIPS * FRAMES} frames bit-equal"),
        (kind, f"join by fades of {FADE}: copy, encode joins", smart, "FFmpeg xfade, encode", fades, fades / smart,
         joins),
        (kind, "fades, one clip does not match: encode all", whole, "FFmpeg xfade, encode", fades, fades / whole,
         f"{report.frames} frames each"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for content, blur in CONTENTS.items() for row in measure(content, blur, Path(folder), rounds)]
    cut, fade = min(float(str(row[5])) for row in rows[1::4]), min(float(str(row[5])) for row in rows[2::4])
    write_report(
        "compose_cpu_202611", "What does it cost to join a film?",
        ("content", "reelray", "CPU s", "against", "CPU s", "times less", "checked"), rows,
        f"{CLIPS} clips of {FRAMES} frames, {SIZE} at {FPS} fps, x264 {OPTIONS.preset} crf {OPTIONS.crf}, groups of "
        f"{OPTIONS.gop_frames(FPS)} frames; least CPU-seconds of {rounds} interleaved rounds, process and "
        f"children. Goals: cuts {CUT_GOAL} times less ({verdict(cut, CUT_GOAL)}), fades {FADE_GOAL} times less "
        f"({verdict(fade, FADE_GOAL)}). FFmpeg command {imageio_ffmpeg.get_ffmpeg_version()}, libraries in process "
        f"{av.ffmpeg_version_info}.")


def verdict(ratio: float, goal: float) -> str:
    return f"{'met' if ratio >= goal else 'missed'}, {ratio:.3g} at least"


if __name__ == "__main__":
    main()
