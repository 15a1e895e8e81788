"""Which file of the store a job's video, keyframe, clip or thumbnail is. Blocking: callers own the thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from workflows.durable.ledger import Ledger
from workflows.durable.rows import NodeRow
from workflows.durable.takes import Takes
from workflows.edit_plan import EDIT_KINDS
from workflows.errors import UnknownPart
from workflows.media.decode import first_frame, iter_frames, read_picture, write_jpeg, write_png
from workflows.media.probe import probe
from workflows.media.stills import sprite_places, sprite_sheet, thumbnail
from workflows.retakes import picked
from workflows.store import Store
from workflows.types import Artifact, JobStatus, Json, MediaType, NodeKind, NodeStatus, digest

THUMBNAIL_PX = 320
"""Longer side."""
SHEET_COLUMNS = SHEET_ROWS = 4
"""Cells of a spritesheet."""
SHEET_QUALITY = 85
"""Of its JPEG."""


class ShotFile(StrEnum):
    """A file of a shot."""

    KEYFRAME = "keyframe"
    """The picture that it starts from: drawn, or given."""
    CLIP = "clip"
    """As the film shows it; before that is made, as far as it is."""
    THUMBNAIL = "thumbnail"
    """A small PNG of the keyframe, or of the clip's first frame."""


class Files:
    """Finds files; makes thumbnails and spritesheets when they are asked for first."""

    def __init__(self, ledger: Ledger, store: Store, takes: Takes) -> None:
        """Look into this ledger and this store."""
        self._ledger = ledger
        self._store = store
        self._takes = takes

    def video(self, job_id: str) -> Artifact:
        """The film, or the edited video. Raises UnknownJob, and UnknownPart while there is none."""
        job, nodes = self._ledger.job(job_id), self._ledger.nodes(job_id)
        film = next((node for node in nodes if node.kind is NodeKind.SAVE), None) or max(
            nodes, key=lambda node: node.ord)
        if film.kind in (NodeKind.COMPOSE, NodeKind.SAVE) and film.status is NodeStatus.SUCCEEDED and film.artifact:
            return film.artifact
        over = job.status in (JobStatus.FAILED, JobStatus.CANCELLED) or (
            job.status.is_terminal and film.kind is NodeKind.KEYFRAME)
        what = "video" if film.kind is NodeKind.SAVE else "film"
        problem = f"is {job.status.value}; " + (f"there is no {what}" if over else f"the {what} is not made yet")
        raise UnknownPart(job_id=job_id, problem=problem)

    def thumbnail(self, job_id: str) -> Artifact:
        """A small PNG of the edited video; while that is not made, of the video as it was given.

        Raises UnknownJob, and UnknownPart for a film that is not made.
        """
        nodes = self._ledger.nodes(job_id)
        given = next((node.payload["source"] for node in nodes if node.kind is NodeKind.EXTRACT), None)
        is_saved = any(node.kind is NodeKind.SAVE and node.artifact for node in nodes)
        shown = self.video(job_id) if is_saved or not isinstance(given, dict) else Artifact.from_json(given)
        return self._thumbnail(shown)

    def spritesheet(self, job_id: str) -> Artifact:
        """Frames of the film in a grid, as JPEG. Raises UnknownJob, and UnknownPart while there is no film."""
        return made_of(self._store, self.video(job_id), "spritesheet", {
            "columns": SHEET_COLUMNS, "rows": SHEET_ROWS, "longer_side_px": THUMBNAIL_PX, "quality": SHEET_QUALITY},
            MediaType.JPEG, _write_sheet)

    def of_shot(self, job_id: str, shot_id: str, what: ShotFile, take: int | None = None) -> Artifact:
        """A shot's file. Raises UnknownJob, and UnknownPart for a shot, take or file that does not exist (yet)."""
        nodes = self._ledger.nodes(job_id)
        shots = list(dict.fromkeys(node.shot_id for node in nodes if node.shot_id))
        if shot_id not in shots:
            raise UnknownPart(job_id=job_id, problem=f"has no shot {shot_id!r}", nearest=", ".join(shots[:10]))
        if take is not None:
            return self._take(job_id, shot_id, what, take)
        found = files_by_shot(nodes)[shot_id]
        source = found.get(ShotFile.KEYFRAME, found.get(ShotFile.CLIP)) if what is ShotFile.THUMBNAIL else (
            found.get(what))
        if source is None:
            raise UnknownPart(job_id=job_id, problem=f"shot {shot_id} has no {what.value}, or not yet")
        return self._thumbnail(source) if what is ShotFile.THUMBNAIL else source

    def _take(self, job_id: str, shot_id: str, what: ShotFile, number: int) -> Artifact:
        takes = self._takes.of(job_id, shot_id)
        kept = next((kept for kept in takes if kept.number == number), None)
        if kept is None or what is ShotFile.KEYFRAME:
            asked = f"no keyframe of take {number} was kept" if kept else f"shot {shot_id} has no take {number}"
            raise UnknownPart(job_id=job_id, problem=asked, nearest=", ".join(str(kept.number) for kept in takes))
        return self._thumbnail(kept.artifact) if what is ShotFile.THUMBNAIL else kept.artifact

    def _thumbnail(self, source: Artifact) -> Artifact:
        def write(path: Path, to: Path) -> None:
            is_picture = source.media_type in (MediaType.PNG, MediaType.JPEG)
            frame_HWC = read_picture(path) if is_picture else first_frame(path)
            write_png(thumbnail(frame_HWC, THUMBNAIL_PX), to)

        return made_of(self._store, source, "thumbnail", {"longer_side_px": THUMBNAIL_PX}, MediaType.PNG, write)


def made_of(store: Store, source: Artifact, what: str, options: Mapping[str, Json], media_type: MediaType,
            write: Callable[[Path, Path], None]) -> Artifact:
    """A stored file in another form, made when it is first asked for; `write(source, to)` makes it.

    `what` and `options` are its key, with the source's bytes. Raises ArtifactMissing, MediaError.
    """
    key = digest({f"{what}_of": source.sha256, **options})[:32]
    found = store.find(key)
    if found:
        return found
    with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
        path = Path(scratch) / f"{what}{media_type.suffix}"
        write(store.fetch(source), path)
        return store.put(key, path, media_type=media_type, manifest={f"{what}_of": source.key})


def _write_sheet(path: Path, to: Path) -> None:
    wanted = sprite_places(probe(path).frames, SHEET_COLUMNS, SHEET_ROWS)
    cells = [thumbnail(frame_HWC, THUMBNAIL_PX) for number, frame_HWC in enumerate(iter_frames(path))
             if number in wanted]
    write_jpeg(sprite_sheet(cells, SHEET_COLUMNS, SHEET_ROWS), to, quality=SHEET_QUALITY)


def files_by_shot(nodes: Sequence[NodeRow]) -> dict[str, dict[ShotFile, Artifact]]:
    """The keyframe and the clip of every shot, as far as they exist."""
    by_id = {node.id: node for node in nodes}
    found: dict[str, dict[ShotFile, Artifact]] = {node.shot_id: {} for node in nodes if node.shot_id}
    for node in nodes:
        picture = node.payload.get("image")
        if node.kind is NodeKind.KEYFRAME and node.artifact:
            found[node.shot_id][ShotFile.KEYFRAME] = node.artifact
        elif node.kind is NodeKind.CLIP and isinstance(picture, dict):
            found[node.shot_id].setdefault(ShotFile.KEYFRAME, Artifact.from_json(picture))
    for shot_id, mine in found.items():
        chosen = picked(node for node in nodes if node.shot_id == shot_id)
        drawn = next((by_id[dep].artifact for dep in chosen.deps if by_id[dep].kind is NodeKind.KEYFRAME), None
                     ) if chosen else None
        if drawn:
            mine[ShotFile.KEYFRAME] = drawn
    film = max(nodes, key=lambda node: node.ord)
    if film.kind in EDIT_KINDS:
        return found  # its chunks have no pictures of their own
    for shown in (by_id[dep] for dep in film.deps):
        clip = _farthest(shown, by_id)
        if clip is not None:
            found[shown.shot_id][ShotFile.CLIP] = clip
    return found


def _farthest(shown: NodeRow, by_id: Mapping[str, NodeRow]) -> Artifact | None:
    """What the film shows of a shot; before that is made, what it is made of."""
    at: NodeRow | None = shown
    while at is not None and at.kind is not NodeKind.KEYFRAME:
        if at.artifact:
            return at.artifact
        at = next((by_id[dep] for dep in at.deps if by_id[dep].shot_id == shown.shot_id), None)
    return None
