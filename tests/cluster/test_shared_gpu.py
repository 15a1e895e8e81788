"""Two models on one GPU: one runs out of memory, its other shots and the neighbour's go on as if nothing had been."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yaml

from configs.load import casting, load_card, load_cards
from configs.model_card import ModelCard
from configs.settings import ModelsSettings
from serve_app.models.replica import ModelReplica
from tests.cluster.conftest import Deploy, Running
from tests.fakes_models import RememberingSink, render_call
from tests.families import BY_NAME
from tests.scarce import ScarceModel
from workflows.durable.rows import NewJob
from workflows.plan import plan_film
from workflows.store import Store
from workflows.storyboard import parse_storyboard
from workflows.types import JobStatus, NodeStatus, Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LATENTS = 16 * 2 * 8 * 8
"""Numbers of the latents of a 64x64 clip of five frames."""
CLIPS = """
title: clips
size: 64x64
shots:
  - {id: s1, prompt: a red ball, frames: 5}
  - {id: s2, prompt: a blue ball, frames: 9}
"""
PICTURES = "title: pictures\nsize: 64x64\nshots:\n" + "".join(f"  - prompt: ball {number}\n" for number in range(6))


def write_card(directory: Path, checkpoints: Path, family: str, notes: str = "") -> str:
    card = BY_NAME[family].card(checkpoints)
    tree = card.model_dump(mode="json", exclude_unset=True)
    directory.mkdir(exist_ok=True)
    (directory / f"{card.name}.yaml").write_text(yaml.safe_dump({
        **tree, "defaults": card.defaults.model_dump(mode="json"), "resources": {"num_gpus": 0.5, "num_cpus": 0.1},
        "notes": notes}))
    return card.name


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared")
    # Clips of five frames need components to come and go, nine frames are too many whatever is done.
    write_card(root / "cards", root, "wan_t2v", f"resident={LATENTS - 1} parts={LATENTS} layers={LATENTS}")
    write_card(root / "cards", root, "sdxl")
    return root / "cards"


@pytest.fixture(scope="module")
def running(deploy: Deploy, cards: Path) -> Running:
    return deploy([f"models.card_dirs=[{cards}]", "models.text_to_video=wan-t2v", "models.text_to_image=sdxl",
                   "models.default_replicas.replicas=1", "engine.attempts=2", "models.torch_threads=1"],
                  model=ScarceModel)


def submit(running: Running, text: str, job_id: str, last_stage: Stage) -> None:
    board = parse_storyboard(text)
    plan = plan_film(board, cards=casting(running.settings, load_cards(running.settings)), last_stage=last_stage)
    running.ledger.submit(NewJob(id=job_id, title=job_id, document={"title": job_id}, nodes=plan.nodes))


async def drawn_alone(running: Running, card: ModelCard, directory: Path) -> dict[str, str]:
    """SHA-256 of every picture by key, drawn again in this process, into a store of its own."""
    replica = ModelReplica(card, ModelsSettings(torch_threads=1), running.settings.media, Store(str(directory)),
                           RememberingSink(), assigned_gpus=0)
    drawn = {}
    for node in running.ledger.nodes("pictures"):
        asked = running.store.manifest(node.key)["made"]["call"]
        call = render_call(card, **{name: asked[name] for name in asked if name not in ("card", "first_frame")})
        drawn[node.key] = (await replica.image(call)).artifact.sha256
    replica.close()
    return drawn


def test_one_models_lack_of_memory_is_not_its_neighbours(running: Running, cards: Path, tmp_path: Path) -> None:
    submit(running, CLIPS, "clips", Stage.COMPOSITION)
    submit(running, PICTURES, "pictures", Stage.IMAGES)
    running.director.wake.remote().result(timeout_s=20)
    clips, pictures = running.wait("clips"), running.wait("pictures")
    assert (clips.status, pictures.status) == (JobStatus.PARTIAL, JobStatus.SUCCEEDED)

    one, other = ((running.settings.data_dir / f"{name}.gpu").read_text() for name in ("wan-t2v", "sdxl"))
    assert one == other != ""
    nodes = {node.id: node for node in running.ledger.nodes("clips")}
    assert nodes["s1.clip"].status is NodeStatus.SUCCEEDED
    error = nodes["s2.clip"].error
    assert error is not None
    assert (error.type, nodes["s2.clip"].attempt) == ("GpuOutOfMemory", 2)
    assert "64x64, 9 frames do not fit the GPU" in error.message
    assert "even with moving layers in and out of the GPU" in error.message
    assert any("rendered with moving components in and out of the GPU" in str(text) for text in clips.warnings)

    alone = asyncio.run(drawn_alone(running, load_card(cards / "sdxl.yaml"), tmp_path / "alone"))
    assert len(alone) == 6
    assert alone == {node.key: node.artifact.sha256 for node in running.ledger.nodes("pictures") if node.artifact}
