"""The stages that need no model: raise a clip's frame rate, burn a caption, join the film. Callers own the thread.

Knows the store and the media functions, not where it runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from workflows.errors import StageFailed
from workflows.media.caption import caption_clip
from workflows.media.compose import ComposeOptions, compose
from workflows.media.encode import EncodeOptions, encode
from workflows.media.interpolate import interpolate_clip
from workflows.media.stills import slate_clip
from workflows.media.timeline import Part
from workflows.ports import ArtifactStore
from workflows.shape import exact_fps
from workflows.stages.render import integer, number
from workflows.types import Artifact, Json, MediaType, NodeCall, NodeKind, NodeResult

OnProgress = Callable[[int, int], None]
"""Called with (done, total) frames; may raise RenderCancelled or DeadlineExceeded to stop the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmPart:
    """One shot's place in the film, as planned."""

    shot: str
    node: str
    """The node whose clip goes here."""
    frames: int
    fade_in_frames: int
    """0: a hard cut from the shot before."""
    text: str
    """What a slate shows when the clip is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmOrder:
    """A compose node's payload, typed."""

    width_px: int
    height_px: int
    fps: Fraction
    slates: bool
    """A missing shot is shown as a slate; otherwise the film goes on without it."""
    parts: tuple[FilmPart, ...]

    @classmethod
    def of(cls, payload: Mapping[str, Json]) -> FilmOrder:
        """Read the payload that the plan wrote; ValueError only if it never writes such a one."""
        rows = payload["parts"]
        if not isinstance(rows, list):
            raise ValueError("compose payload holds no list of parts")
        parts = [FilmPart(shot=str(row["shot"]), node=str(row["node"]), frames=integer(row["frames"]),
                          fade_in_frames=integer(row["fade_in_frames"]), text=str(row["text"]))
                 for row in rows if isinstance(row, dict)]
        return cls(width_px=integer(payload["width_px"]), height_px=integer(payload["height_px"]),
                   fps=exact_fps(number(payload["fps"])), slates=payload["missing"] == "slate", parts=tuple(parts))


@dataclass(frozen=True, slots=True)
class _Made:
    """What one stage wrote, and what to say about it."""

    warnings: tuple[str, ...] = ()
    report: Json = None


class Finisher:
    """Runs the media stages of any job: fetch inputs, make one file in a scratch directory, commit it."""

    def __init__(self, store: ArtifactStore, options: EncodeOptions) -> None:
        """`options` say how files are encoded; all clips of a film must share them for joins without re-encoding."""
        self._store = store
        self._options = options

    def run(self, call: NodeCall, on_progress: OnProgress) -> NodeResult:
        """Run one interpolate, caption or compose node; a result that the store already has is returned at once."""
        started = time.monotonic()
        found = self._store.find(call.key)
        if found:
            return NodeResult(artifact=found)
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            target = Path(scratch) / "out.mp4"
            made = self._make(call, target, on_progress)
            seconds = time.monotonic() - started
            manifest: dict[str, Json] = {
                "kind": call.kind.value, "parameters": dict(call.payload), "attempt": call.attempt,
                "inputs": {node: a.to_json() if a else None for node, a in call.inputs.items()},
                "report": made.report, "seconds": round(seconds, 3),
            }
            artifact = self._store.put(call.key, target, media_type=MediaType.MP4, manifest=manifest)
        return NodeResult(artifact=artifact, warnings=made.warnings, seconds={"total": seconds})

    def _make(self, call: NodeCall, target: Path, on_progress: OnProgress) -> _Made:
        match call.kind:
            case NodeKind.INTERPOLATE:
                interpolate_clip(self._input(call), target, factor=integer(call.payload["factor"]),
                                 options=self._options, on_progress=on_progress)
            case NodeKind.CAPTION:
                caption_clip(self._input(call), str(call.payload["text"]), target, options=self._options,
                             on_progress=on_progress)
            case NodeKind.COMPOSE:
                return self._compose(call, target, on_progress)
            case _:
                raise StageFailed(node_id=call.node_id, reason=f"{call.kind} is not a media stage")
        return _Made()

    def _input(self, call: NodeCall) -> Path:
        for artifact in call.inputs.values():
            if artifact is not None:
                return self._store.fetch(artifact)
        raise StageFailed(node_id=call.node_id, reason="the clip it works on is missing")

    def _compose(self, call: NodeCall, target: Path, on_progress: OnProgress) -> _Made:
        """Join the clips in film order; a missing one leaves a hole or a slate, and a warning either way."""
        order = FilmOrder.of(call.payload)
        if not any(call.inputs.values()):
            raise StageFailed(node_id=call.node_id, reason="no shot of the film was rendered")
        parts: list[Part] = []
        warnings: list[str] = []
        after_hole = True
        for part in order.parts:
            path = self._file_of(part, call.inputs.get(part.node), order, target.parent)
            if call.inputs.get(part.node) is None:
                instead = "a slate stands in its place" if order.slates else "the film goes on without it"
                warnings.append(f"shot {part.shot} is missing: {instead}")
            if path is not None:
                # A fade was planned between two shots; where the first of them is missing it becomes a cut.
                parts.append(Part(path=path, fade_in_frames=0 if after_hole else part.fade_in_frames, label=part.shot))
            after_hole = path is None
        options = ComposeOptions(width_px=order.width_px, height_px=order.height_px, fps=order.fps,
                                 encode=self._options)
        report = compose(parts, target, options=options, on_progress=on_progress)
        return _Made(warnings=tuple(warnings), report={
            "method": report.method.value, "reason": report.reason, "copied_frames": report.copied_frames,
            "reencoded_frames": report.reencoded_frames, "duration_s": report.duration_s})

    def _file_of(self, part: FilmPart, artifact: Artifact | None, order: FilmOrder, scratch: Path) -> Path | None:
        if artifact is not None:
            return self._store.fetch(artifact)
        if not order.slates:
            return None
        path = scratch / f"slate-{part.shot}.mp4"
        frames_THWC = slate_clip(part.text, width_px=order.width_px, height_px=order.height_px, frames=part.frames,
                                 detail=f"shot {part.shot} is missing")
        encode(frames_THWC, fps=order.fps, to=path, options=self._options)
        return path
