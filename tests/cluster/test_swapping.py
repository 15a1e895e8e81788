"""Two models that each need all the GPUs there are: one makes room for the other as soon as that is of use.

Keyframes by one card, clips by another, on GPUs that hold one replica of either; replicas that are too many would stay
for five minutes. All but the model is real, and in the last test the model too.
"""

from __future__ import annotations

import pytest
import yaml

from configs.load import casting, load_cards, load_settings
from serve_app.deployments import ModelDeployment
from tests.cluster.conftest import Deploy, Running
from workflows.durable.rows import EventType, NewJob
from workflows.plan import plan_film
from workflows.storyboard import parse_storyboard
from workflows.types import JobStatus, Stage

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

IDLE_S = 300.0
GPUS = 4
"""All that the cluster of these tests has."""
ALL = f"{{min_replicas: 0, replicas: 1, num_gpus: {GPUS}, num_cpus: 0.1}}"


@pytest.fixture(scope="module")
def running(deploy: Deploy, tmp_path_factory: pytest.TempPathFactory) -> Running:
    cards = tmp_path_factory.mktemp("cards")
    tree = load_cards(load_settings("ci", [], {}))["placeholder"].model_dump(mode="json", exclude_unset=True)
    (cards / "clips.yaml").write_text(yaml.safe_dump({**tree, "name": "clips"}))
    return deploy([f"models.card_dirs=[{cards}]", "models.text_to_video=clips", "models.image_to_video=clips",
                   f"models.default_replicas={ALL}", f"models.scaling.idle_s={IDLE_S:g}", "models.scaling.look_s=0.5",
                   "models.scaling.load_s=1", "models.scaling.yield_s=1"])


def shots(title: str, number: int, sleep_s: float, mode: str) -> str:
    """Shots of so many seconds, and as many for the keyframe where they start with one."""
    prompts = "".join(f"  - {{prompt: {title} {shot} sleep={sleep_s}, mode: {mode}}}\n" for shot in range(number))
    return f"title: {title}\nsize: 64x64\nfps: 8\ndefaults: {{frames: 9, steps: 10}}\nshots:\n{prompts}"


def submit_pictures(running: Running, storyboard: str, job_id: str) -> None:
    """The keyframes of the shots, and nothing else."""
    plan = plan_film(parse_storyboard(storyboard), cards=casting(running.settings, load_cards(running.settings)),
                     last_stage=Stage.IMAGES)
    running.ledger.submit(NewJob(id=job_id, title=job_id, document={"title": job_id}, nodes=plan.nodes))


def turns(running: Running, *job_ids: str) -> int:
    """Processes that computed for these jobs."""
    lines = [line for job_id in job_ids for line in running.kernel_lines(job_id)]
    return len({pid for _, _, _, pid, _ in lines})


def test_a_films_clips_do_not_wait_for_the_keyframes_model_to_be_idle_for_long(running: Running) -> None:
    running.submit(shots("one", 3, 0.3, "keyframe"), "one")
    done = running.wait("one", timeout_s=IDLE_S / 3)
    assert done.status is JobStatus.SUCCEEDED
    assert turns(running, "one") == 2


def test_with_work_for_both_neither_waits_for_the_others_end(running: Running) -> None:
    """Many interactive keyframes, and beside them a few clips as batch work."""
    submit_pictures(running, shots("long", 100, 0.4, "keyframe"), "long")
    running.until(lambda: running.starts("long") > 0, IDLE_S / 3)
    running.submit(shots("few", 4, 0.4, "text_to_video"), "few", "batch")
    assert running.wait("few", timeout_s=IDLE_S / 3).status is JobStatus.SUCCEEDED
    assert not running.view("long").status.is_terminal
    assert running.wait("long", timeout_s=IDLE_S / 3).status is JobStatus.SUCCEEDED
    assert all(node.failures == 0 for job_id in ("few", "long") for node in running.ledger.nodes(job_id))
    # Keyframes, clips, keyframes; a turn is many shots.
    assert turns(running, "few", "long") <= 5


def test_a_clip_whose_turn_is_over_goes_on_at_its_checkpoint_in_the_next(deploy: Deploy) -> None:
    """A real clip of a thousand steps as batch work, and pictures that somebody waits for."""
    running = deploy(["models.text_to_video=sketch", "models.image_to_video=sketch", f"models.default_replicas={ALL}",
                      f"models.scaling.idle_s={IDLE_S:g}", "models.scaling.look_s=0.5", "models.scaling.load_s=2",
                      "models.checkpoints.share=1", "models.checkpoints.interval_s=0", "models.drain_s=60",
                      "models.torch_threads=1"], model=ModelDeployment)
    running.submit("title: clip\nsize: 128x128\nfps: 8\ndefaults: {frames: 9, steps: 1000}\n"
                   "shots: [{prompt: a red ball moves right over a white background}]\n", "clip", "batch")
    running.until(lambda: bool(running.events("clip", EventType.NODE_STARTED)), IDLE_S / 3)
    submit_pictures(running, shots("pictures", 4, 0, "keyframe"), "pictures")
    assert running.wait("pictures", timeout_s=IDLE_S / 3).status is JobStatus.SUCCEEDED
    assert not running.view("clip").status.is_terminal
    assert running.wait("clip", timeout_s=IDLE_S).status is JobStatus.SUCCEEDED
    node = next(node for node in running.ledger.nodes("clip") if node.id == "s1.clip")
    assert node.failures == 0
    assert running.store.manifest(node.key)["made"]["resumed_after_step"] > 0
