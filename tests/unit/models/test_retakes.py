"""A shot rendered again for its score: measured by a real picture model, kept in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from configs.model_card import Task
from configs.references import NativeReferences
from serve_app.models.embedding import CardEmbedder
from tests.fakes_models import ScriptedLoad, scripted_card
from tests.house import House
from tests.unit.models.test_scores import card_of, stored
from workflows.plan import plan_film
from workflows.retakes import picked, scores_of
from workflows.storyboard import parse_storyboard
from workflows.types import JobStatus

RED_HWC = np.full((96, 96, 3), (220, 40, 30), np.uint8)


async def test_takes_are_measured_and_the_best_is_shown(tmp_path: Path) -> None:
    house, load = House(tmp_path), ScriptedLoad()
    card = scripted_card(Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO)
    draws = scripted_card(Task.TEXT_TO_IMAGE).model_copy(update={
        "name": "draws", "references": NativeReferences(kind="native", max_pictures=1)})
    house.serve(card, house.replica(card, load))
    # The scripted pipeline paints from its seed alone, so what it would do with the pictures need not be asked.
    house.serve(draws, house.replica(draws, load))
    scorer = card_of(tmp_path / "scorer")
    house.embedder = CardEmbedder(scorer)
    rex = stored(house.store, tmp_path, "rex.png", RED_HWC)

    def nodes(below: float) -> Any:
        board = {"characters": [{"id": "rex", "description": "red", "reference": "rex.png"}], "shots": [
            {"id": "a", "prompt": "rex", "characters": ["rex"], "retake": {"below": below, "takes": 3}}]}
        return plan_film(parse_storyboard(json.dumps(board)), assets={"rex.png": rex}, scorer=scorer, cards={
            Task.TEXT_TO_VIDEO: card, Task.IMAGE_TO_VIDEO: card, Task.TEXT_TO_IMAGE: draws}).nodes

    load.pipe.takes.clear()
    done = await house.render("film", nodes(1.0))
    rows = list(house.nodes("film").values())
    scores, chosen = scores_of(rows), picked(rows)
    assert (done.status, sorted(scores), len(load.pipe.takes)) == (JobStatus.SUCCEEDED, [1, 2, 3], 6)
    best = max(scores, key=lambda take: (scores[take], -take))
    assert chosen is not None
    assert chosen.id == ("a.clip" if best == 1 else f"a.clip.{best}")
    assert done.warnings[-1].endswith(f"the film uses take {best}")
    load.pipe.takes.clear()
    await house.render("enough", nodes(scores[1]))
    assert house.nodes("enough")["a.clip.2"].artifact is None
    assert load.pipe.takes == [], "all of it was in the store"
    assert house.nodes("enough")["a.pick"].artifact == house.nodes("film")["a.clip"].artifact
    for replica in house.replicas:
        replica.close()
    house.ledger.close()
