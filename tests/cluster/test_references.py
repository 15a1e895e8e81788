"""A film of a character with a picture, by the command line on a real Ray: drawn from it, and compared with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.model_card import SizeRule
from tests.cluster.test_cli import ledger, place, run
from tests.families import BY_NAME
from tests.tiny_pictures import write_picture_model
from workflows.media.decode import write_png
from workflows.types import NodeKind, NodeStatus

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
__all__ = ["place"]

FILM = """
size: 64x64
fps: 8
characters:
  - {id: rex, description: a red ball, reference: rex.png}
shots:
  - {id: one, prompt: rex rolls, characters: [rex], frames: 5}
  - {id: two, prompt: a street, frames: 5}
"""


def cards(directory: Path) -> None:
    """A tiny SDXL with an adapter, and a tiny picture model."""
    drawer = BY_NAME["sdxl_ip_adapter"].card(directory / "checkpoints", size=SizeRule(multiple_px=2))
    looks = {"name": "looks", "title": "compares", "loader": "embedding", "pipelines": {},
             "repo": str(write_picture_model(directory / "checkpoints")), "resources": {"num_gpus": 0},
             "defaults": {"width_px": 56, "height_px": 56}}
    (directory / "cards").mkdir()
    for card in ({**drawer.model_dump(mode="json", exclude_unset=True), "resources": {"num_gpus": 0}}, looks):
        (directory / "cards" / f"{card['name']}.yaml").write_text(yaml.safe_dump(card))


def test_a_film_is_drawn_from_the_picture_and_compared_with_it(place: Path) -> None:
    cards(place)
    (place / "film.yaml").write_text(FILM)
    write_png(np.random.default_rng(1).integers(0, 256, (80, 70, 3), np.uint8), place / "rex.png")
    options = ["--set", f"models.card_dirs=[{place / 'cards'}]", "--set", "models.text_to_image=sdxl-ip-adapter",
               "--set", "models.text_to_video=placeholder", "--set", "models.image_to_video=placeholder",
               "--set", "models.scorer=looks"]
    made = run(place, "render", str(place / "film.yaml"), "-o", str(place / "film.mp4"), *options)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "consistency" in made.stdout + made.stderr
    (job,) = ledger(place).jobs().jobs
    nodes = {node.id: node for node in ledger(place).nodes(job.id)}
    assert {name: node.kind for name, node in nodes.items() if node.shot_id == "one"} == {
        "one.keyframe": NodeKind.KEYFRAME, "one.clip": NodeKind.CLIP, "one.score": NodeKind.SCORE}
    assert all(node.status is NodeStatus.SUCCEEDED for node in nodes.values())
    score = nodes["one.score"].artifact
    assert score is not None
    assert json.loads(Path(score.uri).read_text())["consistency"] == score.score

    write_png(np.random.default_rng(2).integers(0, 256, (80, 70, 3), np.uint8), place / "rex.png")
    again = run(place, "render", str(place / "film.yaml"), "-o", str(place / "film.mp4"), *options)
    assert again.returncode == 0, again.stdout + again.stderr
    other = {node.id: node for one in ledger(place).jobs().jobs if one.id != job.id
             for node in ledger(place).nodes(one.id)}
    assert other["one.keyframe"].artifact.sha256 != nodes["one.keyframe"].artifact.sha256  # type: ignore[union-attr]
    assert other["two.clip"].cached
