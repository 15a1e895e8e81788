"""Two of us: a remote card whose API is our own `/v1/videos`, served over a real port with an engine behind it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import numpy as np

from configs.model_card import CallDefaults, FrameRule, ModelCard, Resources, SizeRule, Task
from configs.settings import MediaSettings, ModelsSettings
from serve_app.http.api import build_api
from serve_app.models.replica import ModelReplica
from tests.desk import Painter, open_shop
from tests.fakes_models import RememberingSink, render_call
from tests.provider import serving
from workflows.media.decode import read_frames
from workflows.media.encode import EncodeOptions, encode
from workflows.stages.render import integer
from workflows.store import Store
from workflows.types import JobStatus, MediaType, NodeCall, NodeKind, NodeResult


class Filmer(Painter):
    """Clips of the size and length asked for; the film is its only clip."""

    def _paint(self, call: NodeCall) -> NodeResult:
        if call.kind is NodeKind.COMPOSE:
            (clip,) = call.inputs.values()
            assert clip is not None
            return NodeResult(artifact=clip)
        asked = call.payload
        shape = (integer(asked["frames"]), integer(asked["height_px"]), integer(asked["width_px"]), 3)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "a.mp4"
            frames_THWC = np.full(shape, 90 + integer(asked["seed"]), np.uint8)
            encode(frames_THWC, fps=8, to=path, options=EncodeOptions(threads=1))
            return NodeResult(artifact=self._store.put(call.key, path, media_type=MediaType.MP4, manifest={}))


async def test_a_video_made_by_another_reelray(tmp_path: Path, migrated_file: Path) -> None:
    shutil.copy(migrated_file, tmp_path / "state.db")
    shop = open_shop(tmp_path / "there", tmp_path / "state.db")
    shop.painter = Filmer(shop.store)
    sink, here = RememberingSink(), Store(str(tmp_path / "here"))
    with serving(build_api(shop.desk)) as origin:
        card = ModelCard.model_validate({
            "name": "far", "title": "Another reelray", "loader": "remote",
            "remote": {"api_url": f"{origin}/v1", "model_name": "sketch", "poll_s": 0.05,
                       "sends": ["num_frames", "fps", "seed"]},
            "pipelines": {Task.TEXT_TO_VIDEO: "videos"},
            "defaults": CallDefaults(steps=1, guidance=0, width_px=192, height_px=128, frames=17, fps=8),
            "size": SizeRule(multiple_px=8), "frames": FrameRule(max_frames=17),
            "resources": Resources(num_gpus=0)})
        replica = ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), here, sink, assigned_gpus=0)
        made = asyncio.create_task(replica.clip(render_call(card, frames=17, steps=1, guidance=0.0)))
        while not (jobs := shop.ledger.jobs().jobs):
            assert not made.done(), made.result()
            await asyncio.sleep(0.02)
        assert (await shop.run_to_end(jobs[0].id)).status is JobStatus.SUCCEEDED
        result = await made
        replica.close()
    frames_THWC = read_frames(here.fetch(result.artifact))
    assert frames_THWC.shape == (17, 128, 192, 3)
    assert abs(float(frames_THWC.mean()) - 101) < 3, "the seed arrived"
    assert result.warnings == ()
    shop.ledger.close()
