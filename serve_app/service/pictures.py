"""Pictures that were uploaded, by the digest of their bytes. Blocking but for `take_in`; knows no HTTP.

A picture that a film of this machine names and one that was uploaded have the same key in the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from configs.references import size_problem
from configs.settings import HttpSettings
from serve_app.submit import picture_key
from workflows.errors import InvalidDocument, MediaError, Problem, UnknownPicture
from workflows.media.decode import JPEG, PNG, read_picture, stored_size
from workflows.plan import PictureRef
from workflows.store import Store
from workflows.types import Artifact, MediaType

SCHEME = "picture:"
"""What an uploaded picture's id has before it in a storyboard: `image: picture:ID`."""
ID = re.compile(r"[0-9a-f]{64}")
SCAN = b"\xff\xda"
MAX_SCANS = 100
"""Each scan of a progressive JPEG passes over all pixels again; cameras write about ten."""
AT_ONCE = 2
"""Pictures decoded at the same time by one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An uploaded picture."""

    id: str
    """SHA-256 of its bytes, hex."""
    media_type: MediaType
    width_px: int
    """As it is shown: turned as its EXIF data says."""
    height_px: int
    size_bytes: int


class Pictures:
    """The uploaded pictures of one store."""

    def __init__(self, store: Store, settings: HttpSettings) -> None:
        """Keep pictures here, as long and as large as the settings allow."""
        self._store = store
        self._settings = settings
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def take_in(self, data: bytes) -> Picture:
        """`keep`, in its turn: a decoded picture is a hundred times as long as its file may be."""
        # A client that hangs up ends the wait, and not the thread: the turn is the thread's.
        return await asyncio.shield(asyncio.create_task(self._in_turn(data)))

    async def _in_turn(self, data: bytes) -> Picture:
        async with self._turns:
            return await asyncio.to_thread(self.keep, data)

    def keep(self, data: bytes) -> Picture:
        """Store a PNG or JPEG; the same bytes have the same id. Raises InvalidDocument for anything else."""
        media_type = self._require_small_picture(data)
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            path = Path(scratch) / f"picture{media_type.suffix}"
            path.write_bytes(data)
            try:
                height_px, width_px = read_picture(path).shape[:2]
            except MediaError as error:
                raise _refusal(error.problem) from None
            picture_id = hashlib.sha256(data).hexdigest()
            key = picture_key(picture_id)
            if self._store.find(key) is None:
                self._store.put(key, path, media_type=media_type, manifest={"picture": "uploaded"})
        return Picture(id=picture_id, media_type=media_type, width_px=width_px, height_px=height_px,
                       size_bytes=len(data))

    def find(self, picture_id: str) -> Artifact:
        """The stored picture. Raises UnknownPicture."""
        found = self._store.find(picture_key(picture_id)) if ID.fullmatch(picture_id) else None
        if found is None:
            raise UnknownPicture(picture_id=picture_id)
        return found

    def named(self, refs: Iterable[PictureRef], known: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """The pictures that a storyboard names as `picture:ID`, by that name, besides those that are known already.

        Raises InvalidDocument with all that are something else: a path in a request would name a file of the server.
        """
        found: dict[str, Artifact] = {}
        problems: list[Problem] = []
        for ref in refs:
            if ref.path in known:
                continue
            try:
                found[ref.path] = self._named(ref)
            except UnknownPicture as error:
                problems.append(Problem(shot_id=ref.shot_id, field=ref.field, problem=str(error)))
            except InvalidDocument as error:
                problems.append(replace(error.problems[0], shot_id=ref.shot_id, field=ref.field))
        if problems:
            raise InvalidDocument(problems=tuple(problems))
        return {**known, **found}

    def _named(self, ref: PictureRef) -> Artifact:
        if not ref.path.startswith(SCHEME):
            write, otherwise = (("image", ", or have the first frame drawn") if ref.shot_id else ("reference", ""))
            raise _refusal("over HTTP a path would name a file of the server; upload the picture with "
                           f"POST /api/pictures and write `{write}: {SCHEME}ID`{otherwise}",
                           "mode: keyframe" if ref.shot_id else "no reference")
        found = self.find(ref.path.removeprefix(SCHEME))
        if not ref.shot_id:
            with self._store.open(found) as file:
                problem, nearest = size_problem(*(stored_size(file.read()) or (0, 0)))
            if problem:
                raise _refusal(problem, nearest)
        return found

    def _require_small_picture(self, data: bytes) -> MediaType:
        media_type = media_type_of(data)
        if media_type is None:
            raise _refusal("this is no picture; send a PNG or JPEG file")
        if len(data) > self._settings.max_picture_kb * 1000:
            raise _refusal(f"the file has {len(data)} bytes", f"at most {self._settings.max_picture_kb * 1000} bytes "
                                                              "(http.max_picture_kb)")
        size = stored_size(data)
        if size is None or 0 in size:
            raise _refusal("the picture's header is damaged")
        if media_type is MediaType.JPEG and data.count(SCAN) > MAX_SCANS:
            raise _refusal(f"the JPEG has more than {MAX_SCANS} scans; save it anew")
        if size[0] * size[1] > self._settings.max_picture_megapixels * 1e6:
            raise _refusal(f"the picture has {size[0]}x{size[1]} px", "at most "
                           f"{self._settings.max_picture_megapixels:g} megapixels (http.max_picture_megapixels)")
        return media_type


def media_type_of(data: bytes) -> MediaType | None:
    """What these bytes begin like; None for neither PNG nor JPEG."""
    return MediaType.PNG if data.startswith(PNG) else MediaType.JPEG if data.startswith(JPEG) else None


def _refusal(problem: str, nearest: str = "") -> InvalidDocument:
    return InvalidDocument(problems=(Problem(problem=problem, nearest=nearest),))
