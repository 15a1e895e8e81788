"""A part of a video, frame by frame, from anywhere in it: memory for one frame, time for one group of pictures more.

Knows which picture is wanted (a reel), not what for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from workflows.errors import MediaError
from workflows.media.colour import ColourConverter
from workflows.media.files import media_errors, open_video
from workflows.media.frames import UInt8Array
from workflows.media.reel import Reel

TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


def window(path: Path, reel: Reel, *, first: int, frames: int) -> Iterator[UInt8Array]:
    """Frames `first` to `first + frames - 1` of the reel as RGB `frame_HWC`, turned as they are shown, even sides.

    Raises:
        MediaError: damaged, a picture of another size, or a picture of the reel is not where it was.
    """
    colour = ColourConverter()
    for picture in pictures(path, reel, first=first, frames=frames):
        yield as_shown(colour.to_rgb(picture), reel)


def read_window(path: Path, reel: Reel, *, first: int, frames: int) -> UInt8Array:
    """The same as one array `frames_THWC`."""
    frames_THWC = np.empty((frames, reel.height_px, reel.width_px, 3), np.uint8)
    for number, frame_HWC in enumerate(window(path, reel, first=first, frames=frames)):
        frames_THWC[number] = frame_HWC
    return frames_THWC


def as_shown(frame_HWC: UInt8Array, reel: Reel) -> UInt8Array:
    """A stored picture turned, without the last row and column where they are odd ones."""
    turned = cv2.rotate(frame_HWC, TURNS[reel.rotation_deg]) if reel.rotation_deg else frame_HWC
    return np.ascontiguousarray(turned[:reel.height_px, :reel.width_px], np.uint8)


def pictures(path: Path, reel: Reel, *, first: int, frames: int) -> Iterator[av.VideoFrame]:
    """The stored pictures of these frames of the reel, as decoded; a repeated one is the same object again."""
    wanted = reel.times[first:first + frames]
    if len(wanted) < frames or first < 0:
        raise MediaError(path=str(path), problem=f"frames {first} to {first + frames - 1} were asked for; the edit has "
                                                 f"{reel.frames}")
    given = 0
    for picture in _matched(path, reel, wanted, seek=True):
        given += 1
        yield picture
    if given == frames:
        return
    if given:
        raise MediaError(path=str(path), problem=f"damaged: frame {first + given} is not where the file says")
    # Some containers cannot be entered in the middle, or not where they say: read from the beginning.
    for picture in _matched(path, reel, wanted, seek=False):
        given += 1
        yield picture
    if given != frames:
        raise MediaError(path=str(path), problem=f"damaged: frame {first + given} cannot be decoded")


def _matched(path: Path, reel: Reel, wanted: tuple[int, ...], *, seek: bool) -> Iterator[av.VideoFrame]:
    """The wanted pictures until one is missing."""
    turned = reel.rotation_deg in (90, 270)
    size = (reel.height_px, reel.width_px) if turned else (reel.width_px, reel.height_px)
    done = 0
    with open_video(path, quick=True) as (container, stream), media_errors(path, "damaged video data"):
        if seek:
            container.seek(wanted[0], stream=stream, backward=True)
        for number, picture in enumerate(container.decode(stream)):
            time = picture.pts if picture.pts is not None else picture.dts
            time = number if time is None else time
            if time > wanted[done]:
                return
            while done < len(wanted) and wanted[done] == time:
                _require_size(picture, size, path)
                yield picture
                done += 1
            if done == len(wanted):
                return


def _require_size(picture: av.VideoFrame, size: tuple[int, int], path: Path) -> None:
    if (picture.width // 2 * 2, picture.height // 2 * 2) != size:
        raise MediaError(path=str(path), problem=f"a picture of {picture.width}x{picture.height} px in a video of "
                                                 f"{size[0]}x{size[1]}; write it anew with one size first")
