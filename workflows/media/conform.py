"""Clips of any size, rate and codec to frames of one film. Knows no encoder: files in, the film's frames out."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction

import av

from workflows.media.colour import ColourConverter
from workflows.media.encode import VideoFormat
from workflows.media.files import media_errors, open_video, require_count
from workflows.media.gops import Track

HALF = Fraction(1, 2)


def film_frames(track: Track, fps: Fraction) -> int:
    """How many frames a clip has at the film's rate; its length in seconds is kept, to half a frame."""
    return max(1, round(track.duration_s * fps))


def conformed(track: Track, film: VideoFormat) -> Generator[av.VideoFrame, None, None]:
    """Decode a whole clip at the film's size and rate: scaled to fit, centred on black, in BT.709.

    A film frame shows what the clip shows in the middle of its time, so frames are dropped or repeated, never mixed.

    Raises:
        MediaError: the clip is damaged.
    """
    colour = ColourConverter()
    total = film_frames(track, film.fps)
    stored = sent = 0
    origin: Fraction | None = None
    shown: av.VideoFrame | None = None
    with open_video(track.path, quick=True) as (container, stream), media_errors(track.path, "damaged video data"):
        for frame in container.decode(stream):
            time = frame.pts * Fraction(stream.time_base) if frame.pts is not None else stored / track.fps
            origin = time if origin is None else origin
            while shown is not None and sent < total and (sent + HALF) / film.fps < time - origin:
                yield shown
                sent += 1
            shown = colour.to_film(frame, width_px=film.width_px, height_px=film.height_px)
            stored += 1
    require_count(stored, track.frames, track.path)
    for _ in range(total - sent):
        yield shown
