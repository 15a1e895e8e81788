"""What a source must be to be edited, and what is said of one that was taken differently than it is. Pure.

Nothing is mended in silence: what cannot be edited is refused with what to do, what is changed on the way is a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from workflows.edit import EditRequest
from workflows.edit_ports import SourceVideo
from workflows.errors import InvalidDocument, Problem

HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
"""Transfers of pictures brighter than white."""
MP4_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")
"""What an MP4 may hold, and players play from it."""
LEAST_SIDE_PX = 32
MOST_SIDE_PX = 8192
SLOWEST_FPS, FASTEST_FPS = Fraction(1, 10), 240
MAX_SOURCE_FRAMES = 500_000
"""Two hours at 60 frames per second, and some more."""
BITS = 8

_TONE_MAP = ("ffmpeg -i IN -vf zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable,"
             "zscale=t=bt709:m=bt709:r=tv,format=yuv420p -c:a copy OUT.mp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which frames of the source are edited, on its timeline of constant rate."""

    first: int
    frames: int
    fps: Fraction
    whole: bool
    """All of the source."""


def part_of(request: EditRequest, source: SourceVideo) -> Part:
    """The part that the request names. Raises InvalidDocument where the source has no such part."""
    total = source.timeline_frames
    first = round(Fraction(request.start_s) * source.fps)
    if first >= total:
        raise InvalidDocument(problems=(Problem(
            field="start_s", problem=f"{request.start_s:g} s is past the end of a video of {source.duration_s:.3f} s",
            nearest=f"{float((total - 1) / source.fps):.3f}"),))
    end = total if request.end_s is None else min(total, round(Fraction(request.end_s) * source.fps))
    frames = max(1, end - first)
    if request.max_frames is not None:
        frames = min(frames, request.max_frames)
    return Part(first=first, frames=frames, fps=source.fps, whole=first == 0 and frames == total)


def source_problems(request: EditRequest, source: SourceVideo) -> tuple[Problem, ...]:
    """Everything that stands in the way of editing this source."""
    rules: tuple[Callable[[SourceVideo], Problem | None], ...] = (_hdr, _interlaced, _alpha, _size, _frame_rate)
    found = [rule(source) for rule in rules]
    found += [_length(request, source), _sound(request, source), *_prompts(request, source)]
    return tuple(problem for problem in found if problem is not None)


def require_source(request: EditRequest, source: SourceVideo) -> Part:
    """The part to edit. Raises InvalidDocument with everything that stands in the way."""
    problems = source_problems(request, source)
    if problems:
        raise InvalidDocument(problems=problems)
    return part_of(request, source)


def source_warnings(request: EditRequest, source: SourceVideo) -> tuple[str, ...]:
    """What of the source is taken differently than it is."""
    said = []
    if not source.constant_rate:
        said.append(f"the frames of the source come at changing distances; the result has {_rate(source.fps)} frames "
                    f"per second throughout, {source.timeline_frames} for {source.frames}")
    if source.rotation_deg:
        said.append(f"the source is stored turned and shown turned by {source.rotation_deg} degrees clockwise; the "
                    f"result is stored as it is shown, {source.width_px}x{source.height_px} px")
    if source.width_px % 2 or source.height_px % 2:
        said.append(f"the source has {source.width_px}x{source.height_px} px; H.264 needs even sides: the last "
                    f"{_odd_sides(source)} left out, the result has {_even(source)} px")
    if source.bits > BITS:
        said.append(f"the source has {source.bits} bits per sample ({source.pix_fmt}), the result has {BITS}")
    elif source.pix_fmt not in ("yuv420p", "yuvj420p"):
        said.append(f"the source's colours are stored as {source.pix_fmt}, the result's as yuv420p")
    if not request.keep_audio and source.audio_codecs:
        said.append("the source's sound is left out, as keep_audio: false says")
    end_s = request.end_s
    if end_s is not None and end_s > source.duration_s + 1 / source.fps:
        said.append(f"end_s is {end_s:g} s; the source ends after {source.duration_s:.3f} s")
    return tuple(said)


def _hdr(source: SourceVideo) -> Problem | None:
    name = HDR.get(source.transfer)
    return None if name is None else Problem(
        field="input_video_path", problem=f"high dynamic range ({name}, {source.transfer}); models see standard range "
                                          "only, so map its tones first", nearest=_TONE_MAP)


def _interlaced(source: SourceVideo) -> Problem | None:
    return None if not source.interlaced else Problem(
        field="input_video_path",
        problem="interlaced: each frame holds two moments, line by line; deinterlace it first",
        nearest="ffmpeg -i IN -vf bwdif -c:a copy OUT.mp4")


def _alpha(source: SourceVideo) -> Problem | None:
    return None if not source.has_alpha else Problem(
        field="input_video_path", problem=f"transparent ({source.codec}, {source.pix_fmt}), which H.264 cannot hold; "
                                          "put it on a background first",
        nearest="ffmpeg -f lavfi -i color=gray -i IN -filter_complex '[0][1]scale2ref[b][v];[b][v]overlay=shortest=1' "
                "OUT.mp4")


def _size(source: SourceVideo) -> Problem | None:
    small, large = sorted((source.width_px, source.height_px))
    if small < LEAST_SIDE_PX or large > MOST_SIDE_PX:
        return Problem(field="input_video_path", problem=f"{source.width_px}x{source.height_px} px",
                       nearest=f"sides of {LEAST_SIDE_PX} to {MOST_SIDE_PX} px")
    return None


def _frame_rate(source: SourceVideo) -> Problem | None:
    return None if SLOWEST_FPS <= source.fps <= FASTEST_FPS else Problem(
        field="input_video_path", problem=f"{float(source.fps):.6g} frames per second",
        nearest=f"{float(SLOWEST_FPS):g} to {FASTEST_FPS} frames per second")


def _length(request: EditRequest, source: SourceVideo) -> Problem | None:
    wanted = source.timeline_frames
    if request.max_frames is not None:
        wanted = min(wanted, request.max_frames)
    if request.end_s is not None:
        wanted = min(wanted, round(Fraction(request.end_s - request.start_s) * source.fps))
    return None if wanted <= MAX_SOURCE_FRAMES else Problem(
        field="input_video_path", problem=f"too long: {wanted} frames ({source.duration_s:.0f} s at "
                                          f"{_rate(source.fps)} per second)",
        nearest=f"at most {MAX_SOURCE_FRAMES} frames; edit it in parts with start_s and end_s")


def _sound(request: EditRequest, source: SourceVideo) -> Problem | None:
    strange = [codec for codec in source.audio_codecs if codec not in MP4_SOUND]
    return None if not strange or not request.keep_audio else Problem(
        field="keep_audio", problem=f"the source's sound ({', '.join(strange)}) cannot be copied into an MP4",
        nearest="false, or convert it first: ffmpeg -i IN -c:v copy -c:a aac OUT.mp4")


def _prompts(request: EditRequest, source: SourceVideo) -> list[Problem]:
    """Points and boxes that lie outside the picture or the part."""
    width, height = source.width_px // 2 * 2, source.height_px // 2 * 2
    inside = f"0 to {width - 1} across and 0 to {height - 1} down"
    problems = [Problem(field=f"points[{number}]", problem=f"({point.x:g}, {point.y:g}) is outside the picture",
                        nearest=inside)
                for number, point in enumerate(request.points) if point.x >= width or point.y >= height]
    problems += [Problem(field=f"boxes[{number}]", problem=f"({box.left:g}, {box.top:g}) to ({box.right:g}, "
                                                           f"{box.bottom:g}) reaches beyond {width}x{height} px",
                         nearest=inside)
                 for number, box in enumerate(request.boxes) if box.right > width or box.bottom > height]
    try:
        frames = part_of(request, source).frames
    except InvalidDocument as error:
        return [*problems, *error.problems]
    places = [*((f"points[{number}]", point.frame) for number, point in enumerate(request.points)),
              *((f"boxes[{number}]", box.frame) for number, box in enumerate(request.boxes))]
    return [*problems, *(Problem(field=f"{field}.frame", problem=f"frame {frame} of {frames}",
                                 nearest=f"0 to {frames - 1}") for field, frame in places if frame >= frames)]


def _rate(fps: Fraction) -> str:
    return f"{float(fps):.3f}".rstrip("0").rstrip(".")


def _even(source: SourceVideo) -> str:
    return f"{source.width_px // 2 * 2}x{source.height_px // 2 * 2}"


def _odd_sides(source: SourceVideo) -> str:
    sides = [name for name, side in (("column", source.width_px), ("row", source.height_px)) if side % 2]
    return f"{' and '.join(sides)} {'are' if len(sides) > 1 else 'is'}"


def mask_video_problems(part: Part, source: SourceVideo, masks: SourceVideo) -> tuple[Problem, ...]:
    """What is wrong with given masks for this part of this source."""
    problems = []
    if (masks.width_px, masks.height_px) != (source.width_px, source.height_px):
        problems.append(Problem(field="mask_video", problem=f"{masks.width_px}x{masks.height_px} px for a video of "
                                                            f"{source.width_px}x{source.height_px}",
                                nearest=f"{source.width_px}x{source.height_px}"))
    if masks.timeline_frames < part.first + part.frames:
        problems.append(Problem(field="mask_video", problem=f"{masks.timeline_frames} frames; the edit needs those up "
                                                            f"to frame {part.first + part.frames - 1}",
                                nearest=f"at least {part.first + part.frames} frames"))
    return tuple(problems)
