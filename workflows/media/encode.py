"""Frames to H.264 files that browsers play. Knows no model and no film: frames in, one MP4 out.

yuv420p, BT.709 limited range (converted and tagged), `moov` first, closed groups of pictures at fixed distances, times
uniform. Clips written here with the same options have the same codec headers, so that films are joined without encoding
them again. The same frames give the same bytes on one version of PyAV.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
from av.codec.context import Flags
from av.video.frame import PictureType

from workflows.errors import MediaError
from workflows.media.colour import ColourConverter
from workflows.media.files import media_errors, replacing
from workflows.media.frames import OnProgress, UInt8Array, require_frame, require_frames, require_video_format
from workflows.media.probe import VideoInfo, probe

MIN_TIMESCALE = 10_000
"""MP4 tracks count time in at least this many ticks a second (as FFmpeg does)."""
CPU_AVX_512F = 13
"""OpenCV's number for the instruction set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """How frames become H.264."""

    crf: int = 18
    """x264 constant rate factor, 0..51; lower is better and larger."""
    preset: str = "veryfast"
    """x264 preset, `ultrafast` .. `slow`."""
    gop_s: float = 0.5
    """A closed group of pictures starts this often, in seconds."""
    threads: int = 2
    """Encoder threads. Fixed, because x264's bytes depend on it."""

    def gop_frames(self, fps: Fraction) -> int:
        """Frames per group, at least 2: an IDR picture that directly follows another needs an id of its own."""
        return max(2, round(self.gop_s * fps))


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFormat:
    """Size and rate of a video; even sides only."""

    width_px: int
    height_px: int
    fps: Fraction

    def __post_init__(self) -> None:
        require_video_format(width_px=self.width_px, height_px=self.height_px, fps=self.fps)

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px} px at {self.fps} fps"

    @property
    def timescale(self) -> int:
        """Ticks per second of an MP4 track, a multiple of the rate's numerator: frames fall on whole ticks."""
        ticks = self.fps.numerator
        while ticks < MIN_TIMESCALE:
            ticks *= 2
        return ticks


def create_mp4(to: Path, video_format: VideoFormat) -> av.container.OutputContainer:
    """Open an MP4 for writing, with `moov` first and one clock for track and film.

    FFmpeg's default film clock has 1000 ticks a second, which cuts up to 1 ms off the last frame.
    """
    ticks = str(video_format.timescale)
    options = {"movflags": "+faststart", "video_track_timescale": ticks, "movie_timescale": ticks}
    return av.open(f"file:{to}", "w", format="mp4", options=options)


X264_PARAMS = "keyint=infinite:scenecut=0:open-gop=0:stitchable=1"
"""Groups start where H264Encoder says, never at scene cuts; headers depend on size, rate and preset, not on crf."""
QUICK_SEARCH = ":subme=0:me=dia:partitions=i8x8,i4x4"
QUICK_JOIN_PRESETS = frozenset({"veryfast", "faster"})
"""Crossfades hold little motion to search for: the same PSNR (within 0.2 dB) for half the time, a tenth more bytes.
Not from `fast` on, where a codec header depends on the search."""
AVX2_PARAMS = ":asm=avx2"
"""x264's AVX-512 macroblock tree gives other bytes on every run (core 165), its AVX2 code does not."""


def configure(
    context: av.VideoCodecContext, video_format: VideoFormat, options: EncodeOptions, *, for_joins: bool = False,
) -> None:
    """Set up an unopened libx264 context; equal formats and options give equal codec headers."""
    context.width, context.height, context.pix_fmt = video_format.width_px, video_format.height_px, "yuv420p"
    context.framerate = video_format.fps
    context.time_base = 1 / video_format.fps
    context.thread_count = options.threads
    context.color_range = context.color_primaries = context.color_trc = context.colorspace = 1  # limited, BT.709
    context.flags |= Flags.global_header | Flags.closed_gop
    params = X264_PARAMS
    if for_joins and options.preset in QUICK_JOIN_PRESETS:
        params += QUICK_SEARCH
    if cv2.checkHardwareSupport(CPU_AVX_512F):
        params += AVX2_PARAMS
    context.options = {"preset": options.preset, "crf": str(options.crf), "forced-idr": "1", "x264-params": params}


def open_join_encoder(video_format: VideoFormat, options: EncodeOptions) -> av.VideoCodecContext:
    """An encoder outside any file, open: its `extradata` holds the headers that clips made with `options` have."""
    context = av.CodecContext.create("libx264", "w")
    configure(context, video_format, options, for_joins=True)
    with media_errors(None, "the H.264 encoder refuses these settings"):
        context.open()
    return context


class H264Encoder:
    """Feeds an encoder context: numbers the frames and says where groups start.

    Holds one frame back, because a group of one picture at the end is avoided: it joins the group before.
    """

    def __init__(self, context: av.VideoCodecContext, video_format: VideoFormat, options: EncodeOptions) -> None:
        self._context = context
        self._time_base = 1 / video_format.fps
        self._gop_frames = options.gop_frames(video_format.fps)
        self._held: av.VideoFrame | None = None
        self.frames = 0
        """Frames taken so far."""

    def add(self, frame: av.VideoFrame) -> list[av.Packet]:
        """Take the next frame; return the packets that are ready."""
        ready = self._encode_held(is_last=False)
        self._held = frame
        self.frames += 1
        return ready

    def finish(self) -> list[av.Packet]:
        """Return all remaining packets; the encoder takes no more frames."""
        return [*self._encode_held(is_last=True), *self._context.encode(None)]

    def _encode_held(self, *, is_last: bool) -> list[av.Packet]:
        frame, index = self._held, self.frames - 1
        if frame is None:
            return []
        self._held = None
        starts_group = index % self._gop_frames == 0 and not (is_last and index)
        frame.pict_type = PictureType.I if starts_group else PictureType.NONE
        frame.pts, frame.time_base = index, self._time_base
        packets: list[av.Packet] = self._context.encode(frame)
        return packets


class ClipWriter:
    """Writes one MP4 frame by frame; made by `write_clip`."""

    def __init__(
        self, container: av.container.OutputContainer, to: Path, video_format: VideoFormat, options: EncodeOptions,
    ) -> None:
        self._container = container
        self._to = to
        self._format = video_format
        self._stream = container.add_stream("libx264", rate=video_format.fps)
        configure(self._stream.codec_context, video_format, options)
        container.start_encoding()
        self._encoder = H264Encoder(self._stream.codec_context, video_format, options)
        self._colour = ColourConverter()

    def write(self, frame_HWC: UInt8Array) -> None:
        """Append one RGB frame; raise MediaError when its size is not the clip's."""
        require_frame(frame_HWC)
        height_px, width_px = frame_HWC.shape[:2]
        if (width_px, height_px) != (self._format.width_px, self._format.height_px):
            raise MediaError(path=str(self._to), problem=f"frame {self._encoder.frames} is {width_px}x{height_px} px; "
                                                         f"needed: {self._format.width_px}x{self._format.height_px}")
        self.write_yuv(self._colour.to_yuv(frame_HWC))

    def write_yuv(self, frame: av.VideoFrame) -> None:
        """Append one frame that already is yuv420p, BT.709, limited range, and of the clip's size."""
        self._mux(self._encoder.add(frame))

    def finish(self) -> None:
        """Write what the encoder still holds; raise MediaError when there was no frame."""
        if not self._encoder.frames:
            raise MediaError(path=str(self._to), problem="no frames to write")
        self._mux(self._encoder.finish())

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.stream = self._stream
            self._container.mux(packet)


@contextmanager
def write_clip(to: Path, *, video_format: VideoFormat, options: EncodeOptions) -> Iterator[ClipWriter]:
    """Open an MP4 for writing; it appears at `to`, whole, when the `with` block ends without an error.

    Raises:
        MediaError: no frame was written, or the file cannot be written.
    """
    with replacing(to) as part, media_errors(to, "cannot be written"), create_mp4(part, video_format) as container:
        clip = ClipWriter(container, to, video_format, options)
        yield clip
        clip.finish()


def encode(
    frames_THWC: UInt8Array,
    *,
    fps: Fraction | int,
    to: Path,
    options: EncodeOptions,
    on_frame: OnProgress | None = None,
) -> VideoInfo:
    """Write RGB frames (0-255) as an MP4 and describe it.

    `on_frame` is called after each frame with (frames done, frames in all); what it raises stops the work and leaves no
    file.

    Raises:
        MediaError: no frames, odd sides, or the file cannot be written.
    """
    require_frames(frames_THWC)
    total, height_px, width_px = frames_THWC.shape[:3]
    video_format = VideoFormat(width_px=width_px, height_px=height_px, fps=Fraction(fps))
    with write_clip(to, video_format=video_format, options=options) as clip:
        for done, frame_HWC in enumerate(frames_THWC, start=1):
            clip.write(frame_HWC)
            if on_frame is not None:
                on_frame(done, total)
    return probe(to)
