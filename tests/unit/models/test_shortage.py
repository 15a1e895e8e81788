"""After a replica's last rung: another replica, a smaller size, a slate. Real replicas behind a real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.memory import Placement, smaller_sizes
from configs.model_card import Memory, ModelCard, Peak, SizeRule, Task
from tests.fakes_models import ScriptedLoad, scripted_card
from tests.families import BY_NAME
from tests.house import House
from tests.scarce import ScarceLoad
from tests.studio import QUICK
from workflows.durable.rows import NodeRow
from workflows.durable.shortage import payload_of, tries
from workflows.errors import GpuOutOfMemory, ModelFailed
from workflows.media.decode import read_picture
from workflows.media.probe import probe
from workflows.plan import plan_film, plan_keys
from workflows.storyboard import parse_storyboard
from workflows.types import JobStatus, NodeKind, NodeSpec, NodeStatus, Stage, content_key

PX_96 = 2 * 4 * 48 * 48
"""Numbers of the latents of a 96x96 picture of the tiny SDXL, for prompt and negative prompt at once."""
FULL = dict.fromkeys(Placement, PX_96 - 1)
"""A GPU that holds no such picture, whatever is moved off it."""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    for replica in house.replicas:
        replica.close()
    house.ledger.close()


@pytest.fixture
def sdxl(checkpoints: Path) -> ModelCard:
    return BY_NAME["sdxl"].card(checkpoints)


def pictures(card: ModelCard, **fields: Any) -> tuple[NodeSpec, ...]:
    """Of a film of two shots, 96x96."""
    board = {"size": "96x96", "shots": [{"prompt": "a red ball"}, {"prompt": "a blue ball"}], **fields}
    return plan_film(parse_storyboard(json.dumps(board)), cards={Task.TEXT_TO_IMAGE: card},
                     last_stage=Stage.IMAGES).nodes


async def test_what_does_not_fit_one_replica_is_made_by_another(house: House, sdxl: ModelCard) -> None:
    small, large = ScarceLoad(FULL), ScarceLoad()
    router = house.serve(sdxl, house.replica(sdxl, small), house.replica(sdxl, large))
    done = await house.render("film", pictures(sdxl))
    assert done.status is JobStatus.SUCCEEDED
    failed = [node for node in house.nodes("film").values() if node.failures]
    assert failed
    assert all(node.failures == 1 for node in failed), "the second try went to the replica that has the memory"
    assert len(done.warnings) == len(failed)
    assert all("ran out of GPU memory before" in warning and "96x96, 1 frames do not fit" in warning
               for warning in done.warnings)
    assert {0, 1} <= set(router.asked)
    assert {node.key for node in house.nodes("film").values()} == {
        node.artifact.key for node in house.nodes("film").values() if node.artifact}, "the same pixels, the same keys"


async def test_what_fits_no_replica_is_made_smaller_where_the_film_allows_it(house: House, sdxl: ModelCard) -> None:
    house.serve(sdxl, house.replica(sdxl, load := ScarceLoad(FULL)))
    nodes = pictures(sdxl, on_out_of_memory="smaller")
    assert plan_keys(nodes) == plan_keys(pictures(sdxl)), "what may be done in need decides no result"
    first = await house.render("film", nodes[:1])
    assert first.status is JobStatus.SUCCEEDED
    node, (width_px, height_px) = house.nodes("film")["s1.keyframe"], nodes[0].payload["smaller"][0]  # type: ignore
    assert (node.failures, node.attempt) == (QUICK.attempts, QUICK.attempts + 1)
    [warning] = first.warnings
    assert warning.startswith(f"s1.keyframe: 96x96 fits no GPU here, so it was rendered at {width_px}x{height_px}")
    assert node.artifact is not None
    made = read_picture(house.store.fetch(node.artifact))
    assert made.shape[:2] == (height_px, width_px)
    smaller = {**nodes[0].payload, "width_px": width_px, "height_px": height_px}
    assert node.artifact.key == content_key(NodeKind.KEYFRAME, smaller, ())
    assert house.store.find(node.key) is None, "it stands in for nothing on a GPU that has the memory"
    load.calls.clear()
    again = await house.render("again", nodes[:1])
    assert (again.warnings, house.nodes("again")["s1.keyframe"].artifact) == (first.warnings, node.artifact)
    assert {size for _, size in load.calls} == {PX_96}, "the smaller one was found"


async def test_what_is_foretold_to_fit_nowhere_here_is_made_smaller_too(house: House, sdxl: ModelCard) -> None:
    card = sdxl.model_copy(update={"memory": Memory(
        weights_gb={"unet": 1.0, "vae": 1.0}, source="us",
        peaks=(Peak(shape="96x96", gb=90.0, how="measured", source="us"),))})
    house.serve(card, house.replica(card, load := ScarceLoad(), room=30.0))
    load.calls.clear()
    done = await house.render("film", pictures(card, on_out_of_memory="smaller")[:1])
    assert done.status is JobStatus.SUCCEEDED
    assert any("96x96 fits no GPU here, so it was rendered at 64x64" in warning for warning in done.warnings)
    assert PX_96 not in [size for _, size in load.calls]


async def test_a_film_goes_on_whatever_its_shots_lack(house: House) -> None:
    """One shot is made smaller, what continues it is not, one fits nowhere and is a slate; the film has its size."""
    card = scripted_card(Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO)
    load = ScriptedLoad()
    house.serve(card, house.replica(card, load))
    most = {"a": 32, "c": 0}

    def denoise(step: int) -> None:
        take = load.pipe.takes[-1]
        if take["width"] > most.get(take["prompt"], 1000):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    load.pipe.denoise = denoise
    board = {"on_out_of_memory": "smaller", "missing": "slate", "shots": [
        {"prompt": "a"}, {"prompt": "b", "continues": "s1"}, {"prompt": "c"}, {"prompt": "d"}]}
    nodes = plan_film(parse_storyboard(json.dumps(board)),
                      cards=dict.fromkeys((Task.TEXT_TO_VIDEO, Task.IMAGE_TO_VIDEO), card)).nodes
    done = await house.render("film", nodes)
    made = house.nodes("film")
    assert done.status is JobStatus.PARTIAL
    assert {name: node.status for name, node in made.items() if node.status is not NodeStatus.SUCCEEDED} == {
        "s3.clip": NodeStatus.FAILED}
    error = made["s3.clip"].error
    assert error is not None
    assert (error.type, made["s3.clip"].failures) == ("GpuOutOfMemory", QUICK.attempts + 1)
    sizes = {}
    for name in ("s1.clip", "s2.clip", "s4.clip", "compose"):
        artifact = made[name].artifact
        assert artifact is not None
        sizes[name] = (probe(house.store.fetch(artifact)).width_px, probe(house.store.fetch(artifact)).height_px)
    assert sizes == {"s1.clip": (32, 16), "s2.clip": (64, 32), "s4.clip": (64, 32), "compose": (64, 32)}
    assert any("the first frame is 32x16, the clip 64x32: scaled" in warning for warning in done.warnings)
    assert any("s1.clip: 64x32 fits no GPU here, so it was rendered at 32x16" in warning for warning in done.warnings)
    assert "shot s3 is missing: a slate stands in its place" in done.warnings


def row(**changes: Any) -> NodeRow:
    planned = NodeRow.planned("film", NodeSpec(id="s1.clip", kind=NodeKind.CLIP, payload={
        "width_px": 64, "height_px": 32, "smaller": [[48, 24], [32, 16]]}), ord=0)
    return replace(planned, **changes)


@pytest.mark.parametrize(("failures", "width_px"), [(0, 64), (2, 64), (3, 48), (4, 32), (9, 32)])
def test_a_director_that_takes_over_goes_on_where_the_row_says(failures: int, width_px: int) -> None:
    payload = payload_of(row(failures=failures), QUICK)
    assert payload["width_px"] == width_px
    assert payload["height_px"] == width_px // 2


def test_only_a_lack_of_memory_makes_smaller() -> None:
    lack, other = (kind(node_id="s1.clip", reason="?") for kind in (GpuOutOfMemory, ModelFailed))
    assert (tries(lack, row(), QUICK), tries(other, row(), QUICK)) == (QUICK.attempts + 2, QUICK.attempts)
    assert tries(lack, row(payload={}), QUICK) == QUICK.attempts


@pytest.mark.parametrize(("rule", "size", "found"), [
    (SizeRule(multiple_px=16, min_px=256), (832, 480), ((576, 336), (416, 256))),
    (SizeRule(multiple_px=64, min_px=256), (1024, 576), ((704, 384),)),
    (SizeRule(multiple_px=8, min_px=512), (1024, 1024), ((728, 728), (512, 512))),
    (SizeRule(multiple_px=32, min_px=128), (192, 128), ()),
    (SizeRule(multiple_px=8, min_px=512), (512, 512), ()),
])
def test_smaller_sizes_keep_the_form_and_the_models_rule(
        rule: SizeRule, size: tuple[int, int], found: tuple[tuple[int, int], ...]) -> None:
    assert smaller_sizes(rule, *size) == found


def test_a_model_without_a_smaller_size_is_named() -> None:
    card = scripted_card().model_copy(update={"size": SizeRule(multiple_px=32, min_px=32, max_px=64)})
    board = {"on_out_of_memory": "smaller", "shots": [{"prompt": "a"}]}
    made = plan_film(parse_storyboard(json.dumps(board)), cards=dict.fromkeys(Task, card))
    assert any("model scripted has no smaller size of the form of 64x32" in warning for warning in made.warnings)
    assert "smaller" not in made.nodes[0].payload
