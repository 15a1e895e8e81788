"""An edit as nodes. Pure; runs nothing, stores nothing, reads no file.

Nodes: `extract`; for each chunk `c1`, `c2` ... a `c1.mask` and a `c1.edit`; between them `propagate`; after them
`smooth`, `preview`, `save`, `report` and `plot`. What an `edit_prompt` changes hangs on `propagate` and not the other
way round: another edit of the same region tracks nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflows.edit import EditRequest, Instances
from workflows.edit_door import Part
from workflows.types import CPU_LANE, Artifact, Json, NodeKind, NodeSpec

EXTRACT, PROPAGATE, SMOOTH = "extract", "propagate", "smooth"
PREVIEW, SAVE, REPORT, PLOT = "preview", "save", "report", "plot"
EDIT_KINDS = frozenset({
    NodeKind.EXTRACT, NodeKind.MASK, NodeKind.PROPAGATE, NodeKind.EDIT, NodeKind.SMOOTH, NodeKind.PREVIEW,
    NodeKind.SAVE, NodeKind.REPORT, NodeKind.PLOT})
BESIDE: Mapping[str, str] = {"mask": PREVIEW, "report": REPORT, "plot": PLOT}
"""Files that an edit makes beside its video, by what users call them -> the node that makes each."""
REPORT_SAMPLES = 120
"""Frames that the report looks at, evenly spread: as long for an hour as for a minute."""
# CPU-seconds per frame of 1280x720 pixels on one core, measured; models' are their cards'.
_READ_S, _SMOOTH_S, _SAVE_S, _PREVIEW_S = 0.02, 0.02, 0.03, 0.03
_MEASURED_PX = 1280 * 720
_LEAST_COST_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """Who does the work of one kind of node."""

    card: str
    digest: str
    """What decides its results, beside the payload."""
    lane: str = CPU_LANE
    seconds_per_frame: float = 0.02
    """Expected, of one frame of the chunk (all its denoising steps together)."""


CLASSICAL = Hand(card="classical", digest="classical-1")
"""Tracker and editor without weights; the digest changes with their results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditAssets:
    """What of the request lies in the store."""

    source: Artifact
    mask_video: Artifact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some frames of an edit that go through a model together; neighbours share some."""

    id: str
    first: int
    frames: int
    own_first: int
    own_end: int
    """Frames `own_first` to `own_end - 1` are this chunk's alone: half of what it shares belongs to its neighbour."""

    @property
    def end(self) -> int:
        """The first frame after it."""
        return self.first + self.frames

    def piece(self) -> dict[str, Json]:
        """As a payload names it."""
        return {"node": mask_node(self), "first": self.first, "frames": self.frames, "own_first": self.own_first,
                "own_end": self.own_end}


def mask_node(chunk: Chunk) -> str:
    """Id of the node that finds the region in a chunk."""
    return f"{chunk.id}.mask"


def edit_node(chunk: Chunk) -> str:
    """Id of the node that edits a chunk."""
    return f"{chunk.id}.edit"


def chunks_of(frames: int, chunk_frames: int, overlap_frames: int) -> tuple[Chunk, ...]:
    """Chunks of at most `chunk_frames` frames, each sharing `overlap_frames` with the next; all frames are covered."""
    step = chunk_frames - overlap_frames
    firsts = [0, *range(step, frames - overlap_frames, step)]
    half = overlap_frames // 2
    return tuple(
        Chunk(id=f"c{number}", first=first, frames=min(chunk_frames, frames - first),
              own_first=first + half if number > 1 else 0,
              own_end=first + step + half if number < len(firsts) else frames)
        for number, first in enumerate(firsts, start=1))


def plan_edit(request: EditRequest, part: Part, assets: EditAssets, *, size: tuple[int, int],
              tracker: Hand = CLASSICAL, editor: Hand = CLASSICAL) -> tuple[NodeSpec, ...]:
    """The nodes of an edit, each after all that it depends on. `size`: width and height of the source as shown."""
    plan = _Plan(request, part, assets, size, tracker, editor)
    return plan.nodes()


class _Plan:
    """One edit while it is planned."""

    def __init__(self, request: EditRequest, part: Part, assets: EditAssets,
                 size: tuple[int, int], tracker: Hand, editor: Hand) -> None:
        self._request, self._part, self._size = request, part, size
        self._tracker, self._editor = tracker, editor
        self._source = assets.source.to_json()
        self._mask_video = assets.mask_video
        self._chunks = chunks_of(part.frames, request.chunk_frames, request.overlap_frames)
        self._masks = tuple(mask_node(chunk) for chunk in self._chunks)

    def nodes(self) -> tuple[NodeSpec, ...]:
        edits = tuple(edit_node(chunk) for chunk in self._chunks)
        known = (EXTRACT, PROPAGATE, *self._masks)
        overlaps: list[Json] = [{"node": edit_node(chunk), "first": chunk.first, "frames": chunk.frames}
                                for chunk in self._chunks]
        request, source = self._request, self._source
        smooth: dict[str, Json] = {"source": source, "edits": overlaps, "strength": request.smoothing}
        save: dict[str, Json] = {"source": source, "feather_px": request.feather_px, "keep_audio": request.keep_audio,
                                 "whole": self._part.whole}
        report: dict[str, Json] = {"source": source, "edits": overlaps, "feather_px": request.feather_px,
                                   "samples": REPORT_SAMPLES}
        frames = self._part.frames
        return (
            self._extract(), *self._mask_nodes(), self._propagate(), *self._edit_nodes(),
            self._cpu(PREVIEW, NodeKind.PREVIEW, known, {"source": source}, _PREVIEW_S * frames),
            self._cpu(SMOOTH, NodeKind.SMOOTH, (*known, *edits), smooth, _SMOOTH_S * frames),
            self._cpu(SAVE, NodeKind.SAVE, (*known, SMOOTH), save, _SAVE_S * frames),
            self._cpu(REPORT, NodeKind.REPORT, (*known, *edits, SMOOTH, SAVE), report,
                      4 * _READ_S * min(frames, REPORT_SAMPLES)),
            self._cpu(PLOT, NodeKind.PLOT, (REPORT,), {}, 0.0),
        )

    def _cpu(self, name: str, kind: NodeKind, deps: tuple[str, ...], payload: dict[str, Json],
             seconds: float) -> NodeSpec:
        share = self._size[0] * self._size[1] / _MEASURED_PX
        return NodeSpec(id=name, kind=kind, deps=deps, payload=payload, cost=max(seconds * share, _LEAST_COST_S))

    def _extract(self) -> NodeSpec:
        payload: dict[str, Json] = {"source": self._source, "first": self._part.first, "frames": self._part.frames,
                                    "fps": str(self._part.fps)}
        return self._cpu(EXTRACT, NodeKind.EXTRACT, (), payload, _READ_S)

    def _propagate(self) -> NodeSpec:
        request = self._request
        payload: dict[str, Json] = {
            "pieces": [chunk.piece() for chunk in self._chunks], "invert": request.invert_mask,
            "erode_px": request.erode_kernel, "dilate_px": request.dilation_px, "margin": request.crop_margin,
            "crop_px": request.edit_size, "sought": _sought(request), "tracker": self._tracker.card}
        return self._cpu(PROPAGATE, NodeKind.PROPAGATE, (EXTRACT, *self._masks), payload, _READ_S * self._part.frames)

    # -- masks --------------------------------------------------------------------------------------------------

    def _mask_nodes(self) -> list[NodeSpec]:
        if self._mask_video is not None:
            return [self._given(chunk, self._mask_video) for chunk in self._chunks]
        if not self._is_chain():
            return [self._mask(chunk, carried_from=None) for chunk in self._chunks]
        anchor = self._anchor()
        nodes = [self._mask(self._chunks[anchor], carried_from=None)]
        nodes += [self._mask(later, carried_from=earlier)
                  for earlier, later in zip(self._chunks[anchor:], self._chunks[anchor + 1:], strict=False)]
        nodes += [self._mask(self._chunks[place], carried_from=self._chunks[place + 1])
                  for place in range(anchor - 1, -1, -1)]
        return nodes

    def _is_chain(self) -> bool:
        """Whether a chunk must know what was followed in its neighbour; what fits words alone is found anew in each."""
        request = self._request
        return bool(request.points or request.boxes) or request.instances is Instances.BEST

    def _anchor(self) -> int:
        """The chunk in which following begins: that of the earliest point or box."""
        prompted = [*(point.frame for point in self._request.points), *(box.frame for box in self._request.boxes)]
        frame = min(prompted, default=0)
        return next(place for place, chunk in enumerate(self._chunks) if chunk.own_first <= frame < chunk.own_end)

    def _mask(self, chunk: Chunk, *, carried_from: Chunk | None) -> NodeSpec:
        """Forward in time after the chunk that it takes over from, backward before it."""
        find = self._request.find
        payload: dict[str, Json] = {
            "source": self._source, "card": self._tracker.card, "card_digest": self._tracker.digest,
            "prompt": find.prompt, "instances": find.instances, "first": chunk.first, "frames": chunk.frames,
            "points": [{"frame": at.frame - chunk.first, "x": at.x, "y": at.y, "inside": at.inside}
                       for at in find.points if chunk.first <= at.frame < chunk.end],
            "boxes": [{"frame": at.frame - chunk.first, "left": at.left, "top": at.top, "right": at.right,
                       "bottom": at.bottom} for at in find.boxes if chunk.first <= at.frame < chunk.end]}
        deps: tuple[str, ...] = (EXTRACT,)
        if carried_from is not None:
            backward = carried_from.first > chunk.first
            seam = chunk.end - 1 if backward else chunk.first
            payload |= {"backward": backward, "carried": seam - carried_from.first}
            deps = (EXTRACT, mask_node(carried_from))
        return NodeSpec(id=mask_node(chunk), kind=NodeKind.MASK, shot_id=chunk.id, deps=deps, payload=payload,
                        lane=self._tracker.lane, cost=self._tracker.seconds_per_frame * chunk.frames)

    def _given(self, chunk: Chunk, video: Artifact) -> NodeSpec:
        payload: dict[str, Json] = {"mask_video": video.to_json(), "first": chunk.first, "frames": chunk.frames,
                                    "offset": self._part.first}
        return NodeSpec(id=mask_node(chunk), kind=NodeKind.MASK, shot_id=chunk.id, deps=(EXTRACT,), payload=payload,
                        cost=_READ_S * chunk.frames)

    # -- edits --------------------------------------------------------------------------------------------------

    def _edit_nodes(self) -> list[NodeSpec]:
        return [self._edit(place, chunk) for place, chunk in enumerate(self._chunks)]

    def _edit(self, place: int, chunk: Chunk) -> NodeSpec:
        request = self._request
        payload: dict[str, Json] = {
            "source": self._source, "card": self._editor.card, "card_digest": self._editor.digest,
            "prompt": request.edit_prompt.strip(), "negative_prompt": request.negative_prompt.strip(),
            "steps": request.steps, "guidance": request.guidance_scale,
            "image_guidance": request.image_guidance_scale, "seed": request.seed, "first": chunk.first,
            "frames": chunk.frames}
        near = _near(self._chunks, place)
        deps = (EXTRACT, PROPAGATE, *(mask_node(other) for other in near))
        return NodeSpec(id=edit_node(chunk), kind=NodeKind.EDIT, shot_id=chunk.id, deps=deps, payload=payload,
                        lane=self._editor.lane, cost=self._editor.seconds_per_frame * chunk.frames)


def _near(chunks: Sequence[Chunk], place: int) -> list[Chunk]:
    """The chunks that own some of this one's frames."""
    mine = chunks[place]
    return [other for other in chunks[max(0, place - 2):place + 3]
            if other.own_first < mine.end and mine.first < other.own_end]


def _sought(request: EditRequest) -> str:
    """What is looked for, in words."""
    counted = ((len(request.points), "point", "points"), (len(request.boxes), "box", "boxes"))
    places = [f"{count} {one if count == 1 else many}" for count, one, many in counted if count]
    told = [repr(request.mask_prompt.strip())] if request.mask_prompt.strip() else []
    return " and ".join(told + places) or "the given masks"
