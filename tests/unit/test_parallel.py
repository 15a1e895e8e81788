"""Several GPUs for one call, as far as card and capacity say: what is refused, what is part of a digest."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from configs.memory import Remedies, default_shape, need_of, rungs_of, share_of
from configs.model_card import CallDefaults, ModelCard, Resources, Task
from configs.parallel import Parallel
from configs.settings import ModelsSettings, ReplicaSettings, Settings
from serve_app.capacity import check_resources
from workflows.errors import ImpossibleResources
from workflows.plan import plan_film
from workflows.storyboard import parse_storyboard
from workflows.types import NodeKind


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


@pytest.mark.parametrize(("beside", "value"), [
    ("batch", {"batch": 2, "pipelines": {Task.TEXT_TO_IMAGE: "FluxPipeline"}}),
    ("draft.cache", {"draft": {"cache": {"threshold": 0.1}, "approximations": "steps are guessed"}}),
    ("options.compile", {"options": {"compile": "regional"}}), ("options.offload", {"options": {"offload": "model"}})])
def test_what_each_process_would_decide_alone_is_refused(beside: str, value: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=f"`parallel` does not go with {beside}; take one of the two out"):
        card(parallel={"ulysses": 2}, **value)


def test_a_replica_gets_its_gpus_by_itself_and_no_remedy_for_one_process_alone() -> None:
    known = {"weights_gb": {"transformer": 10.0}, "source": "test", "peaks": [
        {"gb": 30.0, "shape": "32x32, 16 frames", "how": "measured", "source": "test"}]}
    one, two = card(memory=known), card(memory=known, parallel={"ulysses": 2})
    models = ModelsSettings(gpu_memory_gb=80.0)
    assert share_of(one, models).gpus < 1
    assert str(share_of(two, models)) == "2 GPUs per replica: 2 GPUs per call (ulysses 2)"
    assert need_of(one, default_shape(one)) is not None
    assert need_of(two, default_shape(two)) is None
    assert len(rungs_of(one)) > 1
    assert rungs_of(two) == (Remedies(),)
    assert [effect.option for effect in two.effects()] == ["parallel"]


@pytest.mark.parametrize(("num_gpus", "refused"), [(1, True), (2, False), (4, True)])
def test_a_replica_gets_as_many_gpus_as_share_a_call(num_gpus: float, refused: bool) -> None:
    shared = card(parallel={"ulysses": 2}, resources=Resources(num_gpus=num_gpus))
    if not refused:
        return check_resources(Settings(), [shared], {"GPU": 8.0})
    with pytest.raises(ImpossibleResources, match=r"asks for \d GPUs.*among 2; nearest valid: resources.num_gpus: 2"):
        check_resources(Settings(), [shared], {"GPU": 8.0})


def test_a_share_that_was_set_is_corrected_where_it_was_set() -> None:
    settings = Settings(models=ModelsSettings(default_replicas=ReplicaSettings(num_gpus=1)))
    with pytest.raises(ImpossibleResources, match=r"nearest valid: --set models\.by_card\.wan\.num_gpus=2"):
        check_resources(settings, [card(parallel={"ulysses": 2})], {"GPU": 8.0})


def test_every_gpu_of_a_call_is_in_the_payload_to_be_charged() -> None:
    board = parse_storyboard('{"title": "T", "shots": [{"prompt": "a dog"}]}')
    for parallel, gpus in ((None, None), ({"ulysses": 2}, 2)):
        plan = plan_film(board, cards=dict.fromkeys(Task, card(parallel=parallel)))
        (clip,) = (node for node in plan.nodes if node.kind is NodeKind.CLIP)
        assert clip.payload.get("gpus") == gpus


def test_a_machine_without_gpus_shares_a_call_among_processes() -> None:
    check_resources(Settings(), [card(parallel={"ulysses": 2}, resources=Resources(num_gpus=1))], {"CPU": 8.0})
