"""Two replicas of a card on unlike GPUs: what does not fit one is made by the other, through Serve's own router."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.model_card import ModelCard
from configs.settings import Settings
from tests.cluster.conftest import Deploy
from tests.cluster.test_shared_gpu import submit, write_card
from tests.scarce import ScarceModel
from workflows.types import JobStatus, Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LIMIT = 2 * 4 * 32 * 32 - 1
"""One number less than the latents of a 64x64 picture have."""
PICTURES = "title: pictures\nsize: 64x64\nshots:\n" + "".join(f"  - prompt: ball {number}\n" for number in range(6))


class UnlikeModel(ScarceModel):
    """Of a card's replicas the first one has the GPU that the card's notes tell of, the others have plenty."""

    def __init__(self, card: ModelCard, settings: Settings) -> None:
        try:
            (settings.data_dir / f"{card.name}.small").touch(exist_ok=False)
        except FileExistsError:
            card = card.model_copy(update={"notes": ""})
        super().__init__(card, settings)


def test_what_fits_only_one_of_two_replicas_is_made_there(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory,
                                                          ) -> None:
    root: Path = tmp_path_factory.mktemp("unlike")
    write_card(root / "cards", root, "sdxl", f"resident={LIMIT} parts={LIMIT} layers={LIMIT}")
    running = deploy([f"models.card_dirs=[{root / 'cards'}]", "models.text_to_image=sdxl", "engine.attempts=2",
                      "models.default_replicas.replicas=2", "models.torch_threads=1"], model=UnlikeModel)
    submit(running, PICTURES, "pictures", Stage.IMAGES)
    running.director.wake.remote().result(timeout_s=20)
    done = running.wait("pictures")
    failed = [node for node in running.ledger.nodes("pictures") if node.failures]
    assert done.status is JobStatus.SUCCEEDED, done.errors
    assert failed, "Serve gives both replicas work"
    assert all(node.failures == 1 for node in failed)
    assert sum("ran out of GPU memory before, and fitted when tried again" in said for said in done.warnings) == len(
        failed)
