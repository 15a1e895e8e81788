"""A shot that finds an idle replica beside it is made by both; afterwards the replicas are what they were before."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from serve_app.deployments import ModelDeployment
from tests.cluster.conftest import Deploy, Running
from tests.families import BY_NAME
from workflows.durable.rows import EventType
from workflows.types import JobStatus

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def running(deploy: Deploy, tmp_path: Path) -> Running:
    """A Director of its own for each test: it learns that two processes on two cores are slower than one."""
    root = tmp_path
    card = BY_NAME["wan_t2v"].card(root, elastic={"ulysses": 2})
    tree = card.model_dump(mode="json", exclude_unset=True)
    (root / "cards").mkdir()
    (root / "cards" / f"{card.name}.yaml").write_text(yaml.safe_dump({
        **tree, "defaults": card.defaults.model_dump(mode="json"), "resources": {"num_gpus": 1, "num_cpus": 0.1}}))
    return deploy([f"models.card_dirs=[{root / 'cards'}]", "models.text_to_video=wan-t2v",
                   "models.default_replicas.replicas=2", "models.torch_threads=1"], model=ModelDeployment)


def film(shots: int, ball: str, steps: int) -> str:
    return f"title: {ball}\nsize: 64x64\nshots:\n" + "".join(
        f"  - {{id: s{number}, prompt: a {ball} ball {number}, frames: 5, steps: {steps}}}\n"
        for number in range(1, shots + 1))


def gpus_of(running: Running, job_id: str) -> list[object]:
    """By clip, in the order in which they ended."""
    return [event.data.get("gpus", 1) for event in running.events(job_id, EventType.NODE_SUCCEEDED)
            if str(event.node_id).endswith(".clip")]


def rendered(running: Running, shots: int, steps: int, number: int = 0) -> str:
    job_id = f"film-{shots}-{number}"
    running.submit(film(shots, job_id, steps), job_id)
    assert running.wait(job_id).status is JobStatus.SUCCEEDED
    assert all(node.attempt == 1 for node in running.ledger.nodes(job_id))
    return job_id


def test_one_shot_is_made_by_both_and_the_event_and_the_manifest_say_so(running: Running) -> None:
    job_id = rendered(running, 1, 4)
    (clip,) = (node for node in running.ledger.nodes(job_id) if node.id == "s1.clip")
    made = running.store.manifest(clip.key)
    assert made is not None
    assert made["made"]["device"] == "2 x cpu"  # type: ignore[index, call-overload]
    (line,) = (event.line for event in running.events(job_id, EventType.NODE_SUCCEEDED) if event.node_id == "s1.clip")
    assert line.endswith(" s on 2 GPUs")


def test_the_last_of_three_shots_waits_for_the_neighbour_and_is_made_by_both(running: Running) -> None:
    """Where that is thought to end sooner: on two cores that play two GPUs the second shot may take too long for it."""
    films = (rendered(running, 3, 150, number) for number in range(6))
    made_by = next(gpus for job_id in films if (gpus := gpus_of(running, job_id))[-1] == 2)
    assert made_by == [1, 1, 2]
