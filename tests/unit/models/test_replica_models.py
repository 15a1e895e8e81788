"""A replica with real pipelines on tiny checkpoints, and with the shipped placeholder card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from configs.load import load_cards
from configs.model_card import ModelCard, Task
from configs.settings import MediaSettings, ModelsSettings, Settings
from serve_app.models.replica import ModelReplica
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME, STEPS
from workflows.media.decode import read_frames, read_picture
from workflows.store import Store
from workflows.types import Phase

MakeReplica = Callable[..., tuple[ModelReplica, Store, RememberingSink]]


@pytest.fixture
def replica_of(tmp_path: Path) -> Iterator[MakeReplica]:
    made: list[ModelReplica] = []

    def make(card: ModelCard, where: str = "store") -> tuple[ModelReplica, Store, RememberingSink]:
        store, sink = Store(str(tmp_path / where)), RememberingSink()
        made.append(ModelReplica(card, ModelsSettings(torch_threads=1), MediaSettings(), store, sink, assigned_gpus=0))
        return made[-1], store, sink

    yield make
    for replica in made:
        replica.close()


@pytest.fixture
def wan_card(checkpoints: Path) -> ModelCard:
    """One checkpoint, three tasks."""
    return BY_NAME["wan_ti2v"].card(checkpoints, pipelines={
        Task.TEXT_TO_IMAGE: "WanPipeline", Task.TEXT_TO_VIDEO: "WanPipeline",
        Task.IMAGE_TO_VIDEO: "WanImageToVideoPipeline"})


async def test_a_keyframe_becomes_the_first_frame_of_a_clip(replica_of: MakeReplica, wan_card: ModelCard) -> None:
    replica, store, sink = replica_of(wan_card)
    keyframe = await replica.image(render_call(wan_card, key="1" * 32, node_id="s1.keyframe", frames=1, steps=STEPS))
    clip = await replica.clip(render_call(wan_card, key="2" * 32, steps=STEPS, first_frame=keyframe.artifact))
    assert read_picture(store.fetch(keyframe.artifact)).shape == (32, 32, 3)
    assert read_frames(store.fetch(clip.artifact)).shape == (5, 32, 32, 3)
    steps = [record.step for record in sink.records if record.phase is Phase.DIFFUSION]
    assert steps == [*range(1, STEPS + 1)] * 2


async def test_the_same_call_gives_the_same_bytes_on_another_replica(replica_of: MakeReplica, wan_card: ModelCard,
                                                                     ) -> None:
    call = render_call(wan_card, steps=STEPS)
    one, other = [await replica_of(wan_card, where)[0].clip(call) for where in ("one", "other")]
    assert one.artifact.sha256 == other.artifact.sha256
    assert one.artifact.uri != other.artifact.uri


async def test_another_seed_gives_other_bytes(replica_of: MakeReplica, wan_card: ModelCard) -> None:
    replica = replica_of(wan_card)[0]
    call = render_call(wan_card, steps=STEPS)
    one, other = await replica.clip(call), await replica.clip(replace(call, key="b" * 32, seed=12))
    assert one.artifact.sha256 != other.artifact.sha256


async def test_a_manifest_says_how_exact_the_clip_is_and_what_was_used(replica_of: MakeReplica, checkpoints: Path,
                                                                         ) -> None:
    card = BY_NAME["wan_t2v"].card(checkpoints, options={
        "attention": ["_flash_3", "native"], "offload": "group", "text_cache": {}})
    replica, store, _ = replica_of(card)
    call = render_call(card, steps=STEPS)
    await replica.clip(call)
    manifest = store.manifest(call.key)
    assert manifest is not None
    assert manifest["made"]["exactness"] == {
        "class": "tolerance", "used": {"attention.transformer": "native", "offload": "group"},
        "why": [effect.render() for effect in card.effects()]}
    draft = render_call(card, key="d" * 32, steps=STEPS, cache_threshold=0.1)
    await replica.clip(draft)
    drafted = (store.manifest(draft.key) or {})["made"]["exactness"]
    assert drafted["class"] == "approximate"
    assert drafted["why"][-1].startswith("draft.cache (approximate)")


async def test_the_shipped_placeholder_card_renders_pictures_and_clips(replica_of: MakeReplica) -> None:
    card = load_cards(Settings())["placeholder"]
    replica, store, _ = replica_of(card)
    picture = await replica.image(render_call(card, key="1" * 32, frames=1))
    clip = await replica.clip(render_call(card, key="2" * 32, frames=3))
    continued = await replica.clip(render_call(card, key="3" * 32, frames=3, first_frame=clip.artifact))
    assert read_picture(store.fetch(picture.artifact)).shape == (256, 384, 3)
    assert read_frames(store.fetch(continued.artifact)).shape == (3, 256, 384, 3)
