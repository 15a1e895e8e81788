"""`classical`: finds by colour and follows by place, without weights. It sees no meaning: a red ball is something red.

The same frames and prompts give the same masks. A named colour is found anew in every frame, so that it comes back
after something stood in front of it. Points and boxes say what it looks like by its colours against those around it
(M. J. Swain, D. H. Ballard, "Color Indexing", IJCV 1991), and it is looked for where it was going.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workflows.edit_ports import Box, Find, Point, ProgressCallback, Tracked, Watching
from workflows.errors import Problem, RenderRefused
from workflows.media.colour_names import COLOURS, LEVELS, LIKE, Look, codes_of, colour_word, look_of, words_of
from workflows.media.frames import UInt8Array
from workflows.media.masks import INSIDE

ARTICLES = frozenset({"the", "a", "an", "all", "every", "any", "and"})
THINGS = frozenset({"thing", "object", "ball", "circle", "disc", "disk", "dot", "square", "box", "rectangle",
                    "triangle", "shape", "region", "area", "blob", "patch", "one"})
"""Words for what it does not tell apart: it goes by the colour alone."""
LEAST_AREA = 2e-4
"""Of the frame; what is smaller is noise."""
LEAST_AREA_PX = 16
OPEN_PX = 3
PATCH_PX = 2
TOLERANCE = 40
"""Grey values per channel by which a thing's colour may differ from that at a point on it."""
PRIOR = 0.02
"""A colour that was seen neither inside nor outside is not inside."""
REACH, REACH_PER_FRAME = 0.75, 0.1
"""How far from where it was going something is looked for, in its own sizes; more for each frame that it was lost."""
MOST_GROWTH = 1.3
"""Parts are of one thing as long as the box around them is not so much larger than it was."""
FADE = 0.7
"""A speed is half forgotten in two frames."""

CANNOT = "the classical tracker knows colours, points and boxes, and no other words"
CAN = f"a colour ({', '.join(COLOURS)}) with or without a word like ball, square or object; or points, or boxes"


@dataclass(slots=True)
class _Trail:
    """Where what is followed was last seen, and how it moved."""

    x: float
    y: float
    size: float
    """Longer side of its box."""
    speed: tuple[float, float] = (0.0, 0.0)
    lost: int = 0


class ClassicalTracker:
    """The tracker that needs no model."""

    def problems(self, find: Find) -> tuple[Problem, ...]:
        """What it cannot look for, and what it can; empty: nothing stands in its way. Quick, needs no frames."""
        strange = [word for word in words_of(find.prompt) if not _is_known(word)]
        if strange:
            said = ", ".join(repr(word) for word in dict.fromkeys(strange))
            return (Problem(field="mask_prompt", problem=f"{said}: {CANNOT}", nearest=CAN),)
        if not colours_in(find.prompt) and not find.boxes and not any(point.inside for point in find.points):
            return (Problem(field="mask_prompt", problem=f"{find.prompt!r} names no colour: {CANNOT}", nearest=CAN),)
        return ()

    def track(self, frames_THWC: UInt8Array, find: Find, *, carried: UInt8Array | None,
              progress_callback: ProgressCallback | None, watch: Watching) -> Tracked:
        """Masks of every frame; `score` is how much the best pixels look like what was sought.

        Raises RenderRefused for what `problems` names.
        """
        refused = self.problems(find)
        if refused and find != Find(instances=find.instances):
            raise RenderRefused(node_id="classical", reason=refused[0].render())
        names = colours_in(find.prompt)
        seeds = _seeds(frames_THWC, find, carried)
        if not names and not seeds:
            # Its points lie in another chunk, and the chunk before lost sight of it.
            return Tracked(masks_THW=np.zeros(frames_THWC.shape[:3], np.uint8), score=0.0, instances=0)
        look = look_of(names) if names else _learnt(frames_THWC, seeds, find.points)
        found = np.empty(frames_THWC.shape[:3], np.uint8)
        score, most = 0.0, 0
        for number, frame_HWC in enumerate(frames_THWC):
            watch.check()
            found[number], count, likeness = _alike(frame_HWC, look)
            score, most = max(score, likeness), max(most, count)
            if progress_callback is not None:
                progress_callback(number + 1, len(frames_THWC), 0.0)
        if names and find.instances == "all" and not find.boxes and not find.points:
            return Tracked(masks_THW=found, score=score, instances=most)
        if not seeds and most:
            seeds = [_largest(found)]
        masks_THW = _followed(found, seeds)
        return Tracked(masks_THW=masks_THW, score=score, instances=len(seeds) if masks_THW.any() else 0)


def colours_in(prompt: str) -> list[str]:
    """The colours that a prompt names."""
    return [name for word in words_of(prompt) if (name := colour_word(word)) is not None]


def _is_known(word: str) -> bool:
    return (word in ARTICLES or colour_word(word) is not None
            or word in THINGS or word.removesuffix("s") in THINGS or word.removesuffix("es") in THINGS)


def _alike(frame_HWC: UInt8Array, look: Look) -> tuple[UInt8Array, int, float]:
    """What looks so, without specks, in how many parts, and how much the most alike place does (0..1)."""
    likeness = look[codes_of(frame_HWC)]
    mask = np.where(likeness >= LIKE, np.uint8(INSIDE), np.uint8(0))
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (OPEN_PX, OPEN_PX))
    opened = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel)
    parts = _Parts(np.asarray(opened, np.uint8))
    best = float(cv2.blur(likeness, (5, 5)).max()) / INSIDE
    return parts.mask(parts.labels), len(parts.labels), best


class _Parts:
    """The connected parts of a mask that are not too small, the largest first."""

    def __init__(self, mask_HW: UInt8Array) -> None:
        count, self._of_pixels, stats, _ = cv2.connectedComponentsWithStats(mask_HW)
        least = max(LEAST_AREA_PX, LEAST_AREA * mask_HW.size)
        areas = sorted(((int(stats[label, cv2.CC_STAT_AREA]), label) for label in range(1, count)), reverse=True)
        self.labels = [label for area, label in areas if area >= least]
        self.largest_px = areas[0][0] if self.labels else 0
        """Area of the largest part; 0: there is none."""
        self._boxes = stats[:, :4]
        self._count = count

    def mask(self, labels: Sequence[int]) -> UInt8Array:
        """These parts as one mask."""
        inside = np.zeros(self._count, np.uint8)
        inside[list(labels)] = INSIDE
        return np.asarray(inside[self._of_pixels], np.uint8)

    def distance(self, label: int, place: tuple[float, float]) -> float:
        """From a place to the box around a part; 0 inside."""
        x, y, width, height = (int(value) for value in self._boxes[label])
        return float(max(x - place[0], place[0] - x - width, y - place[1], place[1] - y - height, 0.0))

    def side(self, labels: Sequence[int]) -> int:
        """Longer side of the box around these parts."""
        boxes = self._boxes[list(labels)]
        far = (boxes[:, :2] + boxes[:, 2:]).max(axis=0) - boxes[:, :2].min(axis=0)
        return int(far.max())


def _seeds(frames_THWC: UInt8Array, find: Find, carried: UInt8Array | None) -> list[tuple[int, UInt8Array]]:
    """Frames in which it is known where it is, with that place as a mask."""
    seeds = [] if carried is None or not carried.any() else [(0, carried)]
    if carried is not None and carried.any() and find.prompt:
        return seeds
    inside = len(frames_THWC)
    seeds += [(box.frame, _boxed(frames_THWC[box.frame], box)) for box in find.boxes if box.frame < inside]
    for frame in sorted({point.frame for point in find.points if point.inside and point.frame < inside}):
        places = [point for point in find.points if point.frame == frame and point.inside]
        seeds.append((frame, _flooded(frames_THWC[frame], places)))
    return [(frame, mask) for frame, mask in seeds if mask.any()]


def _boxed(frame_HWC: UInt8Array, box: Box) -> UInt8Array:
    """What stands out from its surroundings inside a box."""
    height, width = frame_HWC.shape[:2]
    left, top = max(0, round(box.left)), max(0, round(box.top))
    right, bottom = min(width, round(box.right)), min(height, round(box.bottom))
    whole = np.zeros((height, width), np.uint8)
    if right <= left or bottom <= top:
        return whole
    core = whole.copy()
    cv2.ellipse(core, ((left + right - 1) // 2, (top + bottom - 1) // 2),
                (max(1, (right - left) * 3 // 10), max(1, (bottom - top) * 3 // 10)), 0, 0, 360, INSIDE, -1)
    whole[top:bottom, left:right] = INSIDE
    look = _ratio(_counts(frame_HWC, core), _counts(frame_HWC, cv2.bitwise_not(whole)))
    inside = np.where(look[codes_of(frame_HWC)] >= LIKE, whole, np.uint8(0))
    return inside if inside.any() else core


def _flooded(frame_HWC: UInt8Array, points: Iterable[Point]) -> UInt8Array:
    """What has nearly the colour of these points and is connected with them."""
    height, width = frame_HWC.shape[:2]
    soft = cv2.GaussianBlur(frame_HWC, (5, 5), 0)
    filled = np.zeros((height + 2, width + 2), np.uint8)
    for point in points:
        x, y = min(width - 1, int(point.x)), min(height - 1, int(point.y))
        cv2.floodFill(soft, filled, (x, y), None, (TOLERANCE,) * 3, (TOLERANCE,) * 3,
                      4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (INSIDE << 8))
    return np.ascontiguousarray(filled[1:-1, 1:-1])


def _learnt(frames_THWC: UInt8Array, seeds: Sequence[tuple[int, UInt8Array]], points: Iterable[Point]) -> Look:
    """How it looks: colours inside the seeds against those outside."""
    inside = sum((_counts(frames_THWC[frame], mask) for frame, mask in seeds), np.zeros(LEVELS**3))
    outside = sum((_counts(frames_THWC[frame], cv2.bitwise_not(mask)) for frame, mask in seeds), np.zeros(LEVELS**3))
    for point in points:
        if not point.inside and point.frame < len(frames_THWC):
            x, y = int(point.x), int(point.y)
            rows, columns = (slice(max(0, at - PATCH_PX), at + PATCH_PX + 1) for at in (y, x))
            patch = frames_THWC[point.frame, rows, columns]
            if patch.size:
                outside += _counts(patch, np.full(patch.shape[:2], INSIDE, np.uint8)) * inside.sum()
    return _ratio(inside, outside)


def _counts(frame_HWC: UInt8Array, mask_HW: UInt8Array) -> NDArray[np.float64]:
    """How often each coarse colour occurs inside the mask, spread over its neighbours."""
    cube = np.bincount(codes_of(frame_HWC)[mask_HW > 0], minlength=LEVELS**3).reshape((LEVELS,) * 3).astype(np.float64)
    for axis in range(3):
        padded = np.pad(cube, [(1, 1) if other == axis else (0, 0) for other in range(3)])
        lower, upper = np.take(padded, range(LEVELS), axis), np.take(padded, range(2, LEVELS + 2), axis)
        cube = (lower + 2 * cube + upper) / 4
    return np.asarray(cube.ravel())


def _ratio(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> Look:
    """Share of a colour's density that is inside, 0..255."""
    mine, theirs = inside / max(inside.sum(), 1), outside / max(outside.sum(), 1)
    return np.asarray(np.rint(255 * mine / (mine + theirs + PRIOR / LEVELS**3)), np.uint8)


def _largest(found_THW: UInt8Array) -> tuple[int, UInt8Array]:
    """The frame in which the largest part is seen whole, and that part."""
    frame = int(np.argmax([_Parts(mask).largest_px for mask in found_THW]))
    parts = _Parts(found_THW[frame])
    return frame, parts.mask(parts.labels[:1])


def _followed(found_THW: UInt8Array, seeds: Sequence[tuple[int, UInt8Array]]) -> UInt8Array:
    """Of what looks right, what belongs to the seeds, forth and back in time."""
    masks_THW = np.zeros_like(found_THW)
    for frame, seed in seeds:
        for direction in (1, -1):
            trail = _trail_of(seed)
            at = frame
            while 0 <= at < len(found_THW):
                masks_THW[at] |= _next(found_THW[at], trail)
                at += direction
    return masks_THW


def _trail_of(seed: UInt8Array) -> _Trail:
    x, y, width, height = cv2.boundingRect(seed)
    return _Trail(x + width / 2, y + height / 2, float(max(width, height)))


def _next(found_HW: UInt8Array, trail: _Trail) -> UInt8Array:
    """The parts near where it was going; the trail goes on from them, or as it went."""
    expected = (trail.x + trail.speed[0], trail.y + trail.speed[1])
    reach = trail.size * (REACH + REACH_PER_FRAME * trail.lost)
    parts, chosen = _Parts(found_HW), list[int]()
    for off, label in sorted((parts.distance(label, expected), label) for label in parts.labels):
        # What stands in front of it may leave several parts; together they are not larger than it is.
        if off <= reach and (not chosen or parts.side([*chosen, label]) <= MOST_GROWTH * trail.size):
            chosen.append(label)
    mine = parts.mask(chosen)
    if not mine.any():
        trail.x, trail.y = expected
        trail.lost += 1
        return mine
    x, y, width, height = cv2.boundingRect(mine)
    at = (x + width / 2, y + height / 2)
    if trail.lost == 0:
        trail.speed = (FADE * trail.speed[0] + (1 - FADE) * (at[0] - trail.x),
                       FADE * trail.speed[1] + (1 - FADE) * (at[1] - trail.y))
    trail.x, trail.y, trail.lost = at[0], at[1], 0
    return mine
