"""Several GPUs for one call, as far as card and capacity say: what is refused, what is part of a digest."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from configs.model_card import CallDefaults, ModelCard, Resources, Task
from configs.parallel import Parallel
from configs.settings import Settings
from serve_app.capacity import check_resources
from workflows.errors import ImpossibleResources


def card(**changes: object) -> ModelCard:
    fields: dict[str, object] = {
        "name": "wan", "title": "Wan", "repo": "somewhere/wan", "pipelines": {Task.TEXT_TO_VIDEO: "WanPipeline"},
        "defaults": CallDefaults(width_px=32, height_px=32)}
    return ModelCard.model_validate({**fields, **changes})


def test_a_degree_is_part_of_the_digest_only_when_there_is_one() -> None:
    assert card(parallel=None).digest() == card().digest()
    two, four = card(parallel={"ulysses": 2}), card(parallel={"ulysses": 2, "ring": 2})
    assert len({card().digest(), two.digest(), four.digest()}) == 3
    assert four.parallel is not None
    assert (four.parallel.degree, str(four.parallel)) == (4, "4 GPUs per call (ulysses 2, ring 2)")


@pytest.mark.parametrize(("parallel", "says"), [
    ({}, "both 1, which is one GPU; nearest valid: ulysses: 2, or no `parallel`"),
    ({"ulysses": 0}, "greater than or equal to 1"),
    ({"ulysses": 2, "ring": 2, "uneven": True}, "not with both; nearest valid: ulysses: 4, ring: 1"),
])
def test_degrees_that_are_none_are_refused(parallel: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Parallel.model_validate(parallel)


def test_only_a_pipeline_can_be_shared_out() -> None:
    with pytest.raises(ValidationError, match="take it out of this placeholder card"):
        card(loader="placeholder", parallel={"ulysses": 2})


@pytest.mark.parametrize(("num_gpus", "refused"), [(1, True), (2, False), (4, True)])
def test_a_replica_gets_as_many_gpus_as_share_a_call(num_gpus: float, refused: bool) -> None:
    shared = card(parallel={"ulysses": 2}, resources=Resources(num_gpus=num_gpus))
    if not refused:
        return check_resources(Settings(), [shared], {"GPU": 8.0})
    with pytest.raises(ImpossibleResources, match=r"asks for \d GPUs.*among 2; nearest valid: resources.num_gpus: 2"):
        check_resources(Settings(), [shared], {"GPU": 8.0})


def test_a_machine_without_gpus_shares_a_call_among_processes() -> None:
    check_resources(Settings(), [card(parallel={"ulysses": 2}, resources=Resources(num_gpus=1))], {"CPU": 8.0})
