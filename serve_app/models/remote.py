"""Somebody else's model behind the same port as ours: takes in, checked pixels out. Knows no job, no store, no Ray."""

from __future__ import annotations

import asyncio
import io
import math
import tempfile
from collections.abc import Coroutine
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from configs.endpoint import RemoteModel
from configs.load import SettingsError, api_key
from configs.model_card import ModelCard, Task
from serve_app.models.takes import Take
from serve_app.models.tap import UNWATCHED, ProgressCallback, SafeCallback, Watch
from serve_app.providers.studio import draw_picture, film_video
from serve_app.providers.wire import ApiFailure
from workflows.errors import InvalidDocument, MediaError, ModelFailed, Problem, RenderRefused
from workflows.media.decode import iter_frames, read_picture
from workflows.media.frames import UInt8Array
from workflows.media.probe import probe
from workflows.types import Json

T = TypeVar("T")

LOOK_S = 0.1
"""How often a waiting call asks whether it should stop."""
MAX_RETRY_WAIT_S = 60.0
"""A try that was turned away waits at most so long, as the API asks, before it is given back to be tried again."""
OURS = frozenset({"model", "prompt", "size", "n", "seconds"})
"""Fields of the request that a card's `arguments` may not set."""

OF_VIDEOS = frozenset({"num_frames", "fps"})
"""Further fields that a picture's request has not; APIs refuse fields that they do not know."""


class RemotePainter:
    """One task of a remote model. Calls may run side by side: each only waits."""

    def __init__(self, card: ModelCard, remote: RemoteModel, task: Task) -> None:
        """Raises InvalidDocument when the key is missing, or the card fixes what every call sets."""
        self._card = card
        self._remote = remote
        self._task = task
        problems = [Problem(field=f"arguments.{name}", problem="is set by reelray for every call; remove it")
                    for name in card.arguments if name in OURS or name in remote.sends]
        if card.defaults.guidance > 1 and "guidance_scale" not in remote.sends:
            problems.append(Problem(field="defaults.guidance", problem="remote.sends has no guidance_scale",
                                    nearest="0"))
        if card.defaults.negative_prompt and "negative_prompt" not in remote.sends:
            problems.append(Problem(field="defaults.negative_prompt", problem="remote.sends has no negative_prompt"))
        try:
            api_key(remote)
        except SettingsError as error:
            problems.append(Problem(field="remote", problem=str(error)))
        if problems:
            raise InvalidDocument(problems=tuple(problems), file=f"model card {card.name}")

    def problems(self, take: Take) -> tuple[Problem, ...]:
        """Where the take breaks the card's rules, or asks for what the API has no field for."""
        is_picture = self._task is Task.TEXT_TO_IMAGE
        # A card's lengths are those of its videos.
        found = [problem for problem in take.problems(self._card) if not (is_picture and problem.field == "frames")]
        if take.negative_prompt and "negative_prompt" not in self._remote.sends:
            found.append(Problem(field="negative_prompt", problem="this API has no field for it",
                                 nearest="leave it empty"))
        if take.guidance > 1 and "guidance_scale" not in self._remote.sends:
            found.append(Problem(field="guidance", problem="this API has no field for it", nearest="0"))
        if is_picture and take.frames != 1:
            found.append(Problem(field="frames", problem="a picture is 1 frame", nearest="1"))
        return tuple(found)

    def warnings(self, take: Take) -> tuple[str, ...]:
        """What of the take will not be seen as it was asked for."""
        found = []
        if self._asked_px(take) != (take.width_px, take.height_px):
            width_px, height_px = self._asked_px(take)
            found.append(f"drawn at {width_px}x{height_px}, a size that this API knows; scaled, and cropped around its "
                         f"centre to {take.width_px}x{take.height_px}")
        if take.steps != self._card.defaults.steps and "num_inference_steps" not in self._remote.sends:
            found.append("this API takes no number of steps: it decides itself")
        return tuple(found)

    def generate(self, take: Take, *, progress_callback: ProgressCallback | None = None, watch: Watch = UNWATCHED,
                 ) -> UInt8Array:
        """frame_HWC for a picture, frames_THWC for a clip.

        Progress is what the API tells: nothing of a picture, percents of a video (as steps of 100). Raises
        RenderRefused for what would be refused again, ModelFailed for what may pass.
        """
        watch.check()
        callback = SafeCallback(progress_callback, label=watch.label)
        if self._task is Task.TEXT_TO_IMAGE:
            pixels = asyncio.run(_watched(self._picture(take, watch), watch))
            callback(0, 1, 0.0)
        else:
            pixels = asyncio.run(_watched(self._clip(take, watch, callback), watch))
            callback(99, 100, 0.0)
        watch.check()
        return pixels

    # -- the two requests -------------------------------------------------------------------------------------------

    async def _picture(self, take: Take, watch: Watch) -> UInt8Array:
        body = {**self._body(take), "n": 1}
        try:
            data = await draw_picture(self._remote, self._key(), body)
        except ApiFailure as failure:
            raise await self._translated(failure, watch) from None
        return self._fitted(self._decoded(data, take, watch), take)

    async def _clip(self, take: Take, watch: Watch, callback: SafeCallback) -> UInt8Array:
        body = self._body(take)
        if "num_frames" not in self._remote.sends:
            body["seconds"] = f"{take.frames / take.fps:g}"
        told = 0

        def on_percent(percent: int) -> None:
            nonlocal told
            if told < percent < 100:
                told = percent
                callback(percent - 1, 100, 0.0)

        try:
            data = await film_video(self._remote, self._key(), body, on_percent)
        except ApiFailure as failure:
            raise await self._translated(failure, watch) from None
        return await asyncio.to_thread(self._frames, data, take, watch)

    def _body(self, take: Take) -> dict[str, Json]:
        width_px, height_px = self._asked_px(take)
        extras: dict[str, Json] = {
            "seed": take.seed, "negative_prompt": take.negative_prompt, "num_inference_steps": take.steps,
            "guidance_scale": take.guidance, "num_frames": take.frames, "fps": take.fps}
        unasked = OF_VIDEOS if self._task is Task.TEXT_TO_IMAGE else frozenset()
        sent: dict[str, Json] = {name: value for name, value in extras.items()
                                 if name in self._remote.sends and name not in unasked and value != ""}
        return {**self._card.arguments, "model": self._remote.model_name, "prompt": take.prompt,
                "size": f"{width_px}x{height_px}", **sent}

    def _key(self) -> str:
        try:
            return api_key(self._remote)
        except SettingsError as error:
            raise ApiFailure(str(error), final=True) from None

    def _asked_px(self, take: Take) -> tuple[int, int]:
        """The size to ask for: the take's own, or of the sizes that the API knows the one of which least is cropped."""
        wanted = (take.width_px, take.height_px)
        shapes = self._remote.shapes()
        if not shapes or wanted in shapes:
            return wanted
        return min(shapes, key=lambda shape: (_cropped_share(shape, wanted), abs(shape[0] - wanted[0])))

    async def _translated(self, failure: ApiFailure, watch: Watch) -> RenderRefused | ModelFailed:
        if failure.final:
            hint = ""
            if failure.status in (401, 403):
                where = self._remote.key_place or "remote.api_key_env"
                hint = f"; see that the key in {where} is right, where the replica runs"
            return RenderRefused(node_id=watch.label, reason=f"{failure.reason}{hint}")
        if failure.retry_after_s:
            await asyncio.sleep(min(failure.retry_after_s, MAX_RETRY_WAIT_S))
        return ModelFailed(node_id=watch.label, reason=failure.reason)

    # -- what came back ---------------------------------------------------------------------------------------------

    def _decoded(self, data: bytes, take: Take, watch: Watch) -> UInt8Array:
        """The picture, whose size is looked at before it is unpacked."""
        try:
            with Image.open(io.BytesIO(data)) as picture:
                self._refuse_other_size(picture.size, take, watch)
            with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
                path = Path(scratch) / "picture"
                path.write_bytes(data)
                return read_picture(path)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
            raise ModelFailed(node_id=watch.label, reason="the API answers something that is no picture") from None
        except MediaError as error:
            raise ModelFailed(node_id=watch.label, reason=f"the API's picture: {error.problem}") from None

    def _frames(self, data: bytes, take: Take, watch: Watch) -> UInt8Array:
        with tempfile.TemporaryDirectory(prefix="reelray-") as scratch:
            path = Path(scratch) / "video.mp4"
            path.write_bytes(data)
            try:
                info = probe(path)
                self._refuse_other_size((info.width_px, info.height_px), take, watch)
                places = self._places(info.frames, float(info.fps), take, watch)
                # One frame after the other: a video is as long as somebody else likes.
                wanted = frozenset(places)
                kept = {place: self._fitted(frame_HWC, take) for place, frame_HWC in enumerate(
                    islice(iter_frames(path), places[-1] + 1)) if place in wanted}
                return np.stack([kept[place] for place in places])
            except MediaError as error:
                raise ModelFailed(node_id=watch.label, reason=f"the API's video: {error.problem}") from None

    def _places(self, have: int, fps: float, take: Take, watch: Watch) -> list[int]:
        """Of `have` frames, the one that is nearest in time for each frame asked for. Refuses a video too short."""
        places = [math.floor(frame / take.fps * fps + 0.5) for frame in range(take.frames)]
        if places[-1] > have:  # one frame may be missing: some count the first one apart
            raise RenderRefused(node_id=watch.label, reason=f"the API's video has {have / fps:.2f} s, asked for were "
                                f"{take.frames / take.fps:.2f} s; see `frames` in card {self._card.name}")
        if (have, fps) != (take.frames, take.fps):
            watch.note(f"the API's video has {have} frames at {fps:g} fps: shown are the {take.frames} nearest in time "
                       f"at {take.fps:g} fps")
        return [min(place, have - 1) for place in places]

    def _refuse_other_size(self, size: tuple[int, int], take: Take, watch: Watch) -> None:
        asked = self._asked_px(take)
        if size != asked:
            raise RenderRefused(
                node_id=watch.label, reason=f"the API drew {size[0]}x{size[1]}, asked for was {asked[0]}x{asked[1]}; "
                f"name the sizes that it draws in card {self._card.name}: remote.sizes: [{size[0]}x{size[1]}]")

    def _fitted(self, frame_HWC: UInt8Array, take: Take) -> UInt8Array:
        if frame_HWC.shape[:2] == (take.height_px, take.width_px):
            return frame_HWC
        fitted = ImageOps.fit(Image.fromarray(frame_HWC), (take.width_px, take.height_px),
                              method=Image.Resampling.LANCZOS)
        return np.asarray(fitted)


def _cropped_share(shape: tuple[int, int], wanted: tuple[int, int]) -> float:
    """Of a picture of this shape, the share that is lost when it is cropped to the wanted one's proportions."""
    ratio = (shape[0] / shape[1]) / (wanted[0] / wanted[1])
    return round(1 - min(ratio, 1 / ratio), 6)


async def _watched(work: Coroutine[None, None, T], watch: Watch) -> T:
    """The work's result; stopped when the watch says so. Waiting is a sign of life: every wait has a limit."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            watch.beat()
            watch.check()
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
