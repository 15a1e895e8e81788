"""The stages of an edit that need no model: from the source's frames to the finished file. Callers own the thread.

All of them stream: one frame in memory, however long the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from workflows.edit_plan import SMOOTH
from workflows.errors import NothingFound, StageFailed
from workflows.media.colour import ColourConverter
from workflows.media.crop_track import BoxPx, follow
from workflows.media.encode import EncodeOptions, VideoFormat, write_clip
from workflows.media.frames import OnProgress, UInt8Array
from workflows.media.lossless import read_lossless, write_lossless
from workflows.media.masks import MaskReel, Piece, box_of, overlap
from workflows.media.overlay import overlaid
from workflows.media.planes import Painter, PlaneReader, to_picture
from workflows.media.remaster import write_remaster
from workflows.media.source import thread
from workflows.media.steady import Steadier, faded
from workflows.media.window import as_shown, pictures, window
from workflows.ports import ArtifactStore
from workflows.stages.edit_bench import Bench, Edits, Files, edits_of, pieces_of, shaping_of
from workflows.stages.edit_models import is_given, take_masks
from workflows.stages.edit_report import draw, measure
from workflows.stages.render import integer, number
from workflows.types import MediaType, NodeCall, NodeKind, NodeResult

AGREED = 0.5
"""Two chunks that find less than this in common where they overlap do not follow the same."""
QUALITY_CRF = 7
"""What was not edited should look as it did: 1.8 dB closer to the source than at 10, for 1.4 times the bytes."""


class EditFinisher:
    """Runs the stages of any edit that need no model."""

    def __init__(self, store: ArtifactStore, options: EncodeOptions) -> None:
        """`options` say how previews are encoded; edited videos are encoded with a finer quality."""
        self._files = Files(store)
        self._options = options
        self._fine = EncodeOptions(crf=min(options.crf, QUALITY_CRF), preset=options.preset, gop_s=options.gop_s,
                                   threads=options.threads)
        self._stages: Mapping[NodeKind, Callable[[Bench, OnProgress], NodeResult]] = {
            NodeKind.EXTRACT: self._extract, NodeKind.MASK: self._given_masks, NodeKind.PROPAGATE: self._propagate,
            NodeKind.SMOOTH: self._smooth, NodeKind.PREVIEW: self._preview, NodeKind.SAVE: self._save,
            NodeKind.REPORT: measure, NodeKind.PLOT: draw}

    @property
    def kinds(self) -> frozenset[NodeKind]:
        """The kinds of nodes that it runs; of masks those that are given."""
        return frozenset(self._stages)

    def run(self, call: NodeCall, on_progress: OnProgress) -> NodeResult:
        """Run one node; a result that the store already has is returned at once.

        `on_progress` is called with (frames done, frames in all), and may raise to stop the stage. Raises StageFailed
        and its children, MediaError, and what the store raises.
        """
        found = self._files.store.find(call.key)
        if found is not None:
            return NodeResult(artifact=found)
        stage = self._stages.get(call.kind)
        if stage is None or (call.kind is NodeKind.MASK and not is_given(call)):
            raise StageFailed(node_id=call.node_id, reason=f"{call.kind} needs a model")
        return stage(Bench(call, self._files), on_progress)

    def _extract(self, bench: Bench, on_progress: OnProgress) -> NodeResult:
        """Find where each frame's picture is, and decode the first one: a source that cannot be read fails here."""
        payload = bench.call.payload
        path = bench.payload_file("source")
        reel = thread(path, first=integer(payload["first"]), frames=integer(payload["frames"]),
                      fps=Fraction(str(payload["fps"])))
        for _ in pictures(path, reel, first=0, frames=1):
            on_progress(1, 1)
        return bench.keep_json(reel.to_json())

    def _given_masks(self, bench: Bench, on_progress: OnProgress) -> NodeResult:
        on_progress(0, 1)
        return take_masks(bench)

    def _propagate(self, bench: Bench, on_progress: OnProgress) -> NodeResult:
        """One region out of the chunks', and the square that follows it. Raises NothingFound."""
        payload = bench.call.payload
        reel, pieces, shaping = bench.reel(), pieces_of(payload), shaping_of(payload)
        boxes: list[BoxPx | None] = []
        for mask_HW in MaskReel(pieces, bench.input, shaping).read(first=0, frames=reel.frames):
            boxes.append(box_of(mask_HW))
            on_progress(len(boxes), reel.frames)
        if not any(boxes):
            raise _nothing(bench, pieces)
        track = follow(boxes, size=(reel.width_px, reel.height_px), margin=number(payload["margin"]),
                       fps=float(reel.fps), crop_px=integer(payload["crop_px"]))
        warnings = (*_disagreements(bench, pieces), *_gaps(boxes))
        return bench.keep_json({
            "pieces": payload["pieces"], "invert": shaping.invert, "erode_px": shaping.erode_px,
            "dilate_px": shaping.dilate_px, "track": track.to_json()}, warnings=warnings)

    def _smooth(self, bench: Bench, on_progress: OnProgress) -> NodeResult:
        payload = bench.call.payload
        reel = bench.reel()
        track, _ = bench.track()
        steadier = Steadier(track.size_px, number(payload["strength"]))
        source = window(bench.payload_file("source"), reel, first=0, frames=reel.frames)
        with bench.scratch("smooth.mkv") as path:
            with write_lossless(path) as writer:
                for frame, (frame_HWC, edited_HWC) in enumerate(zip(
                        source, joined(bench, edits_of(payload)), strict=True)):
                    if frame in track.empty:
                        steadier.forget()
                        writer.write(edited_HWC)
                    else:
                        writer.write(steadier.steady(track.crop(frame_HWC, frame), edited_HWC))
                    on_progress(frame + 1, reel.frames)
            return bench.keep(path, MediaType.MKV)

    def _preview(self, bench: Bench, on_progress: OnProgress) -> NodeResult:
        reel = bench.reel()
        _, masks = bench.track()
        video_format = VideoFormat(width_px=reel.width_px, height_px=reel.height_px, fps=reel.fps)
        seen = zip(window(bench.payload_file("source"), reel, first=0, frames=reel.frames),
                   masks.read(first=0, frames=reel.frames), strict=True)
        with bench.scratch("preview.mp4") as path:
            with write_clip(path, video_format=video_format, options=self._options) as clip:
                for done, (frame_HWC, mask_HW) in enumerate(seen, start=1):
                    clip.write(overlaid(frame_HWC, mask_HW))
                    on_progress(done, reel.frames)
            return bench.keep(path, MediaType.MP4)

    def _save(self, bench: Bench, on_progress: OnProgress) -> NodeResult:
        payload = bench.call.payload
        source, reel = bench.payload_file("source"), bench.reel()
        track, masks = bench.track()
        reader, painter = PlaneReader(reel), Painter(track, integer(payload["feather_px"]))
        colour = ColourConverter()
        rows = zip(pictures(source, reel, first=0, frames=reel.frames), masks.read(first=0, frames=reel.frames),
                   read_lossless(bench.input(SMOOTH), first=0, frames=reel.frames), strict=True)
        with bench.scratch("out.mp4") as path:
            with write_remaster(path, source, reel, options=self._fine, keep_audio=payload["keep_audio"] is True,
                                is_whole=payload["whole"] is True) as writer:
                for frame, (picture, mask_HW, crop_HWC) in enumerate(rows):
                    planes = reader.read(picture)
                    if frame not in track.empty:
                        painter.paint(planes, as_shown(colour.to_rgb(picture), reel), crop_HWC, mask_HW, frame)
                    writer.write(to_picture(planes))
                    on_progress(frame + 1, reel.frames)
            return bench.keep(path, MediaType.MP4)


def joined(bench: Bench, edits: Sequence[Edits]) -> Iterator[UInt8Array]:
    """The edited crops of all frames: where two chunks overlap, one fades into the other."""
    before: list[UInt8Array] = []
    for place, chunk in enumerate(edits):
        end = edits[place + 1].first if place + 1 < len(edits) else chunk.end
        tail: list[UInt8Array] = []
        for offset, crop_HWC in enumerate(read_lossless(bench.input(chunk.node), first=0, frames=chunk.frames)):
            shown = crop_HWC
            if offset < len(before):
                shown = faded(before[offset], crop_HWC, (offset + 1) / (len(before) + 1))
            if chunk.first + offset < end:
                yield shown
            else:
                tail.append(shown)
        before = tail


def _nothing(bench: Bench, pieces: Sequence[Piece]) -> NothingFound:
    payload = bench.call.payload
    sought, scores = payload["sought"], [score for piece in pieces if (score := bench.score(piece.node)) is not None]
    best = f"; the best score seen is {max(scores):.2f} of 1" if scores and payload["tracker"] else ""
    inverted = " and the mask was inverted or made smaller" if payload["invert"] or payload["erode_px"] else ""
    return NothingFound(node_id=bench.call.node_id, reason=(
        f"nothing was found for {sought} in {pieces[-1].own_end} frames by the tracker {payload['tracker']}{best}"
        f"{inverted}; say it in other words, or point at it (points, boxes)"))


def _disagreements(bench: Bench, pieces: Sequence[Piece]) -> list[str]:
    """Where two chunks overlap and did not find the same."""
    said = []
    for earlier, later in pairwise(pieces):
        shared = earlier.first + earlier.frames - later.first
        if shared <= 0:
            continue
        alike = [overlap(one, other) for one, other in zip(
            read_lossless(bench.input(earlier.node), first=earlier.frames - shared, frames=shared),
            read_lossless(bench.input(later.node), first=0, frames=shared), strict=True)]
        if float(np.mean(alike)) < AGREED:
            said.append(f"around frame {later.own_first} two chunks found different regions (overlap "
                        f"{float(np.mean(alike)):.2f}); the edit may jump there")
    return said


def _gaps(boxes: Sequence[BoxPx | None]) -> list[str]:
    empty = sum(box is None for box in boxes)
    return [f"in {empty} of {len(boxes)} frames there is nothing to edit; they stay as they are"] if empty else []


