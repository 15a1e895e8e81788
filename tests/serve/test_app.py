"""What is deployed with which share of a GPU, and what is refused before Serve waits for it for ever."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from configs.load import SettingsError, casting, edit_cards, load_cards, load_settings
from configs.model_card import Task
from configs.settings import Settings
from serve_app.app import build
from serve_app.capacity import check_labels, check_resources, gpus_of
from serve_app.director import lane_capacity
from serve_app.session import require_free
from workflows.errors import ImpossibleResources, StartFailed

NO_GPU = {"CPU": 8.0}
ONE_GPU = {"CPU": 8.0, "GPU": 1.0}


def settings_of(*overrides: str) -> Settings:
    return load_settings("laptop", overrides, {})


@pytest.mark.parametrize(("overrides", "cluster", "share"), [
    ((), ONE_GPU, 0.5), ((), NO_GPU, 0.0), (("models.device=cpu",), ONE_GPU, 0.0),
    (("models.by_card.sketch.num_gpus=0.25",), ONE_GPU, 0.25), (("models.device=cuda",), NO_GPU, 0.5),
], ids=["the card's own", "no GPU, auto", "cpu wanted", "setting wins", "cuda is insisted on"])
def test_a_replica_takes_its_share(overrides: tuple[str, ...], cluster: dict[str, float], share: float) -> None:
    settings = settings_of(*overrides)
    assert gpus_of(load_cards(settings)["sketch"], settings, cluster) == share


@pytest.mark.parametrize(("overrides", "cluster", "text"), [
    (("models.default_replicas.replicas=3",), ONE_GPU,
     "the models need 1.5 GPUs (sketch 3 x 0.5) but the cluster has 1"),
    (("models.device=cuda",), NO_GPU, "the models need 1 GPUs (sketch 2 x 0.5) but the cluster has 0"),
    (("models.default_replicas.num_gpus=1.5",), {"CPU": 8.0, "GPU": 8.0},
     "card sketch asks for 1.5 GPUs per replica; above 1 only whole numbers; nearest 1 or 2"),
], ids=["too many replicas", "no GPU at all", "one and a half"])
def test_what_could_never_start_is_refused_with_what_the_cluster_has(
    overrides: tuple[str, ...], cluster: dict[str, float], text: str,
) -> None:
    settings = settings_of(*overrides)
    with pytest.raises(ImpossibleResources) as caught:
        build(settings, cluster=cluster)
    assert text in str(caught.value)


@pytest.mark.parametrize(("device", "hinted"), [("cuda", False), ("auto", True)])
def test_logical_gpus_are_proposed_only_to_models_that_can_do_without(device: str, hinted: bool) -> None:
    with pytest.raises(ImpossibleResources) as caught:
        build(settings_of(f"models.device={device}", "models.default_replicas.replicas=3"), cluster=ONE_GPU)
    assert ("ray.num_gpus" in str(caught.value)) is hinted
    assert "name one card for several tasks, or `placeholder` for a task" in str(caught.value)


GROWS = ("ray.address=auto", "ray.max_gpus=4", "models.device=cuda")


@pytest.mark.parametrize("replicas", ["{replicas: 8}", "{replicas: 64, min_replicas: 0}",
                                      "{replicas: 99, min_replicas: 8}"])
def test_a_cluster_that_grows_is_measured_by_what_it_can_become(replicas: str) -> None:
    build(settings_of(*GROWS, f"models.default_replicas={replicas}"), cluster=NO_GPU)


@pytest.mark.parametrize(("replicas", "text"), [
    ("{replicas: 9}", "the models need 4.5 GPUs (sketch 9 x 0.5) but the cluster can have (ray.max_gpus) 4"),
    ("{replicas: 20, min_replicas: 10}", "the models need 5 GPUs (sketch 10 x 0.5) but the cluster can have"),
    ("{replicas: 8, min_replicas: 0, num_gpus: 5}", "the models need 5 GPUs (sketch 0 x 5) but the cluster can have"),
])
def test_what_not_even_the_grown_cluster_has_is_refused(replicas: str, text: str) -> None:
    with pytest.raises(ImpossibleResources) as caught:
        build(settings_of(*GROWS, f"models.default_replicas={replicas}"), cluster=NO_GPU)
    assert text in str(caught.value)


HEAD = {"Alive": True, "Labels": {"pool": "head", "ray.io/node-id": "f"}}
GONE = {"Alive": False, "Labels": {"pool": "spot"}}


@pytest.mark.parametrize("overrides", [
    (), ("ray.service_labels={pool: head}",), ("ray.service_labels={pool: '!spot'}",),
    (*GROWS, "models.default_replicas={labels: {pool: spot}}")])
def test_labels_that_a_machine_has_or_may_get_are_taken(overrides: tuple[str, ...]) -> None:
    check_labels(settings_of(*overrides), [HEAD, GONE])


@pytest.mark.parametrize(("overrides", "setting"), [
    (("ray.service_labels={pool: spot}",), "ray.service_labels"),
    ((*GROWS, "ray.service_labels={pool: spot}"), "ray.service_labels"),
    (("models.by_card.sketch={labels: {pool: spot}}",), "models.by_card.sketch.labels"),
])
def test_labels_that_no_machine_has_are_refused_before_serve_waits_for_one(
    overrides: tuple[str, ...], setting: str,
) -> None:
    with pytest.raises(ImpossibleResources) as caught:
        check_labels(settings_of(*overrides), [HEAD, GONE])
    assert f"{setting}: no machine of the cluster has the labels {{'pool': 'spot'}}" in str(caught.value)


def test_what_fits_is_not_refused() -> None:
    settings = settings_of()
    cards = {card.name: card for card in casting(settings, load_cards(settings)).values()}
    check_resources(settings, cards.values(), ONE_GPU)
    check_resources(settings, cards.values(), NO_GPU)


@pytest.mark.parametrize(("http", "root"), [(True, "ingress"), (False, "director")], ids=["serving", "embedded"])
def test_http_stands_in_front_of_the_director_only_where_it_is_asked_for(http: bool, root: str) -> None:
    assert build(settings_of(), cluster=ONE_GPU, http=http)._bound_deployment.name == root


def test_a_port_that_is_taken_is_named_before_anything_is_started() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed, match=f"cannot listen on 127.0.0.1 port {port}; choose another with --set"):
            require_free(settings_of(f"http.port={port}").http)


def test_every_lane_holds_two_calls_per_replica() -> None:
    settings = settings_of("models.by_card.sketch.replicas=3", "models.text_to_image=placeholder", "cpu_slots=4")
    assert lane_capacity(settings, casting(settings, load_cards(settings))) == {
        "sketch": 6, "placeholder": 4, "cpu": 4, "story": settings.story.parallel}


def test_a_lane_of_pictures_that_share_a_run_holds_two_batches_per_replica(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(
        "name: many\ntitle: many\nrepo: nowhere\npipelines: {text_to_image: FluxPipeline}\nbatch: 4\n"
        "defaults: {guidance: 0, width_px: 64, height_px: 64}\n")
    settings = settings_of(f"models.card_dirs=[{tmp_path}]", "models.text_to_image=many",
                           "models.by_card.many.replicas=2")
    assert lane_capacity(settings, casting(settings, load_cards(settings)))["many"] == 16


def test_scripts_for_a_language_model_have_a_lane_of_their_own() -> None:
    settings = settings_of("story.writer=llm", "story.api_url=http://127.0.0.1:9/v1", "story.model_name=x",
                           "story.parallel=3")
    assert lane_capacity(settings, casting(settings, load_cards(settings)))["story"] == 3


WRITES = ("story.writer=llm", "story.card=qwen3-4b-instruct")


def test_a_model_that_runs_here_is_deployed_only_where_it_is_asked_and_its_gpus_count() -> None:
    two = {"CPU": 8.0, "GPU": 2.0}
    with pytest.raises(ImpossibleResources, match=r"need 3 GPUs \(sketch 2 x 0.5, qwen3-4b-instruct 2 x 1\)"):
        build(settings_of(*WRITES), cluster=two)
    settings = settings_of(*WRITES, "models.by_card.qwen3-4b-instruct.replicas=1")
    (*_, chat) = build(settings, cluster=two)._bound_deployment.init_args
    assert (chat._bound_deployment.name, chat._bound_deployment.max_ongoing_requests) == ("model-qwen3-4b-instruct", 1)
    assert chat._bound_deployment.ray_actor_options["num_gpus"] == 1
    assert build(settings_of(), cluster=two)._bound_deployment.init_args[-1] is None


def test_stories_of_a_model_that_runs_here_come_one_per_replica() -> None:
    settings = settings_of(*WRITES, "models.by_card.qwen3-4b-instruct.replicas=3")
    assert lane_capacity(settings, casting(settings, load_cards(settings)))["story"] == 3


def test_a_remote_cards_lane_holds_what_its_api_takes_at_once_and_needs_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "far.yaml").write_text(
        "name: far\ntitle: far\nloader: remote\npipelines: {text_to_image: images}\n"
        "remote: {api_url: 'http://127.0.0.1:9/v1', model_name: x, parallel: 5}\n"
        "defaults: {guidance: 0, width_px: 64, height_px: 64}\nresources: {num_gpus: 0}\n")
    settings = settings_of(f"models.card_dirs=[{tmp_path}]", "models.text_to_image=far",
                           "models.by_card.far.replicas=2")
    cast = casting(settings, load_cards(settings))
    assert lane_capacity(settings, cast)["far"] == 10
    assert gpus_of(cast[Task.TEXT_TO_IMAGE], settings, ONE_GPU) == 0


EDITS = ("models.edit_cards=[sam3, instruct-pix2pix]", "models.by_card.instruct-pix2pix.replicas=1",
         "models.by_card.sam3.replicas=1")


def test_what_finds_and_edits_in_videos_is_deployed_where_it_is_asked_for_and_its_gpus_count() -> None:
    needed = r"need 3 GPUs \(sketch 2 x 0.5, sam3 1 x 1, instruct-pix2pix 1 x 1\)"
    with pytest.raises(ImpossibleResources, match=needed):
        build(settings_of(*EDITS), cluster={"CPU": 8.0, "GPU": 2.0})
    three = {"CPU": 8.0, "GPU": 3.0}
    hands = build(settings_of(*EDITS), cluster=three)._bound_deployment.init_kwargs["edits"]
    assert {card: hand._bound_deployment.name for card, hand in hands.items()} == {
        "sam3": "model-sam3", "instruct-pix2pix": "model-instruct-pix2pix"}
    assert build(settings_of(), cluster=three)._bound_deployment.init_kwargs["edits"] == {}
    settings = settings_of(*EDITS)
    cards = load_cards(settings)
    lanes = lane_capacity(settings, casting(settings, cards), edit_cards(settings, cards))
    assert (lanes["sam3"], lanes["instruct-pix2pix"]) == (2, 2)


@pytest.mark.parametrize(("name", "said"), [
    ("sdxl", "models.edit_cards: card 'sdxl' makes films; cards that can: "),
    ("sam4", "no card 'sam4'; did you mean 'sam3'")])
def test_a_card_that_does_not_edit_is_refused_with_those_that_do(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        build(settings_of(f"models.edit_cards=[{name}]"), cluster=ONE_GPU)
